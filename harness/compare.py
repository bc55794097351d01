"""Compare candidates by measuring them now, interleaved in rounds; or runs by what was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.harness import publish
from flatsat.harness.culprit import int8_errors
from flatsat.harness.names import choice_error
from flatsat.harness.plan import Settings
from flatsat.harness.records import find_run, open_record
from flatsat.harness.run import begin_run, end_run, measure_candidates
from flatsat.jobspec import JobKind, MeasurePlan
from flatsat.progress import NoProgress, Progress

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab
    from flatsat.reports.compare import Comparison, ComparisonReport, Statistic, Subject
    from flatsat.reports.rows import OutcomeRow, RunRow, Store

PLAN = MeasurePlan(processes=2, min_inferences=50, min_s=0.2)
COUNTED_ROUNDS = 3
"""Where time is counted instructions, more rounds say the same again."""
ROUNDS = 10


@dataclass(frozen=True)
class CompareRequest:
    """What is compared, where and how.

    Attributes:
        names: the baseline first. Candidates (name, identifier, folder, each perhaps with
            ":ROLE"), or runs (identifier, start of one, "last").
        board, threads: where candidates are measured.
        runtime: what executes them; None takes the default of each format.
        rounds: each artifact once a round, in an order drawn anew.
        plan: how one job measures, on a board with a real clock.
        threshold: relative difference of latency that still counts as equal.
        margin: loss of accuracy that still counts as none, in (0, 1).
        statistic: of each process's latencies.
        accuracy: measure it too, where all candidates share a workload.
        recorded: measure nothing; take what the record holds.
        seed: of the order.
    """

    names: tuple[str, ...]
    board: str = "host"
    runtime: str | None = None
    threads: int = 1
    rounds: int = ROUNDS
    plan: MeasurePlan = PLAN
    threshold: float = 0.02
    margin: float = 0.005
    statistic: Statistic = "p50"
    accuracy: bool = True
    recorded: bool = False
    seed: int = 0


@dataclass(frozen=True)
class CompareResult:
    """The verdicts, and where the evidence is.

    Attributes:
        report: one row a pair, quantity and context.
        run_id: of the run that was made for it, or None.
        page: its report, or None.
    """

    report: ComparisonReport
    run_id: str | None = None
    page: Path | None = None


@dataclass(frozen=True)
class _Chosen:
    """A candidate and the artifacts of it that are compared."""

    candidate: Candidate
    artifacts: tuple[Artifact, ...]

    def labels(self, others: Sequence[_Chosen]) -> dict[str, str]:
        """Return artifact sha256 -> what people call it among all that is compared."""
        same = [c for c in others if c.candidate.name == self.candidate.name]
        ids = {c.candidate.candidate_id for c in same}
        name = self.candidate.name
        if len(ids) > 1:
            seeds = {c.candidate.seed for c in same}
            distinct = len(seeds) == len(ids)
            name += f" seed {self.candidate.seed}" if distinct else f" {self._short}"
        # A candidate that is compared with itself needs its artifacts told apart.
        several = len(self.artifacts) > 1 or len(same) > len(ids)
        return {a.sha256: f"{name} {a.role}" if several else name for a in self.artifacts}

    @property
    def _short(self) -> str:
        return self.candidate.candidate_id[:8]


def compare(
    lab: Lab, request: CompareRequest, *, progress: Progress | None = None
) -> CompareResult:
    """Compare what `request` names with the first of them.

    Raises:
        UsageError: fewer than two names, one that is unknown, or candidates beside runs.
        InfrastructureError: the record can't be written.
    """
    if len(request.names) < 2:
        raise UsageError("name at least two candidates or two runs", hint="the baseline first")
    if not request.threshold > 0 or not request.margin > 0:
        raise UsageError("--within and --margin must be above 0")
    runs = _runs(lab, request.names)
    if runs is not None:
        return CompareResult(_compare_runs(lab.store(), runs, request))
    chosen = [_choose(lab, name) for name in request.names]
    _refuse_the_same(chosen)
    if request.recorded:
        store = open_record(lab)
        ids = {c.candidate.candidate_id for c in chosen}
        rows = [row for identity in ids for row in store.outcomes(candidate_id=identity)]
        return CompareResult(_judge(chosen, rows, request))
    return _measured(lab, chosen, request, progress or NoProgress())


def _runs(lab: Lab, names: Sequence[str]) -> list[RunRow] | None:
    """Return the runs that all names mean, or None where none of them means one."""
    if not (lab.root / "record.db").is_file():
        return None
    store = lab.store()
    known = [run.run_id for run in store.runs()]
    meant = [n for n in names if n == "last" or (len(n) > 3 and _starts_one(n, known))]
    if not meant:
        return None
    if len(meant) < len(names):
        others = [name for name in names if name not in meant]
        raise UsageError(
            f"{meant[0]!r} is a run, {others[0]!r} is none",
            hint="compare candidates with candidates, or runs with runs",
        )
    return [find_run(store, name) for name in names]


def _starts_one(name: str, run_ids: Iterable[str]) -> bool:
    return any(run_id.startswith(name) for run_id in run_ids)


def _choose(lab: Lab, name: str) -> _Chosen:
    selector, colon, role = name.rpartition(":")
    if not colon:
        selector, role = name, ""
    candidate = lab.candidate(selector)
    fitting = tuple(a for a in candidate.artifacts if role in ("", a.role))
    if not fitting:
        message, hint = choice_error(
            f"role of {candidate.name}", role, [a.role for a in candidate.artifacts]
        )
        raise UsageError(message, hint=hint)
    return _Chosen(candidate, fitting)


def _refuse_the_same(chosen: Sequence[_Chosen]) -> None:
    first = {a.sha256 for a in chosen[0].artifacts}
    for other in chosen[1:]:
        if first == {a.sha256 for a in other.artifacts}:
            raise UsageError(
                f"{other.candidate.name!r} is the same model file as the baseline",
                hint="name two that differ, or their artifacts: NAME:float NAME:int8",
            )


def _measured(
    lab: Lab, chosen: Sequence[_Chosen], request: CompareRequest, progress: Progress
) -> CompareResult:
    lab.prepare()
    lab.board(request.board)
    workloads = {c.candidate.workload for c in chosen}
    judged = request.accuracy and len({w.partition("/")[0] for w in workloads}) == 1
    kinds = (JobKind.LATENCY, JobKind.ACCURACY)[: 2 if judged and "" not in workloads else 1]
    settings = Settings(
        kinds=kinds,
        runtimes=() if request.runtime is None else (request.runtime,),
        threads=(request.threads,),
        plan=request.plan,
        rounds=request.rounds,
        virtual_rounds=min(request.rounds, COUNTED_ROUNDS),
        seed=request.seed,
        comparison="compare",
    )
    store = lab.store()
    title = " against ".join(c.candidate.name for c in (chosen[-1], chosen[0]))
    config: dict[str, object] = {
        "name": title,
        "names": list(request.names),
        "candidates": [c.candidate.candidate_id for c in chosen],
        "board": request.board,
        "rounds": request.rounds,
        "threshold": request.threshold,
        "margin": request.margin,
    }
    run_id = begin_run(lab, store, kind="compare", config=config, seed=request.seed)
    try:
        store.put_note(run_id, "title", title)
        rows = measure_candidates(
            lab,
            run_id,
            _merged(chosen),
            boards=[request.board],
            settings=settings,
            progress=progress,
        )
    except BaseException:
        publish.quietly_mark(lab, store, run_id, "interrupted")
        raise
    page = end_run(lab, store, run_id, "done")
    return CompareResult(_judge(chosen, rows, request), run_id, page)


def _merged(chosen: Sequence[_Chosen]) -> list[Candidate]:
    """Return each candidate once, with the artifacts that any of the names asks for."""
    merged: dict[str, Candidate] = {}
    for c in chosen:
        identity = c.candidate.candidate_id
        before = merged[identity].artifacts if identity in merged else ()
        new = tuple(a for a in c.artifacts if a not in before)
        merged[identity] = replace(c.candidate, artifacts=before + new)
    return list(merged.values())


def _judge(
    chosen: Sequence[_Chosen], rows: Sequence[OutcomeRow], request: CompareRequest
) -> ComparisonReport:
    """Hold each artifact against the baseline's of the same role, or else its first."""
    from flatsat.reports.compare import Subject

    def subject(c: _Chosen, artifact: Artifact) -> Subject:
        mine = tuple(row for row in rows if row.job.artifact == artifact.sha256)
        return Subject(c.labels(chosen)[artifact.sha256], mine)

    base, *others = chosen
    by_role = {a.role: a for a in reversed(base.artifacts)}
    pairs = []
    for c in others:
        for artifact in c.artifacts:
            against = by_role.get(artifact.role, base.artifacts[0])
            if against.sha256 != artifact.sha256:
                pairs.append((subject(base, against), subject(c, artifact)))
    report = _report(base.candidate.name, pairs, request)
    notes = [
        f"{c.candidate.name}: {line}"
        for c in chosen
        for line in int8_errors(c.candidate, c.artifacts)
    ]
    return replace(report, notes=(*report.notes, *notes))


def _compare_runs(
    store: Store, runs: Sequence[RunRow], request: CompareRequest
) -> ComparisonReport:
    """Hold what each run measured against the first run's measurement of the same name."""
    from flatsat.reports.compare import Subject, subjects

    base, *others = runs
    mine = subjects(store, base.run_id)
    pairs: list[tuple[Subject, Subject]] = []
    notes: list[str] = []
    for other in others:
        theirs = subjects(store, other.run_id)
        suffix = f" ({other.run_id})" if len(others) > 1 else ""
        pairs += [
            (mine[label], Subject(label + suffix, subject.rows))
            for label, subject in theirs.items()
            if label in mine
        ]
        for run, only in ((base, mine.keys() - theirs), (other, theirs.keys() - mine)):
            notes += [f"{label} is in {run.run_id} alone: left out" for label in sorted(only)]
    if not pairs:
        raise UsageError(
            f"{base.run_id} and {others[0].run_id} measured nothing of the same name",
            hint="see: flatsat runs show RUN",
        )
    report = _report(base.run_id, pairs, request)
    return replace(report, notes=(*report.notes, *notes))


def _report(
    baseline: str, pairs: Sequence[tuple[Subject, Subject]], request: CompareRequest
) -> ComparisonReport:
    from flatsat.reports.compare import ComparisonReport, compare_all

    rows: list[Comparison] = []
    notes: list[str] = []
    for left, right in pairs:
        found = compare_all(
            left,
            [right],
            threshold=request.threshold,
            margin=request.margin,
            statistic=request.statistic,
        )
        rows += found.rows
        notes += [note for note in found.notes if note not in notes]
    return ComparisonReport(baseline, tuple(rows), request.threshold, request.margin, tuple(notes))
