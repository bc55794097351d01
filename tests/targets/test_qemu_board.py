"""The emulated board: the same job as on the host, and the machine that `board up` keeps."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatsat.artifact import Agreement
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Measured
from flatsat.targets.board import Lease, LinkDown
from flatsat.targets.host import HostBoard
from flatsat.targets.qemu import QemuBoard
from flatsat.targets.qemu_keeper import KeeperError, find_keeper, start_keeper, stop_keeper

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
MakeJob = Callable[..., JobSpec]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(happened: Callable[[], bool], deadline_s: float = 30.0) -> bool:
    deadline = time.monotonic() + deadline_s
    while not happened():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.02)
    return True


async def measure(board: Any, lease: Lease, files: Any, spec: JobSpec) -> Measured:
    session = await board.open(lease)
    try:
        for sha256 in spec.blobs:
            await session.put(sha256, files.paths[sha256])
        outcome = await session.run("job", spec)
    finally:
        await session.close()
    assert isinstance(outcome, Measured), outcome
    return outcome


async def test_the_job_of_the_host_gives_the_same_answer_in_virtual_time(
    booted_board: Any, lease: Lease, files: Any, make_latency: MakeJob
) -> None:
    x = np.random.default_rng(3).standard_normal((6, 6)).astype(np.float32)
    goldens = files.arrays("goldens", {"in:image": x, "out:logits": x @ files.w + files.b})
    policy = Agreement("tol", max_rel=1e-4)
    spec = make_latency(files.dense(), goldens=goldens, agreement=policy, plan={"processes": 3})
    here = await measure(HostBoard(), lease, files, spec)
    with booted_board.lease() as other:
        there = await measure(booted_board.board, other, files, spec)
    for outcome, clock in ((here, "wall"), (there, "virtual")):
        assert outcome.agreement is not None
        assert (outcome.agreement.n, outcome.agreement.ok) == (6, True)
        counted = [s for s in outcome.samples if s.quantity == "latency_ns" and s.warm]
        assert [s.kind for s in counted] == [clock] * 3
    medians = [np.median(s.values) for s in counted]
    assert max(medians) - min(medians) <= 0.002 * min(medians), medians
    environment: Any = there.evidence["environment"]
    assert (environment["arch"], environment["cores"]) == ("aarch64", 1)


async def test_the_console_gives_the_same_answer_as_ssh(
    booted_board: Any, files: Any, make_latency: MakeJob
) -> None:
    x = np.random.default_rng(4).standard_normal((5, 6)).astype(np.float32)
    model, data = files.dense(), files.arrays("data", {"in:image": x})
    speed = make_latency(model, plan={"processes": 1})
    outputs = make_latency(model, kind=JobKind.ACCURACY, dataset=data, batch=5)
    medians, logits, identities = [], [], []
    for link in ("ssh", "serial"):
        board = replace(booted_board.board, link=link)
        with booted_board.lease() as lease:
            session = await board.open(lease)
            for sha256 in outputs.blobs:
                await session.put(sha256, files.paths[sha256])
            timed = await session.run("speed", speed)
            scored = await session.run("outputs", outputs)
            await session.close()
        assert isinstance(timed, Measured), timed
        assert isinstance(scored, Measured), scored
        (counted,) = [s for s in timed.samples if s.quantity == "latency_ns" and s.warm]
        medians.append(np.median(counted.values))
        logits.append(scored.logits)
        identities.append(session.identity)
    assert abs(medians[0] - medians[1]) <= 0.002 * medians[0], medians
    assert logits[0] is not None
    assert logits[0] == logits[1]
    assert identities[0] == identities[1]


async def test_the_identity_follows_hardware_and_emulator_and_the_calendar_is_right(
    booted_board: Any,
) -> None:
    with booted_board.lease() as lease:
        before = time.time()
        session = await booted_board.board.open(lease)
        after = time.time()
        await session.close()
    # A board that starts from a saved state wakes up with an old date.
    assert before <= session.welcome["calendar_s"] <= after
    facts = session.identity.facts
    assert facts["emulator"]["cpu"] == "cortex-a72"
    assert facts["emulator"]["shift"] == 1
    assert len(facts["emulator"]["image"]) == 64
    assert facts["qemu_version"]
    assert facts["aslr"] == 0
    assert session.identity.kind == "qemu-arm64"


async def test_a_session_of_its_own_ends_its_machine(qemu_board: QemuBoard, lease: Lease) -> None:
    session = await qemu_board.open(lease)
    assert session.machine is not None
    pid, run_dir = session.machine.pid, session.machine.run_dir
    assert alive(pid)
    await session.close()
    assert not alive(pid)
    assert not run_dir.exists()
    await session.close()


async def test_the_end_of_qemu_in_mid_job_is_told_as_such(
    qemu_board: QemuBoard, lease: Lease, files: Any, make_faulty: MakeJob
) -> None:
    session = await qemu_board.open(lease)
    assert session.machine is not None
    spec = make_faulty(files.fault("hang"))
    await session.put(spec.artifact, files.paths[spec.artifact])
    job = asyncio.create_task(session.run("job", spec))
    await asyncio.sleep(0.3)
    os.kill(session.machine.pid, signal.SIGKILL)
    with pytest.raises(LinkDown, match="QEMU ended with code -9"):
        await job
    await session.close()
    assert not session.machine.run_dir.exists()


async def test_a_session_that_can_not_begin_leaves_no_machine_behind(
    qemu_board: QemuBoard, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = []
    start = QemuBoard.start

    async def watched(self: QemuBoard, *more: Any, **named: Any) -> Any:
        machines.append(await start(self, *more, **named))
        return machines[-1]

    monkeypatch.setattr(QemuBoard, "start", watched)
    blocked = lease.directory / "file"
    lease.directory.mkdir(parents=True)
    blocked.write_text("")
    with pytest.raises(LinkDown, match="can't write the agent"):
        await qemu_board.open(replace(lease, directory=blocked / "folder"))
    assert len(machines) == 1
    assert not machines[0].running


async def test_a_power_cut_is_survived_with_what_the_disk_had(
    booted_board: Any, files: Any, make_faulty: MakeJob
) -> None:
    spec = make_faulty(files.fault("none", busy_ns=10_000))
    board = booted_board.board
    with booted_board.lease() as lease:
        session = await board.open(lease)
        boot = session.inner.welcome["boot_id"]
        await session.put(spec.artifact, files.paths[spec.artifact])
        await board.power_cycle(lease)
        with pytest.raises(LinkDown):
            await session.run("lost", spec)
        await session.close()
        session = await board.open(lease)
        assert session.inner.welcome["boot_id"] != boot
        # An unsynced file may be gone; the session then sends it again.
        await session.put(spec.artifact, files.paths[spec.artifact])
        assert isinstance(await session.run("job", spec), Measured)
        await session.close()


async def test_a_board_up_with_other_settings_is_not_used(booted_board: Any) -> None:
    other = replace(booted_board.board, memory_mb=640)
    with booted_board.lease() as lease, pytest.raises(LinkDown, match="other settings") as raised:
        await other.open(lease)
    assert raised.value.hint == "flatsat board down qemu-arm64"


def test_a_second_keeper_is_refused(booted_board: Any) -> None:
    with pytest.raises(KeeperError, match="up already"):
        start_keeper(booted_board.board, booted_board.directory)
    assert booted_board.kept


def test_down_takes_keeper_and_qemu_along(qemu_board: QemuBoard, tmp_path: Path) -> None:
    kept = start_keeper(qemu_board, tmp_path)
    assert find_keeper(tmp_path) == kept
    assert stop_keeper(tmp_path)
    assert wait_until(lambda: not alive(kept.qemu_pid))
    assert find_keeper(tmp_path) is None
    assert not kept.qmp.parent.exists()
    assert not stop_keeper(tmp_path)


def test_a_killed_keeper_leaves_no_qemu_and_no_claim(qemu_board: QemuBoard, tmp_path: Path) -> None:
    kept = start_keeper(qemu_board, tmp_path)
    os.kill(kept.pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(kept.qemu_pid))
    assert find_keeper(tmp_path) is None
    again = start_keeper(qemu_board, tmp_path)
    assert not kept.qmp.parent.exists()
    os.kill(again.qemu_pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(again.pid))
    assert find_keeper(tmp_path) is None


def test_a_keeper_goes_when_its_lab_does(qemu_board: QemuBoard, tmp_path: Path) -> None:
    kept = start_keeper(qemu_board, tmp_path / "board")
    (tmp_path / "board" / "keeper.json").unlink()
    assert wait_until(lambda: not alive(kept.pid) and not alive(kept.qemu_pid))


def test_a_keeper_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu_board: QemuBoard
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KeeperError, match="is not installed") as raised:
        start_keeper(qemu_board, tmp_path / "board")
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("apt-get install")
