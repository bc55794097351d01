"""Raw samples as bytes: differences of int64 values, compressed; exact for every int64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard

from flatsat.errors import DataError

ENCODING = "delta-i64+zstd"
_LEVEL = 3


def encode(values: Sequence[int]) -> bytes:
    """Return `values` as a zstd frame of little-endian int64 differences, the first from 0.

    Differences wrap modulo 2**64, so any int64 sequence comes back exactly.

    Raises:
        OverflowError: a value does not fit in int64.
    """
    wrapped = np.array(values, dtype=np.int64).view(np.uint64)
    deltas = np.diff(wrapped, prepend=np.uint64(0)).astype("<u8")
    return compress(deltas.tobytes())


def decode(blob: bytes, n: int, encoding: str = ENCODING) -> tuple[int, ...]:
    """Return the `n` values that `encode` wrote.

    Raises:
        DataError: the blob is damaged, of another length, or of an unknown encoding.
    """
    if encoding != ENCODING:
        raise DataError(
            f"samples are encoded as {encoding!r}, which this version can't read",
            hint="read the record with the FlatSat that wrote it, or a newer one",
        )
    data = decompress(blob)
    if len(data) != 8 * n:
        raise DataError(f"samples are damaged: {len(data)} bytes where {n} values were recorded")
    deltas = np.frombuffer(data, dtype="<u8")
    return tuple(np.cumsum(deltas, dtype=np.uint64).view(np.int64).tolist())


def compress(data: bytes) -> bytes:
    """Return `data` as one zstd frame with a checksum."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def decompress(blob: bytes) -> bytes:
    """Return what `compress` was given.

    Raises:
        DataError: the frame is damaged.
    """
    # Piece by piece: a damaged header may claim a size that no computer holds.
    reader = zstandard.ZstdDecompressor().decompressobj()
    try:
        data = reader.decompress(blob)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DataError(f"a compressed value in the record is damaged: {error}") from error
    if not reader.eof or reader.unused_data:
        raise DataError("a compressed value in the record is damaged: its length is wrong")
    return data
