"""Where a search's candidates are made and measured: the lab, behind a short Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from flatsat.jobspec import VIRTUAL_PLAN, JobKind
from flatsat.outcome import Failed, Inconclusive, Measured

if TYPE_CHECKING:
    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab
    from flatsat.harness.search.settings import SearchSection
    from flatsat.harness.search.table import BoardTable, TablePlan
    from flatsat.jobspec import MeasurePlan
    from flatsat.progress import Progress
    from flatsat.reports.interval import Interval
    from flatsat.reports.rows import OutcomeRow
    from flatsat.units import TimeKind


COUNTED_ROUNDS = 2
"""Latency jobs of a candidate on a board that counts instructions: two make an interval."""
COUNTED_PLAN = replace(VIRTUAL_PLAN, min_inferences=8, isolation="fork")
"""Copies of one process repeat within 0.1 % there, and take half of the time or less."""
FLOAT = "float"
_ROUNDS_APART = 1_000_000
"""Between the first rounds of two comparisons, where their rounds are numbered through."""


@dataclass(frozen=True)
class Built:
    """A candidate that a policy became.

    Attributes:
        candidate_id: of it.
        accuracy: of the network on the validation split.
        macs: as counted in the smaller network.
        accuracies: dtype of a form -> its accuracy, where it differs from the network's.
    """

    candidate_id: str
    accuracy: float
    macs: float
    accuracies: Mapping[str, float] = field(default_factory=dict)

    def accuracy_as(self, dtype: str) -> float:
        """Return the accuracy of one form on the validation split."""
        return self.accuracies.get(dtype, self.accuracy)


@dataclass(frozen=True)
class Timed:
    """Latency or modelled energy of one candidate in one comparison.

    Attributes:
        medians: round -> median of all its processes' inferences, in ns or nJ.
        why: there are none, or "".
        accuracy: on the test images, on the board; None where it was not asked for.
        dtype: of the form that counts, "float" or "int8".
    """

    medians: Mapping[int, float]
    why: str = ""
    accuracy: float | None = None
    dtype: str = FLOAT


class Bench(Protocol):
    """Makes and measures candidates. Asked the same again, it gives what it gave before."""

    @property
    def time_kind(self) -> TimeKind | None:
        """The board's clock; None without a board."""

    def build(self, name: str, recipe: Mapping[str, object]) -> Built:
        """Make the candidate of a recipe with one seed.

        Raises:
            UsageError: the recipe can't be applied.
        """

    def measure(
        self, comparison: str, candidate_ids: Sequence[str], *, rounds: int, accuracy: bool = False
    ) -> dict[str, Timed]:
        """Measure candidates in interleaved rounds; `comparison` names these measurements.

        Args:
            comparison: the same name with the same candidates measures nothing twice.
            candidate_ids: of candidates that were built here, now or before an interruption.
            rounds: latency jobs of each.
            accuracy: run the test split on the board as well: only when all choices are made.
        """

    def table(self, plan: TablePlan) -> BoardTable:
        """Measure single layers.

        Raises:
            InfrastructureError: the board could run none.
        """


def together(stages: Sequence[Mapping[str, Timed]], candidate_id: str) -> Timed:
    """Return the rounds of several comparisons as one; what the last one says beside them holds.

    Rounds in which another form of the candidate counted are left out.
    """
    medians: dict[int, float] = {}
    found = [stage[candidate_id] for stage in stages if candidate_id in stage]
    last = found[-1] if found else Timed({}, "it was not measured")
    for number, stage in enumerate(stages):
        if candidate_id in stage and stage[candidate_id].dtype == last.dtype:
            first = number * _ROUNDS_APART
            rounds = stage[candidate_id].medians
            medians |= {first + index: value for index, value in rounds.items()}
    return replace(last, medians={} if last.why else medians)


def relative(timed: Timed, anchor: Timed | None, unit: float = 1.0) -> Interval | None:
    """Return the value over the rounds, as geometric mean with a 95 % interval.

    Args:
        timed: of the candidate.
        anchor: of the dense network in the same rounds: the result is `unit` x the mean ratio
            to it, free of the machine's drift. None: the latency itself.
        unit: what a ratio of 1 stands for.
    """
    from flatsat.reports.interval import Interval
    from flatsat.reports.stats import mean_log_ratio

    rounds = sorted(timed.medians)
    if anchor is not None:
        rounds = [index for index in rounds if index in anchor.medians]
    top = [timed.medians[index] for index in rounds]
    bottom = [1.0 if anchor is None else anchor.medians[index] for index in rounds]
    found = mean_log_ratio(top, bottom)
    if found is None:
        return None
    scale = 1.0 if anchor is None else unit
    ends = [None if end is None else end * scale for end in (found.low, found.high)]
    return Interval(found.value * scale, ends[0], ends[1], found.level, found.n, found.groups)


@dataclass(frozen=True)
class LabBench:
    """The lab's record and one of its boards.

    Attributes:
        lab: where.
        run_id: the run whose jobs measure candidates.
        section: of the search.
        progress: is told what goes on.
    """

    lab: Lab
    run_id: str
    section: SearchSection
    progress: Progress

    @property
    def time_kind(self) -> TimeKind | None:
        """The board's clock; None without a board."""
        board = self.section.budget.board
        return self.lab.board(board).time_kind if board else None

    def build(self, name: str, recipe: Mapping[str, object]) -> Built:
        """Make the candidate of a recipe with one seed, in this process."""
        from flatsat.compressors.candidate import load_candidate
        from flatsat.compressors.recipe import build, from_mapping

        spec = from_mapping(name, recipe)
        folder = build(
            spec,
            spec.seeds[0],
            candidates_dir=self.lab.candidates_dir,
            cache_dir=self.lab.cache_dir,
        )
        candidate = load_candidate(folder)
        return Built(
            candidate.candidate_id,
            float(candidate.accuracy_host["validation"]),
            float(candidate.macs or 0),
            {
                key.partition("/")[2]: float(value)
                for key, value in candidate.accuracy_host.items()
                if key.startswith("validation/")
            },
        )

    def measure(
        self, comparison: str, candidate_ids: Sequence[str], *, rounds: int, accuracy: bool = False
    ) -> dict[str, Timed]:
        """Measure candidates as ordinary jobs of the search's run."""
        from flatsat.compressors.candidate import load_candidate

        kinds = (self.section.job_kind, JobKind.ACCURACY)[: 2 if accuracy else 1]
        folders = [self.lab.candidates_dir / one for one in dict.fromkeys(candidate_ids)]
        candidates = [load_candidate(folder) for folder in folders]
        rows = run_jobs(
            self.lab,
            self.run_id,
            candidates,
            board=self.section.budget.board,
            kinds=kinds,
            plan=self.section.measure.plan(),
            rounds=rounds,
            comparison=comparison,
            reuse="never",
            progress=self.progress,
        )
        loss = self.section.space.int8_loss
        return {one.candidate_id: quickest(rows, one, loss) for one in candidates}

    def table(self, plan: TablePlan) -> BoardTable:
        """Measure single layers as ordinary jobs of a run of their own."""
        from flatsat.harness.search.table_run import measure_table

        return measure_table(self.lab, plan, self.section, self.progress)


def quickest(rows: Sequence[OutcomeRow], candidate: Candidate, int8_loss: float) -> Timed:
    """Return the latency of a candidate's quickest form that is accurate enough.

    Args:
        rows: outcomes of its files.
        candidate: with one file a form.
        int8_loss: validation accuracy that the int8 form may lose against the network.
    """
    import numpy as np

    host = candidate.accuracy_host
    forms = []
    for artifact in candidate.artifacts:
        accuracy = float(host.get(f"validation/{artifact.role}", host.get("validation", 0.0)))
        if artifact.role == FLOAT or accuracy >= float(host.get("validation", 0.0)) - int8_loss:
            found = timed(rows, {artifact.sha256})
            forms.append(replace(found, dtype=artifact.role))
    if not forms:
        return Timed({}, f"its int8 form loses more than {int8_loss:g} in accuracy", dtype="int8")
    ran = [one for one in forms if one.medians]
    return min(ran, key=lambda one: float(np.median(list(one.medians.values()))), default=forms[0])


def timed(rows: Sequence[OutcomeRow], artifacts: AbstractSet[str]) -> Timed:
    """Return what the outcomes say of one candidate, by the sha256 of its files."""
    import numpy as np

    medians: dict[int, float] = {}
    why = ""
    accuracy = None
    for row in rows:
        if row.job.artifact not in artifacts:
            continue
        outcome = row.outcome
        if isinstance(outcome, Failed):
            why = why or outcome.fault.message
        elif isinstance(outcome, Inconclusive):
            why = why or outcome.why
        elif row.job.kind == JobKind.ACCURACY:
            accuracy = None if row.accuracy is None else row.accuracy.value
        else:
            assert isinstance(outcome, Measured)
            values = [
                value
                for samples in outcome.samples
                if samples.quantity in ("latency_ns", "energy_nj") and samples.warm
                for value in samples.values
            ]
            if values:
                medians[row.job.round] = float(np.median(values))
    return Timed(medians, "" if medians else why or "no job gave a value", accuracy)


def run_jobs(
    lab: Lab,
    run_id: str,
    candidates: Sequence[Candidate],
    *,
    board: str,
    kinds: tuple[JobKind, ...],
    plan: MeasurePlan,
    rounds: int,
    comparison: str,
    reuse: str,
    progress: Progress,
) -> list[OutcomeRow]:
    """Measure candidates as jobs of a run that has begun."""
    from flatsat.harness.plan import Settings
    from flatsat.harness.run import measure_candidates

    settings = Settings(
        kinds=kinds,
        plan=plan,
        rounds=rounds,
        virtual_plan=COUNTED_PLAN,
        virtual_rounds=min(rounds, COUNTED_ROUNDS),
        comparison=comparison,
    )
    return measure_candidates(
        lab, run_id, candidates, boards=[board], settings=settings, reuse=reuse, progress=progress
    )
