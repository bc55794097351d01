"""Who a server is and who we are to it: host keys and keys of users, strictly."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from flatsat.targets.ssh import SshLink

MakeSshd = Callable[..., Any]
LONG_S = 60.0


# Who the server is.


async def test_a_changed_host_key_is_refused(make_sshd: MakeSshd, ssh: Any) -> None:
    sshd = make_sshd()
    known = sshd.known_hosts
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    error = await ssh.refusal(ssh.link(sshd, known_hosts=known))
    assert "has CHANGED" in error.message
    assert "SHA256:" in error.message
    assert "set up anew" in (error.hint or "")
    assert not (sshd.home / ".cache").exists()


async def test_an_unknown_host_key_is_refused(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path
) -> None:
    sshd = make_sshd()
    file = tmp_path / "known hosts"
    file.write_text("elsewhere " + sshd.known_hosts.split(" ", 1)[1])
    error = await ssh.refusal(ssh.link(sshd, known_hosts=file))
    assert "not known" in error.message
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1 >> '{file}'" in (error.hint or "")


async def test_a_revoked_host_key_is_refused(make_sshd: MakeSshd, ssh: Any) -> None:
    sshd = make_sshd()
    known = sshd.known_hosts + "@revoked " + sshd.known_hosts
    error = await ssh.refusal(ssh.link(sshd, known_hosts=known))
    assert "revoked" in error.message


@pytest.mark.parametrize("form", ["file", "hashed", "lines", "key"])
async def test_known_hosts_in_every_form(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path, form: str
) -> None:
    sshd = make_sshd()
    file = tmp_path / "known"
    file.write_text("# a comment\n" + sshd.known_hosts)
    if form == "hashed":
        argv = ["ssh-keygen", "-q", "-H", "-f", str(file)]
        subprocess.run(argv, check=True, capture_output=True)
        assert "127.0.0.1" not in file.read_text()
    known: dict[str, Any] = {
        "file": str(file),
        "hashed": file,
        "lines": sshd.known_hosts,
        "key": sshd.known_hosts.split(" ", 1)[1],
    }
    await ssh.greet(ssh.link(sshd, known_hosts=known[form]))


@pytest.mark.parametrize(
    ("known", "message"),
    [("/no/such/file", "can't read the file"), ("ssh-ed25519 AAAA", "not in OpenSSH's format")],
)
async def test_unusable_known_hosts_are_named(
    make_sshd: MakeSshd, ssh: Any, known: str, message: str
) -> None:
    error = await ssh.refusal(ssh.link(make_sshd(), known_hosts=known))
    assert message in error.message
    assert error.hint


# Who we are.


async def test_the_agents_keys_serve(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd = make_sshd()
    place = tmp_path / "a.sock"
    keeper = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        while not place.exists():
            assert keeper.poll() is None
        environment = {**os.environ, "SSH_AUTH_SOCK": str(place)}
        argv = ["ssh-add", "-q", str(sshd.key)]
        subprocess.run(argv, check=True, env=environment)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        await ssh.greet(ssh.link(sshd, keys=()))
        # A key file that needs a passphrase is one that the agent holds.
        argv = ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(sshd.key)]
        subprocess.run(argv, check=True, capture_output=True)
        await ssh.greet(ssh.link(sshd), 2)
    finally:
        keeper.kill()
        keeper.wait()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    error = await ssh.refusal(ssh.link(sshd))
    assert "assphrase" in error.message
    assert "ssh-add" in (error.hint or "")


async def test_a_stranger_is_not_let_in(make_sshd: MakeSshd, ssh: Any, tmp_path: Path) -> None:
    sshd = make_sshd()
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
    subprocess.run(argv, check=True)
    for changes in ({"keys": (tmp_path / "other",)}, {"user": "nobody-here"}):
        error = await ssh.refusal(ssh.link(sshd, **changes))
        assert "lets us in with none" in error.message
        assert "authorized_keys" in (error.hint or "")
    error = await ssh.refusal(ssh.link(sshd, keys=(tmp_path / "none",)))
    assert "can't read the key" in error.message
    (tmp_path / "text").write_text("no key")
    error = await ssh.refusal(ssh.link(sshd, keys=(tmp_path / "text",)))
    assert "can't use the key" in error.message


async def test_a_password_serves_where_there_is_no_key(make_sshd: MakeSshd, ssh: Any) -> None:
    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == ("pi", "se cret")

    def serve(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write(process.command or "")
        process.exit(0)

    # Passwords of a real sshd are those of the system.
    host_key = make_sshd().folder / "host_key"
    server = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[str(host_key)], process_factory=serve
    )
    settings = {
        "port": server.get_port(),
        "user": "pi",
        "keys": (),
        "known_hosts": host_key.with_suffix(".pub").read_text(),
    }
    link = SshLink("127.0.0.1", agent=ssh.agent, password="se cret", **settings)
    assert (await link.run_command("hello", LONG_S)).stdout == b"hello"
    error = await ssh.refusal(SshLink("127.0.0.1", agent=ssh.agent, password="other", **settings))
    assert "and a password" in error.message
    server.close()
    await server.wait_closed()
