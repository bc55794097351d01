"""`coder.c`, compiled: what the Python of `context.py` and `huffman.py` does, much quicker."""

from __future__ import annotations

import ctypes
from array import array
from typing import Any, Optional

from .errors import CodedError

_DAMAGED = {
    -1: "the coded weights are damaged: a level that isn't there",
    -2: "the coded weights end too early",
    -3: "the levels of a tensor are damaged",
}


def _pointer(buffer: Any, kind: Any) -> Any:
    """Return a pointer to a writable buffer; the caller keeps the buffer alive."""
    return (kind * (len(memoryview(buffer).cast("B")) // ctypes.sizeof(kind))).from_buffer(buffer)


def _zeros(count: int) -> array[int]:
    """Return so many zeros, made in place."""
    return array("i", (0,)) * count


class Library:
    """The compiled coder.

    Args:
        path: of the shared library.

    Raises:
        OSError: it is missing, or made for another machine.
    """

    def __init__(self, path: str) -> None:
        self._c = ctypes.CDLL(path)
        c64, c32, address = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p
        for name, result, arguments in (
            ("coder_bytes", c64, ()),
            ("coder_start", None, (address, c32, address, c64)),
            ("coder_matrix", c32, (address, address, c64, c64, c32, c32, c64, address)),
            ("coder_finish", c64, (address,)),
            ("coder_huffman", c64, (address, c64, address, c32, address, c64, address)),
            ("coder_levels", c32, (address, c64, address, c32, c32, address)),
        ):
            function = getattr(self._c, name)
            function.restype = result
            function.argtypes = arguments

    def coder(self, data: Optional[bytes] = None, room: int = 0) -> NativeCoder:
        """Return a stream of matrices.

        Args:
            data: to decode; None codes.
            room: bytes that coding may take.
        """
        return NativeCoder(self._c, data, room)

    def huffman(self, data: bytes, lengths: bytes, count: int) -> array[int]:
        """Decode so many symbols from the beginning of `data`; see `huffman.decode`.

        Raises:
            CodedError: the bits are no code, or end too early.
        """
        out, order = _zeros(count), _zeros(max(len(lengths), 1))
        took = self._c.coder_huffman(
            data, len(data), lengths, len(lengths), out.buffer_info()[0], count,
            order.buffer_info()[0],
        )  # fmt: skip
        if took < 0:
            raise CodedError("a Huffman code is damaged, or ends too early")
        return out

    def levels(self, symbols: array[int], levels: array[int], zero: int) -> bytes:
        """Return each symbol's level of four bytes, little-endian.

        Raises:
            CodedError: there is no such level.
        """
        out = bytearray(4 * len(symbols))
        done = self._c.coder_levels(
            symbols.buffer_info()[0], len(symbols), levels.buffer_info()[0], zero, len(levels),
            _pointer(out, ctypes.c_uint32) if out else None,
        )  # fmt: skip
        if done < 0:
            raise CodedError(_DAMAGED[-1])
        return bytes(out)


class NativeCoder:
    """As `context.Coder`, by the library."""

    def __init__(self, library: Any, data: Optional[bytes], room: int) -> None:
        self._c = library
        self._decoding = data is not None
        self._state = ctypes.create_string_buffer(library.coder_bytes())
        # A copy: C writes here when it codes, and a reader's bytes must outlive its call.
        self._buffer = ctypes.create_string_buffer(data or b"", max(room, len(data or b""), 1))
        library.coder_start(
            self._state, int(self._decoding), self._buffer, room if data is None else len(data)
        )

    def matrix(
        self,
        symbols: Optional[array[int]],
        rows: int,
        columns: int,
        low: int,
        high: int,
        period: int,
    ) -> array[int]:
        """Code or decode a matrix; see `context.Coder.matrix`.

        Raises:
            CodedError: the stream is damaged.
        """
        out = _zeros(rows * columns) if symbols is None else symbols
        scratch = _zeros(5 * max(columns, 1))
        done = self._c.coder_matrix(
            self._state, out.buffer_info()[0], rows, columns, low, high, period,
            scratch.buffer_info()[0],
        )  # fmt: skip
        if done < 0:
            raise CodedError(_DAMAGED[done])
        return out

    def finish(self) -> bytes:
        """Return the bytes of the stream.

        Raises:
            CodedError: the stream ended before its last symbol; or there was no room.
        """
        size = int(self._c.coder_finish(self._state))
        if size < 0:
            raise CodedError(_DAMAGED[-2] if self._decoding else "no room for the coded weights")
        return self._buffer.raw[:size]
