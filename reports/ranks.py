"""Rank correlation and Pareto fronts: who comes before whom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from flatsat.reports.interval import Interval, check_share, normal_quantile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Direction: TypeAlias = Literal["minimise", "maximise"]


def spearman(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> Interval | None:
    """Return Spearman's rank correlation, ties by average ranks, with interval.

    The interval is Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) of Bonett and Wright
    ("Sample size requirements for estimating Pearson, Kendall and Spearman correlations", 2000).
    A perfect correlation counts as half a swap of neighbours short of it, since a few points in
    order don't prove that all would be.

    Returns:
        None below four points, or where x or y has no spread.

    Raises:
        ValueError: not equally many.
    """
    check_share(level, "level")
    left, right = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"{left.size} and {right.size} values can't be paired")
    n = left.size
    if n < 4:
        return None
    first, second = _ranks(left), _ranks(right)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(first @ first) * float(second @ second))
    if scale == 0:
        return None
    rho = max(-1.0, min(1.0, float(first @ second) / scale))
    most = 1 - 6 / (n * (n * n - 1))
    near = max(-most, min(most, rho))
    half = normal_quantile((1 + level) / 2) * math.sqrt((1 + near * near / 2) / (n - 3))
    low, high = math.tanh(math.atanh(near) - half), math.tanh(math.atanh(near) + half)
    return Interval(rho, min(low, rho), max(high, rho), level, n, n)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1, the average rank among equals."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average: NDArray[np.float64] = last - (counts - 1) / 2
    return average[inverse]


def pareto_front(points: ArrayLike, directions: Sequence[Direction]) -> NDArray[np.bool_]:
    """Tell which points no other point beats: at least as good in all, better in one.

    Args:
        points: (n, d).
        directions: for each of the d columns whether less or more is better.

    Returns:
        (n,) of bool. Equal points are on the front together; a point with a NaN never is.

    Raises:
        ValueError: `points` is not (n, d).
    """
    table = np.array(points, dtype=np.float64)
    if table.size == 0:
        return np.zeros(len(table), dtype=bool)
    if table.ndim != 2 or table.shape[1] != len(directions):
        raise ValueError(f"points of shape {table.shape} don't fit {len(directions)} directions")
    table *= np.where(np.asarray(directions) == "maximise", -1.0, 1.0)
    front: NDArray[np.bool_] = np.logical_not(np.isnan(table).any(axis=1))
    for i in np.flatnonzero(front):
        if front[i]:
            at_least = (table >= table[i]).all(axis=1)
            worse = (table > table[i]).any(axis=1)
            front &= np.logical_not(at_least & worse)
    return np.asarray(front, dtype=np.bool_)
