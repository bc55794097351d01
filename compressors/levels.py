"""The few values that a tensor's elements take, as levels and symbols."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from flatsat.coded.container import steps

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
MOST_LEVELS = 1 << 12
_WORTH = 4
"""So many elements a level, or a table of levels does not pay."""
_ULPS = 2


@dataclass(frozen=True)
class Levels:
    """What symbols stand for.

    Attributes:
        words: (k,) uint32, the levels' bytes, ascending by value.
        zero: index of the level that is symbol 0: of 0.0, or else of the one nearest to it.
        low, step, first, inserted: the levels are float32(low + (first + i) step), with 0.0 put
            in at `zero` if `inserted`; None where they are not.
    """

    words: Array
    zero: int
    spaced: tuple[float, float, int, bool] | None

    @property
    def size(self) -> int:
        """How many levels."""
        return len(self.words)


def find_levels(words: Array) -> tuple[Levels, Array] | None:
    """Return the levels of float32 elements and each element's symbol; None for too many levels.

    Args:
        words: (n,) uint32, the elements' bytes: each bit pattern is a level of its own, so that
            negative zeros and NaNs come back as they were.
    """
    if not len(words):
        return None
    found = np.unique(words)
    if len(found) > MOST_LEVELS:
        return None
    found = found[np.argsort(_order(found), kind="stable")]
    levels = _spaced(found, found.view(np.float32))
    if levels is None:
        if len(found) * _WORTH > len(words) + 2 * _WORTH:
            return None
        levels = Levels(found, _nearest_zero(found), None)
    index = np.searchsorted(_order(levels.words), _order(words))
    return levels, index.astype(np.int64) - levels.zero


def _order(words: Array) -> Array:
    """Return integers that ascend as the floats do."""
    negative = words >> 31 == 1
    return np.where(negative, ~words, words | np.uint32(0x80000000)).astype(np.uint32)


def _nearest_zero(words: Array) -> int:
    exact = np.flatnonzero(words == 0)
    if len(exact):
        return int(exact[0])
    values = np.abs(np.nan_to_num(words.view(np.float32).astype(np.float64), nan=np.inf))
    return int(np.argmin(values))


def _spaced(words: Array, values: Array) -> Levels | None:
    """Return evenly spaced levels that hold all of these, where that takes less than a table.

    Two kinds occur: multiples of a step, and a step's multiples above a minimum, beside which
    pruned elements are 0.0.
    """
    if len(words) < 4 or not np.isfinite(values).all() or (words == 0x80000000).any():
        return None
    wide = values.astype(np.float64)
    rest = wide[words != 0]
    if len(rest) < 3 or not (np.diff(rest) > 0).all():
        return None
    most = min(4 * len(words) + 8, MOST_LEVELS)
    for low in (0.0, float(rest[0])):
        gaps = np.diff(np.concatenate(([0.0], np.sort(np.abs(rest))))) if low == 0.0 else None
        least = float(np.diff(rest).min()) if gaps is None else float(gaps[gaps > 0].min())
        far = rest[np.argmax(np.abs(rest - low))] - low
        count = round(abs(far) / least)
        if not 1 <= count <= 2 * most:
            continue
        centre = np.float32(abs(far) / count)
        for step in _neighbours(centre):
            if not step > 0:
                continue
            numbers = np.rint((rest - low) / float(step)).astype(np.int64)
            again = (low + numbers * float(step)).astype(np.float32)
            if not np.array_equal(again, rest.astype(np.float32)):
                continue
            has_zero = len(rest) < len(words)
            first, last = int(numbers.min()), int(numbers.max())
            if low == 0.0:
                first, last = min(first, 0), max(last, 0)
            inserted = low != 0.0 and has_zero
            size = last - first + 1 + inserted
            if size > most:
                continue
            zero = -first if low == 0.0 else int(np.searchsorted(again, 0.0)) if inserted else 0
            if inserted:
                zero = int(np.rint(np.ceil((0.0 - low) / float(step)))) - first
                zero = min(max(zero, 0), size - 1)
            table = np.array(
                steps(low, float(step), first, size, zero if inserted else None), dtype=np.uint32
            )
            if not inserted and low != 0.0:
                zero = _nearest_zero(table)
            order = _order(table)
            if (np.diff(order.astype(np.int64)) > 0).all() and np.isin(words, table).all():
                return Levels(table, zero, (low, float(step), first, inserted))
    return None


def _neighbours(centre: np.float32) -> list[np.float32]:
    found = [centre]
    for _ in range(_ULPS):
        found.append(np.nextafter(found[-1], np.float32(np.inf)))
    low = centre
    for _ in range(_ULPS):
        low = np.nextafter(low, np.float32(0))
        found.append(low)
    return found


def table_bytes(levels: Levels) -> bytes:
    """Return the levels' words, little-endian."""
    return array("I", levels.words.tolist()).tobytes()
