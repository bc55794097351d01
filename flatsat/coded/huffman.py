"""Canonical Huffman codes, decoded in Python."""

from __future__ import annotations

from array import array
from typing import Dict, Tuple

from .errors import CodedError

MOST_BITS = 32


def canonical(lengths: bytes) -> Dict[Tuple[int, int], int]:
    """Return (length, code) -> symbol: codes count upwards by length, then by symbol.

    Args:
        lengths: bits of each symbol's code, 0 for a symbol without one.

    Raises:
        CodedError: a code is too long, or there are more codes than bits allow.
    """
    codes: Dict[Tuple[int, int], int] = {}
    code = 0
    for length in range(1, MOST_BITS + 1):
        for symbol in range(len(lengths)):
            if lengths[symbol] == length:
                if code >> length:
                    raise CodedError("a Huffman code is damaged")
                codes[length, code] = symbol
                code += 1
        code <<= 1
    if any(length > MOST_BITS for length in lengths):
        raise CodedError("a Huffman code is damaged")
    return codes


def decode(data: bytes, lengths: bytes, count: int) -> array[int]:
    """Decode so many symbols from the beginning of `data`, most significant bit first.

    Raises:
        CodedError: the bits are no code, or end too early.
    """
    codes = canonical(lengths)
    out = array("i")
    at, end = 0, 8 * len(data)
    for _ in range(count):
        code = length = 0
        while True:
            if at >= end or length >= MOST_BITS:
                raise CodedError("a Huffman code is damaged, or ends too early")
            code = code << 1 | (data[at >> 3] >> (7 - (at & 7))) & 1
            at += 1
            length += 1
            symbol = codes.get((length, code))
            if symbol is not None:
                out.append(symbol)
                break
    return out
