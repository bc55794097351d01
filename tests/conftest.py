"""A real SSH server on loopback, for every room that talks to boards."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

SshdFactory = Callable[..., "Sshd"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sshd:
    """An `sshd` of our own on an unprivileged port, with its own keys and configuration.

    Args:
        folder: for its files.
        options: further lines of its configuration.
        home: what the sessions' HOME is set to.
        authorized: options before the key in authorized_keys.
    """

    def __init__(
        self, folder: Path, *options: str, home: Path | None = None, authorized: str = ""
    ) -> None:
        self.folder = folder
        self.home = home or folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.user = getpass.getuser()
        self.key = self._keygen("user_key")
        self.new_host_key()
        public = (folder / "user_key.pub").read_text()
        (folder / "authorized_keys").write_text(f"{authorized} {public}".lstrip())
        home_text = str(self.home).replace("\\", "\\\\").replace('"', '\\"')
        self._lines = [
            f'HostKey "{folder}/host_key"',
            f'AuthorizedKeysFile "{folder}/authorized_keys"',
            f'PidFile "{folder}/pid"',
            "ListenAddress 127.0.0.1",
            "UsePAM no",
            "UseDNS no",
            "StrictModes no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "PrintMotd no",
            f'SetEnv "HOME={home_text}"',
            *options,
        ]
        if not any(line.startswith("Subsystem") for line in options):
            self._lines.append("Subsystem sftp internal-sftp")
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    def _keygen(self, name: str) -> Path:
        path = self.folder / name
        for old in (path, path.with_suffix(".pub")):
            old.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)]
        subprocess.run(argv, check=True)
        return path

    def new_host_key(self) -> None:
        """Make a host key; the server shows it from its next start on."""
        self._keygen("host_key")

    @property
    def known_hosts(self) -> str:
        """The line that the server's key has in a file of known hosts."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

    def start(self) -> None:
        """Start it, and return when it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text("\n".join([f"Port {self.port}", *self._lines]) + "\n")
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        argv = [sshd, "-D", "-e", "-f", str(config)]
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "Server listening" in line:
                return
        raise AssertionError("sshd did not start: " + "".join(said))

    def sessions(self) -> list[psutil.Process]:
        """Return the processes of its open connections."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children()

    def cut(self) -> None:
        """Kill every open connection, and what runs behind it hears of it."""
        for process in self.sessions():
            family = [process, *process.children(recursive=True)]
            for member in family:
                if "sshd" in member.name():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()

    def stop(self) -> None:
        """End it and everything that it started."""
        if self._process is None:
            return
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.communicate()
        self._process = None
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=60)

    def link_settings(self) -> dict[str, object]:
        """Return what an SshLink needs to get in."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "keys": (self.key,),
            "known_hosts": self.known_hosts,
            "python": sys.executable,
        }


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[SshdFactory]:
    """Return a maker of running SSH servers; they end with the test."""
    if not (shutil.which("sshd") or Path("/usr/sbin/sshd").exists()):
        pytest.skip("no sshd on this machine (apt-get install openssh-server)")
    servers: list[Sshd] = []

    def make(*options: str, **settings: object) -> Sshd:
        folder = tmp_path / f"sshd-{len(servers)}"
        folder.mkdir()
        server = Sshd(folder, *options, **settings)  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.stop()
