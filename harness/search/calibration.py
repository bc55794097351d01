"""From the sum of single layers to the whole network: scale and offset by measured networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST_SPREAD = 1.05
"""Fit an offset only where the largest predicted sum is so many times the least."""


@dataclass(frozen=True)
class Calibration:
    """measured = scale x (sum of layers) + offset; neither is negative.

    Attributes:
        scale: above 0.
        offset: what no layer accounts for: calls, pooling, copies.
        points: measured networks behind it.
        residual: median of |fitted / measured - 1| over these points.
    """

    scale: float
    offset: float
    points: int
    residual: float


def calibrate(layer_sums: Sequence[float], wholes: Sequence[float]) -> Calibration:
    """Fit scale and offset by non-negative least squares of the relative error.

    With one network, or networks of nearly the same sum, the scale alone.

    Args:
        layer_sums: sum of the table's layers of each measured network, positive.
        wholes: what the whole network measured, positive, in the same unit.

    Raises:
        ValueError: no network, or not equally many.
    """
    sums, measured = np.asarray(layer_sums, dtype=float), np.asarray(wholes, dtype=float)
    if sums.shape != measured.shape or not sums.size:
        raise ValueError(f"{sums.size} sums and {measured.size} measurements")
    scale, offset = float(np.exp(np.mean(np.log(measured / sums)))), 0.0
    if sums.max() / sums.min() >= LEAST_SPREAD:
        from scipy.optimize import nnls

        columns = np.stack([sums / measured, 1.0 / measured], axis=1)
        # Columns of like size, or the solver's tolerance would drop the offset.
        size = columns.max(axis=0)
        solution, _ = nnls(columns / size, np.ones_like(sums))
        fitted_scale, fitted_offset = (solution / size).tolist()
        if fitted_scale > 0:
            scale, offset = fitted_scale, fitted_offset
    residual = float(np.median(np.abs((scale * sums + offset) / measured - 1.0)))
    return Calibration(scale, offset, int(sums.size), residual)


def prediction_error(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """Return the median of |predicted / measured - 1|; None without pairs.

    Over predictions that were made before the measurement: an error in the open, no residual.
    """
    if not len(predicted):
        return None
    ratio = np.asarray(predicted, dtype=float) / np.asarray(measured, dtype=float)
    return float(np.median(np.abs(ratio - 1.0)))


@dataclass(frozen=True)
class Correction:
    """A calibration, and how well earlier ones predicted.

    Attributes:
        calibration: scale and offset.
        prediction_error: see `prediction_error`; None before any prediction was held against a
            measurement.
    """

    calibration: Calibration
    prediction_error: float | None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Correction:
        """Read what `dataclasses.asdict` and JSON made of it."""
        return cls(Calibration(**value["calibration"]), value["prediction_error"])
