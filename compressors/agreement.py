"""How near outputs must come to each other: the agreement policy on the host."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from flatsat.artifact import Agreement

FLOAT_TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
P99_QUANTA = 2.0
TOP1 = 0.99

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


def policy(quantum: float | None, dtype: str = "float32") -> Agreement:
    """Return how outputs are judged.

    Args:
        quantum: step of the output's quantiser, or None without one.
        dtype: of the output; integers without a quantiser must be equal.
    """
    if quantum is None or quantum <= 0:
        if not dtype.startswith("float"):
            return Agreement("bit")
        return Agreement("tol", max_rel=HALF_TOLERANCE if dtype == "float16" else FLOAT_TOLERANCE)
    return Agreement("decision", quantum=quantum, p99_quanta=P99_QUANTA, top1=TOP1)


def disagreement(found: Array, expected: Array, agreement: Agreement) -> str:
    """Return what breaks the policy, in words with figures, or "" if nothing does.

    Args:
        found: (n, classes).
        expected: (n, classes), the reference.
        agreement: of kind "tol" or "decision".
    """
    if found.shape != expected.shape:
        return f"the shape is {found.shape}, not {expected.shape}"
    if not np.isfinite(found).all():
        return "an output is not finite"
    error = np.abs(found.astype(np.float64) - expected)
    if agreement.kind == "tol":
        allowed = (agreement.max_rel or 0.0) * float(np.abs(expected).max())
        return "" if error.max() <= allowed else f"max |d| {error.max():.3g} > {allowed:.3g}"
    allowed = (agreement.p99_quanta or 0.0) * (agreement.quantum or 0.0)
    p99 = float(np.quantile(error, 0.99, method="higher"))
    if p99 > allowed:
        return f"p99 of |d| {p99:.3g} > {allowed:.3g}"
    same = top1_agreement(found, expected)
    if same < (agreement.top1 or 0.0):
        return f"the same class for {same:.2%} of the goldens only"
    return ""


def top1_agreement(found: Array, expected: Array) -> float:
    """Return the share of rows, in [0, 1], whose largest value stands at the same place."""
    return float(np.mean(found.argmax(axis=-1) == expected.argmax(axis=-1)))
