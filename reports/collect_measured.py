"""One artifact as measured under one context: latencies, memory, agreement, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from flatsat.outcome import Measured
from flatsat.reports import stats
from flatsat.reports.collect_baselines import reference
from flatsat.reports.collect_board import fit, roofline
from flatsat.reports.collect_energy import Spent, key_of
from flatsat.reports.collect_together import steady_by_process
from flatsat.reports.compare import compare_accuracy
from flatsat.reports.model import (
    DRAWN_QUANTILES,
    AccuracyReport,
    AgreementReport,
    Estimate,
    MeasurementReport,
    MemoryReport,
    ProcessTrace,
)

if TYPE_CHECKING:
    from flatsat.outcome import AgreementResult, Samples
    from flatsat.reports.collect_baselines import Taken
    from flatsat.reports.collect_energy import Key
    from flatsat.reports.interval import Interval
    from flatsat.reports.model_board import CapabilityReport
    from flatsat.reports.rows import AccuracyRow, OutcomeRow

_QUANTILES = (0.1, 0.5, 0.9, 0.99)

_SHARES = ("accuracy", "agreement")
"""Metrics that are a share of images, for which Wilson's interval holds."""


def measurement(
    one: Taken,
    group: Sequence[Taken],
    accuracies: Mapping[tuple[str, str], AccuracyRow],
    spent: Mapping[Key, Spent],
    board: CapabilityReport | None,
) -> MeasurementReport:
    """Return what was measured of one artifact, not yet held against others but in accuracy.

    Args:
        one: its latencies.
        group: all that were measured of this workload on this board by this clock.
        accuracies: by (artifact, runtime).
        spent: counted events and energies.
        board: what the board can do, None where it was not asked.
    """
    candidate, artifact, rows = one.known.candidate, one.known.artifact, one.rows
    values = [np.asarray(samples.values, dtype=np.float64) for _, samples in one.taken]
    n = sum(v.size for v in values)
    p10, p50, p90, p99 = (
        _estimate(interval, q, n)
        for q, interval in zip(_QUANTILES, stats.bootstrap_cis(values, _QUANTILES), strict=True)
    )
    asked = [row for row in rows if row.job.spec.plan.warmup == "steady"]
    steady = [s for row in asked for s in steady_by_process(row).values()]
    taken = spent.get(key_of(rows[0]), Spent())
    batch = one.context.batch
    return MeasurementReport(
        candidate_id=candidate.candidate_id,
        label=one.label,
        role=candidate.role,
        artifact=artifact.sha256,
        format=artifact.format,
        precision=artifact.role,
        size_bytes=artifact.size_bytes,
        runtime=one.context.runtime,
        threads=one.context.threads,
        batch=batch,
        rounds=len({row.job.round for row in rows}),
        processes=len(values),
        n=n,
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
        accuracy=_accuracy(one, reference(one, group), accuracies),
        memory=_memory(rows),
        agreement=_agreement(rows),
        energy=taken.energy,
        events=taken.events,
        fit=fit(one.known, board),
        roofline=roofline(one.known, p50.value, batch, taken.events, board),
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


def accuracies_on(rows: Sequence[OutcomeRow], board_id: str) -> dict[tuple[str, str], AccuracyRow]:
    """Return the newest accuracy of each (artifact, runtime) on a board."""
    return {
        (row.job.artifact, row.job.spec.runtime): row.accuracy
        for row in sorted(rows, key=lambda row: row.started_utc)
        if row.accuracy is not None
        and row.board_id == board_id
        and isinstance(row.outcome, Measured)
    }


def _accuracy(
    one: Taken, dense: Taken | None, accuracies: Mapping[tuple[str, str], AccuracyRow]
) -> AccuracyReport | None:
    found = accuracies.get((one.known.artifact.sha256, one.context.runtime))
    if found is None:
        return None
    right = round(found.value * found.n) if found.correct is None else sum(found.correct)
    interval = stats.wilson(right, found.n) if found.metric in _SHARES and found.n else None
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
    dense: Taken | None,
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
