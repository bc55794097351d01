"""Sparse matrices as rows of relative indices of fixed width, with filler zeros.

Han et al. 2016, "Deep Compression", section 2: instead of each kept weight's position the
difference to the one before is stored, in a fixed number of bits; where a difference does not fit,
a zero is put in between (a filler) and stored like a weight. Here the rows are apart, as a program
that executes them needs it (CSR): the first difference of a row counts from before its first
column, and the number of entries of each row is stored beside them.

An entry of b bits holds the difference minus one, so that differences from 1 to 2^b fit; a filler
holds 2^b - 1 and advances 2^b columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsat.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


@dataclass(frozen=True)
class RelativeRows:
    """Rows of a sparse matrix.

    Attributes:
        index: (entries,) integers in [0, 2^bits): columns passed over before each entry.
        source: (entries,) for each entry its place in the flattened matrix, or -1 for a filler.
        counts: (rows,) entries of each row, fillers included.
        bits: of an index.
        columns: of the matrix.
    """

    index: Array
    source: Array
    counts: Array
    bits: int
    columns: int

    @property
    def fillers(self) -> int:
        """How many entries stand for no kept weight."""
        return int(np.count_nonzero(self.source < 0))


def relative_rows(kept: Array, bits: int) -> RelativeRows:
    """Return the entries that hold the true elements of a bool matrix.

    Args:
        kept: (rows, columns).
        bits: of an index, 1 to 16.
    """
    rows, columns = kept.shape
    base = 1 << bits
    place = np.flatnonzero(kept)
    row, column = np.divmod(place, max(columns, 1))
    first = np.ones(len(place), bool)
    first[1:] = row[1:] != row[:-1]
    before = np.empty_like(column)
    before[1:] = column[:-1]
    before[first] = -1
    passed = column - before - 1
    fillers = passed // base
    entries = fillers + 1
    last = np.cumsum(entries) - 1
    index = np.full(int(entries.sum()), base - 1, np.int64)
    index[last] = passed % base
    source = np.full(len(index), -1, np.int64)
    source[last] = place
    counts = np.bincount(row, weights=entries, minlength=rows).astype(np.int64)
    return RelativeRows(index, source, counts, bits, columns)


def columns_of(index: Array, counts: Array, columns: int) -> tuple[Array, Array]:
    """Return row and column of each entry, fillers included.

    Args:
        index: (entries,) relative indices.
        counts: (rows,) entries of each row.
        columns: of the matrix.

    Raises:
        DataError: the counts are not those of the entries, or an index leads out of its row.
    """
    if int(counts.sum()) != len(index):
        raise DataError(f"the rows count {int(counts.sum())} entries, there are {len(index)}")
    row = np.repeat(np.arange(len(counts)), counts)
    steps = np.cumsum(index.astype(np.int64) + 1)
    starts = np.cumsum(counts) - counts
    passed = np.concatenate([[0], steps])[starts]
    column = steps - np.repeat(passed, counts) - 1
    if len(column) and int(column.max()) >= columns:
        at = int(np.argmax(column >= columns))
        raise DataError(f"entry {at} of row {int(row[at])} lies beyond column {columns - 1}")
    return row, column


def relative_bytes(kept: Array, bits: int, value_bits: int = 32, count_bits: int = 32) -> int:
    """Return the bytes that a bool matrix's kept weights take as relative rows.

    Args:
        kept: (rows, columns).
        bits: of an index.
        value_bits: of a weight or of its code; a filler takes as much.
        count_bits: of each row's number of entries.
    """
    rows = relative_rows(kept, bits)
    entries = len(rows.index)
    return -(-entries * (bits + value_bits) // 8) + -(-len(rows.counts) * count_bits // 8)


def best_bits(kept: Array, value_bits: int = 32, choices: Sequence[int] = range(1, 17)) -> int:
    """Return the index width that takes the fewest bytes; the narrowest of equals.

    Narrow indices cost fillers, wide ones cost bits at every weight.
    """
    return min(choices, key=lambda bits: (relative_bytes(kept, bits, value_bits), bits))
