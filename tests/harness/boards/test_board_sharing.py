"""Several FlatSat processes on one emulated board: one measures, the others wait their turn."""

from __future__ import annotations

import asyncio
import datetime
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from flatsat.canonical import sha256_file
from flatsat.outcome import Measured

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.reports.rows import OutcomeRow, RunRow, Store

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
BOARD = "qemu-arm64"
PATIENCE_S = 120.0


class Process:
    """A `flatsat measure` of its own, in a lab."""

    def __init__(self, lab: Path, model: Path, *options: str, board: str = BOARD) -> None:
        argv = [sys.executable, "-m", "flatsat.harness.cli", "--lab", str(lab), "measure"]
        self.model = model
        self.popen = subprocess.Popen(
            [*argv, str(model), "--board", board, "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def has_open(self, path: Path) -> bool:
        """Return whether it has a file open."""
        return str(path) in [file.path for file in psutil.Process(self.popen.pid).open_files()]

    def result(self) -> dict[str, Any]:
        """Wait for its end, which must be a good one, and return what it printed."""
        out, err = self.popen.communicate(timeout=PATIENCE_S)
        assert self.popen.returncode == 0, err
        told: dict[str, Any] = json.loads(out)
        return told


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start processes that end with the test."""
    started: list[Process] = []

    def go(*arguments: Any, **options: Any) -> Process:
        started.append(Process(*arguments, **options))
        return started[-1]

    yield go
    for process in started:
        process.popen.kill()
        process.popen.communicate()


def until(happened: Callable[[], Any]) -> Any:
    """Wait for something to be true, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    return found


def run_of(store: Store, process: Process) -> RunRow | None:
    """Return the run that measures the process's model, once it has begun."""
    found = [run for run in store.runs() if process.model.name in run.config_json]
    return found[0] if found else None


def states(store: Store, process: Process) -> list[str]:
    """Return the states of the process's jobs."""
    run = run_of(store, process)
    return [] if run is None else [job.state for job in store.jobs(run.run_id)]


def row_of(store: Store, process: Process) -> OutcomeRow:
    """Return the one outcome of a process, which has ended well and tells of that very outcome."""
    told = process.result()
    run = run_of(store, process)
    assert run is not None
    (job,) = store.jobs(run.run_id)
    (row,) = store.outcomes(run_id=run.run_id)
    assert row.job == job
    assert isinstance(row.outcome, Measured)
    (shown,) = told["outcomes"]
    assert shown["artifact"]["sha256"] == job.artifact == sha256_file(process.model)
    warm = [s for s in row.outcome.samples if s.quantity == "latency_ns" and s.warm]
    assert shown["latency_ns"]["min"] == min(warm[0].values)
    return row


def test_one_measures_and_when_it_is_killed_the_next_goes_on_at_once(
    start: Any, lab: Lab, guest: Any, dense_file: Any
) -> None:
    lab.prepare()
    store = lab.store()
    lock = lab.locks_dir / BOARD / "lock"
    holder = start(lab.root, dense_file("holder.onnx", hidden=8), "--processes", "500")
    until(lambda: states(store, holder) == ["running"])
    waiting = [
        start(lab.root, dense_file(f"{name}.onnx", hidden=hidden), "--processes", "1")
        for name, hidden in (("first", 9), ("second", 10))
    ]
    for process in waiting:
        until(lambda process=process: process.has_open(lock))
        assert states(store, process) == ["planned"]
    assert states(store, holder) == ["running"]
    holder.popen.kill()
    # Nobody waits for the end of a term: a lease has none.
    rows = sorted((row_of(store, process) for process in waiting), key=lambda row: row.started_utc)
    run = run_of(store, holder)
    assert run is not None
    (left,) = store.jobs(run.run_id)
    assert left.state == "running"
    assert not store.outcomes(run_id=run.run_id)
    # Three leases, one after the other; each is of one run.
    assert left.epoch < rows[0].job.epoch < rows[1].job.epoch
    begin, end = (datetime.datetime.fromisoformat(row.started_utc) for row in rows)
    assert begin + datetime.timedelta(seconds=rows[0].wall_s) <= end
    assert guest.processes("flatsat") == []


def test_a_run_whose_lease_is_over_is_refused_and_leaves_the_board_to_its_holder(
    run: Any,
    wire: Any,
    lab: Lab,
    guest: Any,
    faulty: Any,
    good: Any,
    start: Any,
    shared_lab: Lab,
    dense_file: Any,
) -> None:
    boot = guest.boot_id()
    shared_lab.prepare()
    others = shared_lab.store()
    model = dense_file("other.onnx", hidden=11)
    later: list[Process] = []

    async def lend_to_another_lab() -> None:
        options = ("--processes", "1", "--min-inferences", "4", "--min-s", "0")
        later.append(start(shared_lab.root, model, *options, board="shared"))
        await asyncio.to_thread(until, lambda: states(others, later[0]) in (["running"], ["done"]))

    wire.in_mid_job(lend_to_another_lab)
    endless = faulty("none", plan={"min_inferences": 1 << 20}, busy_ns=50_000_000)
    ran = run(lab, [endless, good("next")], run_id="stale")
    assert not ran.rows
    assert "the lease of epoch" in ran.tally.quarantined[BOARD]
    assert ran.log.count("can't be opened") == 1, ran.log
    row = row_of(others, later[0])
    jobs = lab.store().jobs("stale")
    assert [job.state for job in jobs] == ["running", "planned"]
    assert jobs[0].epoch < row.job.epoch
    assert guest.boot_id() == boot
    # A lease of its own makes the board answer again.
    ran = run(lab, [good("again")], run_id="again")
    assert isinstance(ran.outcome("again"), Measured)
    assert row.job.epoch <= ran.rows["again"].job.epoch
