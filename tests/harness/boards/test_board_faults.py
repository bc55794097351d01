"""Faults of emulated boards, of their links and of candidates, in runs that go on.

Each strikes at a moment of the run: when so many bytes have gone over, or when the board says that
a job has started.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from flatsat.harness.lab import Lab
from flatsat.outcome import Failed, Measured, Owner
from flatsat.targets.qemu_keeper import find_keeper, start_keeper
from flatsat.targets.qemu_tools import run as run_tool
from flatsat.targets.qmp import QmpClient

if TYPE_CHECKING:
    from flatsat.targets.qemu_image import Image

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
BOARD = "qemu-arm64"
AGENT = "$(cat /var/lib/flatsat/agent.lock)"
"""The process id of the agent, in the board's shell."""
SSH_SESSION = f"$(sed -n 's/PPid://p' /proc/{AGENT}/status)"
"""Of the SSH server's process for the agent's connection."""


async def kill_own_qemu() -> None:
    """Cut the power of the machine that this process's session has, without a word to anybody."""
    (qemu,) = [p for p in psutil.Process().children() if "qemu-system" in p.name()]
    os.kill(qemu.pid, signal.SIGKILL)


NOISE = "echo '<3>flatsat noise' > /dev/kmsg; echo noise > /dev/ttyAMA0"


@pytest.fixture
def hurry() -> Iterator[pytest.MonkeyPatch]:
    """Shorten deadlines until the test takes that back itself; a dead link is closed at once."""
    patch = pytest.MonkeyPatch()
    for room in ("ssh", "ssh_shell"):
        patch.setattr(f"flatsat.targets.{room}._CLOSE_S", 0.2)
    yield patch
    patch.undo()


def measured(ran: Any, *names: str) -> None:
    for name in names:
        assert name in ran.rows, ran.log
        assert isinstance(ran.outcome(name), Measured), (ran.outcome(name), ran.log)
    assert not ran.tally.quarantined


def failed(ran: Any, name: str, owner: Owner, code: str) -> Failed:
    outcome = ran.outcome(name)
    assert isinstance(outcome, Failed), (outcome, ran.log)
    assert (outcome.fault.owner, outcome.fault.code) == (owner, code), outcome
    return outcome


# Power.


def test_the_power_fails_for_good_in_mid_upload_and_in_mid_measurement(
    run: Any, wire: Any, qemu_board: Any, good: Any, large: Any, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "lab")
    kept = start_keeper(qemu_board, lab.locks_dir / BOARD)

    async def quit_kept_qemu() -> None:
        qmp = await QmpClient.connect(kept.qmp, 30.0)
        await qmp.execute("quit")
        await qmp.close()

    # Without the machine that was kept up, a session starts its own; and another one after that.
    wire.in_mid_upload(quit_kept_qemu)
    wire.in_mid_job(kill_own_qemu, "good")
    ran = run(lab, [large, good("good")])
    assert not wire.armed
    measured(ran, "large", "good")
    assert find_keeper(lab.locks_dir / BOARD) is None
    assert ran.log.count("QEMU ended with code -9 (") == 1, ran.log
    assert len(wire.sent) == 3


def test_a_board_that_loses_its_power_for_a_moment_is_waited_for(
    run: Any, wire: Any, shared_lab: Lab, guest: Any, good: Any
) -> None:
    boot = guest.boot_id()
    wire.in_mid_job(guest.switch("system_reset"))
    ran = run(shared_lab, [good("good", "shared"), good("next", "shared")])
    assert not wire.armed
    measured(ran, "good", "next")
    assert ran.log.count("attempt") == 1, ran.log
    assert len(wire.sent) == 2
    assert guest.boot_id() != boot


def test_a_board_that_hangs_in_mid_measurement_is_switched_off_and_on(
    run: Any, wire: Any, sink: Any, lab: Lab, guest: Any, faulty: Any, good: Any, hurry: Any
) -> None:
    # Silence is told by deadlines only, and theirs are long.
    hurry.setattr("flatsat.targets.qemu._GRACE_S", 0.5)

    async def hang() -> None:
        hurry.setattr("flatsat.targets.session._OPEN_S", 0.5)
        hurry.setattr("flatsat.harness.boards_in_use.BOOT_S", 0.0)
        await guest.switch("stop")()

    wire.in_mid_job(hang)
    sink.when("cutting its power", hurry.undo)
    busy = faulty("none", plan={"deadline_s": 2.0}, busy_ns=50_000_000)
    ran = run(lab, [busy, good("next")], run_id="hang")
    assert not wire.armed
    measured(ran, "none", "next")
    assert ran.log.count("cutting its power") == 1, ran.log


# Links and the agent.


def test_an_ssh_session_and_an_agent_that_are_killed_are_started_again(
    run: Any, wire: Any, lab: Lab, guest: Any, good: Any, large: Any
) -> None:
    # So much can't all be under way.
    wire.in_mid_upload(guest.command(f"kill -9 {SSH_SESSION}"), after_bytes=2_800_000)
    wire.in_mid_job(guest.command(f"kill -9 {AGENT}"))
    ran = run(lab, [large, good("next")], run_id="killed")
    assert not wire.armed
    measured(ran, "large", "next")
    assert len(wire.sent) == 3
    # The upload went on where it was cut.
    assert wire.sent[1] < large.path.stat().st_size
    assert "the agent was ended by SIGKILL; attempt 2 of 3" in ran.log
    assert guest.processes("flatsat") == []


def test_an_ssh_session_that_is_killed_in_mid_measurement_and_noise_on_the_console(
    run: Any, wire: Any, lab: Lab, guest: Any, good: Any
) -> None:
    wire.in_mid_job(guest.command(f"kill -9 {SSH_SESSION}"), "good")
    wire.in_mid_job(guest.command(f"(for i in $(seq 200); do {NOISE}; done) >/dev/null 2>&1 &"))
    ran = run(lab, [good("good"), good("next")], run_id="noise")
    assert not wire.armed
    measured(ran, "good", "next")
    # Noise costs no attempt.
    assert ran.log.count("attempt") == 1, ran.log
    assert len(wire.sent) == 2
    assert "flatsat noise" in guest.now("dmesg")
    assert guest.processes("flatsat") == []


def test_a_cable_is_pulled_in_mid_upload_and_put_back(
    run: Any, wire: Any, lab: Lab, guest: Any, good: Any, large: Any
) -> None:
    async def pull() -> None:
        await guest.switch("set_link", name="n0", up=False)()
        wire.link.set_keepalive(0.3)
        wire.when_given_up(guest.switch("set_link", name="n0", up=True))

    wire.in_mid_upload(pull)
    ran = run(lab, [large, good("next")], run_id="cable")
    assert not wire.armed
    measured(ran, "large", "next")
    assert ran.log.count("attempt") == 1, ran.log
    assert len(wire.sent) == 2


def test_noise_on_the_console_is_survived_by_a_serial_link_and_so_is_a_killed_agent(
    run: Any, wire: Any, lab: Lab, guest: Any, good: Any, model: Any, dense_file: Any
) -> None:
    noise = f"(while true; do {NOISE}; usleep 50000; done) >/dev/null 2>&1 & echo $! > /run/noise"
    wire.in_mid_upload(guest.command(noise), after_bytes=30_000)
    wire.in_mid_job(guest.command(f"kill $(cat /run/noise); kill -9 {AGENT}"), "next")
    serial = Lab(lab.root, {BOARD: {"kind": "qemu-arm64", "link": "serial", "meter": "none"}})
    wide = model("wide", dense_file("wide.onnx", hidden=1500))
    ran = run(serial, [wide, good("next")], run_id="serial")
    assert not wire.armed
    measured(ran, "wide", "next")
    # Noise costs no attempt, and a killed agent one.
    assert ran.log.count("attempt") == 1, ran.log
    assert "the agent ended with code 137: Killed; attempt 1 of 3" in ran.log
    assert len(wire.sent) == 2


# The disk.


def test_a_disk_that_fills_up_in_mid_upload_is_a_fault_of_the_board_until_there_is_room(
    run: Any, wire: Any, lab: Lab, guest: Any, large: Any
) -> None:
    # All but a little at once, then the rest until nothing fits.
    free_kb = "$(df -k / | awk 'END { print $4 - 64 }')"
    fill = f"fallocate -l {free_kb}k /root/fill; cat /dev/zero > /root/rest || true"
    try:
        wire.in_mid_upload(guest.command(fill))
        ran = run(lab, [large], run_id="full")
        assert not wire.armed
        fault = failed(ran, "large", Owner.BOARD, "disk-full").fault
        assert not fault.transient
        assert fault.hint == "free some room there"
        assert not ran.tally.quarantined
    finally:
        guest.now("rm -f /root/fill /root/rest")
    ran = run(lab, [large], run_id="room")
    measured(ran, "large")


# Candidates.


@pytest.fixture
def endless(onnx_file: Callable[..., Path]) -> Path:
    """Write a network that loops for thousands of years."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["s", "s"], ["t"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.FLOAT, [1, 4]),
        ],
    )
    return onnx_file(
        "endless.onnx",
        {"x": (TensorProto.FLOAT, [1, 4])},
        [helper.make_node("Loop", ["n", "always", "x"], ["y"], body=body)],
        {"y": (TensorProto.FLOAT, [1, 4])},
        {"n": np.array(1 << 60, np.int64), "always": np.array(True)},
    )


@pytest.fixture
def greedy(onnx_file: Callable[..., Path]) -> Path:
    """Write a network that wants a gigabyte for one tensor."""
    return onnx_file(
        "greedy.onnx",
        {"x": (TensorProto.FLOAT, [1])},
        [
            helper.make_node("Expand", ["x", "shape"], ["wide"]),
            helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=1),
        ],
        {"y": (TensorProto.FLOAT, [1])},
        {"shape": np.array([1 << 28], np.int64)},
    )


def test_candidates_that_crash_loop_and_devour_end_their_own_jobs_only(
    run: Any,
    wire: Any,
    lab: Lab,
    guest: Any,
    faulty: Any,
    model: Any,
    good: Any,
    endless: Path,
    greedy: Path,
) -> None:
    limitless = {"memory_limit_bytes": 1 << 40}
    models = [
        faulty("segfault", after=2),
        model("endless", endless, plan={"deadline_s": 2.0}),
        model("greedy", greedy),
        faulty("eat-memory", plan=limitless),
        good("next"),
    ]
    ran = run(lab, models, run_id="candidates")
    crash = failed(ran, "segfault", Owner.CANDIDATE, "crash")
    assert "SIGSEGV" in crash.fault.message
    failed(ran, "endless", Owner.CANDIDATE, "timeout")
    asked = failed(ran, "greedy", Owner.CANDIDATE, "out-of-memory")
    assert "1073741824" in asked.fault.message
    killed = failed(ran, "eat-memory", Owner.CANDIDATE, "out-of-memory")
    assert "SIGKILL" in killed.fault.message
    assert "Out of memory: Killed process" in guest.now("dmesg")
    measured(ran, "next")
    assert (len(wire.sent), ran.tally.failed) == (1, 4)


# Boards that never come up.


def test_boards_that_never_come_up_leave_the_run_to_the_others(
    run: Any, wire: Any, booted_board: Any, board_image: Image, good: Any, tmp_path: Path
) -> None:
    settings = {
        "broken": {"kind": "qemu-arm64", "cache_dir": str(broken_copy(board_image, tmp_path))},
        "absent": {"kind": "linux", "links": [{"host": "127.0.0.1", "port": 1, "user": "root"}]},
    }
    settings["absent"]["links"][0]["known_hosts"] = board_image.host_key
    lab = Lab(booted_board.lab, settings)
    ran = run(lab, [good("a", "broken"), good("b", "absent"), good("c")], run_id="absent")
    assert isinstance(ran.outcome("c"), Measured)
    assert ran.rows.keys() == {"c"}
    assert "went off while it booted" in ran.tally.quarantined["broken"]
    assert "nothing listens on port 1" in ran.tally.quarantined["absent"]
    assert ran.tally.measured == 1
    states = {job.job_id: job.state for job in lab.store().jobs("absent")}
    assert states == {"a-absent": "planned", "b-absent": "planned", "c-absent": "done"}


def broken_copy(image: Image, folder: Path) -> Path:
    """Return a cache whose image has an empty disk of the right size."""
    root = folder / "cache" / image.folder.parent.relative_to(image.folder.parents[2])
    copy = root / image.folder.name
    copy.mkdir(parents=True)
    shutil.copy(image.folder.parent / "current.json", root)
    for path in image.folder.iterdir():
        if path != image.disk and path.is_file():
            shutil.copy2(path, copy)
    disk = copy / image.disk.name
    run_tool("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M")
    os.truncate(disk, image.disk.stat().st_size)
    disk.chmod(0o444)
    return folder / "cache"
