"""The emulated machine: from a state or cold, several at once, cut off, and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.targets.qemu_folder import RunFolder
from flatsat.targets.qemu_hardware import Hardware, command_line
from flatsat.targets.qemu_image import Image
from flatsat.targets.qemu_process import Emulator, EmulatorError, find_emulator
from flatsat.targets.qemu_run import BadState, Disk, Machine, NeverUp, Plugin, free_port
from flatsat.targets.qemu_state import (
    Warm,
    discard_state,
    find_state,
    machine_key,
    make_state,
    start_machine,
)
from flatsat.targets.qmp import QmpError
from flatsat.targets.ssh import SshLink
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.targets.qemu import QemuBoard

qemu = pytest.mark.qemu
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def emulator(board_image: Image) -> Emulator:
    del board_image
    return find_emulator()


@pytest.fixture(scope="module")
def same(qemu_board: QemuBoard) -> Warm:
    return qemu_board.warm()


@pytest.fixture(scope="module")
def disk(qemu_board: QemuBoard, board_image: Image, emulator: Emulator, same: Warm) -> Disk:
    state = find_state(board_image, qemu_board.hardware, emulator, same)
    assert state is not None
    return state.as_disk


def link_to(machine: Machine, tmp_path: Path) -> SshLink:
    """Return a link for commands; its agent is never used."""
    return SshLink(
        "127.0.0.1",
        machine.ssh_port,
        user="root",
        known_hosts=machine.image.host_key,
        keys=(machine.image.user_key,),
        agent=tmp_path / "none",
    )


@pytest.fixture
async def machine(board_image: Image, emulator: Emulator, disk: Disk) -> AsyncIterator[Machine]:
    found = await Machine.start(board_image, Hardware(), emulator, disk=disk)
    yield found
    await found.stop()


# What needs no board.


def test_the_command_line_follows_clock_and_core() -> None:
    counted = Hardware("cortex-a76", TimeKind.VIRTUAL, 256, 2).arguments()
    assert counted[counted.index("-icount") + 1] == "shift=2,sleep=on"
    assert counted[counted.index("-cpu") + 1] == "cortex-a76"
    assert counted[counted.index("-smp") + 1] == "1"
    assert "-icount" not in Hardware(clock=TimeKind.WALL).arguments()


def test_a_state_fits_one_hardware_one_emulator_and_one_image(tmp_path: Path) -> None:
    for name in ("kernel", "initrd", "disk"):
        (tmp_path / name).write_bytes(b"x")
    files = {name: tmp_path / name for name in ("kernel", "initrd", "disk", "user_key")}
    image = Image(
        folder=tmp_path,
        key="k",
        host_key="h",
        console_password="",
        sites={},
        python="",
        store="",
        **files,
    )
    emulator = Emulator("qemu", "qemu-img", "7.2.22")
    keys = {
        machine_key(image, Hardware(), emulator),
        machine_key(image, Hardware(cpu="cortex-a76"), emulator),
        machine_key(image, Hardware(memory_mb=256), emulator),
        machine_key(image, Hardware(shift=2), emulator),
        machine_key(image, Hardware(clock=TimeKind.WALL), emulator),
        machine_key(image, Hardware(), replace(emulator, version="7.2.23")),
        machine_key(replace(image, key="other"), Hardware(), emulator),
        machine_key(replace(image, host_key="other"), Hardware(), emulator),
    }
    assert len(keys) == 8
    assert machine_key(image, Hardware(), replace(emulator, program="/other/qemu")) in keys
    assert "hostfwd=tcp:127.0.0.1:0-:22" in " ".join(command_line(Hardware()))


def test_run_folders_of_the_dead_are_swept_and_those_of_the_living_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path) if len(str(tmp_path)) <= 60 else "/tmp")
    mine = RunFolder()
    code = (
        "import os, sys\nfrom flatsat.targets.qemu_folder import RunFolder\n"
        "print(RunFolder().path, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "TMPDIR": str(mine.path.parent)}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    dead = Path(told.stdout.strip())
    assert dead.is_dir()
    other = RunFolder()
    assert not dead.exists()
    assert mine.path.is_dir()
    assert len(str(mine.path / "qmp.sock")) <= 107
    for folder in (mine, other):
        folder.remove()
        folder.remove()
        assert not folder.path.exists()


# One board.


@qemu
@slow
async def test_a_machine_is_reached_and_isolated(machine: Machine, tmp_path: Path) -> None:
    link = link_to(machine, tmp_path)
    result = await link.run_command("uname -m", 60.0)
    assert "aarch64" in str(result.stdout)
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        outside.listen()
        outside.settimeout(0.5)
        port = outside.getsockname()[1]
        code = f"import socket; socket.create_connection(('10.0.2.2', {port}), 3)"
        result = await link.run_command(f'/usr/bin/python3.11 -c "{code}"', 60.0)
        assert result.exit_status == 1
        with pytest.raises(TimeoutError):
            outside.accept()


@qemu
@slow
async def test_the_switches_do_what_they_say(machine: Machine, tmp_path: Path) -> None:
    link = link_to(machine, tmp_path)
    command = "cat /proc/sys/kernel/random/boot_id; cat /root/kept; echo x > /root/kept; sync"
    first = await link.run_command(command, 60.0)
    await machine.plug(False)
    with pytest.raises(Exception, match="no SSH server answered"):
        await link.run_command("true", 2.0)
    await machine.plug(True)
    await machine.pause()
    assert (await machine.qmp.execute("query-status"))["status"] == "paused"
    await machine.resume()
    await machine.reset()
    second = await link.run_command(command, 60.0)
    assert "x" in str(second.stdout)
    assert str(first.stdout)[:30] != str(second.stdout)[:30]
    port = machine.ssh_port
    await machine.power_off()
    assert not machine.running
    with pytest.raises(QmpError):
        await machine.reset()
    await machine.power_on()
    assert machine.ssh_port == port
    third = await link.run_command(command, 60.0)
    assert "x" in str(third.stdout)
    assert "login:" in machine.console_text() or "Debian" in machine.console_text()


@qemu
@slow
async def test_three_boards_start_at_once_from_one_state(
    board_image: Image, emulator: Emulator, disk: Disk, tmp_path: Path
) -> None:
    starts = [
        Machine.start(board_image, Hardware(), emulator, disk=disk, console=console)
        for console in ("pty", "socket", "pty")
    ]
    machines = await asyncio.gather(*starts)
    try:
        assert len({machine.ssh_port for machine in machines}) == 3
        assert len({machine.pid for machine in machines}) == 3
        consoles = [machine.console for machine in machines]
        assert len(set(consoles)) == 3
        assert [console.partition("/")[0] for console in consoles] == ["", "socket:", ""]
        commands = [
            link_to(machine, tmp_path).run_command(f"echo {n} > /root/n; cat /root/n", 90.0)
            for n, machine in enumerate(machines)
        ]
        results = await asyncio.gather(*commands)
        assert [str(result.stdout).strip("b'\\n") for result in results] == ["0", "1", "2"]
    finally:
        for machine in machines:
            await machine.stop()
    assert not any(machine.running for machine in machines)


@qemu
@slow
async def test_a_taken_port_is_passed_over(
    board_image: Image, emulator: Emulator, disk: Disk
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], taken.getsockname()[1], free_port()])
        machine = await Machine.start(
            board_image, Hardware(), emulator, disk=disk, ports=lambda: next(ports)
        )
        assert machine.ssh_port != taken.getsockname()[1]
        await machine.stop()
    assert next(ports, None) is None


@qemu
@slow
async def test_a_board_that_never_comes_up_says_what_its_console_said(
    board_image: Image, emulator: Emulator, tmp_path: Path
) -> None:
    broken = tmp_path / "initrd.gz"
    broken.write_bytes(b"no archive")
    with pytest.raises(NeverUp, match="does not answer") as raised:
        await Machine.start(replace(board_image, initrd=broken), Hardware(), emulator, deadline_s=5)
    assert raised.value.hint is not None
    assert "console" in raised.value.hint


@qemu
async def test_what_qemu_complains_of_is_told(
    board_image: Image, emulator: Emulator, tmp_path: Path
) -> None:
    with pytest.raises(EmulatorError, match="unable to find CPU model"):
        await Machine.start(board_image, Hardware(cpu="cortex-z80"), emulator)
    plugin = Plugin(tmp_path / "none.so")
    with pytest.raises(EmulatorError, match="QEMU does not start"):
        await Machine.start(board_image, Hardware(), emulator, plugin=plugin)
    with pytest.raises(Exception, match="qemu-img"):
        await Machine.start(board_image, Hardware(), emulator, disk=Disk(tmp_path / "none"))


# States.


@qemu
@slow
async def test_a_damaged_state_is_seen_and_a_refused_one_made_again(
    same: Warm, board_image: Image, emulator: Emulator, disk: Disk, tmp_path: Path
) -> None:
    folder = tmp_path / "image"
    folder.mkdir()
    image = replace(board_image, folder=folder)
    (folder / board_image.disk.name).symlink_to(board_image.disk)
    assert disk.memory is not None
    hardware = Hardware()
    place = folder / "states" / disk.memory.parent.name
    shutil.copytree(disk.memory.parent, place)
    other = Warm("other", same.run)
    found = find_state(image, hardware, emulator, same)
    assert found is not None
    assert find_state(image, hardware, emulator, other) is None
    found.memory.chmod(0o644)
    with found.memory.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"damage")
    assert find_state(image, hardware, emulator, same) is None
    assert find_state(image, replace(hardware, memory_mb=640), emulator, same) is None
    key = machine_key(image, hardware, emulator)
    ages_h = {"mine-1h": 1, "mine-3h": 3, "other-3h": 3, "other-40d": 960, ".part-1h": 1}
    for name, age_h in {**ages_h, ".part-2d": 48}.items():
        left = folder / "states" / name
        left.mkdir()
        listed = left / "state.json"
        listed.write_text(json.dumps({"machine": key if name.startswith("mine") else "other"}))
        for path in (listed, left):
            os.utime(path, (time.time() - 3600 * age_h,) * 2)
    warmed: list[Machine] = []

    async def run(machine: Machine) -> None:
        warmed.append(machine)

    warm = Warm("none", run)
    refused: list[Path | None] = []

    async def start(given: Disk) -> Machine:
        refused.append(given.memory)
        # Another hardware than the state's: QEMU itself refuses it.
        other = Hardware(memory_mb=320) if len(refused) == 1 else hardware
        return await Machine.start(image, other, emulator, disk=given)

    machine = await start_machine(image, hardware, emulator, warm, start=start)
    await machine.stop()
    assert len(warmed) == 2
    assert None not in refused
    state = find_state(image, hardware, emulator, warm)
    assert state is not None
    assert await make_state(image, hardware, emulator, warm) == state
    assert len(warmed) == 2
    discard_state(state)
    assert find_state(image, hardware, emulator, warm) is None
    with pytest.raises(BadState, match="gone"):
        await Machine.start(image, hardware, emulator, disk=state.as_disk)
    left_over = {path.name for path in (folder / "states").iterdir() if path.is_dir()}
    assert left_over == {"mine-1h", "other-3h", ".part-1h", place.name}


@qemu
@slow
async def test_a_state_that_is_refused_time_and_again_gives_way_to_a_boot(
    same: Warm,
    board_image: Image,
    emulator: Emulator,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = find_state(board_image, Hardware(), emulator, same)
    discarded = []
    monkeypatch.setattr("flatsat.targets.qemu_state.discard_state", discarded.append)
    given: list[Disk] = []

    async def start(disk: Disk) -> Machine:
        given.append(disk)
        if disk.memory is not None:
            raise BadState("no")
        return await Machine.start(board_image, Hardware(), emulator, disk=disk)

    async def run(machine: Machine) -> None:
        assert machine.running

    warm = Warm(same.key, run)
    machine = await start_machine(board_image, Hardware(), emulator, warm, start=start)
    await machine.stop()
    assert discarded == [state, state]
    assert given == [disk, disk, Disk(board_image.disk)]


# Nothing outlives its owner.

OWNER = """
import asyncio, sys
from flatsat.targets.qemu import QemuBoard
from flatsat.targets.qemu_image import find_image
from flatsat.targets.qemu_process import find_emulator
from flatsat.targets.qemu_run import Machine
async def main():
    board = QemuBoard()
    if sys.argv[1] == "cold":
        machine = await Machine.start(find_image(), board.hardware, find_emulator())
    else:
        machine = await board.start()
    print("up", machine.run_dir, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@qemu
@slow
def test_no_qemu_outlives_an_owner_that_is_killed_at_any_moment(
    qemu_board: QemuBoard, family: Any
) -> None:
    del qemu_board
    chance = random.Random(11)
    seen_qemu = 0
    for delay_s in [chance.uniform(0.3, 2.0) for _ in range(6)] + [60.0]:
        start = "saved" if delay_s == 60.0 else chance.choice(["cold", "saved"])
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, start],
            env=family.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert owner.stdout is not None
        if delay_s == 60.0:
            assert owner.stdout.readline().startswith("up ")
        else:
            threading.Event().wait(delay_s)
        for pid in family.alive():
            try:
                seen_qemu += "qemu-system" in Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
        assert family.all_gone()
    assert seen_qemu >= 2
