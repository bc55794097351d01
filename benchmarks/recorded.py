"""What benchmarks that measure candidates on boards read from the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flatsat.outcome import Measured

if TYPE_CHECKING:
    from flatsat.reports.rows import OutcomeRow


def median_us(rows: Sequence[OutcomeRow]) -> float:
    """Return the median of the processes' median latencies."""
    medians = [
        float(np.median(samples.values)) / 1e3
        for row in rows
        if isinstance(row.outcome, Measured)
        for samples in row.outcome.samples
        if samples.quantity == "latency_ns" and samples.warm
    ]
    return float(np.median(medians))


def runnable(row: OutcomeRow) -> int:
    """Return how many processes wanted a core just before the measurement."""
    assert isinstance(row.outcome, Measured), row.outcome
    environment = row.outcome.evidence["environment"]
    assert isinstance(environment, dict)
    return int(environment["before"]["runnable"])
