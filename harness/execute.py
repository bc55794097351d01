"""Run planned jobs on their boards; an outcome is in the record before its job counts as done."""

from __future__ import annotations

import asyncio
import datetime
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import canonical_json, sha256_json
from flatsat.errors import ConfigError, DataError, InfrastructureError
from flatsat.harness.boards_in_use import (
    ATTEMPTS,
    BoardGoneError,
    Connection,
    by_machine,
    leased,
    prepare,
    refused_for_good,
)
from flatsat.harness.culprit import is_disagreement, name_layer
from flatsat.harness.plan import PlannedJob, expected_s
from flatsat.jobspec import JobKind, reuse_key
from flatsat.outcome import Failed, Fault, Measured, Outcome, Owner
from flatsat.progress import NoProgress, Progress
from flatsat.reports.rows import AccuracyRow, JobRow, RunCounts
from flatsat.units import Clock, SystemClock

if TYPE_CHECKING:
    import numpy as np

    from flatsat.harness.lab import Lab
    from flatsat.reports.rows import Store
    from flatsat.targets.board import Session

BOARD_FAULTS_TO_QUARANTINE = 3
"""After so many jobs in a row that ended in a board fault, a board gets no more jobs."""
PUBLISH_EVERY_S = 3.0


@dataclass(frozen=True)
class Labels:
    """What an accuracy job is judged by.

    Attributes:
        split_sha: sha256 of the split, images and labels.
        metric: name of the metric.
        y: int64 (n,).
    """

    split_sha: str
    metric: str
    y: np.ndarray


@dataclass(frozen=True)
class Supplies:
    """What jobs need beside their specifications.

    Attributes:
        files: sha256 -> file, for every artifact, goldens and data set.
        labels: sha256 of a data set -> its labels.
        names: artifact sha256 -> what people call it.
        coded: artifact sha256 -> sha256 and file of its coded form, where it has one.
    """

    files: Mapping[str, Path]
    labels: Mapping[str, Labels] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    coded: Mapping[str, tuple[str, Path]] = field(default_factory=dict)

    def of(self, sha256: str) -> tuple[str, Path] | tuple[str, Path, tuple[str, Path]]:
        """Return what a session's `put` is given for a file: its coded form only if it has one."""
        if sha256 in self.coded:
            return sha256, self.files[sha256], self.coded[sha256]
        return sha256, self.files[sha256]


@dataclass(frozen=True)
class Tally:
    """How an execution ended.

    Attributes:
        measured, failed, inconclusive, reused: jobs by what became of them, now or before.
        quarantined: boards that were given no more jobs, and why.
    """

    measured: int = 0
    failed: int = 0
    inconclusive: int = 0
    reused: int = 0
    quarantined: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls, store: Store, run_id: str, quarantined: Mapping[str, str] | None = None
    ) -> Tally:
        """Return the tally of all that a run has in the record."""
        counts = store.counts(run_id).get(run_id, RunCounts())
        return cls(
            measured=counts.measured,
            failed=counts.failed,
            inconclusive=counts.inconclusive,
            reused=counts.reused,
            quarantined=quarantined or {},
        )


def job_row(run_id: str, job: PlannedJob) -> JobRow:
    """Return what the record keeps of a planned job."""
    return JobRow(
        job_id=job.job_id,
        run_id=run_id,
        artifact=job.spec.artifact,
        board_name=job.board,
        kind=job.spec.kind.value,
        spec_json=canonical_json(job.spec.to_json()),
        round=job.round,
        position=job.position,
        comparison=job.comparison,
    )


def earliest_reuse_utc(policy: str, now_utc: str) -> str | None:
    """Return the oldest start time that a reused outcome may have; "" for any, None for never.

    Args:
        policy: "never", "always" or "within Nd" (days; also h for hours).
        now_utc: ISO 8601.

    Raises:
        ConfigError: another policy.
    """
    if policy == "never":
        return None
    if policy == "always":
        return ""
    match = re.fullmatch(r"within (\d+)([dh])", policy)
    if match is None:
        raise ConfigError(
            f"reuse = {policy!r} is unknown", hint='use "never", "always" or "within 7d"'
        )
    hours = int(match[1]) * (24 if match[2] == "d" else 1)
    earliest = datetime.datetime.fromisoformat(now_utc) - datetime.timedelta(hours=hours)
    return earliest.isoformat(timespec="microseconds")


def execute(
    lab: Lab,
    store: Store,
    run_id: str,
    jobs: Sequence[PlannedJob],
    supplies: Supplies,
    *,
    reuse: str = "never",
    progress: Progress | None = None,
    publish: Callable[[], None] | None = None,
    clock: Clock | None = None,
) -> Tally:
    """Run the jobs that have no outcome yet, board by board.

    All boards at once, but for those that this machine computes: first, one by one, those that feel
    its load; then the emulated ones that don't.

    Jobs must be in the record (`Store.add_jobs`). A fault of a candidate ends its job and spares
    the later rounds of the same work; a fault of a board is tried again; a board that keeps
    failing is left alone, and its jobs stay open for a resumed run.

    Args:
        lab: where boards and leases are.
        store: the record.
        run_id: of the run.
        jobs: in order.
        supplies: files and labels.
        reuse: "never", "always" or "within Nd": may an earlier outcome of the same JobSpec on the
            very same board serve.
        progress: is told after each job.
        publish: called now and then after outcomes, for pages that follow a run.
        clock: time source.

    Raises:
        InfrastructureError: the record can't be written; finished measurements are in it.
    """
    execution = _Execution(
        lab=lab,
        store=store,
        run_id=run_id,
        supplies=supplies,
        earliest_reuse=earliest_reuse_utc(reuse, (clock or SystemClock()).utc()),
        progress=progress or NoProgress(),
        publish=publish or (lambda: None),
        clock=clock or SystemClock(),
        jobs=jobs,
    )
    asyncio.run(execution.all_boards())
    return execution.tally()


class _Execution:
    def __init__(
        self,
        *,
        lab: Lab,
        store: Store,
        run_id: str,
        supplies: Supplies,
        earliest_reuse: str | None,
        progress: Progress,
        publish: Callable[[], None],
        clock: Clock,
        jobs: Sequence[PlannedJob],
    ) -> None:
        self._lab = lab
        self._store = store
        self._run_id = run_id
        self._supplies = supplies
        self._earliest_reuse = earliest_reuse
        self._progress = progress
        self._publish = publish
        self._clock = clock
        states = {row.job_id: row for row in store.jobs(run_id)}
        self._done = {job_id for job_id, row in states.items() if row.state == "done"}
        self._jobs = [job for job in jobs if job.job_id not in self._done]
        self._total_s = sum(expected_s(job) for job in jobs)
        self._done_s = self._total_s - sum(expected_s(job) for job in self._jobs)
        self._count = len(jobs)
        self._published_at = float("-inf")
        self._quarantined: dict[str, str] = {}
        self._reused = 0
        self._wanted = {job.job_id for job in jobs}

    async def all_boards(self) -> None:
        self._progress.update("measure", self._done_s, self._total_s, "")
        jobs: dict[str, list[PlannedJob]] = {}
        for job in self._jobs:
            jobs.setdefault(job.board, []).append(job)
        boards = {name: self._lab.board(name) for name in jobs}
        for name, board in boards.items():
            try:
                await prepare(board, self._progress)
            except InfrastructureError as error:
                self._quarantine(name, str(error))
                del jobs[name]
        alone, together, apart = by_machine({name: boards[name] for name in jobs})
        try:
            async with asyncio.TaskGroup() as group:
                for name in apart:
                    group.create_task(self._board(name, jobs[name]))
                for name in alone:
                    await self._board(name, jobs[name])
                for name in together:
                    group.create_task(self._board(name, jobs[name]))
        except BaseExceptionGroup as errors:
            # The first to fail ended the others; what they had measured is in the record.
            raise _first(errors) from None
        self._publish()

    def tally(self) -> Tally:
        counts = {"measured": 0, "failed": 0, "inconclusive": 0}
        for row in self._store.outcomes(run_id=self._run_id, with_samples=False):
            if row.job.job_id in self._wanted:
                counts[type(row.outcome).__name__.lower()] += 1
        return Tally(**counts, reused=self._reused, quarantined=self._quarantined)

    async def _board(self, name: str, jobs: Sequence[PlannedJob]) -> None:
        """Take a board's jobs one by one.

        A job that ended by the board's fault is tried once more after all others: only if they
        went well is the fault recorded as its outcome. A board that fails several jobs in a row
        gets no more, and those jobs stay open.
        """
        board = self._lab.board(name)
        faults_in_a_row = 0
        broken: dict[str, Failed] = {}
        queue = deque((job, False) for job in jobs)
        recorded: Session | None = None
        async with leased(self._lab, name) as lease:
            connection = Connection(board, lease, self._progress.log)
            try:
                while queue:
                    job, again = queue.popleft()
                    session = await connection.session()
                    if session is not recorded:
                        recorded, identity = session, session.identity
                        self._store.put_board(
                            identity.board_id, name, identity.kind, identity.facts
                        )
                    if self._reuse(job, reuse_key(job.spec, identity.board_id)):
                        continue
                    started, before = self._clock.utc(), self._clock.monotonic_s()
                    self._store.start_job(job.job_id, identity.board_id, lease.epoch)
                    work = sha256_json(job.spec.to_json())
                    outcome = broken.get(work) or await self._attempt(connection, job)
                    if _is_boards(outcome):
                        assert isinstance(outcome, Failed)
                        faults_in_a_row += 1
                        if faults_in_a_row >= BOARD_FAULTS_TO_QUARANTINE:
                            self._quarantine(name, outcome.fault.message)
                            return
                        if not again:
                            self._say_failed(job, outcome)
                            queue.append((job, True))
                            continue
                    else:
                        faults_in_a_row = 0
                    wall_s = self._clock.monotonic_s() - before
                    self._put(job, identity.board_id, outcome, started, wall_s)
                    if _is_candidates(outcome) and work not in broken:
                        broken[work] = _same_again(outcome, job)
            except BoardGoneError as error:
                self._quarantine(name, str(error))
            finally:
                await connection.close()

    def _quarantine(self, name: str, why: str) -> None:
        self._quarantined[name] = why
        self._progress.log(f"board {name} gets no more jobs: {why}")

    async def _attempt(self, connection: Connection, job: PlannedJob) -> Outcome:
        """Try one job; climb the ladder (again, then a new connection) on transient faults."""
        outcome: Outcome | None = None
        for attempt in range(ATTEMPTS):
            try:
                session = await connection.session()
                for sha256 in job.spec.blobs:
                    await session.put(*self._supplies.of(sha256))
                outcome = await session.run(f"{job.job_id}-{attempt}", job.spec)
                if isinstance(outcome, Failed) and is_disagreement(outcome, job.spec):
                    files = self._supplies.files
                    outcome = await name_layer(session, job.job_id, job.spec, files, outcome)
            except (InfrastructureError, DataError) as error:
                # A board that refuses something is there all the same. On a full disk no new
                # session could begin.
                if not refused_for_good(error):
                    await connection.drop()
                outcome = Failed(_fault_of(error))
            if not (isinstance(outcome, Failed) and outcome.fault.transient):
                return outcome
            self._progress.log(
                f"{job.board}: {outcome.fault.message}; attempt {attempt + 1} of {ATTEMPTS}"
            )
        assert outcome is not None
        return outcome

    def _reuse(self, job: PlannedJob, key: str) -> bool:
        if self._earliest_reuse is None:
            return False
        earlier = self._store.reusable(key, self._earliest_reuse or None, job.job_id)
        if earlier is None:
            return False
        self._store.reuse_outcome(job.job_id, earlier)
        self._reused += 1
        self._advance(job, "as measured before")
        return True

    def _put(
        self, job: PlannedJob, board_id: str, outcome: Outcome, started_utc: str, wall_s: float
    ) -> None:
        accuracy = None
        if job.spec.kind is JobKind.ACCURACY and isinstance(outcome, Measured):
            outcome, accuracy = judge(outcome, self._supplies.labels[job.spec.dataset or ""])
        self._store.put_outcome(
            job.job_id, board_id, outcome, started_utc, wall_s, accuracy=accuracy
        )
        note = ""
        if isinstance(outcome, Failed) and "repeats_fault_of" not in outcome.evidence:
            note = f"failed: {outcome.fault.code}"
            self._say_failed(job, outcome)
        self._advance(job, note)

    def _say_failed(self, job: PlannedJob, outcome: Failed) -> None:
        hint = f" ({outcome.fault.hint})" if outcome.fault.hint else ""
        self._progress.log(f"{self._name(job)} on {job.board}: {outcome.fault.message}{hint}")

    def _advance(self, job: PlannedJob, note: str) -> None:
        self._done.add(job.job_id)
        self._done_s += expected_s(job)
        done = len(self._done & self._wanted)
        text = f"{done}/{self._count} {job.spec.kind.value} {self._name(job)} {note}".rstrip()
        self._progress.update("measure", self._done_s, self._total_s, text)
        now = self._clock.monotonic_s()
        if now - self._published_at >= PUBLISH_EVERY_S:
            self._published_at = now
            self._publish()

    def _name(self, job: PlannedJob) -> str:
        return self._supplies.names.get(job.spec.artifact, job.spec.artifact[:12])


def judge(outcome: Measured, labels: Labels) -> tuple[Outcome, AccuracyRow | None]:
    """Turn the raw outputs of an accuracy job into its metric.

    Args:
        outcome: with logits (n, classes).
        labels: of the same n images.

    Returns:
        The outcome (`Failed` when the outputs don't fit the labels) and the accuracy, or None.
    """
    import numpy as np

    logits = outcome.logits
    if logits is None or len(logits.shape) != 2 or logits.shape[0] != len(labels.y):
        shape = None if logits is None else logits.shape
        fault = Fault(
            Owner.CANDIDATE,
            transient=False,
            code="wrong-output-shape",
            message=f"outputs have shape {shape}, the split has {len(labels.y)} labels",
            hint="the first output of a classifier must be (batch, classes)",
        )
        return Failed(fault, outcome.health, outcome.evidence), None
    values = np.frombuffer(logits.data, dtype=logits.dtype).reshape(logits.shape)
    correct = int((values.argmax(axis=1) == labels.y).sum())
    row = AccuracyRow(
        split_sha=labels.split_sha,
        n=len(labels.y),
        metric=labels.metric,
        value=correct / len(labels.y),
        correct=tuple(bool(right) for right in values.argmax(axis=1) == labels.y),
    )
    return outcome, row


def _fault_of(error: InfrastructureError | DataError) -> Fault:
    """Return whose fault it is that a job couldn't be brought to its board and back."""
    from flatsat.targets.board import BoardRefused

    if isinstance(error, BoardRefused):
        return error.fault
    if isinstance(error, DataError):
        hint = error.hint or "build or import the candidate anew"
        return Fault(Owner.HARNESS, False, "damaged-file", error.message, hint)
    hint = error.hint or "look at the board, then go on with --resume"
    return Fault(Owner.BOARD, True, "link-down", error.message, hint)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _is_candidates(outcome: Outcome) -> bool:
    return (
        isinstance(outcome, Failed)
        and outcome.fault.owner is not Owner.BOARD
        and not outcome.fault.transient
    )


def _is_boards(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.fault.owner is Owner.BOARD


def _same_again(outcome: Outcome, job: PlannedJob) -> Failed:
    assert isinstance(outcome, Failed)
    return replace(outcome, evidence={"repeats_fault_of": job.job_id})
