"""What was measured for one model on one board, gathered for verdicts; bounds, not means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
    """Clopper and Pearson's exact one-sided bounds of a binomial share."""
    from scipy.stats import beta

    alpha = 1 - confidence
    lower = 0.0 if successes == 0 else float(beta.ppf(alpha, successes, n - successes + 1))
    upper = 1.0 if successes == n else float(beta.ppf(1 - alpha, successes + 1, n - successes))
    return Estimate(successes / n, lower, upper, n, 1, "exact binomial (Clopper-Pearson)")


def _latency(
    processes: Sequence[Sequence[int]], statistic: str, confidence: float
) -> Estimate | str:
    import numpy as np

    pooled = np.sort(np.concatenate([np.asarray(p, dtype=np.int64) for p in processes] or [[]]))
    n, repeats = len(pooled), len(processes)
    if n == 0:
        return "no latency was measured on this board"
    if statistic == "max_observed":
        top = float(pooled[-1])
        return Estimate(top, top, top, n, repeats, f"max observed, n={n}; no bound on the maximum")
    if statistic == "mean":
        return _of_processes([float(np.mean(p)) for p in processes], "mean", confidence)
    q = float(statistic[1:]) / 100
    lower_rank, upper_rank = order_statistic_ranks(n, q, confidence)
    point = float(pooled[max(0, math.ceil(q * n) - 1)])
    per_process = [float(np.quantile(np.asarray(p), q, method="higher")) for p in processes]
    # Samples of one process resemble each other, so the spread between processes counts as well:
    # each bound is the wider of the two.
    spread = _of_processes(per_process, "mean", confidence)
    lower = None if lower_rank is None else float(pooled[lower_rank])
    upper = None if upper_rank is None else float(pooled[upper_rank])
    if upper is not None and not isinstance(spread, str) and spread.upper is not None:
        upper = max(upper, spread.upper)
    if lower is not None and not isinstance(spread, str) and spread.lower is not None:
        lower = min(lower, spread.lower)
    return Estimate(
        point, lower, upper, n, repeats, "wider of order statistics and spread between processes"
    )


def order_statistic_ranks(n: int, q: float, confidence: float) -> tuple[int | None, int | None]:
    """Return the 0-based ranks of the order statistics that bound quantile `q` from either side.

    Distribution-free: the number of samples below the quantile is binomial(n, q). An upper bound
    exists from n >= ln(1 - confidence) / ln(q) on: 59 for p95, 299 for p99 at 95 %.
    """
    from scipy.stats import binom

    upper = int(binom.ppf(confidence, n, q))
    lower = int(binom.ppf(1 - confidence, n, q)) - 1
    return (lower if lower >= 0 else None), (upper if upper < n else None)


def _of_processes(values: Sequence[float], statistic: str, confidence: float) -> Estimate | str:
    """One value a process: Student's t bounds of the mean, or the largest seen."""
    import numpy as np
    from scipy.stats import t

    n = len(values)
    if n == 0:
        return "no process gave a value"
    if statistic == "max_observed":
        top = float(max(values))
        return Estimate(top, top, top, n, n, f"max observed, n={n}; no bound on the maximum")
    mean = float(np.mean(values))
    if n < 2:
        return Estimate(mean, None, None, n, n, "one process gives no bound")
    half = float(t.ppf(confidence, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, n, "Student's t over processes")


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
    share = _share(round(worst * n), n, confidence)
    return Estimate(share.point, share.lower, share.upper, n, len(results), share.note)
