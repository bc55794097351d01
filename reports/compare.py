"""Is one candidate faster, smaller or as accurate as another? From what was recorded, or refused.

Two things are compared only if all but the artifact was equal: board, clock, runtime, threads and
method (`context`). Rounds that ran interleaved are paired, since pairs share the machine's drift;
what didn't run so is compared by its processes, and the result says that drift isn't accounted for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from flatsat.outcome import Measured, Samples
from flatsat.reports import stats
from flatsat.reports.comparison import Comparison, ComparisonReport, Subject, Verdict
from flatsat.reports.context import Context, by_context, context, why_nothing
from flatsat.reports.known import own_name
from flatsat.reports.rows import AccuracyRow, OutcomeRow, Store

if TYPE_CHECKING:
    from flatsat.reports.interval import Interval

__all__ = [
    "Comparison",
    "ComparisonReport",
    "Quantity",
    "Statistic",
    "Subject",
    "Verdict",
    "compare",
    "compare_accuracy",
    "compare_all",
    "subjects",
]

Statistic: TypeAlias = Literal["p50", "p10", "mean"]
Quantity: TypeAlias = Literal["latency", "memory", "energy", "accuracy"]
_Taken: TypeAlias = Sequence[tuple[OutcomeRow, Samples]]
_Round: TypeAlias = tuple[str, str, int]

_RSS = "ru_maxrss"
_SAMPLES = {"latency": "latency_ns", "memory": "rss_bytes", "energy": "energy_nj"}
# Other jobs time inferences too, but under faults, profilers or meters.
_JOBS = {"latency": ("latency",), "memory": ("latency",), "energy": ("energy", "latency")}
_GAIN_LOSS = {
    "latency": (Verdict.FASTER, Verdict.SLOWER),
    "memory": (Verdict.LESS, Verdict.MORE),
    "energy": (Verdict.LESS, Verdict.MORE),
}


def subjects(store: Store, run_id: str) -> dict[str, Subject]:
    """Return what a run measured as subjects by label, in the order of its candidates.

    A label is the candidate's name, with its seed where several candidates bear the name, and what
    tells the artifact from others of its candidate.
    """
    rows: dict[str, list[OutcomeRow]] = {}
    for row in store.outcomes(run_id):
        rows.setdefault(row.job.artifact, []).append(row)
    candidates = store.candidates(run_id)
    names = [candidate.name for candidate in candidates]
    found: dict[str, Subject] = {}
    for candidate in candidates:
        artifacts = [a for a in store.artifacts(candidate.candidate_id) if a.sha256 in rows]
        for artifact in artifacts:
            label = candidate.name
            if names.count(candidate.name) > 1 and candidate.seed is not None:
                label += f" seed {candidate.seed}"
            label += own_name(artifact, artifacts)
            if label in found:
                label += f" {artifact.sha256[:8]}"
            found[label] = Subject(label, tuple(rows[artifact.sha256]))
    return found


def compare_all(
    baseline: Subject,
    candidates: Sequence[Subject],
    *,
    threshold: float = 0.02,
    margin: float = 0.005,
    statistic: Statistic = "p50",
    quantities: Sequence[Quantity] = ("latency", "accuracy"),
    level: float = 0.95,
) -> ComparisonReport:
    """Compare candidates with a baseline under every context that both were measured under.

    Accuracy is left out where neither side was asked for it.

    Args:
        baseline: what the others are held against.
        candidates: the others.
        threshold: relative difference that still counts as equal, above 0.
        margin: accuracy loss that still counts as none, in (0, 1).
        statistic: of each process's latencies.
        quantities: what to compare.
        level: confidence of every interval.
    """
    rows: list[Comparison] = []
    notes: list[str] = []
    for candidate in candidates:
        for quantity in quantities:
            if quantity == "accuracy":
                rows += _accuracies(baseline, candidate, margin, level)
            else:
                found, left_out = _ratios(
                    baseline, candidate, quantity, threshold, statistic, level
                )
                rows += found
                notes += [line for line in left_out if line not in notes]
    return ComparisonReport(baseline.label, tuple(rows), threshold, margin, tuple(notes))


def compare(
    baseline: Sequence[OutcomeRow],
    candidate: Sequence[OutcomeRow],
    threshold: float = 0.02,
    *,
    quantity: Quantity = "latency",
    statistic: Statistic = "p50",
    labels: tuple[str, str] = ("A", "B"),
    level: float = 0.95,
) -> Comparison:
    """Compare one artifact with another in one quantity; for accuracy see `compare_accuracy`.

    Where both were measured under several common contexts, the verdict is a refusal that asks to
    choose one: `compare_all` takes each.
    """
    left, right = Subject(labels[0], tuple(baseline)), Subject(labels[1], tuple(candidate))
    found, _ = _ratios(left, right, quantity, threshold, statistic, level)
    if len(found) == 1:
        return found[0]
    places = "; ".join(row.context.label for row in found if row.context is not None)
    return _refused(quantity, statistic, left, right, f"measured under several settings: {places}")


def compare_accuracy(
    baseline: AccuracyRow, candidate: AccuracyRow, margin: float = 0.005, level: float = 0.95
) -> tuple[Interval | None, Verdict, str]:
    """Return the difference on the same images, the verdict of non-inferiority, and why."""
    if baseline.split_sha != candidate.split_sha:
        return None, Verdict.REFUSED, "measured on different images"
    if baseline.metric != candidate.metric:
        return None, Verdict.REFUSED, f"{baseline.metric} and {candidate.metric} don't compare"
    if baseline.correct is None or candidate.correct is None:
        return None, Verdict.REFUSED, "which images were right was not recorded"
    found = stats.paired_difference(baseline.correct, candidate.correct, level)
    assert found.low is not None
    assert found.high is not None
    if found.low > 0:
        return found, Verdict.BETTER, ""
    if stats.is_non_inferior(found, margin):
        return found, Verdict.NON_INFERIOR, ""
    if found.high < -margin:
        return found, Verdict.WORSE, ""
    half = (found.high - found.low) / 2
    worse = "it is worse, but perhaps by less than" if found.high < 0 else "it can't be told from"
    why = f"{worse} the margin of {100 * margin:g} points with {found.n} images"
    if half > margin:
        needed = math.ceil(found.n * (half / margin) ** 2 / 100) * 100
        why += f"; about {needed} would tell"
    return found, Verdict.INCONCLUSIVE, why


# Ratios


def _ratios(
    baseline: Subject,
    candidate: Subject,
    quantity: Quantity,
    threshold: float,
    statistic: Statistic,
    level: float,
) -> tuple[list[Comparison], list[str]]:
    """Return one comparison a common context (or one refusal), and what was left out."""
    if not threshold > 0:
        raise ValueError(f"a threshold must be above 0, not {threshold}")
    left, right = (
        by_context(
            [row for row in side.rows if row.job.kind in _JOBS[quantity]], _SAMPLES[quantity]
        )
        for side in (baseline, candidate)
    )
    for side, taken in ((baseline, left), (candidate, right)):
        if not taken:
            why = f"{side.label}: {why_nothing(side.rows, quantity)}"
            return [_refused(quantity, statistic, baseline, candidate, why)], []
    common = [where for where in left if where in right]
    if not common:
        near = min((a.differences(b) for a in left for b in right), key=len)
        why = f"measured under different conditions: {'; '.join(near)}"
        return [_refused(quantity, statistic, baseline, candidate, why)], []
    notes = [
        f"{side.label} alone was measured on {where.label}: left out"
        for side, mine, other in ((baseline, left, right), (candidate, right, left))
        for where in mine
        if where not in other
    ]
    found = []
    # Peak memory is told by two methods at once; the one that every system has is enough.
    common = [w for w in common if w.class_ != "VmHWM" or replace(w, class_=_RSS) not in common]
    for where in common:
        blank = replace(_refused(quantity, statistic, baseline, candidate, ""), context=where)
        found.append(_ratio(blank, left[where], right[where], threshold, level))
    return found, notes


def _ratio(
    blank: Comparison, left: _Taken, right: _Taken, threshold: float, level: float
) -> Comparison:
    mine, theirs = _by_round(left, blank.statistic), _by_round(right, blank.statistic)
    all_mine = [value for group in mine.values() for value in group]
    all_theirs = [value for group in theirs.values() for value in group]
    if min(all_mine + all_theirs) <= 0:
        return replace(blank, why=f"a {blank.quantity} of 0 makes no ratio")
    pairs = [key for key in mine if key is not None and key in theirs]
    paired = len(pairs) >= 2
    if paired:
        interval = stats.mean_log_ratio(
            [_geometric_mean(mine[key]) for key in pairs],
            [_geometric_mean(theirs[key]) for key in pairs],
            level,
        )
        rounds = len(pairs)
    else:
        interval = stats.unpaired_log_ratio(all_mine, all_theirs, level)
        rounds = len(all_mine) + len(all_theirs)
    assert interval is not None
    verdict, why = _judge(interval, threshold, *_GAIN_LOSS[blank.quantity], paired)
    if not paired:
        drift = "not interleaved in rounds: drift between the two isn't in the interval"
        why = f"{why}; {drift}" if why else drift
    return replace(blank, ratio=interval, verdict=verdict, why=why, paired=paired, rounds=rounds)


def _judge(
    ratio: Interval, threshold: float, gain: Verdict, loss: Verdict, paired: bool
) -> tuple[Verdict, str]:
    if ratio.low is None or ratio.high is None:
        return Verdict.INCONCLUSIVE, "one process of a side gives no interval; measure more rounds"
    band = math.log1p(threshold)
    low, high = math.log(ratio.low), math.log(ratio.high)
    # Rounding in exp and log must not push identical values out of the band.
    if -band <= low + 1e-12 and high - 1e-12 <= band:
        return Verdict.EQUAL, ""
    if low > 0:
        return gain, ""
    if high < 0:
        return loss, ""
    half = (high - low) / 2
    why = f"the interval is +-{100 * math.expm1(half):.2g} %"
    if half > band:
        needed = math.ceil(ratio.n * (half / band) ** 2)
        unit = "rounds" if paired else "processes"
        why += f"; about {needed} {unit} would bring it to +-{100 * threshold:g} %"
    return Verdict.INCONCLUSIVE, why


def _by_round(taken: _Taken, statistic: str) -> dict[_Round | None, list[float]]:
    """Return one value a process by the round that it ran in; None for reused outcomes.

    A reused outcome ran beside others than the round that it stands in.
    """
    found: dict[_Round | None, list[float]] = {}
    for row, samples in taken:
        job = row.job
        key = None if job.reused_from else (job.run_id, job.comparison or "", job.round)
        found.setdefault(key, []).append(_statistic(samples.values, statistic))
    return found


def _statistic(values: Sequence[int], statistic: str) -> float:
    data = np.asarray(values, dtype=np.float64)
    if statistic == "mean":
        return float(data.mean())
    return float(np.quantile(data, {"p50": 0.5, "p10": 0.1}[statistic]))


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


# Accuracy


def _accuracies(
    baseline: Subject, candidate: Subject, margin: float, level: float
) -> list[Comparison]:
    left, right = _accuracy_rows(baseline.rows), _accuracy_rows(candidate.rows)
    blank = _refused("accuracy", "accuracy", baseline, candidate, "")
    asked = any(row.job.kind == "accuracy" for row in (*baseline.rows, *candidate.rows))
    if not left and not right and not asked:
        return []
    for side, taken in ((baseline, left), (candidate, right)):
        if not taken:
            rows = [row for row in side.rows if row.job.kind == "accuracy"]
            return [replace(blank, why=f"{side.label}: {why_nothing(rows, 'accuracy')}")]
    common = [where for where in left if where in right]
    if not common:
        near = min((a.differences(b) for a in left for b in right), key=len)
        return [replace(blank, why=f"measured under different conditions: {'; '.join(near)}")]
    found = []
    for where in common:
        difference, verdict, why = compare_accuracy(left[where], right[where], margin, level)
        found.append(
            replace(
                blank,
                statistic=left[where].metric,
                context=where,
                difference=difference,
                verdict=verdict,
                why=why,
                paired=difference is not None,
                rounds=0 if difference is None else 1,
            )
        )
    return found


def _accuracy_rows(rows: Sequence[OutcomeRow]) -> dict[Context, AccuracyRow]:
    """Return the newest accuracy by what answers depend on: board and runtime, not threads."""
    found: dict[Context, AccuracyRow] = {}
    for row in sorted(rows, key=lambda row: row.started_utc):
        if row.accuracy is not None and isinstance(row.outcome, Measured):
            where = replace(
                context(row, row.accuracy.metric),
                threads=0,
                affinity=(),
                batch=0,
                isolation="",
                warmup="",
            )
            found[where] = row.accuracy
    return found


def _refused(
    quantity: str, statistic: str, baseline: Subject, candidate: Subject, why: str
) -> Comparison:
    return Comparison(
        quantity=quantity,
        statistic=statistic,
        baseline=baseline.label,
        candidate=candidate.label,
        context=None,
        ratio=None,
        difference=None,
        verdict=Verdict.REFUSED,
        why=why,
    )
