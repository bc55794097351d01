"""Servers that are none, noisy or crippled ones, and boards that can't run the agent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatsat.targets.board import BoardRefused, LinkDown

MakeSshd = Callable[..., Any]
MEGABYTE = 1 << 20


# Servers that are none, or odd ones.


async def test_nobody_listens(make_sshd: MakeSshd, ssh: Any) -> None:
    sshd = make_sshd()
    sshd.stop()
    error = await ssh.refusal(ssh.link(sshd))
    assert "nothing listens" in error.message
    error = await ssh.refusal(ssh.link(sshd, host="no-such-host.invalid"))
    assert "no host is called 'no-such-host.invalid'" in error.message


async def test_a_server_that_says_nothing_is_given_up(make_sshd: MakeSshd, ssh: Any) -> None:
    sshd = make_sshd()
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        port = dumb.getsockname()[1]
        link = ssh.link(sshd, port=port, known_hosts=sshd.known_hosts.split(" ", 1)[1])
        with pytest.raises(LinkDown, match="no SSH server answered"):
            await link.open(0.3)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"noise" * MEGABYTE, b""])
async def test_a_server_of_another_kind_is_told(make_sshd: MakeSshd, ssh: Any, said: bytes) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(said)
            await writer.drain()
        writer.close()

    sshd = make_sshd()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    known = sshd.known_hosts.split(" ", 1)[1]
    error = await ssh.refusal(ssh.link(sshd, port=port, known_hosts=known))
    assert "is it an SSH server" in (error.hint or "")
    server.close()


async def test_banners(make_sshd: MakeSshd, ssh: Any, tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    sshd = make_sshd(f"Banner {banner}")
    banner.write_text("Authorised use only. " * 12_000)
    await ssh.greet(ssh.link(sshd))
    # Beyond 256 KiB sshd itself breaks off, and no client gets in.
    banner.write_text("Authorised use only. " * 49_000)
    error = await ssh.refusal(ssh.link(sshd))
    assert "ended the connection" in error.message


NOISE = """
echo Welcome to board 7
python3 -c 'import sys; sys.stdout.write("flatsat:" * 131072); sys.stderr.write("e" * 1000000)'
printf 'no end of line'
"""


async def test_noisy_start_up_files(make_sshd: MakeSshd, ssh: Any, tmp_path: Path) -> None:
    # What a login shell prints comes before everything, sftp's replies included.
    profile = tmp_path / "profile"
    profile.write_text(NOISE)
    login = f'. {profile}; case "$SSH_ORIGINAL_COMMAND" in "") exec sftp-server;; esac; '
    login += 'eval "$SSH_ORIGINAL_COMMAND"'
    sshd = make_sshd(f"ForceCommand {login}", "MaxSessions 1")
    await ssh.greet(ssh.link(sshd))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo not for you; exit 3", "not for you"),
        ("echo $SSH_ORIGINAL_COMMAND", "flatsat"),
        ("cat", ""),
        ("true", ""),
    ],
)
async def test_a_forced_command_is_told(
    make_sshd: MakeSshd, ssh: Any, command: str, told: str
) -> None:
    sshd = make_sshd(authorized=f'command="{command}"')
    error = await ssh.refusal(ssh.link(sshd))
    assert "ran something else" in error.message
    assert "forced command" in (error.hint or "")
    if told != "flatsat":
        assert told in error.message


async def test_a_forced_command_without_end_is_given_up(make_sshd: MakeSshd, ssh: Any) -> None:
    error = await ssh.refusal(ssh.link(make_sshd(authorized='command="yes"')))
    assert "talks without end" in error.message
    link = ssh.link(make_sshd("ForceCommand sleep 5"))
    with pytest.raises(LinkDown, match="did not answer within"):
        await link.open(1.0)
    await link.close()


async def test_a_server_that_allows_no_session(make_sshd: MakeSshd, ssh: Any) -> None:
    error = await ssh.refusal(ssh.link(make_sshd("MaxSessions 0")))
    assert "allows no session" in error.message


# Boards that can't.


async def test_boards_without_a_fitting_python(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path
) -> None:
    sshd = make_sshd(path=tmp_path)
    error = await ssh.refusal(ssh.link(sshd, python=None))
    assert isinstance(error, BoardRefused)
    assert error.fault.code == "no-python"
    assert "install python3" in (error.hint or "")
    error = await ssh.refusal(ssh.link(sshd, python="/no/such/python"))
    assert "no interpreter /no/such/python" in error.message
    # A new one that believes itself to be an old one.
    old = tmp_path / "old"
    code = "import sys; sys.version_info = (3, 6, 9)"
    argv = "sys.argv = sys.argv[sys.argv.index('-c') + 1:]"
    old.write_text(f"#!{sys.executable}\n{code}\n{argv}\nexec(sys.argv[0])\n")
    old.chmod(0o755)
    error = await ssh.refusal(ssh.link(sshd, python=str(old)))
    assert "3.6.9, which is too old" in error.message


async def test_a_full_disk_is_told(make_sshd: MakeSshd, ssh: Any, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        error = await ssh.refusal(ssh.link(make_sshd(), store=str(small / "store")))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert isinstance(error, BoardRefused)
    assert error.fault.code == "disk-full"
    assert "no room" in error.message


async def test_a_store_that_cannot_be_made_is_told(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path
) -> None:
    sshd = make_sshd()
    (tmp_path / "file").write_text("")
    error = await ssh.refusal(ssh.link(sshd, store=str(tmp_path / "file" / "store")))
    assert isinstance(error, BoardRefused)
    assert "Not a directory" in error.message
    error = await ssh.refusal(ssh.link(sshd, store="/proc/flatsat"))
    assert isinstance(error, BoardRefused)
