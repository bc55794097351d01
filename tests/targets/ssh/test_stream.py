"""The stream over an SSH link: held back, never blocked, cut, kept alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatsat.targets.board import LinkDown
from flatsat.targets.links import LinkTimeout

MakeSshd = Callable[..., Any]
LONG_S = 60.0
MEGABYTE = 1 << 20


async def test_standard_error_never_blocks(make_sshd: MakeSshd, ssh: Any) -> None:
    code = "import os, sys\nfor _ in range(160): os.write(2, b'e' * 65535 + b'\\n')\n"
    program = ssh.program(code + "os.write(2, b'last words\\n')\nos.write(1, b'done')\n")
    link = ssh.link(make_sshd(), agent=program)
    await link.open(LONG_S)
    assert await link.read(LONG_S) == b"done"
    with pytest.raises(LinkDown, match="ended with code 0: last words"):
        await link.read(LONG_S)
    await link.close()


async def test_a_reader_that_sleeps_holds_the_board_back(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path
) -> None:
    size = 24 * MEGABYTE
    note = tmp_path / "written"
    code = f"import os, sys\nleft = {size}\nnote = open({str(note)!r}, 'w', buffering=1)\n"
    code += "os.read(0, 1)\n"
    code += "while left: left -= os.write(1, b'x' * min(left, 65536)); note.write('%d\\n' % left)\n"
    link = ssh.link(make_sshd(), agent=ssh.program(code))
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
    make_sshd: MakeSshd, ssh: Any
) -> None:
    code = "import os, sys\nsys.stderr.write('oh no\\n'); sys.stderr.flush()\n"
    code += "if os.read(0, 1) == b'k': os.kill(os.getpid(), 9)\nos.read(0, 1)\n"
    sshd = make_sshd()
    link = ssh.link(sshd, agent=ssh.program(code))
    await link.open(LONG_S)
    await link.write(b"k", LONG_S)
    with pytest.raises(LinkDown, match="ended by SIGKILL: oh no"):
        await link.read(LONG_S)
    await link.close()
    link = ssh.link(sshd, agent=ssh.program(code))
    await link.open(LONG_S)
    sshd.cut()
    with pytest.raises(LinkDown, match="the connection broke"):
        await link.read(LONG_S)
    with pytest.raises(LinkDown):
        await link.write(b"x", LONG_S)
    await link.close()


async def test_keep_alive_finds_a_dead_line_and_can_be_silenced(
    make_sshd: MakeSshd, ssh: Any
) -> None:
    program = ssh.program("import os\nwhile os.read(0, 1): pass\n")
    async with ssh.relayed(sshd := make_sshd()) as (relay, settings):
        link = ssh.link(sshd, agent=program, keepalive_s=0.05, **settings)
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


async def test_commands_can_be_run_beside_and_instead(make_sshd: MakeSshd, ssh: Any) -> None:
    sshd = make_sshd()
    link = ssh.link(sshd)
    result = await link.run_command("echo out; echo err >&2; exit 3", LONG_S)
    assert (result.exit_status, result.stdout, result.stderr) == (3, b"out\n", "err\n")
    await link.open(LONG_S)
    assert (await link.run_command("exec kill -9 $$", LONG_S)).exit_status is None
    with pytest.raises(LinkDown, match="did not answer within"):
        await link.run_command("sleep 5", 0.2)
    await link.close()
