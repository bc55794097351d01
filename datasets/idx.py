"""A strict reader of IDX files, the format of MNIST and Fashion-MNIST.

The format: two zero bytes, one byte for the element type (8 = unsigned byte), one byte for the
number of axes, one big-endian uint32 an axis for its length, then the elements in C order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from flatsat.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
# The whole of MNIST is 47 MB; a header that claims more than this is damaged or hostile.
_MOST_BYTES = 1 << 31
_PIECE_BYTES = 1 << 20


def read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzip (told by its content, not its name).

    Args:
        path: the file.
        axes: how many axes it must have: 3 for images (n, h, w), 1 for labels (n,).

    Returns:
        Read-only, in C order.

    Raises:
        DataError: the file can't be read, isn't IDX, has another element type or number of axes,
            or holds fewer or more bytes than its header says. Nothing else is raised, whatever
            the file holds.
    """
    with _opened(path) as stream:
        shape = _read_header(stream, path, axes)
        size = math.prod(shape)
        # One byte more than claimed shows trailing data, and makes gzip check its CRC.
        data = _read_up_to(stream, size + 1)
        if len(data) < size:
            raise DataError(
                f"{path}: truncated: expected {size} bytes after the header, found {len(data)}",
                hint="fetch the file again",
            )
        if len(data) > size:
            raise DataError(
                f"{path}: trailing data: expected {size} bytes after the header, found more",
                hint="fetch the file again",
            )
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape)
    pixels.flags.writeable = False
    return pixels


def read_idx_shape(path: Path, *, axes: int) -> tuple[int, ...]:
    """Return what an IDX file's header claims, without reading the data.

    Raises:
        DataError: as `read_idx`, as far as the header tells.
    """
    with _opened(path) as stream:
        return _read_header(stream, path, axes)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open `path`, unpacking gzip; what goes wrong inside the block becomes a DataError."""
    try:
        with ExitStack() as stack:
            stream: IO[bytes] = stack.enter_context(path.open("rb"))
            start = stream.read(len(_GZIP_MAGIC))
            stream.seek(0)
            if start == _GZIP_MAGIC:
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb"))
                stream = cast("IO[bytes]", unpacked)
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or truncated gzip data: {error}",
            hint="fetch the file again, or unpack it first",
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path}: can't be read: {reason}", hint="check the path and its permissions"
        ) from error


def _read_up_to(stream: IO[bytes], count: int) -> bytearray:
    """Read in pieces: a damaged header's claim must not reserve gigabytes at once."""
    data = bytearray()
    while len(data) < count and (piece := stream.read(min(_PIECE_BYTES, count - len(data)))):
        data += piece
    return data


def _read_header(stream: IO[bytes], path: Path, axes: int) -> tuple[int, ...]:
    header_bytes = 4 + 4 * axes
    header = stream.read(header_bytes)
    if len(header) < 4 or header[:2] != b"\0\0":
        raise DataError(
            f"{path}: not an IDX file: expected it to start with 00 00 08 {axes:02x}, "
            f"found {header[:4].hex(' ') or 'nothing'}",
            hint="give the original IDX file, gzip or plain",
        )
    if header[2] != _UNSIGNED_BYTE or header[3] != axes:
        raise DataError(
            f"{path}: expected unsigned bytes (type 08) with {axes} axes, "
            f"found type {header[2]:02x} with {header[3]} axes",
            hint="image files have 3 axes, label files have 1; were they swapped?",
        )
    if len(header) < header_bytes:
        raise DataError(
            f"{path}: truncated: expected a header of {header_bytes} bytes, found {len(header)}",
            hint="fetch the file again",
        )
    shape = struct.unpack(f">{axes}I", header[4:])
    size = math.prod(shape)
    if not 0 < size <= _MOST_BYTES:
        raise DataError(
            f"{path}: the header claims {' x '.join(map(str, shape))} = {size} bytes of data, "
            f"expected 1 to {_MOST_BYTES}",
            hint="the header is damaged; fetch the file again",
        )
    return shape
