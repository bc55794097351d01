"""What was measured for one model on one board, gathered for verdicts; bounds, not means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flatsat.reports.bounds import Side, mean_bound, percentile_bound, share_bound


@dataclass(frozen=True)
class Estimate:
    """A statistic with its one-sided bounds at the requirement's confidence.

    Attributes:
        point: the statistic, in base units (ns, bytes, a share).
        lower, upper: one-sided confidence bounds; None where the samples can't give one.
        n: samples.
        repeats: independent processes.
        note: how the bounds were made.
    """

    point: float
    lower: float | None
    upper: float | None
    n: int
    repeats: int
    note: str


@dataclass(frozen=True)
class Evidence:
    """Raw material of verdicts for one artifact on one board.

    Attributes:
        latency_ns: warm samples, one sequence a process.
        clock: "wall" or "virtual".
        load_ns: one a process.
        rss_bytes: peak, one a process; `rss_method` names how.
        size_bytes: of the model file.
        correct: outcome per test image, or None.
        agreement: per job: (max_rel, top1_agree, n).
        failure: why there are no latencies, or None.
        jobs: quantity -> job identifiers.
        board, runtime, workload: what the evidence holds for.
    """

    latency_ns: tuple[tuple[int, ...], ...] = ()
    clock: str = "wall"
    load_ns: tuple[int, ...] = ()
    rss_bytes: tuple[int, ...] = ()
    rss_method: str = ""
    size_bytes: int = 0
    correct: tuple[bool, ...] | None = None
    agreement: tuple[tuple[float, float, int], ...] = ()
    failure: str | None = None
    jobs: Mapping[str, tuple[str, ...]] | None = None
    board: str = ""
    runtime: str = ""
    workload: str = ""


def estimate(
    evidence: Evidence, quantity: str, statistic: str, confidence: float
) -> Estimate | str:
    """Return a statistic with bounds, or the reason why there is none.

    Args:
        evidence: what was measured.
        quantity: as in a requirement.
        statistic: one of that quantity.
        confidence: of each one-sided bound.
    """
    if quantity == "storage":
        size = float(evidence.size_bytes)
        return Estimate(size, size, size, 1, 1, "exact: bytes of the model file")
    if quantity == "accuracy":
        if evidence.correct is None:
            return "no accuracy was measured on this board"
        return _share(sum(evidence.correct), len(evidence.correct), confidence)
    if evidence.failure is not None:
        return evidence.failure
    if quantity == "latency":
        return _latency(evidence.latency_ns, statistic, confidence)
    if quantity == "load_time":
        return _of_processes(evidence.load_ns, statistic, confidence)
    if quantity == "memory":
        if not evidence.rss_bytes:
            return "no memory was measured on this board"
        top = float(max(evidence.rss_bytes))
        n = len(evidence.rss_bytes)
        return Estimate(top, top, top, n, n, f"max observed, n={n}, {evidence.rss_method}")
    if quantity == "agreement":
        return _agreement(evidence.agreement, statistic, confidence)
    return f"this board has no meter for {quantity}"


def _share(successes: int, n: int, confidence: float) -> Estimate:
    return Estimate(
        successes / n,
        share_bound(successes, n, confidence, "lower"),
        share_bound(successes, n, confidence, "upper"),
        n,
        1,
        "exact binomial (Clopper-Pearson)",
    )


def _latency(
    processes: Sequence[Sequence[int]], statistic: str, confidence: float
) -> Estimate | str:
    """Pool the processes; samples of one process resemble each other, so their spread counts too.

    Each bound of a percentile is the wider of the order statistic's, which takes samples as
    independent, and Student's over one percentile a process.
    """
    pooled = sorted(value for process in processes for value in process)
    n, repeats = len(pooled), len(processes)
    if n == 0:
        return "no latency was measured on this board"
    if statistic == "max_observed":
        return _largest([float(pooled[-1])], n, repeats)
    if statistic == "mean":
        means = [sum(process) / len(process) for process in processes]
        return _of_processes(means, "mean", confidence)
    q = float(statistic[1:]) / 100
    each = [_percentile(sorted(process), q) for process in processes]
    bounds: dict[Side, float | None] = {}
    sides: tuple[tuple[Side, Callable[..., float]], ...] = (("lower", min), ("upper", max))
    for side, wider in sides:
        bound = percentile_bound(pooled, q, confidence, side)
        spread = mean_bound(each, confidence, side)
        if bound is not None and spread is not None:
            bound = wider(bound, spread)
        bounds[side] = bound
    return Estimate(
        _percentile(pooled, q),
        bounds["lower"],
        bounds["upper"],
        n,
        repeats,
        "wider of order statistics and spread between processes",
    )


def _percentile(ordered: Sequence[int], q: float) -> float:
    """Return the least value that a share q of all doesn't exceed."""
    return float(ordered[max(0, math.ceil(q * len(ordered)) - 1)])


def _of_processes(values: Sequence[float], statistic: str, confidence: float) -> Estimate | str:
    """One value a process: Student's t bounds of the mean, or the largest seen."""
    n = len(values)
    if n == 0:
        return "no process gave a value"
    if statistic == "max_observed":
        return _largest(values, n, n)
    return Estimate(
        sum(values) / n,
        mean_bound(values, confidence, "lower"),
        mean_bound(values, confidence, "upper"),
        n,
        n,
        "Student's t over processes" if n > 1 else "one process gives no bound",
    )


def _largest(values: Sequence[float], n: int, repeats: int) -> Estimate:
    top = float(max(values))
    note = f"max observed, n={n}; no bound on the maximum"
    return Estimate(top, top, top, n, repeats, note)


def _agreement(
    results: Sequence[tuple[float, float, int]], statistic: str, confidence: float
) -> Estimate | str:
    if not results:
        return "the model has no goldens, so agreement can't be judged"
    n = results[0][2]
    if statistic == "max_rel":
        top = max(r[0] for r in results)
        return Estimate(top, top, top, n, len(results), f"max observed over {n} goldens")
    worst = min(r[1] for r in results)
    return replace(_share(round(worst * n), n, confidence), repeats=len(results))
