"""Replicates of a hierarchical bootstrap: processes first, then samples within each.

Resampling every sample of every process thousands of times, and sorting it, takes seconds for one
measurement. Instead:

- The sorted samples of a process are cut into at most `_cells` cells of consecutive samples, small
  at both ends and larger in the middle (Chebyshev spacing), each told by its middle sample and its
  mean. A process with fewer samples keeps every one of them.
- A replicate draws how often each process is taken (multinomial), then a random weight for each
  cell: Gamma(copies x samples in the cell), scaled so that a process weighs as much as its copies
  have samples. These are Rubin's Bayesian bootstrap weights ("The Bayesian Bootstrap", 1981), whose
  first two moments are those of counts drawn with replacement; sums of them over a cell are again
  Gamma, so that cutting into cells loses no variance. The Gamma is drawn through the cube of a
  normal (Wilson and Hilferty, 1931).
- A percentile is the value at which the running weight passes its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_CELLS = 1024  # of all processes together
_LEAST_CELLS = 48  # of one process
_BATCH = 1 << 19  # weights that are held at once


def replicates(
    groups: Sequence[NDArray[np.float64]],
    stats: Sequence[float | Literal["mean"]],
    n: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return (len(stats), n): each statistic in each replicate.

    Args:
        groups: samples of each process, none empty.
        stats: percentiles in (0, 1), or "mean".
        n: replicates.
        seed: equal seeds give equal replicates.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    cells = max(_LEAST_CELLS, _MOST_CELLS // len(groups))
    parts = [_cut(np.sort(group), cells) for group in groups]
    sizes = np.array([group.size for group in groups], dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])[:-1]])
    owner = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    middles, means, held = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(middles, kind="stable")
    middles = middles[order]

    found = np.empty((len(stats), n))
    batch = max(1, _BATCH // len(middles))
    shares = np.full(len(groups), 1 / len(groups))
    for start in range(0, n, batch):
        stop = min(n, start + batch)
        copies = rng.multinomial(len(groups), shares, size=stop - start).astype(np.float32)
        weights = _gamma(rng, copies[:, owner] * held.astype(np.float32))
        drawn = np.add.reduceat(weights, starts, axis=1)
        wanted = copies * sizes
        scale = np.divide(wanted, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        weights *= scale[:, owner]
        running = np.cumsum(weights[:, order], axis=1, dtype=np.float64)
        total = running[:, -1]
        for row, stat in enumerate(stats):
            if stat == "mean":
                found[row, start:stop] = (weights @ means) / total
            else:
                passed = running >= (stat * total)[:, None]
                found[row, start:stop] = middles[passed.argmax(axis=1)]
    return found


def _cut(
    values: NDArray[np.float64], cells: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the middle sample, mean and number of samples of each cell of sorted `values`."""
    n = len(values)
    if n <= cells:
        return values, values, np.ones(n)
    levels = np.sin(np.linspace(0, np.pi / 2, cells + 1)) ** 2
    edges = np.unique(np.round(levels * n).astype(np.int64))
    held = np.diff(edges)
    sums = np.add.reduceat(values, edges[:-1])
    return values[edges[:-1] + held // 2], sums / held, held.astype(np.float64)


def _gamma(rng: np.random.Generator, shape: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Gamma(shape, 1) draws by Wilson and Hilferty's cube; 0 where the shape is 0."""
    draws = rng.standard_normal(shape.shape, dtype=np.float32)
    safe = np.maximum(shape, 1)
    draws /= 3 * np.sqrt(safe)
    draws += 1 - 1 / (9 * safe)
    np.maximum(draws, 0, out=draws)
    return shape * draws * draws * draws
