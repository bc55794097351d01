"""Entropy and Huffman codes of symbols: what coded weights cost."""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
MOST_BITS = 32
"""Of a Huffman code, as the format allows."""


def entropy_bits(counts: Sequence[int]) -> float:
    """Return Shannon's bound for symbols with these counts, in bits for all of them together."""
    present = np.array([count for count in counts if count > 0], dtype=np.float64)
    if not len(present):
        return 0.0
    return float(-(present * np.log2(present / present.sum())).sum())


def huffman_lengths(counts: Sequence[int]) -> list[int]:
    """Return the bits of each symbol's Huffman code (Huffman 1952), 0 for one that never occurs.

    A lone symbol gets one bit. Where a code would be longer than the format allows, counts are
    halved until none is.
    """
    weights = [int(count) for count in counts]
    while True:
        lengths = _lengths(weights)
        if max(lengths, default=0) <= MOST_BITS:
            return lengths
        weights = [(weight + 1) // 2 for weight in weights]


def _lengths(weights: Sequence[int]) -> list[int]:
    lengths = [0] * len(weights)
    # The number breaks ties, so that equal counts always give the same code.
    heap: list[tuple[int, int, tuple[int, ...]]]
    heap = [(weight, i, (i,)) for i, weight in enumerate(weights) if weight > 0]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
        return lengths
    heapq.heapify(heap)
    number = len(weights)
    while len(heap) > 1:
        a, b = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (*a[2], *b[2]):
            lengths[symbol] += 1
        heapq.heappush(heap, (a[0] + b[0], number, (*a[2], *b[2])))
        number += 1
    return lengths


def canonical_codes(lengths: Sequence[int]) -> list[int]:
    """Return each symbol's code: codes count upwards by length, then by symbol."""
    codes = [0] * len(lengths)
    code = 0
    for length in range(1, max(lengths, default=0) + 1):
        for symbol, own in enumerate(lengths):
            if own == length:
                codes[symbol] = code
                code += 1
        code <<= 1
    return codes


def huffman_bytes(symbols: Array, lengths: Sequence[int]) -> bytes:
    """Return the codes of `symbols` one after the other, most significant bit first.

    Args:
        symbols: (n,) integers, each with a code.
        lengths: see `huffman_lengths`.
    """
    if not len(symbols):
        return b""
    size = np.array(lengths, dtype=np.int64)[symbols]
    code = np.array(canonical_codes(lengths), dtype=np.uint64)[symbols]
    ends = np.cumsum(size)
    # For each bit its symbol, and how far it stands from that code's end.
    owner = np.repeat(np.arange(len(symbols)), size)
    shift = (ends[owner] - 1 - np.arange(ends[-1])).astype(np.uint64)
    bits = (code[owner] >> shift) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def huffman_bits(counts: Sequence[int]) -> int:
    """Return the bits that a Huffman code takes for symbols with these counts."""
    lengths = huffman_lengths(counts)
    return sum(int(count) * length for count, length in zip(counts, lengths, strict=True))


def mean_bits(counts: Sequence[int]) -> float:
    """Return Shannon's bound a symbol, in bits."""
    total = sum(counts)
    return entropy_bits(counts) / total if total else math.nan
