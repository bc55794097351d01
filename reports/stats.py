"""Intervals, bounds and ranks: the one place to ask for a statistic.

Every function returns None, or an interval without ends, where the data can't carry the answer.
Nothing divides by a spread: data without any (virtual time) give intervals of zero width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from flatsat.reports import resampling
from flatsat.reports.bounds import Side, bound_floor, mean_bound, percentile_bound, share_bound
from flatsat.reports.interval import Interval, check_share, normal_quantile
from flatsat.reports.ranks import Direction, pareto_front, spearman

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Direction",
    "Interval",
    "Side",
    "Statistic",
    "bootstrap_ci",
    "bootstrap_cis",
    "bound_floor",
    "is_non_inferior",
    "mean_bound",
    "mean_log_ratio",
    "paired_difference",
    "pareto_front",
    "percentile",
    "percentile_bound",
    "sample_floor",
    "share_bound",
    "spearman",
    "unpaired_log_ratio",
    "wilson",
]

Statistic: TypeAlias = float | Literal["mean"]

_FLOOR_CONFIDENCE = 0.99


# Percentiles


def sample_floor(q: float) -> int:
    """Return how many samples the percentile `q` needs before it is given at all.

    The least n at which the second most extreme sample is beyond the percentile with 99 %
    confidence, which is MLPerf LoadGen's early stopping rule: 64 for p90 and p10, 662 for p99.
    The median is always given.

    Raises:
        ValueError: `q` outside (0, 1).
    """
    check_share(q, "q")
    if q == 0.5:
        return 1
    tail = max(q, 1 - q)
    n = 2
    while tail**n + n * (1 - tail) * tail ** (n - 1) > 1 - _FLOOR_CONFIDENCE:
        n += 1
    return n


def percentile(values: ArrayLike, q: float) -> float | None:
    """Return the percentile `q` in (0, 1), linearly interpolated; None below `sample_floor(q)`."""
    data = np.asarray(values, dtype=np.float64)
    if data.size < sample_floor(q):
        return None
    return float(np.quantile(data, q))


# Hierarchical bootstrap


def bootstrap_ci(
    groups: Sequence[ArrayLike],
    stat: Statistic,
    level: float = 0.95,
    n: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Return a statistic of pooled samples with an interval that knows processes; see below."""
    return bootstrap_cis(groups, (stat,), level, n, seed)[0]


def bootstrap_cis(
    groups: Sequence[ArrayLike],
    stats: Sequence[Statistic],
    level: float = 0.95,
    n: int = 2000,
    seed: int = 0,
) -> tuple[Interval | None, ...]:
    """Return statistics of pooled samples with intervals by hierarchical bootstrap.

    Each replicate resamples processes, then samples within them (`resampling`), since samples of
    one process are more alike than those of two. The interval is Hesterberg's expanded percentile
    interval ("What Teachers Should Know About the Bootstrap", 2015): a percentile interval whose
    level is widened for the few processes that there are. All `stats` share their replicates, so
    asking for several at once costs little more than for one. Equal seeds give equal results.

    Args:
        groups: samples of each process; empty ones are left out.
        stats: percentiles in (0, 1), or "mean".
        level: confidence.
        n: replicates.
        seed: of the resampling.

    Returns:
        One entry a statistic: None below `sample_floor`, or without samples; an interval without
        ends with samples of one process only, for which no other process can be vouched.

    Raises:
        ValueError: a percentile or level outside (0, 1).
    """
    check_share(level, "level")
    data = [np.asarray(group, dtype=np.float64).ravel() for group in groups]
    data = [group for group in data if group.size]
    pooled = np.concatenate(data) if data else np.empty(0)
    values = [
        (float(pooled.mean()) if pooled.size else None)
        if stat == "mean"
        else percentile(pooled, stat)
        for stat in stats
    ]
    if len(data) < 2 or all(value is None for value in values):
        return tuple(
            None if value is None else Interval(value, None, None, level, pooled.size, len(data))
            for value in values
        )
    tail = _expanded_tail(level, len(data))
    replicates = resampling.replicates(data, stats, n, seed)
    found: list[Interval | None] = []
    for value, row in zip(values, replicates, strict=True):
        if value is None:
            found.append(None)
            continue
        low, high = np.quantile(row, (tail, 1 - tail))
        low, high = min(float(low), value), max(float(high), value)
        found.append(Interval(value, low, high, level, pooled.size, len(data)))
    return tuple(found)


def _expanded_tail(level: float, groups: int) -> float:
    """Return Phi(-sqrt(g / (g - 1)) t), the tail that stands for (1 - level) / 2 with g groups."""
    from scipy.special import ndtr, stdtrit

    t = stdtrit(groups - 1, (1 + level) / 2)
    return float(ndtr(-math.sqrt(groups / (groups - 1)) * t))


# Shares


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a share with its Wilson score interval; for an accuracy on n images.

    Raises:
        ValueError: n is 0, or `successes` outside 0 to n.
    """
    check_share(level, "level")
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    z = normal_quantile((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # The ends meet 0 and 1 exactly there, but for rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(share, low, high, level, n, n)


def paired_difference(reference: ArrayLike, candidate: ArrayLike, level: float = 0.95) -> Interval:
    """Return accuracy(candidate) - accuracy(reference) on the same images, with interval.

    Only images on which the two differ carry information, as in McNemar's test. The interval is
    the adjusted Wald interval of Bonett and Price ("Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data", 2012), which keeps its level and its
    width with few or no differing images.

    Args:
        reference: one truth value an image: was the answer right?
        candidate: the same images in the same order.
        level: confidence.

    Raises:
        ValueError: no images, or not equally many.
    """
    check_share(level, "level")
    left, right = np.asarray(reference, dtype=bool), np.asarray(candidate, dtype=bool)
    if left.shape != right.shape or left.ndim != 1 or left.size == 0:
        raise ValueError(f"answers to {left.shape} and {right.shape} images can't be paired")
    n = left.size
    gained = int(np.count_nonzero(~left & right))
    lost = int(np.count_nonzero(left & ~right))
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = normal_quantile((1 + level) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    value = (gained - lost) / n
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Interval(value, min(low, value), max(high, value), level, n, n)


def is_non_inferior(difference: Interval, margin: float) -> bool:
    """Tell whether a difference is surely above -margin: its lower end, not its value, decides."""
    return difference.low is not None and difference.low > -margin


# Ratios


def mean_log_ratio(
    numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95
) -> Interval | None:
    """Return the geometric mean of paired ratios with a t interval on the mean log ratio.

    Args:
        numerators: one positive value a round.
        denominators: the same rounds in the same order.
        level: confidence.

    Returns:
        None without rounds; an interval without ends for one round.

    Raises:
        ValueError: not equally many, or a value that isn't positive and finite.
    """
    check_share(level, "level")
    top, bottom = _positive(numerators), _positive(denominators)
    if top.shape != bottom.shape:
        raise ValueError(f"{top.size} and {bottom.size} rounds can't be paired")
    n = top.size
    if n == 0:
        return None
    logs = np.log(top) - np.log(bottom)
    centre = float(logs.mean())
    if n == 1:
        return Interval(math.exp(centre), None, None, level, n, n)
    error = float(logs.std(ddof=1)) / math.sqrt(n)
    return _ratio_interval(centre, error, n - 1, level, n)


def unpaired_log_ratio(
    numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95
) -> Interval | None:
    """Return the ratio of geometric means of two independent sets, with Welch's t interval.

    For values that weren't taken in the same rounds; drift between the two sets is not in the
    interval.

    Returns:
        None where a set is empty; an interval without ends where one has a single value.

    Raises:
        ValueError: a value that isn't positive and finite.
    """
    check_share(level, "level")
    top, bottom = _positive(numerators), _positive(denominators)
    if not top.size or not bottom.size:
        return None
    n = top.size + bottom.size
    left, right = np.log(top), np.log(bottom)
    centre = float(left.mean() - right.mean())
    if min(top.size, bottom.size) < 2:
        return Interval(math.exp(centre), None, None, level, n, n)
    parts = [float(side.var(ddof=1)) / side.size for side in (left, right)]
    error = math.sqrt(sum(parts))
    sizes = (left.size, right.size)
    spread = sum(part * part / (size - 1) for part, size in zip(parts, sizes, strict=True))
    freedom = error**4 / spread if spread > 0 else float(n - 2)
    return _ratio_interval(centre, error, freedom, level, n)


def _ratio_interval(centre: float, error: float, freedom: float, level: float, n: int) -> Interval:
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), level, n, n)


def _positive(values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64).ravel()
    if not (np.isfinite(data) & (data > 0)).all():
        raise ValueError("a ratio needs positive, finite values")
    return data
