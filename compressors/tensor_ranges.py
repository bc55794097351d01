"""Where in a model file its big tensors lie, so that they can be coded and put back in place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from flatsat.coded.container import FLOAT32, INT8, UINT8
from flatsat.errors import ModelError

_SMALLEST_BYTES = 64
"""A smaller tensor stays in the skeleton: what describes it would take as much."""
_ELEMENT_BYTES = {FLOAT32: 4, INT8: 1, UINT8: 1}
_ONNX_TYPES = {1: FLOAT32, 2: UINT8, 3: INT8}
_TFLITE_TYPES = {"float32": FLOAT32, "uint8": UINT8, "int8": INT8}


@dataclass(frozen=True)
class TensorRange:
    """One tensor's bytes in a model file.

    Attributes:
        offset: of its first byte.
        element: FLOAT32, INT8 or UINT8 of `flatsat.coded.container`, little-endian.
        shape: as the file gives it.
    """

    offset: int
    element: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Length in the file."""
        return self.elements * _ELEMENT_BYTES[self.element]


def tensor_ranges(data: bytes, format_: str) -> list[TensorRange]:
    """Return the tensors of a model file that are worth coding, in the order of the file.

    Args:
        data: the whole file.
        format_: "onnx", "tflite" or "sparse-c"; of another format none are known.

    Raises:
        ModelError: the file is damaged.
    """
    readers = {"onnx": _onnx, "tflite": _tflite, "sparse-c": _sparse}
    found = list(readers[format_](data)) if format_ in readers else []
    kept: list[TensorRange] = []
    end = 0
    for tensor in sorted(found, key=lambda one: (one.offset, -one.size_bytes)):
        # Tensors may share their bytes.
        if tensor.size_bytes >= _SMALLEST_BYTES and tensor.offset >= end:
            kept.append(tensor)
            end = tensor.offset + tensor.size_bytes
    return kept


def _onnx(data: bytes) -> Iterator[TensorRange]:
    """Walk the file as a protocol buffer: ModelProto.graph.initializer."""
    for number, start, end in _fields(data, 0, len(data)):
        if number == 7:
            for inner, first, last in _fields(data, start, end):
                if inner == 5:
                    yield from _initializer(data, first, last)


def _initializer(data: bytes, start: int, end: int) -> Iterator[TensorRange]:
    """TensorProto: dims 1, data_type 2, raw_data 9."""
    shape: list[int] = []
    element = offset = length = 0
    for number, first, last in _fields(data, start, end, scalars=True):
        if number == 1:
            at = first
            while at < last:
                value, at = _varint(data, at, last)
                shape.append(value)
        elif number == 2:
            element = _varint(data, first, last)[0]
        elif number == 9:
            offset, length = first, last - first
    if element in _ONNX_TYPES:
        found = TensorRange(offset, _ONNX_TYPES[element], tuple(shape))
        if length and found.size_bytes == length:
            yield found


def _fields(
    data: bytes, at: int, end: int, *, scalars: bool = False
) -> Iterator[tuple[int, int, int]]:
    """Give number, begin and end of each length-delimited field; with `scalars` of varints, too.

    Raises:
        ModelError: it is no protocol buffer.
    """
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        begin = at
        if kind == 0:
            _, at = _varint(data, at, end)
            if scalars:
                yield number, begin, at
            continue
        if kind == 2:
            length, begin = _varint(data, at, end)
            at = begin + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ModelError("the ONNX file is damaged: a field of no known kind")
        if at > end:
            raise ModelError("the ONNX file is damaged: a field beyond its end")
        if kind == 2:
            yield number, begin, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
    raise ModelError("the ONNX file is damaged: a number without end")


def _tflite(data: bytes) -> Iterator[TensorRange]:
    import numpy as np

    from flatsat.compressors.tflite_file import parse

    file = parse(data, "the TFLite file")
    base = np.frombuffer(data, np.uint8).ctypes.data
    for graph in file.graphs:
        for tensor in graph.tensors:
            element = _TFLITE_TYPES.get(tensor.dtype)
            values = file.values(tensor)
            if element is None or not len(values):
                continue
            offset = np.frombuffer(values, np.uint8).ctypes.data - base
            found = TensorRange(offset, element, tensor.shape)
            if 0 <= offset <= len(data) - len(values) and found.size_bytes == len(values):
                yield found


def _sparse(data: bytes) -> Iterator[TensorRange]:
    from flatsat.compressors import sparse_read

    for offset, elements, dtype in sparse_read.tensor_ranges(data):
        if dtype in ("<f4", "u1"):
            yield TensorRange(offset, FLOAT32 if dtype == "<f4" else UINT8, (elements,))
