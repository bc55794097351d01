"""What goes into the record and what comes out of it, as plain values; and the Store seam."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flatsat.jobspec import JobSpec

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.outcome import Outcome

PLANNED, RUNNING, DONE = "planned", "running", "done"


@dataclass(frozen=True)
class RunRow:
    """One execution of a plan.

    Attributes:
        run_id: sorts by time.
        kind: "run", "measure", "search", "compare", "validate", "demo", ...
        config_json, config_sha: canonical JSON of the configuration and its SHA-256.
        code_version: FlatSat's version.
        started_utc: ISO 8601 in UTC with microseconds, as `Clock.utc` gives it.
        host_fp: fingerprint of the computer that ran the harness.
        seed: the run's seed.
        state: "running", or what `finish_run` was told ("done", "failed", "interrupted", ...).
        finished_utc: None while it runs.
    """

    run_id: str
    kind: str
    config_json: str
    config_sha: str
    code_version: str
    started_utc: str
    host_fp: str
    seed: int
    state: str = RUNNING
    finished_utc: str | None = None


@dataclass(frozen=True)
class BoardRow:
    """A board as it was when it was measured on.

    Attributes:
        board_id: hash of its identity; a new kernel or firmware makes another board.
        name: its name in `lab.toml`.
        kind: "host", ...
        facts: JSON-able facts: CPU model, flags, kernel, versions, time kind.
    """

    board_id: str
    name: str
    kind: str
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class CandidateRow:
    """A candidate without its files.

    Attributes:
        candidate_id: hash of the sorted artifact hashes.
        recipe_id: hash of the intent; None for an imported model.
        name: human label.
        role: "reference", "equal-macs", "compressed" or "imported".
        workload: "fashion/lenet5"; "" for an imported model.
        seed: of its making, or None.
        parent: candidate_id that it was made from, or None.
        params, nonzeros, macs: counts, None where unknown.
        cost: "train_steps", "cpu_s", "forward_passes".
        accuracy_host: split name -> value in [0, 1], on the host; no evidence of a board.
        layers: per layer {"name", "kind", "params", "nonzeros", "macs", "shape"}.
        split_sha: of the split that `accuracy_host` was taken on, or None.
        recipe: the recipe as JSON-able mapping.
    """

    candidate_id: str
    recipe_id: str | None
    name: str
    role: str
    workload: str
    seed: int | None = None
    parent: str | None = None
    params: int | None = None
    nonzeros: int | None = None
    macs: int | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    accuracy_host: Mapping[str, float] = field(default_factory=dict)
    layers: Sequence[Mapping[str, object]] = ()
    split_sha: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class JobRow:
    """One job of a run.

    Attributes:
        job_id: unique in the whole record.
        artifact: sha256 of the model file.
        board_name: the selector, as in the JobSpec.
        kind: a `JobKind` value.
        spec_json: canonical JSON of the JobSpec.
        round: jobs of one round ran interleaved and are compared with each other.
        position: place in the run's order.
        comparison: name of the group that is interleaved, or None.
        run_id, state, attempt, board_id, epoch, reuse_key, reused_from: kept by the store; what
            a caller of `add_jobs` gives for them is ignored.
    """

    job_id: str
    artifact: str
    board_name: str
    kind: str
    spec_json: str
    round: int = 0
    position: int = 0
    comparison: str | None = None
    run_id: str = ""
    state: str = PLANNED
    attempt: int = 0
    board_id: str | None = None
    epoch: int | None = None
    reuse_key: str | None = None
    reused_from: str | None = None

    @property
    def spec(self) -> JobSpec:
        """The JobSpec, read from `spec_json`."""
        return JobSpec.from_json(json.loads(self.spec_json))


@dataclass(frozen=True)
class AccuracyRow:
    """What an accuracy job found on the board; the raw outputs stay in `Measured.logits`.

    Attributes:
        split_sha: of the split whose images ran; only equal splits are ever paired.
        metric: "accuracy", ...
        n: number of images.
        value: the metric.
        correct: one entry an image in the split's order: was the answer right? None where the
            metric isn't a share of right answers. Paired intervals need it.
    """

    split_sha: str
    metric: str
    n: int
    value: float
    correct: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class OutcomeRow:
    """A finished job with what became of it.

    Attributes:
        job: as recorded; `job.reused_from` names the job that really ran, if another did.
        outcome: without samples and logits where they weren't asked for.
        board_id: of the board that ran it; None where none was reached.
        started_utc: ISO 8601 in UTC.
        wall_s: host-monotonic seconds from start to outcome.
        accuracy: of an accuracy job, else None.
    """

    job: JobRow
    outcome: Outcome
    board_id: str | None
    started_utc: str
    wall_s: float
    accuracy: AccuracyRow | None = None


@dataclass(frozen=True)
class RunCounts:
    """How far a run is, without reading its samples."""

    jobs: int = 0
    done: int = 0
    running: int = 0
    reused: int = 0
    measured: int = 0
    failed: int = 0
    inconclusive: int = 0


class Store(Protocol):
    """The record of every measurement.

    Every method is one transaction: it happens wholly or not at all, and has happened when the
    call returns. All raise InfrastructureError where the disk or the database fails, DataError
    where something refers to a run, job or candidate that the record doesn't hold.
    """

    def begin_run(self, run: RunRow) -> None:
        """Record a run; the same run again sets it back to running (a resume).

        Raises:
            DataError: the run is recorded with another configuration.
        """

    def finish_run(self, run_id: str, state: str, finished_utc: str | None = None) -> None:
        """Record how a run ended."""

    def put_board(
        self, board_id: str, name: str, kind: str, facts: Mapping[str, object] | None = None
    ) -> None:
        """Record a board, or its name and facts anew."""

    def put_candidate(self, candidate: CandidateRow, run_id: str | None = None) -> None:
        """Record a candidate, or what is known of it anew; with `run_id` as part of that run."""

    def put_artifact(self, artifact: Artifact, candidate_id: str) -> None:
        """Record an artifact of a candidate; two candidates may share one."""

    def put_candidates(
        self, run_id: str, candidates: Sequence[tuple[CandidateRow, Sequence[Artifact]]]
    ) -> None:
        """Record candidates of a run with their artifacts, all in one transaction."""

    def add_jobs(self, run_id: str, jobs: Sequence[JobRow]) -> None:
        """Record planned jobs; those that the run already has are left as they are."""

    def jobs(self, run_id: str, state: str | None = None) -> list[JobRow]:
        """Return a run's jobs by round and position; `state` "planned", "running" or "done"."""

    def start_job(self, job_id: str, board_id: str | None, epoch: int | None = None) -> int:
        """Note that a job starts on a board; return the number of this attempt, from 1.

        Raises:
            DataError: there is no such job, or it is done.
        """

    def put_outcome(
        self,
        job_id: str,
        board_id: str | None,
        outcome: Outcome,
        started_utc: str,
        wall_s: float,
        accuracy: AccuracyRow | None = None,
    ) -> bool:
        """Record all of an outcome and set its job done, in one transaction.

        Returns:
            False, with nothing changed, where the job already had an outcome: the first stands.
        """

    def reusable(
        self, reuse_key: str, not_before_utc: str | None = None, for_job: str | None = None
    ) -> str | None:
        """Return the newest measured job with this reuse key, or None.

        Args:
            reuse_key: of JobSpec and board.
            not_before_utc: it must not have started earlier.
            for_job: the planned job that would reuse it; then never one that another round of the
                same comparison already stands on, so that rounds stay separate measurements.
        """

    def reuse_outcome(self, job_id: str, from_job_id: str, board_id: str | None = None) -> None:
        """Set a job done with the outcome of another that really ran."""

    def outcomes(
        self,
        run_id: str | None = None,
        candidate_id: str | None = None,
        artifact: str | None = None,
        board: str | None = None,
        kind: str | None = None,
        with_samples: bool = True,
    ) -> list[OutcomeRow]:
        """Return outcomes that fit all given filters, by run, round and position.

        Args:
            run_id: of one run.
            candidate_id: of any artifact of one candidate.
            artifact: sha256 of one artifact.
            board: a board's name or its board_id.
            kind: a `JobKind` value.
            with_samples: False leaves samples and logits out, undecoded, which is much quicker.
        """

    def runs(self) -> list[RunRow]:
        """Return all runs, the oldest first."""

    def run(self, run_id: str) -> RunRow:
        """Return one run; raises DataError if there is none."""

    def counts(self, run_id: str | None = None) -> dict[str, RunCounts]:
        """Return how far each run is, by run_id; or one run only."""

    def candidates(self, run_id: str | None = None) -> list[CandidateRow]:
        """Return a run's candidates: those put with its run_id, and those its jobs measured."""

    def candidate(self, candidate_id: str) -> CandidateRow:
        """Return one candidate; raises DataError if there is none."""

    def artifacts(self, candidate_id: str) -> list[Artifact]:
        """Return a candidate's artifacts in the order in which they were put."""

    def boards(self, run_id: str | None = None) -> list[BoardRow]:
        """Return the boards that a run's outcomes come from, or all."""

    def put_note(self, run_id: str, key: str, value: object) -> None:
        """Keep a JSON-able value or bytes under a key of a run, in place of an older one."""

    def notes(self, run_id: str) -> dict[str, object]:
        """Return a run's notes by key."""

    def close(self) -> None:
        """Let go of the database."""
