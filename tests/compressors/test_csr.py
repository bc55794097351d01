"""Relative indices with fillers: exact to read back, and as many bytes as the arithmetic says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.compressors.csr import best_bits, columns_of, relative_bytes, relative_rows
from flatsat.errors import DataError


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random((rows, columns)) < draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))


@settings(max_examples=150, deadline=None)
@given(masks(), st.integers(1, 8))
def test_entries_lead_back_to_the_kept_weights(kept: np.ndarray[Any, Any], bits: int) -> None:
    made = relative_rows(kept, bits)
    assert len(made.index) == len(made.source) == made.counts.sum()
    assert made.index.size == 0 or (made.index.min() >= 0 and made.index.max() < 2**bits)
    row, column = columns_of(made.index, made.counts, kept.shape[1])
    real = made.source >= 0
    assert np.array_equal(row[real] * kept.shape[1] + column[real], made.source[real])
    assert np.array_equal(made.source[real], np.flatnonzero(kept))
    # A filler stands where nothing is kept, and only as far as an index reaches.
    assert not kept[row[~real], column[~real]].any()
    assert (made.index[~real] == 2**bits - 1).all()
    assert made.fillers == np.count_nonzero(~real)


def test_a_gap_of_as_much_as_an_index_tells_needs_no_filler() -> None:
    for gap, fillers in ((4, 0), (5, 1), (8, 1), (9, 2)):
        kept = np.zeros((1, 20), bool)
        kept[0, [0, gap]] = True
        made = relative_rows(kept, 2)
        assert made.fillers == fillers
        assert made.index[0] == 0
        assert made.index[1:].sum() + fillers + 1 == gap


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(1, 8))
def test_bytes_are_those_of_the_entries(kept: np.ndarray[Any, Any], bits: int) -> None:
    made = relative_rows(kept, bits)
    entries = np.count_nonzero(kept) + made.fillers
    assert relative_bytes(kept, bits) == -(-entries * (32 + bits) // 8) + 4 * len(kept)


def test_the_best_width_trades_fillers_for_bits() -> None:
    rng = np.random.default_rng(0)
    sparse, dense = rng.random((20, 2000)) < 0.005, rng.random((20, 2000)) < 0.5
    assert best_bits(dense, 5) < best_bits(sparse, 5)
    for kept in (sparse, dense):
        best = best_bits(kept, 5)
        assert all(
            relative_bytes(kept, best, 5) <= relative_bytes(kept, b, 5) for b in range(1, 17)
        )


def test_damaged_rows_are_refused() -> None:
    with pytest.raises(DataError, match="beyond column 3"):
        columns_of(np.array([1, 2]), np.array([2]), 4)
    with pytest.raises(DataError, match="there are 2"):
        columns_of(np.array([1, 2]), np.array([3]), 4)
