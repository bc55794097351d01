"""Board sections of a report: what was measured of one workload on one board by one clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from flatsat.outcome import Measured
from flatsat.reports import stats, words
from flatsat.reports.collect_headline import headline
from flatsat.reports.collect_together import (
    on_front,
    proxies,
    shown_facts,
    steady_by_process,
    trust,
)
from flatsat.reports.compare import compare, compare_accuracy
from flatsat.reports.context import Context, by_context
from flatsat.reports.model import (
    DRAWN_QUANTILES,
    AccuracyReport,
    AgreementReport,
    BoardSection,
    Estimate,
    MeasurementReport,
    MemoryReport,
    ProcessTrace,
    RatioReport,
)
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.outcome import AgreementResult, Samples
    from flatsat.reports.interval import Interval
    from flatsat.reports.known import Known
    from flatsat.reports.rows import AccuracyRow, BoardRow, OutcomeRow

_QUANTILES = (0.1, 0.5, 0.9, 0.99)
# MACs that differ by less count as equal.
_EQUAL_MACS = 0.15


@dataclass(frozen=True)
class _Taken:
    """The latencies of one artifact under one context."""

    known: Known
    context: Context
    taken: tuple[tuple[OutcomeRow, Samples], ...]

    @property
    def rows(self) -> tuple[OutcomeRow, ...]:
        """The outcomes, each once, in the order of the run."""
        return tuple({row.job.job_id: row for row, _ in self.taken}.values())

    @property
    def clock(self) -> TimeKind:
        """The clock of the latencies."""
        return TimeKind.VIRTUAL if self.context.class_ == "virtual" else TimeKind.WALL


def sections(
    artifacts: Mapping[str, Known],
    latencies: Sequence[OutcomeRow],
    others: Sequence[OutcomeRow],
    boards: Sequence[BoardRow],
    *,
    margin: float,
    threshold: float,
) -> tuple[BoardSection, ...]:
    """Return a section for each workload, board and clock, in the order of the record.

    Args:
        artifacts: by sha256.
        latencies: outcomes of latency jobs, with samples.
        others: outcomes of other jobs, without.
        boards: that they come from.
        margin: loss of accuracy that counts as none.
        threshold: relative difference of latency that counts as equal.
    """
    rows: dict[str, list[OutcomeRow]] = {}
    for row in latencies:
        rows.setdefault(row.job.artifact, []).append(row)
    workloads = {k.candidate.workload for k in artifacts.values() if k.candidate.workload}
    # An imported model tells no workload: it stands beside the run's only one.
    only = next(iter(workloads)) if len(workloads) == 1 else ""
    groups: dict[tuple[str, str, TimeKind], list[_Taken]] = {}
    for sha256, held in artifacts.items():
        for where, taken in by_context(rows.get(sha256, ()), "latency_ns").items():
            found = _Taken(held, where, tuple(taken))
            key = (held.candidate.workload or only, where.board_id, found.clock)
            groups.setdefault(key, []).append(found)
    told = {board.board_id: board for board in boards}
    return tuple(
        _section(key, group, others, told.get(key[1]), margin, threshold)
        for key, group in groups.items()
    )


def _section(
    key: tuple[str, str, TimeKind],
    group: Sequence[_Taken],
    others: Sequence[OutcomeRow],
    board: BoardRow | None,
    margin: float,
    threshold: float,
) -> BoardSection:
    workload, board_id, clock = key
    accuracies = _accuracies(others, board_id)
    labels = _labels(group)
    measured = [
        _measurement(one, labels[i], group, labels, accuracies, threshold)
        for i, one in enumerate(group)
    ]
    measured = on_front(sorted(measured, key=lambda m: m.p50_ns.value or math.inf))
    facts = dict(board.facts) if board is not None else {}
    return BoardSection(
        workload=workload,
        board=group[0].context.board,
        board_id=board_id,
        kind=board.kind if board is not None else "",
        clock=clock,
        facts=shown_facts(facts),
        measurements=tuple(measured),
        proxies=proxies(measured),
        trust=trust([row for one in group for row in one.rows], facts),
        headline=headline(measured, margin),
        margin=margin,
    )


def _labels(group: Sequence[_Taken]) -> list[str]:
    """Return a label for each, with runtime and threads where one artifact has several of them."""
    same = Counter(one.known.label for one in group)
    labels: list[str] = []
    for one in group:
        label = one.known.label
        if same[label] > 1:
            where = one.context
            label += f", {where.runtime}, {words.plural(where.threads, 'thread')}"
            if where.batch != 1:
                label += f", batch {where.batch}"
        while label in labels:
            label += " again"
        labels.append(label)
    return labels


def _measurement(
    one: _Taken,
    label: str,
    group: Sequence[_Taken],
    labels: Sequence[str],
    accuracies: Mapping[tuple[str, str], AccuracyRow],
    threshold: float,
) -> MeasurementReport:
    candidate, artifact, rows = one.known.candidate, one.known.artifact, one.rows
    values = [np.asarray(samples.values, dtype=np.float64) for _, samples in one.taken]
    p10, p50, p90, p99 = (
        _estimate(interval, q, sum(v.size for v in values))
        for q, interval in zip(_QUANTILES, stats.bootstrap_cis(values, _QUANTILES), strict=True)
    )
    asked = [row for row in rows if row.job.spec.plan.warmup == "steady"]
    steady = [s for row in asked for s in steady_by_process(row).values()]
    dense = _reference(one, group)
    narrow = _equal_macs(one, group)
    name = {id(other): labels[i] for i, other in enumerate(group)}
    return MeasurementReport(
        candidate_id=candidate.candidate_id,
        label=label,
        role=candidate.role,
        artifact=artifact.sha256,
        format=artifact.format,
        precision=artifact.role,
        size_bytes=artifact.size_bytes,
        runtime=one.context.runtime,
        threads=one.context.threads,
        batch=one.context.batch,
        rounds=len({row.job.round for row in rows}),
        processes=len(values),
        n=sum(v.size for v in values),
        min_ns=float(min(v.min() for v in values)),
        p10_ns=p10,
        p50_ns=p50,
        p90_ns=p90,
        p99_ns=p99,
        load_ns=_median(v for s in _samples(rows, "load_ns") for v in s.values),
        steady=sum(steady) if steady else None,
        traces=tuple(_trace(row, samples) for row, samples in one.taken),
        params=candidate.params,
        nonzeros=candidate.nonzeros,
        macs=candidate.macs,
        accuracy=_accuracy(one, dense, accuracies),
        memory=_memory(rows),
        agreement=_agreement(rows),
        versus_reference=_versus(one, dense, name, threshold),
        versus_equal_macs=_versus(one, narrow, name, threshold),
    )


def _estimate(interval: Interval | None, q: float, n: int) -> Estimate:
    if interval is None:
        return Estimate(None, n=n, needs=stats.sample_floor(q))
    return Estimate(interval.value, interval.low, interval.high, n)


def _trace(row: OutcomeRow, samples: Samples) -> ProcessTrace:
    quantiles = np.quantile(np.asarray(samples.values, dtype=np.float64), DRAWN_QUANTILES)
    steady = None
    if row.job.spec.plan.warmup == "steady":
        steady = steady_by_process(row).get(samples.process)
    return ProcessTrace(
        label=f"round {row.job.round + 1}, process {samples.process + 1}",
        n=len(samples.values),
        quantiles_ns=tuple(float(v) for v in quantiles),
        steady=steady,
    )


def _samples(rows: Iterable[OutcomeRow], quantity: str) -> list[Samples]:
    return [
        samples
        for row in rows
        if isinstance(row.outcome, Measured)
        for samples in row.outcome.samples
        if samples.quantity == quantity and samples.values
    ]


def _median(values: Iterable[float]) -> float | None:
    held = list(values)
    return float(median(held)) if held else None


def _memory(rows: Sequence[OutcomeRow]) -> MemoryReport | None:
    """Return peak memory by the method that every system has, else by another."""
    taken = _samples(rows, "rss_bytes")
    methods = sorted({s.kind for s in taken}, key=lambda kind: kind != "ru_maxrss")
    if not methods:
        return None
    peaks = [max(s.values) for s in taken if s.kind == methods[0]]
    return MemoryReport(methods[0], float(median(peaks)), min(peaks), max(peaks), len(peaks))


def _agreement(rows: Sequence[OutcomeRow]) -> AgreementReport | None:
    """Return the worst agreement of the rounds."""
    found: list[AgreementResult] = [
        row.outcome.agreement
        for row in rows
        if isinstance(row.outcome, Measured) and row.outcome.agreement is not None
    ]
    if not found:
        return None
    worst = min(found, key=lambda a: (a.ok, a.top1_agree, -a.max_rel))
    return AgreementReport(worst.kind, worst.max_rel, worst.top1_agree, worst.n, worst.ok)


# Accuracy


def _accuracies(rows: Sequence[OutcomeRow], board_id: str) -> dict[tuple[str, str], AccuracyRow]:
    """Return the newest accuracy of each (artifact, runtime) on a board."""
    return {
        (row.job.artifact, row.job.spec.runtime): row.accuracy
        for row in sorted(rows, key=lambda row: row.started_utc)
        if row.accuracy is not None
        and row.board_id == board_id
        and isinstance(row.outcome, Measured)
    }


def _accuracy(
    one: _Taken, dense: _Taken | None, accuracies: Mapping[tuple[str, str], AccuracyRow]
) -> AccuracyReport | None:
    found = accuracies.get((one.known.artifact.sha256, one.context.runtime))
    if found is None:
        return None
    right = round(found.value * found.n) if found.correct is None else sum(found.correct)
    interval = stats.wilson(right, found.n) if found.metric == "accuracy" and found.n else None
    return AccuracyReport(
        metric=found.metric,
        value=found.value,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=found.n,
        split_sha=found.split_sha,
        loss=_loss(found, dense, accuracies),
    )


def _loss(
    found: AccuracyRow,
    dense: _Taken | None,
    accuracies: Mapping[tuple[str, str], AccuracyRow],
) -> Estimate | None:
    if dense is None:
        return None
    reference = accuracies.get((dense.known.artifact.sha256, dense.context.runtime))
    if reference is None:
        return None
    difference, _, _ = compare_accuracy(reference, found)
    if difference is None or difference.low is None or difference.high is None:
        return None
    return Estimate(-difference.value, -difference.high, -difference.low, difference.n)


# Baselines


def _reference(one: _Taken, group: Sequence[_Taken]) -> _Taken | None:
    """Return the float artifact of the dense reference, of the same seed where there is one."""
    if one.known.candidate.role == "reference" and one.known.artifact.role == "float":
        return None
    fitting = [
        other
        for other in group
        if other.context == one.context
        and other.known.candidate.role == "reference"
        and other.known.artifact.role == "float"
    ]
    seed = one.known.candidate.seed
    own = [other for other in fitting if other.known.candidate.seed == seed]
    return next(iter(own or fitting), None)


def _equal_macs(one: _Taken, group: Sequence[_Taken]) -> _Taken | None:
    """Return the narrow network with about as many MACs, of the same precision if there is one."""
    macs = one.known.candidate.macs
    if one.known.candidate.role not in ("compressed", "imported") or not macs:
        return None
    near = [
        (abs(math.log(other.known.candidate.macs / macs)), other)
        for other in group
        if other.context == one.context
        and other.known.candidate.role == "equal-macs"
        and other.known.candidate.macs
    ]
    near = [pair for pair in near if pair[0] <= math.log1p(_EQUAL_MACS)]
    precision = one.known.artifact.role
    alike = [pair for pair in near if pair[1].known.artifact.role == precision]
    floats = [pair for pair in near if pair[1].known.artifact.role == "float"]
    fitting = alike or floats
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _versus(
    one: _Taken, other: _Taken | None, name: Mapping[int, str], threshold: float
) -> RatioReport | None:
    if other is None:
        return None
    found = compare(other.rows, one.rows, threshold)
    ratio = found.ratio
    return RatioReport(
        against=name[id(other)],
        value=None if ratio is None else ratio.value,
        low=None if ratio is None else ratio.low,
        high=None if ratio is None else ratio.high,
        verdict=found.verdict.value,
        why=found.why,
    )
