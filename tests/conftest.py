"""Real peers for every room that talks to boards: an SSH server on loopback, an emulated board."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from flatsat.targets.pool import LocalPool
from flatsat.targets.qemu import QemuBoard
from flatsat.targets.qemu_image import Image, build_image
from flatsat.targets.qemu_keeper import Kept, find_keeper, start_keeper, stop_keeper
from flatsat.targets.qemu_tools import missing_tools

if TYPE_CHECKING:
    from flatsat.targets.board import Lease

SshdFactory = Callable[..., "Sshd"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _escaped(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


class Sshd:
    """An `sshd` of our own on an unprivileged port, with its own keys and configuration.

    Args:
        folder: for its files.
        options: further lines of its configuration.
        home: what the sessions' HOME is set to.
        path: what their PATH is set to, or None for the server's choice.
        authorized: options before the key in authorized_keys.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        home: Path | None = None,
        path: Path | None = None,
        authorized: str = "",
    ) -> None:
        self.folder = folder
        self.home = home or folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.user = getpass.getuser()
        self.key = self._keygen("user_key")
        self.new_host_key()
        public = (folder / "user_key.pub").read_text()
        (folder / "authorized_keys").write_text(f"{authorized} {public}".lstrip())
        environment = {"HOME": self.home, **({} if path is None else {"PATH": path})}
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
            # Of several such lines sshd heeds the first.
            "SetEnv " + " ".join(f'"{key}={_escaped(at)}"' for key, at in environment.items()),
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
        # Its sessions hold its standard error, too.
        server = psutil.Process(self._process.pid)
        for member in [server, *server.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._process.communicate()
        self._process = None

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

    def board_settings(self) -> dict[str, object]:
        """Return what a lab says of this machine as a board of kind `linux` behind the server."""
        way = {
            "via": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "key": str(self.key),
            "known_hosts": self.known_hosts,
        }
        return {"links": [way], "python": sys.executable}


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


@dataclass(frozen=True)
class Booted:
    """An emulated board that is up for the whole session of tests; whoever stops it, starts it.

    Attributes:
        board: as in the lab.
        lab: the lab's folder.
    """

    board: QemuBoard
    lab: Path

    @property
    def directory(self) -> Path:
        """The board's folder of the lab."""
        return self.lab / "locks" / self.board.name

    @property
    def kept(self) -> Kept:
        """How it is reached."""
        kept = find_keeper(self.directory)
        assert kept is not None
        return kept

    def lease(self) -> contextlib.AbstractContextManager[Lease]:
        """Lend the board."""
        return LocalPool(self.lab / "locks").acquire(self.board.name, 60.0)

    def bring_up(self) -> None:
        """Start the board again if what a test did to it has taken it down."""
        if find_keeper(self.directory) is None:
            start_keeper(self.board, self.directory)


@pytest.fixture(scope="session")
def board_image() -> Image:
    """Return the emulated board's image, built if it never was."""
    if missing := missing_tools():
        pytest.skip(f"no {missing[0][0]} on this machine ({missing[0][1]})")
    return build_image()


@pytest.fixture(scope="session")
def qemu_board(board_image: Image) -> QemuBoard:
    """Return an emulated board that starts from its saved state."""
    del board_image
    board = QemuBoard(meter="none")
    asyncio.run(board.prepare())
    return board


@pytest.fixture(scope="session")
def booted_board(
    qemu_board: QemuBoard, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Booted]:
    """Return the emulated board `qemu-arm64`, up in a lab of its own."""
    booted = Booted(qemu_board, tmp_path_factory.mktemp("lab"))
    start_keeper(qemu_board, booted.directory)
    yield booted
    stop_keeper(booted.directory)


@pytest.fixture(scope="session")
def qemu_lab(booted_board: Booted) -> Path:
    """Return the folder of a lab whose built-in board `qemu-arm64` is up."""
    return booted_board.lab
