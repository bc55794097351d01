"""One-sided confidence bounds: what a requirement's limit is held against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from flatsat.reports.interval import check_share

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Side: TypeAlias = Literal["upper", "lower"]


def bound_floor(q: float, confidence: float = 0.95) -> int:
    """Return how many samples a one-sided bound of the percentile `q` needs.

    n >= ln(1 - c) / ln(q): at 95 % 59 for p95, 299 for p99, 2995 for p99.9. A lower bound of a
    low percentile needs as many as the upper bound of its mirror image.
    """
    check_share(q, "q")
    check_share(confidence, "confidence")
    # One ulp of slack: a q whose n falls on a whole number must not ask for one more.
    return max(1, math.ceil(math.log1p(-confidence) / math.log(q) * (1 - 1e-12)))


def percentile_bound(
    values: ArrayLike,
    q: float,
    confidence: float = 0.95,
    side: Side = "upper",
) -> float | None:
    """Return a one-sided confidence bound of the percentile `q`: an order statistic, for any law.

    The upper bound is the least x_(r) with P(Binomial(n, q) <= r - 1) >= confidence, the lower
    bound the greatest x_(r) with P(Binomial(n, q) >= r) >= confidence. Samples count as
    independent: where they come from a few processes, the bound holds for those processes only.

    Returns:
        None where there are too few samples (`bound_floor`).
    """
    check_share(q, "q")
    check_share(confidence, "confidence")
    from scipy.special import bdtr

    data = np.sort(np.asarray(values, dtype=np.float64).ravel())
    n = data.size
    if n == 0:
        return None
    at_most = bdtr(np.arange(-1, n, dtype=np.float64), n, q)  # [k] = P(B <= k - 1); 0 at k = 0
    at_most[0] = 0.0
    if side == "upper":
        ranks = np.flatnonzero(at_most[1:] >= confidence)  # rank r = index + 1
        return float(data[ranks[0]]) if ranks.size and n >= bound_floor(q, confidence) else None
    ranks = np.flatnonzero(1 - at_most[1:] >= confidence)  # P(B >= r) = 1 - P(B <= r - 1)
    return float(data[ranks[-1]]) if ranks.size else None


def share_bound(successes: int, n: int, confidence: float = 0.95, side: Side = "upper") -> float:
    """Return Clopper and Pearson's exact one-sided bound of a share.

    Raises:
        ValueError: n is 0, or `successes` outside 0 to n.
    """
    check_share(confidence, "confidence")
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")
    from scipy.special import betaincinv

    if side == "upper":
        if successes == n:
            return 1.0
        return float(betaincinv(successes + 1, n - successes, confidence))
    if successes == 0:
        return 0.0
    return float(betaincinv(successes, n - successes + 1, 1 - confidence))


def mean_bound(values: ArrayLike, confidence: float = 0.95, side: Side = "upper") -> float | None:
    """Return Student's one-sided bound of a mean; for one value a process.

    Returns:
        None below two values.
    """
    check_share(confidence, "confidence")
    from scipy.special import stdtrit

    data = np.asarray(values, dtype=np.float64).ravel()
    if data.size < 2:
        return None
    error = float(data.std(ddof=1)) / math.sqrt(data.size)
    half = float(stdtrit(data.size - 1, confidence)) * error
    return float(data.mean()) + (half if side == "upper" else -half)
