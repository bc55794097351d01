"""Candidates a minute on the emulated board, and which step takes the time.

FlatSat goes its whole way: jobs planned and recorded, files put on the board, a fresh process for
each candidate, samples in the record, the status pages rewritten; only making and importing the
models beforehand isn't counted. On the virtual clock and on plain QEMU, with processes started anew
and with copies of one that has the runtime imported.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import models
import numpy as np
import on_board
import onnxruntime
import results

from flatsat.compressors.importing import import_model
from flatsat.harness.lab import Lab
from flatsat.harness.plan import Settings
from flatsat.harness.run import begin_run, end_run, measure_candidates
from flatsat.jobspec import VIRTUAL_PLAN
from flatsat.outcome import Measured
from flatsat.targets.qemu import QemuBoard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flatsat.compressors.candidate import Candidate
    from flatsat.jobspec import JobSpec
    from flatsat.outcome import Outcome
    from flatsat.progress import Progress
    from flatsat.reports.rows import OutcomeRow
    from flatsat.targets.board import Board, Lease, Session

CLOCKS = {"virtual": "virtual clock", "wall": "plain QEMU"}
ISOLATIONS = ("spawn", "fork")
GOLDENS = 64
INSIDE = ("start", "import", "load", "warm-up", "window", "goldens")
PARTS = ("upload", *INSIDE, "messages", "record and pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=10, help="of each arm, with goldens")
    parser.add_argument("--without", type=int, default=3, help="of each arm, without goldens")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.candidates < 2 or arguments.without < 1:
        parser.error("an arm needs two candidates with goldens, and one without")
    if arguments.out:
        results.RESULTS = arguments.out
    with tempfile.TemporaryDirectory() as folder:
        write(measure(Path(folder), arguments), arguments)


@dataclass(frozen=True)
class Job:
    """One candidate on the board.

    Attributes:
        first: of its session, which it opened and whose start it waited for.
        goldens: whether its outputs were compared.
        period_s: of wall time from the job before until this one was recorded.
        put_s, run_s: of wall time, inside of that.
        board_s: the process's own parts, in seconds of the board's clock; "process" is all of it.
    """

    first: bool
    goldens: bool
    period_s: float
    put_s: float
    run_s: float
    board_s: Mapping[str, float]


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, list[Job]]:
    """Return the jobs of each arm."""
    boards = {clock: Timed(QemuBoard(name=f"qemu-{clock}", clock=clock)) for clock in CLOCKS}
    lab = TimedLab(folder / "lab", timed={board.name: board for board in boards.values()})
    lab.prepare()
    found, seed = {}, 0
    for clock, board in boards.items():
        asyncio.run(board.prepare())
        for isolation in ISOLATIONS:
            name = f"{CLOCKS[clock]}, {isolation}"
            on_board.say(name)
            count = arguments.candidates + arguments.without
            ready = [
                candidate(lab, folder, seed + number, goldens=number < arguments.candidates)
                for number in range(count)
            ]
            seed += count
            found[name] = block(lab, board, ready, isolation)
    return found


def candidate(lab: Lab, folder: Path, seed: int, *, goldens: bool) -> Candidate:
    """Import a network that differs from the others in its weights."""
    path = models.mlp(folder / "model.onnx", seed=seed)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((GOLDENS, 784)).astype(np.float32)
    out = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    arrays: dict[str, Any] = {"in:x": x, f"out:{session.get_outputs()[0].name}": out}
    stored = folder / "goldens.npz"
    np.savez(stored, **arrays)
    made = import_model(
        path, stored if goldens else None, lab.candidates_dir, name=f"weights-{seed}"
    )
    assert all((artifact.goldens is not None) == goldens for artifact in made.artifacts)
    return made


def block(lab: Lab, board: Timed, ready: Sequence[Candidate], isolation: str) -> list[Job]:
    """Measure the candidates in one session; return their jobs in the order that they had."""
    store = lab.store()
    run_id = begin_run(lab, store, kind="measure", config={"isolation": isolation}, seed=0)
    plan = replace(VIRTUAL_PLAN, isolation=isolation, deadline_s=600.0)
    settings = Settings(
        plan=plan, rounds=1, virtual_plan=plan, virtual_rounds=1, comparison=isolation
    )
    ticks = Ticks()
    board.took.clear()
    found = measure_candidates(
        lab, run_id, ready, boards=[board.name], settings=settings, progress=ticks
    )
    end_run(lab, store, run_id, "done")
    found.sort(key=lambda row: row.job.position)
    with_goldens = {
        artifact.sha256: artifact.goldens is not None for c in ready for artifact in c.artifacts
    }
    periods = np.diff(ticks.at)
    assert len(periods) == len(found) == len(board.took)
    return [
        Job(
            first=number == 0,
            goldens=with_goldens[row.job.artifact],
            period_s=float(periods[number]),
            put_s=board.took[number]["put"],
            run_s=board.took[number]["run"],
            board_s=board_parts(row),
        )
        for number, row in enumerate(found)
    ]


def board_parts(row: OutcomeRow) -> dict[str, float]:
    """Return what the agent told of one process, in seconds of the board's clock."""
    outcome = row.outcome
    if not isinstance(outcome, Measured):
        raise SystemExit(f"a candidate was not measured: {outcome}")
    (told,) = outcome.evidence["processes"]  # type: ignore[misc]
    ns: Mapping[str, int] = told  # type: ignore[has-type]
    timed = {s.warm: sum(s.values) for s in outcome.samples if s.quantity == "latency_ns"}
    # On the virtual clock each inference waits for the kernel's tick before it is timed.
    waited = (ns["window_ns"] - timed[True]) / ns["counted_n"]
    parts = {
        "process": ns["wall_ns"],
        "import": ns["runtime_import_ns"],
        "load": ns["load_ns"],
        "warm-up": timed.get(False, 0) + waited * ns["warmup_n"],
        "window": ns["window_ns"],
    }
    return {name: value / 1e9 for name, value in parts.items()}


class Ticks:
    """Takes progress and remembers when each job was recorded."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Take the time."""
        del done, total
        if task == "measure":
            self.at.append(time.perf_counter())
            if note:
                on_board.say(f"  {note}")

    def log(self, message: str) -> None:
        """Pass it on."""
        on_board.say(message)


class Timed:
    """A board that keeps the wall seconds of each job's files and of the job."""

    def __init__(self, board: QemuBoard) -> None:
        self.inner = board
        self.name, self.kind, self.time_kind = board.name, board.kind, board.time_kind
        self.meter, self.runs_here = board.meter, board.runs_here
        self.took: list[dict[str, float]] = []

    async def prepare(self, progress: Progress | None = None) -> None:
        """Have its image and its saved state."""
        await self.inner.prepare(progress)

    async def open(self, lease: Lease) -> Session:
        """Open it."""
        return TimedSession(await self.inner.open(lease), self.took)


class TimedSession:
    """A session of such a board."""

    def __init__(self, inner: Session, took: list[dict[str, float]]) -> None:
        self._inner = inner
        self._took = took
        self._put_s = 0.0
        self.identity = inner.identity
        self.health = inner.health

    async def put(self, sha256: str, source: Path) -> None:
        """Have a file there."""
        begin = time.perf_counter()
        await self._inner.put(sha256, source)
        self._put_s += time.perf_counter() - begin

    async def run(self, job_id: str, spec: JobSpec) -> Outcome:
        """Do a job."""
        begin = time.perf_counter()
        outcome = await self._inner.run(job_id, spec)
        self._took.append({"put": self._put_s, "run": time.perf_counter() - begin})
        self._put_s = 0.0
        return outcome

    async def close(self) -> None:
        """Close it."""
        await self._inner.close()


@dataclass(frozen=True)
class TimedLab(Lab):
    """A lab whose boards are these."""

    timed: Mapping[str, Timed] = field(default_factory=dict)

    def board(self, name: str) -> Board:
        """Return one of them."""
        return self.timed[name]


def shares(name: str, jobs: Sequence[Job]) -> dict[str, float]:
    """Return the wall seconds of each part of a job with goldens, as medians over the jobs.

    Seconds of a virtual clock are taken as their share of the process's time.
    """
    later = [job for job in jobs if not job.first]
    mine = [job for job in later if job.goldens] or later
    bare = [job for job in later if not job.goldens] or mine
    virtual = name.startswith(CLOCKS["virtual"])
    goldens = max(
        0.0,
        median(job.board_s["process"] for job in mine)
        - median(job.board_s["process"] for job in bare),
    )
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    for job in mine:
        scale = job.run_s / job.board_s["process"] if virtual else 1.0
        inside = {part: job.board_s[part] for part in INSIDE if part in job.board_s}
        inside["goldens"] = goldens
        inside["start"] = job.board_s["process"] - sum(inside.values())
        for part, seconds in inside.items():
            parts[part].append(scale * seconds)
        parts["messages"].append(0.0 if virtual else job.run_s - job.board_s["process"])
        parts["upload"].append(job.put_s)
        parts["record and pages"].append(job.period_s - job.put_s - job.run_s)
    return {part: median(values) for part, values in parts.items()}


def write(found: dict[str, list[Job]], arguments: argparse.Namespace) -> None:
    rows = []
    size_kb = sum(a * b for a, b in ((784, 300), (300, 100), (100, 10))) * 4 / 1e3
    for name, jobs in found.items():
        periods = [job.period_s for job in jobs if job.goldens and not job.first]
        told = shares(name, jobs)
        whole = sum(told.values())
        rows.append(
            [
                name,
                len(jobs),
                f"{60 / float(np.mean(periods)):.1f}",
                f"{60 * len(jobs) / sum(job.period_s for job in jobs):.1f}",
                f"{median(periods):.2f} ({min(periods):.2f} to {max(periods):.2f})",
                *(f"{seconds:.2f} ({seconds / whole:.0%})" for seconds in told.values()),
            ]
        )
    results.write(
        "board_rate",
        "Candidates a minute on the emulated board, and where the time goes",
        f"Dense layers 784-300-100-10 ({size_kb:.0f} kB) with weights of their own, {GOLDENS} "
        f"goldens; one process of {VIRTUAL_PLAN.max_warmup} + {VIRTUAL_PLAN.min_inferences} "
        "inferences each, through FlatSat's whole path. Parts: seconds of wall time and shares of "
        "one candidate, medians.",
        [
            "board and isolation",
            "candidates",
            "a minute, once open",
            "a minute, with opening",
            "s a candidate (range)",
            *PARTS,
        ],
        rows,
        notes=[
            "Parts inside the process are told by the agent in the board's time. On plain QEMU "
            "that is wall time; on the virtual clock they are shares of the process's virtual "
            "time, applied to the job's wall time, which holds the messages, too.",
            "goldens: a process with them against one without, by medians, with "
            f"{arguments.without} candidates an arm that have none; on plain QEMU noise of "
            "other parts is in it.",
            "start: of the interpreter, the agent's modules and NumPy, and the process's end. "
            "import: the runtime's own modules beyond that; with a copy both are done beforehand.",
            "warm-up and window on the virtual clock hold the wait for the kernel's tick before "
            "each inference.",
            "The first candidate of a session is in `with opening` only: it waits for the board's "
            "start, and under fork for the runtime's import.",
        ],
        data={name: [vars(job) for job in jobs] for name, jobs in found.items()},
    )


if __name__ == "__main__":
    main()
