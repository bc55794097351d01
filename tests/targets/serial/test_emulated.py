"""The console of a real ARM Linux: busybox's login and shell on an emulated UART."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.outcome import Measured
from flatsat.targets.serial_link import SerialLink
from flatsat.targets.session import AgentSession, open_session
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.targets.board import Lease
    from flatsat.targets.qemu import QemuBoard

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

RELAY = """
import os, select, sys, termios, tty
far = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
tty.setraw(0)
tty.setraw(far)
while True:
    for fd in select.select([0, far], [], [])[0]:
        os.write(far if fd == 0 else 1, os.read(fd, 4096))
"""


async def over(board: Any, image: Any, lease: Lease, port: str, agent: Path) -> AgentSession:
    link = SerialLink(
        port,
        agent=agent,
        password=image.console_password,
        python=image.python,
        store=image.store,
        sites=image.sites,
    )
    return await open_session(link, lease, kind=board.kind, time_kind=TimeKind.VIRTUAL)


async def test_the_kernels_log_keeps_off_the_line_and_comes_back(
    booted_board: Any, board_image: Any, files: Any, tmp_path: Path
) -> None:
    sha256 = files.keep("some", bytes(range(256)))
    kept, board = booted_board.kept, replace(booted_board.board, link="serial")
    shell = booted_board.board._ssh(board_image, kept.ssh_port, tmp_path / "flatsat-agent.pyz")

    async def on_board(command: str) -> bytes:
        result = await shell.run_command(command, 60.0)
        assert result.exit_status == 0, result
        return bytes(result.stdout)

    before = await on_board("cat /proc/sys/kernel/printk")
    with booted_board.lease() as lease:
        session = await board.open(lease)
        silenced = await on_board("cat /proc/sys/kernel/printk")
        await on_board("for i in 1 2 3; do echo '<3>a message in mid-frame' > /dev/kmsg; done")
        await session.put(sha256, files.paths[sha256])
        await session.close()
    assert (silenced.split()[0], silenced.split()[1:]) == (b"1", before.split()[1:])
    assert await on_board("cat /proc/sys/kernel/printk") == before


async def test_a_board_behind_a_socket_does_a_job(
    qemu_board: QemuBoard, lease: Lease, files: Any, make_latency: Any
) -> None:
    board = replace(qemu_board, link="serial", console="socket")
    session = await board.open(lease)
    spec = make_latency(files.dense(), plan={"processes": 1})
    try:
        for sha256 in spec.blobs:
            await session.put(sha256, files.paths[sha256])
        outcome = await session.run("job", spec)
    finally:
        await session.close()
    assert isinstance(outcome, Measured), outcome


async def test_a_bad_line_to_a_real_console(
    booted_board: Any, board_image: Any, uart: Callable[..., Any], files: Any, tmp_path: Path
) -> None:
    from flatsat.targets.provision import write_agent

    port = booted_board.kept.console
    data = bytes(range(256)) * 100
    sha256 = files.keep("some", data)
    line = uart(sys.executable, "-c", RELAY, port, lose=1e-3, flip=1e-4, double=1e-4, kernel=1e-4)
    with booted_board.lease() as lease:
        session = await over(
            booted_board.board, board_image, lease, line.port, write_agent(tmp_path)
        )
        await session.put(sha256, files.paths[sha256])
        await session.close()
    done = line.tell()
    assert done["lose"] > 20
    assert min(done["flip"], done["double"]) > 0
