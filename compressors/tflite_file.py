"""Reads TFLite files, hostile ones too: every offset, length and index is checked before use.

The reader is the schema's own, generated for FlatBuffers; what it doesn't check is checked here.
Nothing native sees the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from flatsat.errors import ModelError

IDENTIFIER = b"TFL3"
# Offsets in a FlatBuffer have 32 bits, of which one is a sign.
MAX_BYTES = 2**31 - 1
# Far more tensors and operators than a network has, and far more sharing of its bytes: they bound
# the time that a file can take whose parts all refer to one place.
_MOST_TABLES = 100_000
_MOST_READINGS = 8
_MOST_AXES = 16
_MOST_NAME_BYTES = 4096

# TensorType -> (NumPy name, bits of an element); 0 bits: elements of no fixed size.
TYPES = {
    0: ("float32", 32),
    1: ("float16", 16),
    2: ("int32", 32),
    3: ("uint8", 8),
    4: ("int64", 64),
    5: ("string", 0),
    6: ("bool", 8),
    7: ("int16", 16),
    8: ("complex64", 64),
    9: ("int8", 8),
    10: ("float64", 64),
    11: ("complex128", 128),
    12: ("uint64", 64),
    13: ("resource", 0),
    14: ("variant", 0),
    15: ("uint32", 32),
    16: ("uint16", 16),
    17: ("int4", 4),
    18: ("bfloat16", 16),
    19: ("int2", 2),
    20: ("uint4", 4),
    21: ("float8_e4m3fn", 8),
    22: ("float8_e5m2", 8),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a graph.

    Attributes:
        name: as in the file; may be empty, and need not be the only one of that name.
        dtype: NumPy's name of the element type, or the schema's where NumPy has none.
        shape: lengths as the file states them.
        signature: the same with -1 where an axis is open.
        buffer: index of what holds its values; an empty buffer holds none.
        scales, zero_points: of its quantisation, one or one a channel; empty without.
        sparse: its values are stored in a sparse form.
        variable: it keeps its value between inferences.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    buffer: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    sparse: bool
    variable: bool

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: in the schema ("CONV_2D"); "CUSTOM:..." for others, "UNKNOWN_n" for a newer one.
        inputs: indices of tensors; -1 for one that is left out.
        outputs: likewise.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Tensors, operators in the order of their execution, and indices of inputs and outputs."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class TfliteFile:
    """What a TFLite file holds; the first graph is the one that is executed."""

    graphs: tuple[Graph, ...]
    buffers: tuple[memoryview, ...]

    def values(self, tensor: Tensor) -> memoryview:
        """Return the bytes of a constant tensor; empty for one that is computed."""
        return self.buffers[tensor.buffer]


def parse(data: bytes, where: str) -> TfliteFile:
    """Return what a file holds, every reference in it checked.

    Args:
        data: the whole file.
        where: stands before the message of an error.

    Raises:
        ModelError: it is no TFLite file, it is cut off, or something in it leads nowhere.
    """
    if len(data) > MAX_BYTES:
        raise ModelError(f"{where}: {len(data)} bytes are more than one TFLite file can hold")
    if data[4:8] != IDENTIFIER:
        raise ModelError(f"{where}: no TFLite file: it lacks {IDENTIFIER.decode()} at byte 4")
    try:
        return _Reader(data).file()
    except _Broken as error:
        raise ModelError(f"{where}: corrupt TFLite file: {error}") from None
    except (
        struct.error,
        AssertionError,
        AttributeError,
        IndexError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        # The generated reader met bytes that are no offset, length or value of theirs.
        text = " ".join(str(error).split())[:150] or type(error).__name__
        raise ModelError(f"{where}: corrupt or cut off TFLite file: {text}") from error


class _Broken(Exception):  # noqa: N818
    """Something in a file leads nowhere; the message says what."""


@cache
def _operator_names() -> dict[int, str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    return {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._view = memoryview(data)
        self._left = _MOST_TABLES
        self._bytes_left = _MOST_READINGS * len(data)

    def file(self) -> TfliteFile:
        from ai_edge_litert.schema_py_generated import Model

        model = Model.GetRootAs(self._data, 0)
        buffers = tuple(self._buffer(b) for b in self._tables(model.Buffers, model.BuffersLength()))
        codes = [
            self._code(code)
            for code in self._tables(model.OperatorCodes, model.OperatorCodesLength())
        ]
        graphs = tuple(
            self._graph(graph, codes, buffers)
            for graph in self._tables(model.Subgraphs, model.SubgraphsLength())
        )
        if not graphs:
            raise _Broken("it has no graph")
        return TfliteFile(graphs, buffers)

    def _tables(self, get: Callable[[int], Any], length: int) -> Iterator[Any]:
        """Yield the tables of a vector, as long as the file can hold so many."""
        # Each takes an offset of four bytes; a shared one may not multiply the work.
        if length * 4 > len(self._data):
            raise _Broken(f"it claims to have {length} entries in one list")
        self._left -= length
        if self._left < 0:
            raise _Broken("its lists are too long")
        for index in range(length):
            table = get(index)
            if table is None:
                raise _Broken("an entry of a list is missing")
            yield table

    def _buffer(self, buffer: Any) -> memoryview:
        offset, size = int(buffer.Offset()), int(buffer.Size())
        # An offset of 1 says that there is no buffer beside the FlatBuffer either.
        if offset > 1:
            if size > len(self._data) or offset > len(self._data) - size:
                raise _Broken(f"a buffer of {size} bytes at {offset} lies outside the file")
            self._charge(size)
            return self._view[offset : offset + size]
        if buffer.DataIsNone():
            return self._view[:0]
        # NumPy, which the generated reader uses, refuses what lies outside.
        values = memoryview(buffer.DataAsNumpy())
        self._charge(len(values))
        return values

    def _charge(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise _Broken("its parts overlap")

    def _text(self, value: bytes | None) -> str:
        self._charge(len(value or b""))
        return (value or b"")[:_MOST_NAME_BYTES].decode("utf-8", "replace")

    def _code(self, code: Any) -> str:
        number = max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))
        name = _operator_names().get(number)
        if name is None:
            return f"UNKNOWN_{number}"
        return f"CUSTOM:{self._text(code.CustomCode())}" if name == "CUSTOM" else name

    def _graph(self, graph: Any, codes: list[str], buffers: tuple[memoryview, ...]) -> Graph:
        tensors = tuple(
            self._tensor(tensor, buffers)
            for tensor in self._tables(graph.Tensors, graph.TensorsLength())
        )
        count = len(tensors)
        operators = []
        for operator in self._tables(graph.Operators, graph.OperatorsLength()):
            index = int(operator.OpcodeIndex())
            if not 0 <= index < len(codes):
                raise _Broken(f"an operator has the code {index} of {len(codes)}")
            operators.append(
                Operator(
                    codes[index],
                    self._indices(operator.InputsAsNumpy(), count, -1),
                    self._indices(operator.OutputsAsNumpy(), count, 0),
                )
            )
        return Graph(
            tensors,
            tuple(operators),
            self._indices(graph.InputsAsNumpy(), count, 0),
            self._indices(graph.OutputsAsNumpy(), count, 0),
        )

    def _indices(self, values: Any, count: int, least: int) -> tuple[int, ...]:
        found = self._numbers(values)
        if any(not least <= index < count for index in found):
            raise _Broken(f"a tensor is named that isn't one of the {count}")
        return found

    def _numbers(self, values: Any) -> tuple[int, ...]:
        # The generated reader gives 0 for a vector that is absent.
        if isinstance(values, int) or values is None:
            return ()
        self._charge(values.nbytes)
        return tuple(values.tolist())

    def _tensor(self, tensor: Any, buffers: tuple[memoryview, ...]) -> Tensor:
        name = self._text(tensor.Name())
        kind = int(tensor.Type())
        if kind not in TYPES:
            raise _Broken(f"tensor {name!r} has elements of the unknown type {kind}")
        shape = self._axes(tensor.ShapeAsNumpy(), name, 0)
        signature = self._axes(tensor.ShapeSignatureAsNumpy(), name, -1) or shape
        if len(signature) != len(shape):
            raise _Broken(f"tensor {name!r} has two shapes, {shape} and {signature}")
        buffer = int(tensor.Buffer())
        if not 0 <= buffer < max(len(buffers), 1):
            raise _Broken(f"tensor {name!r} has the buffer {buffer} of {len(buffers)}")
        scales, zeros = self._quantisation(tensor.Quantization(), name)
        dtype, bits = TYPES[kind]
        found = Tensor(
            name=name,
            dtype=dtype,
            shape=shape,
            signature=signature,
            buffer=buffer,
            scales=scales,
            zero_points=zeros,
            sparse=tensor.Sparsity() is not None,
            variable=bool(tensor.IsVariable()),
        )
        held = len(buffers[buffer]) if buffers else 0
        needed = (found.elements * bits + 7) // 8
        if held and bits and not found.sparse and held != needed:
            raise _Broken(f"tensor {name!r} {shape} needs {needed} bytes, its buffer has {held}")
        return found

    def _axes(self, values: Any, name: str, least: int) -> tuple[int, ...]:
        if not isinstance(values, int) and values is not None and len(values) > _MOST_AXES:
            raise _Broken(f"tensor {name!r} has {len(values)} axes")
        axes = self._numbers(values)
        if any(length < least for length in axes):
            raise _Broken(f"tensor {name!r} has the shape {axes}")
        return axes

    def _quantisation(self, table: Any, name: str) -> tuple[tuple[float, ...], tuple[int, ...]]:
        if table is None:
            return (), ()
        scales = table.ScaleAsNumpy()
        if isinstance(scales, int) or scales is None:
            return (), ()
        self._charge(scales.nbytes)
        zeros = self._numbers(table.ZeroPointAsNumpy())
        steps: tuple[float, ...] = tuple(scales.tolist())
        if not all(math.isfinite(step) and step >= 0 for step in steps):
            raise _Broken(f"tensor {name!r} is quantised in steps of {min(steps)}")
        return steps, zeros or (0,) * len(steps)
