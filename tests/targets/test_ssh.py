"""The SSH link against a real sshd on loopback: friendly, strict, noisy, crippled, cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import asyncssh
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flatsat.targets.board import BoardRefused, Lease, LinkDown
from flatsat.targets.links import LinkTimeout
from flatsat.targets.provision import write_agent
from flatsat.targets.session import open_session
from flatsat.targets.ssh import SshLink
from flatsat.targets.ssh_shell import posix
from flatsat.units import TimeKind

MakeSshd = Callable[..., Any]
LONG_S = 60.0
ODD = "a b'c\"d $(id) `id` \\e;é"
MEGABYTE = 1 << 20


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    return write_agent(tmp_path / "agent")


def make_link(sshd: Any, agent: Path, **changes: Any) -> SshLink:
    return SshLink(**{**sshd.link_settings(), "agent": agent, **changes})


async def greet(link: SshLink, folder: Path, epoch: int = 1) -> str:
    """Open a session over the link, close it, and return the board's id."""
    lease = Lease("b", epoch, folder)
    session = await open_session(link, lease, kind="linux", time_kind=TimeKind.WALL)
    await session.close()
    return session.identity.board_id


async def refusal(link: SshLink) -> LinkDown | BoardRefused:
    with pytest.raises((LinkDown, BoardRefused)) as caught:
        await link.open(LONG_S)
    await link.close()
    assert "\n" not in str(caught.value)
    return caught.value


def script(folder: Path, text: str) -> Path:
    """Return an "agent" that is a Python program of ours."""
    path = folder / "flatsat-agent-test.pyz"
    path.write_text(text)
    return path


class Relay:
    """A TCP relay before a server: counts what goes through, cuts it, or lets it run dry."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._pairs: list[asyncio.StreamWriter] = []
        self.up_bytes = 0
        self.limit_bytes: int | None = None
        self._open = asyncio.Event()
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()

    def freeze(self) -> None:
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._pairs += [writer, far_writer]
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pump(reader, far_writer, True), self._pump(far_reader, writer, False)
            )

    async def _pump(self, reader: Any, writer: Any, up: bool) -> None:
        while data := await reader.read(1 << 14):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
            if up:
                self.up_bytes += len(data)
                if self.limit_bytes is not None and self.up_bytes > self.limit_bytes:
                    self.cut()
        writer.close()


@contextlib.asynccontextmanager
async def relayed(sshd: Any) -> AsyncIterator[tuple[Relay, dict[str, Any]]]:
    """Relay a server, and give what an SshLink needs to go through the relay."""
    async with Relay(sshd.port) as relay:
        key = sshd.known_hosts.split(" ", 1)[1]
        yield relay, {"port": relay.port, "known_hosts": key}


# The agent gets there.


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
@example([ODD, "$(id)", "'", "", "-n", "\n"])
def test_any_text_passes_through_a_shell_unchanged(words: list[str]) -> None:
    line = posix('for word; do printf "%s|" "$word"; done', *words)
    shown = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
    assert shown.stdout.decode() == "".join(f"{word}|" for word in words)


@pytest.mark.parametrize("sftp", ["internal-sftp", "none", "broken"])
async def test_the_agent_is_brought_once_and_runs_from_a_home_of_any_name(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path, sftp: str
) -> None:
    subsystem = {"internal-sftp": "internal-sftp", "none": "", "broken": "/bin/false"}[sftp]
    line = f"Subsystem sftp {subsystem}" if subsystem else "Subsystem other /bin/false"
    sshd = make_sshd(line, "MaxSessions 1", home=tmp_path / ODD)
    async with relayed(sshd) as (relay, settings):
        first = await greet(make_link(sshd, agent, **settings), tmp_path)
        cost = relay.up_bytes
        assert cost > agent.stat().st_size
        second = await greet(make_link(sshd, agent, **settings), tmp_path, 2)
        assert relay.up_bytes - cost < agent.stat().st_size
    assert first == second
    store = tmp_path / ODD / ".cache" / "flatsat"
    assert (store / agent.name).read_bytes() == agent.read_bytes()
    assert not list(store.glob("*.part"))


async def test_an_sftp_server_that_hangs_is_done_without(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatsat.targets.ssh_carrier._SFTP_S", 0.5)
    sshd = make_sshd("Subsystem sftp /bin/sleep 5", "MaxSessions 1")
    assert await greet(make_link(sshd, agent), tmp_path)


@pytest.mark.parametrize("store", ["~/x $(id)/'q'", "/{tmp}/ab s'o\"lute"])
async def test_a_store_of_any_name(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path, store: str
) -> None:
    sshd = make_sshd()
    store = store.replace("/{tmp}", str(tmp_path))
    await greet(make_link(sshd, agent, store=store), tmp_path)
    assert (Path(store.replace("~", str(sshd.home))) / agent.name).exists()


async def test_an_interpreter_is_found_where_none_is_named(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    # One that is too old stands first.
    old = folder / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (folder / "python3.11").symlink_to(sys.executable)
    sshd = make_sshd(path=folder)
    assert await greet(make_link(sshd, agent, python=None), tmp_path)


async def test_an_archive_that_rotted_there_is_replaced(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path
) -> None:
    sshd = make_sshd()
    store = sshd.home / ".cache" / "flatsat"
    store.mkdir(parents=True)
    (store / agent.name).write_bytes(b"rotten")
    (store / f"{agent.name}.part").write_bytes(b"rotten, too")
    await greet(make_link(sshd, agent), tmp_path)
    assert (store / agent.name).read_bytes() == agent.read_bytes()


@pytest.mark.parametrize("sftp", [True, False])
async def test_an_upload_goes_on_where_it_was_cut(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path, sftp: bool
) -> None:
    big = tmp_path / agent.name
    shutil.copy(agent, big)
    with zipfile.ZipFile(big, "a") as archive:
        archive.writestr("padding", os.urandom(12 * MEGABYTE))
    sshd = make_sshd()
    async with relayed(sshd) as (relay, settings):
        relay.limit_bytes = 8 * MEGABYTE
        with pytest.raises(LinkDown):
            await make_link(sshd, big, sftp=sftp, **settings).open(LONG_S)
        relay.limit_bytes, relay.up_bytes = None, 0
        partial = sshd.home / ".cache" / "flatsat" / f"{big.name}.part"
        assert partial.stat().st_size > 4 * MEGABYTE
        await greet(make_link(sshd, big, sftp=sftp, **settings), tmp_path)
        assert relay.up_bytes < 9 * MEGABYTE
    assert partial.with_suffix("").read_bytes() == big.read_bytes()


# Who the server is.


async def test_a_changed_host_key_is_refused(make_sshd: MakeSshd, agent: Path) -> None:
    sshd = make_sshd()
    known = sshd.known_hosts
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    error = await refusal(make_link(sshd, agent, known_hosts=known))
    assert "has CHANGED" in error.message
    assert "SHA256:" in error.message
    assert "set up anew" in (error.hint or "")
    assert not (sshd.home / ".cache").exists()


async def test_an_unknown_host_key_is_refused(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path
) -> None:
    sshd = make_sshd()
    file = tmp_path / "known hosts"
    file.write_text("elsewhere " + sshd.known_hosts.split(" ", 1)[1])
    error = await refusal(make_link(sshd, agent, known_hosts=file))
    assert "not known" in error.message
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1 >> '{file}'" in (error.hint or "")


async def test_a_revoked_host_key_is_refused(make_sshd: MakeSshd, agent: Path) -> None:
    sshd = make_sshd()
    known = sshd.known_hosts + "@revoked " + sshd.known_hosts
    error = await refusal(make_link(sshd, agent, known_hosts=known))
    assert "revoked" in error.message


@pytest.mark.parametrize("form", ["file", "hashed", "lines", "key"])
async def test_known_hosts_in_every_form(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path, form: str
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
    await greet(make_link(sshd, agent, known_hosts=known[form]), tmp_path)


@pytest.mark.parametrize(
    ("known", "message"),
    [("/no/such/file", "can't read the file"), ("ssh-ed25519 AAAA", "not in OpenSSH's format")],
)
async def test_unusable_known_hosts_are_named(
    make_sshd: MakeSshd, agent: Path, known: str, message: str
) -> None:
    error = await refusal(make_link(make_sshd(), agent, known_hosts=known))
    assert message in error.message
    assert error.hint


# Who we are.


async def test_the_agents_keys_serve(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        await greet(make_link(sshd, agent, keys=()), tmp_path)
        # A key file that needs a passphrase is one that the agent holds.
        argv = ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(sshd.key)]
        subprocess.run(argv, check=True, capture_output=True)
        await greet(make_link(sshd, agent), tmp_path, 2)
    finally:
        keeper.kill()
        keeper.wait()
    monkeypatch.delenv("SSH_AUTH_SOCK")
    error = await refusal(make_link(sshd, agent))
    assert "assphrase" in error.message
    assert "ssh-add" in (error.hint or "")


async def test_a_stranger_is_not_let_in(make_sshd: MakeSshd, agent: Path, tmp_path: Path) -> None:
    sshd = make_sshd()
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
    subprocess.run(argv, check=True)
    for changes in ({"keys": (tmp_path / "other",)}, {"user": "nobody-here"}):
        error = await refusal(make_link(sshd, agent, **changes))
        assert "lets us in with none" in error.message
        assert "authorized_keys" in (error.hint or "")
    error = await refusal(make_link(sshd, agent, keys=(tmp_path / "none",)))
    assert "can't read the key" in error.message
    (tmp_path / "text").write_text("no key")
    error = await refusal(make_link(sshd, agent, keys=(tmp_path / "text",)))
    assert "can't use the key" in error.message


async def test_a_password_serves_where_there_is_no_key(make_sshd: MakeSshd, agent: Path) -> None:
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
    link = SshLink("127.0.0.1", agent=agent, password="se cret", **settings)
    assert (await link.run_command("hello", LONG_S)).stdout == b"hello"
    error = await refusal(SshLink("127.0.0.1", agent=agent, password="other", **settings))
    assert "and a password" in error.message
    server.close()
    await server.wait_closed()


# Servers that are none, or odd ones.


async def test_nobody_listens(make_sshd: MakeSshd, agent: Path) -> None:
    sshd = make_sshd()
    sshd.stop()
    error = await refusal(make_link(sshd, agent))
    assert "nothing listens" in error.message
    error = await refusal(make_link(sshd, agent, host="no-such-host.invalid"))
    assert "no host is called 'no-such-host.invalid'" in error.message


async def test_a_server_that_says_nothing_is_given_up(make_sshd: MakeSshd, agent: Path) -> None:
    sshd = make_sshd()
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        port = dumb.getsockname()[1]
        link = make_link(sshd, agent, port=port, known_hosts=sshd.known_hosts.split(" ", 1)[1])
        with pytest.raises(LinkDown, match="no SSH server answered"):
            await link.open(0.3)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"noise" * MEGABYTE, b""])
async def test_a_server_of_another_kind_is_told(
    make_sshd: MakeSshd, agent: Path, said: bytes
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(said)
            await writer.drain()
        writer.close()

    sshd = make_sshd()
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    known = sshd.known_hosts.split(" ", 1)[1]
    error = await refusal(make_link(sshd, agent, port=port, known_hosts=known))
    assert "is it an SSH server" in (error.hint or "")
    server.close()


async def test_banners(make_sshd: MakeSshd, agent: Path, tmp_path: Path) -> None:
    banner = tmp_path / "banner"
    sshd = make_sshd(f"Banner {banner}")
    banner.write_text("Authorised use only. " * 12_000)
    await greet(make_link(sshd, agent), tmp_path)
    # Beyond 256 KiB sshd itself breaks off, and no client gets in.
    banner.write_text("Authorised use only. " * 49_000)
    error = await refusal(make_link(sshd, agent))
    assert "ended the connection" in error.message


NOISE = """
echo Welcome to board 7
python3 -c 'import sys; sys.stdout.write("flatsat:" * 131072); sys.stderr.write("e" * 1000000)'
printf 'no end of line'
"""


async def test_noisy_start_up_files(make_sshd: MakeSshd, agent: Path, tmp_path: Path) -> None:
    # What a login shell prints comes before everything, sftp's replies included.
    profile = tmp_path / "profile"
    profile.write_text(NOISE)
    login = f'. {profile}; case "$SSH_ORIGINAL_COMMAND" in "") exec sftp-server;; esac; '
    login += 'eval "$SSH_ORIGINAL_COMMAND"'
    sshd = make_sshd(f"ForceCommand {login}", "MaxSessions 1")
    await greet(make_link(sshd, agent), tmp_path)


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
    make_sshd: MakeSshd, agent: Path, command: str, told: str
) -> None:
    sshd = make_sshd(authorized=f'command="{command}"')
    error = await refusal(make_link(sshd, agent))
    assert "ran something else" in error.message
    assert "forced command" in (error.hint or "")
    if told != "flatsat":
        assert told in error.message


async def test_a_forced_command_without_end_is_given_up(make_sshd: MakeSshd, agent: Path) -> None:
    error = await refusal(make_link(make_sshd(authorized='command="yes"'), agent))
    assert "talks without end" in error.message
    link = make_link(make_sshd("ForceCommand sleep 5"), agent)
    with pytest.raises(LinkDown, match="did not answer within"):
        await link.open(1.0)
    await link.close()


async def test_a_server_that_allows_no_session(make_sshd: MakeSshd, agent: Path) -> None:
    error = await refusal(make_link(make_sshd("MaxSessions 0"), agent))
    assert "allows no session" in error.message


# Boards that can't.


async def test_boards_without_a_fitting_python(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path
) -> None:
    sshd = make_sshd(path=tmp_path)
    error = await refusal(make_link(sshd, agent, python=None))
    assert isinstance(error, BoardRefused)
    assert error.fault.code == "no-python"
    assert "install python3" in (error.hint or "")
    error = await refusal(make_link(sshd, agent, python="/no/such/python"))
    assert "no interpreter /no/such/python" in error.message
    # A new one that believes itself to be an old one.
    old = tmp_path / "old"
    code = "import sys; sys.version_info = (3, 6, 9)"
    argv = "sys.argv = sys.argv[sys.argv.index('-c') + 1:]"
    old.write_text(f"#!{sys.executable}\n{code}\n{argv}\nexec(sys.argv[0])\n")
    old.chmod(0o755)
    error = await refusal(make_link(sshd, agent, python=str(old)))
    assert "3.6.9, which is too old" in error.message


async def test_a_full_disk_is_told(make_sshd: MakeSshd, agent: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        error = await refusal(make_link(make_sshd(), agent, store=str(small / "store")))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert isinstance(error, BoardRefused)
    assert error.fault.code == "disk-full"
    assert "no room" in error.message


async def test_a_store_that_cannot_be_made_is_told(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path
) -> None:
    sshd = make_sshd()
    (tmp_path / "file").write_text("")
    error = await refusal(make_link(sshd, agent, store=str(tmp_path / "file" / "store")))
    assert isinstance(error, BoardRefused)
    assert "Not a directory" in error.message
    error = await refusal(make_link(sshd, agent, store="/proc/flatsat"))
    assert isinstance(error, BoardRefused)


# The stream.


async def test_standard_error_never_blocks(make_sshd: MakeSshd, tmp_path: Path) -> None:
    code = "import os, sys\nfor _ in range(160): os.write(2, b'e' * 65535 + b'\\n')\n"
    program = script(tmp_path, code + "os.write(2, b'last words\\n')\nos.write(1, b'done')\n")
    link = make_link(make_sshd(), program)
    await link.open(LONG_S)
    assert await link.read(LONG_S) == b"done"
    with pytest.raises(LinkDown, match="ended with code 0: last words"):
        await link.read(LONG_S)
    await link.close()


async def test_a_reader_that_sleeps_holds_the_board_back(
    make_sshd: MakeSshd, tmp_path: Path
) -> None:
    size = 24 * MEGABYTE
    note = tmp_path / "written"
    code = f"import os, sys\nleft = {size}\nnote = open({str(note)!r}, 'w', buffering=1)\n"
    code += "os.read(0, 1)\n"
    code += "while left: left -= os.write(1, b'x' * min(left, 65536)); note.write('%d\\n' % left)\n"
    link = make_link(make_sshd(), script(tmp_path, code))
    await link.open(LONG_S)
    await link.write(b"!", LONG_S)
    got = len(await link.read(LONG_S))
    # Whatever the board could still send lies in windows and socket buffers, and is not all.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            while not note.read_text().endswith("\n0\n"):
                await asyncio.sleep(0.01)
    while got < size:
        got += len(await link.read(LONG_S))
    assert got == size
    await link.close()


async def test_a_killed_agent_and_a_killed_connection_are_told(
    make_sshd: MakeSshd, tmp_path: Path
) -> None:
    code = "import os, sys\nsys.stderr.write('oh no\\n'); sys.stderr.flush()\n"
    code += "if os.read(0, 1) == b'k': os.kill(os.getpid(), 9)\nos.read(0, 1)\n"
    sshd = make_sshd()
    link = make_link(sshd, script(tmp_path, code))
    await link.open(LONG_S)
    await link.write(b"k", LONG_S)
    with pytest.raises(LinkDown, match="ended by SIGKILL: oh no"):
        await link.read(LONG_S)
    await link.close()
    link = make_link(sshd, script(tmp_path, code))
    await link.open(LONG_S)
    sshd.cut()
    with pytest.raises(LinkDown, match="the connection broke"):
        await link.read(LONG_S)
    with pytest.raises(LinkDown):
        await link.write(b"x", LONG_S)
    await link.close()


async def test_keep_alive_finds_a_dead_line_and_can_be_silenced(
    make_sshd: MakeSshd, tmp_path: Path
) -> None:
    program = script(tmp_path, "import os\nwhile os.read(0, 1): pass\n")
    async with relayed(sshd := make_sshd()) as (relay, settings):
        link = make_link(sshd, program, keepalive_s=0.05, **settings)
        await link.open(LONG_S)
        link.set_keepalive(None)
        relay.freeze()
        with pytest.raises(LinkTimeout):
            await link.read(0.5)
        link.set_keepalive(0.05)
        with pytest.raises(LinkDown, match="broke") as caught:
            await link.read(LONG_S)
        assert not isinstance(caught.value, LinkTimeout)
        await link.close()


async def test_commands_can_be_run_beside_and_instead(
    make_sshd: MakeSshd, agent: Path, tmp_path: Path
) -> None:
    sshd = make_sshd()
    link = make_link(sshd, agent)
    result = await link.run_command("echo out; echo err >&2; exit 3", LONG_S)
    assert (result.exit_status, result.stdout, result.stderr) == (3, b"out\n", "err\n")
    await link.open(LONG_S)
    assert (await link.run_command("exec kill -9 $$", LONG_S)).exit_status is None
    with pytest.raises(LinkDown, match="did not answer within"):
        await link.run_command("sleep 5", 0.2)
    await link.close()
