"""An estimate with its interval, and what every statistic needs for one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval.

    Attributes:
        value: the estimate.
        low, high: the interval's ends; None where the data can't give one.
        level: confidence, in (0, 1).
        n: observations behind it.
        groups: independent groups (processes, rounds) behind it.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    n: int
    groups: int

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2


def normal_quantile(share: float) -> float:
    """Return the standard normal quantile of a share in (0, 1)."""
    from scipy.special import ndtri

    return float(ndtri(share))


def check_share(value: float, name: str) -> None:
    """Raise ValueError unless `value` lies in (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, not {value}")
