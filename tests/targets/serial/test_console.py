"""The console in every state that a link may find it in, and as it leaves it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flatsat.errors import ConfigError
from flatsat.outcome import Owner
from flatsat.targets.board import BoardRefused, LinkDown

if TYPE_CHECKING:
    from flatsat.targets.serial_link import SerialLink

Join = Callable[..., Any]
MakeLink = Callable[..., "SerialLink"]
OPEN_S = 60.0


@pytest.mark.parametrize(
    ("socket", "shell"), [(False, "sh -i"), (True, "bash --norc -i")], ids=["pty", "socket"]
)
async def test_a_login_of_ours_ends_with_the_session(
    uart: Join, start: Any, console: Any, shell: str, socket: bool, tmp_path: Path
) -> None:
    line = uart(shell=shell, socket=socket)
    session = await start(line)
    assert session.welcome["pid"] > 0
    await session.close()
    assert psutil.pid_exists(session.welcome["pid"]) is False
    if not socket:
        someone = console(line)
        someone.type("\n")
        someone.until("login: ")
    # The second time no agent is brought over; how quick the line is, is tried each time.
    before = line.tell()["up"]
    session = await start(line)
    await session.close()
    assert line.tell()["up"] - before < before / 2
    (archive,) = (tmp_path / "a store").glob("flatsat-agent-*.pyz")
    assert archive.stat().st_size > 50_000


async def test_a_shell_that_somebody_left_open_stays_open(
    uart: Join, start: Any, console: Any
) -> None:
    line = uart()
    someone = console(line)
    someone.log_in()
    someone.close()
    session = await start(line)
    await session.close()
    someone = console(line)
    someone.type("stty -a; echo $((6*7))\n")
    shown = someone.until("\n42")
    assert " icanon" in shown
    assert "login:" not in shown


async def test_what_somebody_left_half_typed_is_not_done(
    uart: Join, start: Any, console: Any, tmp_path: Path
) -> None:
    line = uart()
    someone = console(line)
    someone.log_in()
    someone.type("touch harm; : '")
    someone.until("touch harm; : '")
    someone.close()
    await (await start(line)).close()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("left", ["cat", "if true; then"])
async def test_a_program_that_somebody_left_running_is_interrupted(
    uart: Join, start: Any, console: Any, left: str
) -> None:
    line = uart()
    someone = console(line)
    someone.log_in()
    someone.type(left + "\n")
    someone.until(left)
    someone.close()
    await (await start(line)).close()


async def test_a_login_that_somebody_left_half_way_is_begun_anew(
    uart: Join, start: Any, console: Any
) -> None:
    line = uart()
    someone = console(line)
    someone.until("login: ")
    someone.type("tester\n")
    someone.until("Password: ")
    someone.close()
    await (await start(line)).close()


async def test_the_agent_of_a_host_that_died_makes_room(
    uart: Join, make_link: MakeLink, start: Any
) -> None:
    line = uart()
    link = make_link(line)
    await link.open(OPEN_S)
    # The host is gone without a word.
    await link._port.close()
    (agent,) = agents()
    session = await start(line)
    assert agent.pid != session.welcome["pid"]
    assert not agent.is_running()
    await session.close()
    await link.close()


def agents() -> list[psutil.Process]:
    """Return the agents that children of this process have started."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("flatsat-agent" in argument for argument in process.cmdline()[1:2])
    ]


async def test_a_killed_agent_is_told_and_leaves_a_console(
    uart: Join, make_link: MakeLink, console: Any
) -> None:
    line = uart()
    link = make_link(line)
    await link.open(OPEN_S)
    (agent,) = agents()
    agent.kill()
    with pytest.raises(LinkDown, match="ended with code 137"):
        await link.read(OPEN_S)
    with pytest.raises(LinkDown, match="ended with code 137"):
        await link.write(b"x", OPEN_S)
    await link.close()
    someone = console(line)
    someone.type("\n")
    someone.until("login: ")


async def test_a_wrong_password_is_the_configurations_fault(
    uart: Join, make_link: MakeLink
) -> None:
    for password, code, told in (
        ("a guess", "login-refused", "password of tester 3 times"),
        (None, "no-password", "asks for a password"),
    ):
        link = make_link(uart(), password=password)
        with pytest.raises(BoardRefused, match=told) as caught:
            await link.open(OPEN_S)
        assert (caught.value.fault.owner, caught.value.fault.code) == (Owner.CONFIG, code)
        assert not caught.value.fault.transient
        assert "a guess" not in str(caught.value)


async def test_a_line_that_says_nothing_ends_at_its_deadline(
    uart: Join, make_link: MakeLink
) -> None:
    with pytest.raises(LinkDown, match="nothing answers") as caught:
        await make_link(uart("sh", "-c", "stty -echo; sleep 1000")).open(2.0)
    assert "baud rate" in str(caught.value.hint)


async def test_a_line_that_talks_without_end_ends_at_its_deadline(
    uart: Join, make_link: MakeLink
) -> None:
    chatter = uart("sh", "-c", "stty -echo -isig; while :; do echo kernel panic; done")
    with pytest.raises(LinkDown, match=r"no shell answers.*last seen: kernel panic"):
        await make_link(chatter).open(3.0)


async def test_no_python_and_no_room_are_the_boards_fault(
    uart: Join, make_link: MakeLink, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = uart()
    for changes, code, told in (
        ({"python": "/no/such/python"}, "no-python", "no Python under that name"),
        ({"store": str(tmp_path / "file" / "store")}, "disk", "Not a directory"),
    ):
        with pytest.raises(BoardRefused, match=told) as caught:
            await make_link(line, **changes).open(OPEN_S)
        assert (caught.value.fault.owner, caught.value.fault.code) == (Owner.BOARD, code)


async def test_the_shells_own_python_is_found(
    uart: Join, make_link: MakeLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").write_text(
        f'#!/bin/sh\necho used >> {folder}/log\nexec {sys.executable} "$@"\n'
    )
    (folder / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    link = make_link(uart(shell="env PATH=" + os.environ["PATH"] + " sh -i"), python=None)
    await link.open(OPEN_S)
    await link.close()
    assert "used" in (folder / "log").read_text()


async def test_a_python_that_is_too_old_says_so(
    uart: Join, make_link: MakeLink, tmp_path: Path
) -> None:
    old = tmp_path / "old-python"
    old.write_text(
        f"#!/bin/sh\nshift 3\nexec {sys.executable} -S -s -c "
        '"import sys;sys.version_info=(3,6,9);exec(sys.argv[1])" "$1"\n'
    )
    old.chmod(0o755)
    with pytest.raises(BoardRefused, match=r"Python is 3\.6, which is too old") as caught:
        await make_link(uart(), python=str(old)).open(OPEN_S)
    assert caught.value.fault.code == "old-python"


async def test_an_archive_that_was_damaged_on_the_board_is_brought_anew(
    uart: Join, start: Any, tmp_path: Path
) -> None:
    line = uart()
    await (await start(line)).close()
    (archive,) = (tmp_path / "a store").glob("flatsat-agent-*.pyz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1] + b"?")
    await (await start(line)).close()
    assert archive.read_bytes() == whole


async def test_what_can_be_no_port_is_refused(
    make_link: MakeLink, uart: Join, tmp_path: Path
) -> None:
    for name in ("loop://", "nonsense://x"):
        with pytest.raises(ConfigError, match="no serial port"):
            await make_link(name).open(5.0)
    with pytest.raises(LinkDown, match="No such file"):
        await make_link(str(tmp_path / "ttyUSB7")).open(5.0)
    with pytest.raises(LinkDown, match="refused"):
        await make_link("socket://127.0.0.1:1").open(5.0)
    with pytest.raises(ConfigError, match="can't be typed"):
        await make_link(uart(), python="/opt/it's/python").open(OPEN_S)


async def test_two_hosts_can_not_use_one_port(uart: Join, make_link: MakeLink) -> None:
    line = uart()
    first = make_link(line)
    await first.open(OPEN_S)
    with pytest.raises(LinkDown, match="can't open"):
        await make_link(line).open(5.0)
    await first.close()
