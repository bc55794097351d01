"""The file format of sparse programs, version 1: what runtime `sparse-c` executes.

All numbers are little-endian. Offsets count from the start of the file; sections of 32-bit numbers
begin at multiples of 4. Activations are float32 without a batch axis: the runtime repeats the
program for each image.

    head      64 bytes
        0  8s   "FlatSprs"
        8  u32  version, 1
       12  u32  length of the file
       16  u32  number of values V (at most 4096)
       20  u32  number of operations O (at most 4096)
       24  u32  value that is the input;  28  u32  value that is the output
       32  u32  length of the input's name in bytes;  36  u32  of the output's
       40       zeros
    values    V times 4 u32: rank (1 or 3), channels, height, width; of a vector the last two are 1
    ops       O times 32 words, in the order of execution:
        0 kind: 1 conv, 2 fc, 3 max pool, 4 average pool, 5 add, 6 concat (channels), 7 copy,
          8 stretch (each row and column stands stride times, or has zeros put behind it)
        1 output value; 2 input value; 3 other input (add)
        4 low, 5 high (f32): outputs are held between them (-inf and inf: not at all; 0 and inf:
          ReLU; 0 and 6: ReLU6)
        6 kernel, 8 stride, 10 dilation, 12 padding before, 14 padding behind: height, then width
       16 groups; 17 format of the weights: 0 dense, 1 csr, 2 block4x1
       18 flags: 1 an average counts padding; 2 stretch repeats
       19 entries; 20, 21, 22, 23 offsets of values, indices, counts, bias (0: no bias)
       24 offset and 25 length of a concat's list of values (u32 each), the first of which is 2
       26 zeros
    names     UTF-8, the input's, then the output's; zeros up to a multiple of 4
    data      what the offsets lead to; equal sections stand there once

Weights are a matrix of (output channels) x (input channels of a group x kernel height x kernel
width), or x (all elements of the input) for fc. dense: f32, row by row. csr: for each row a u32
count; for each entry its relative index (u8, see `csr`; a filler is a zero) and its value (f32).
block4x1: the rows of a group four at a time, filled up with zeros; for each such quadruple a u32
count, for each entry an index as before and four f32, one a row: a column of four weights that are
not all zero. Values, indices and counts are a section each.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from flatsat.compressors.csr import columns_of, relative_rows
from flatsat.errors import ModelError
from flatsat.tensors import TensorSpec

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Pair: TypeAlias = tuple[int, int]

MAGIC = b"FlatSprs"
VERSION = 1
FORMAT = "sparse-c"
BATCH = "batch"
KINDS = ("conv", "fc", "maxpool", "avgpool", "add", "concat", "copy", "stretch")
FORMATS = ("dense", "csr", "block4x1")
INDEX_BITS = 8
BLOCK_ROWS = 4
MOST = 4096
MOST_ELEMENTS = 1 << 28

HEAD = struct.Struct("<8s8I24x")
VALUE = struct.Struct("<4I")
OP = struct.Struct("<4I2f20I24x")
COUNT_PAD, REPEAT = 1, 2


@dataclass(frozen=True)
class Stored:
    """A layer's weights as the file holds them.

    Attributes:
        format: of `FORMATS`.
        shape: (rows of all groups, columns).
        groups: of rows; a quadruple of rows never reaches into the next group.
        values: float32; (rows, columns) if dense, (entries,) of csr, (entries, 4) of block4x1.
        index: uint8 relative indices, or empty.
        counts: uint32 entries of each row or quadruple, or empty.
    """

    format: str
    shape: Pair
    groups: int
    values: Array
    index: Array
    counts: Array

    @property
    def entries(self) -> int:
        """How many entries there are: weights, or columns of four."""
        return len(self.index) if self.format != "dense" else self.values.size

    @cached_property
    def matrix(self) -> Array:
        """The weights as (rows, columns), zeros included."""
        if self.format == "dense":
            return self.values
        rows, columns = self.shape
        row, column = columns_of(self.index, self.counts, columns)
        if self.format == "csr":
            full = np.zeros((rows, columns), np.float32)
            full[row, column] = self.values
            return full
        of_group = rows // self.groups
        quads = -(-of_group // BLOCK_ROWS)
        tall = np.zeros((self.groups * quads, columns, BLOCK_ROWS), np.float32)
        tall[row, column] = self.values
        grid = tall.transpose(0, 2, 1).reshape(self.groups, quads * BLOCK_ROWS, columns)
        return np.ascontiguousarray(grid[:, :of_group].reshape(rows, columns))


def store(matrix: Array, format_: str, groups: int = 1) -> Stored:
    """Return a matrix (rows, columns) as a layer's weights in one of the formats.

    Raises:
        ValueError: there is no such format.
    """
    matrix = np.ascontiguousarray(matrix, np.float32)
    none = (np.zeros(0, np.uint8), np.zeros(0, np.uint32))
    if format_ == "dense":
        return Stored(format_, _pair(matrix), groups, matrix, *none)
    if format_ == "csr":
        rows = relative_rows(matrix != 0, INDEX_BITS)
        values = np.where(rows.source < 0, np.float32(0), matrix.reshape(-1)[rows.source])
        values = values.astype(np.float32)
    elif format_ == "block4x1":
        tall = _quadruples(matrix, groups)
        rows = relative_rows(np.asarray(tall.any(axis=2)), INDEX_BITS)
        values = tall.reshape(-1, BLOCK_ROWS)[rows.source] * (rows.source >= 0)[:, None]
        values = np.ascontiguousarray(values, np.float32)
    else:
        raise ValueError(f"no format is called {format_!r}")
    index, counts = rows.index.astype(np.uint8), rows.counts.astype(np.uint32)
    return Stored(format_, _pair(matrix), groups, values, index, counts)


def occupied(matrix: Array, groups: int = 1) -> int:
    """Return how many columns of four rows are not all zero: the entries of block4x1."""
    return int(np.count_nonzero(_quadruples(matrix, groups).any(axis=2)))


def _quadruples(matrix: Array, groups: int) -> Array:
    """Return (quadruples, columns, 4)."""
    rows, columns = matrix.shape
    of_group = rows // groups
    quads = -(-of_group // BLOCK_ROWS)
    grid = np.zeros((groups, quads * BLOCK_ROWS, columns), np.float32)
    grid[:, :of_group] = matrix.reshape(groups, of_group, columns)
    return grid.reshape(groups * quads, BLOCK_ROWS, columns).transpose(0, 2, 1)


def _pair(matrix: Array) -> Pair:
    return int(matrix.shape[0]), int(matrix.shape[1])


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: of `KINDS`.
        output: the value that it writes.
        inputs: the values that it reads.
        low, high: bounds of its outputs.
        kernel, stride, dilation, before, behind: of a window; (height, width).
        groups: of a conv.
        count_pad: an average counts padding.
        repeat: a stretch by `stride` repeats; else it puts zeros between.
        weights, bias: of conv and fc; the bias (rows,) float32 or None.
    """

    kind: str
    output: int
    inputs: tuple[int, ...]
    low: float = -math.inf
    high: float = math.inf
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    before: Pair = (0, 0)
    behind: Pair = (0, 0)
    groups: int = 1
    count_pad: bool = False
    repeat: bool = False
    weights: Stored | None = None
    bias: Array | None = None


Shape: TypeAlias = tuple[int, ...]


def sides(shape: Shape) -> tuple[int, int, int]:
    """Return channels, height and width of a value; of a vector the last two are 1."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)


def reach(op: Op, axis: int) -> int:
    """Return how many places a kernel spans along an axis."""
    return op.dilation[axis] * (op.kernel[axis] - 1) + 1


def stretched(op: Op, length: int, axis: int) -> int:
    """Return how long an axis is after a stretch."""
    return length * op.stride[axis] if op.repeat else (length - 1) * op.stride[axis] + 1


@dataclass(frozen=True)
class Program:
    """A network as a list of operations.

    Attributes:
        shapes: of the values: (channels, height, width), or (channels,).
        ops: in the order of execution.
        source, target: the values that are the input and the output.
        input_name, output_name: as callers name them.
    """

    shapes: tuple[Shape, ...]
    ops: tuple[Op, ...]
    source: int
    target: int
    input_name: str
    output_name: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The signature with its open batch axis."""
        return (TensorSpec(self.input_name, "float32", (BATCH, *self.shapes[self.source])),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Likewise of the output."""
        return (TensorSpec(self.output_name, "float32", (BATCH, *self.shapes[self.target])),)

    @property
    def params(self) -> int:
        """Elements of all weights and biases, zeros included."""
        return sum(math.prod(s.shape) for s in self._stored()) + sum(len(b) for b in self._biases())

    @property
    def nonzeros(self) -> int:
        """How many of them are not zero."""
        kept = sum(int(np.count_nonzero(s.values)) for s in self._stored())
        return kept + sum(int(np.count_nonzero(b)) for b in self._biases())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense program, for one image.

        Those with the zeros that a transposed convolution puts in between count.
        """
        return sum(self._places(op) * math.prod(op.weights.shape) for op in self.ops if op.weights)

    @property
    def executed_macs(self) -> int:
        """Multiply-accumulates that the runtime does: an entry costs one, or four in a block."""
        total = 0
        for op in self.ops:
            if op.weights is not None:
                total += self._places(op) * op.weights.values.size
        return total

    def _places(self, op: Op) -> int:
        return math.prod(self.shapes[op.output][1:])

    def _stored(self) -> Iterator[Stored]:
        # A module that is used twice has its weights once.
        seen = {id(op.weights.values): op.weights for op in self.ops if op.weights is not None}
        yield from seen.values()

    def _biases(self) -> Iterator[Array]:
        seen = {id(op.bias): op.bias for op in self.ops if op.bias is not None}
        yield from seen.values()


def is_sparse_program(head: bytes) -> bool:
    """Return whether a file that begins with these bytes (8 at least) is a sparse program."""
    return head[:8] == MAGIC


class _Data:
    """Collects sections; equal ones are written once."""

    def __init__(self, start: int) -> None:
        self.parts: list[bytes] = []
        self.end = start
        self._known: dict[bytes, int] = {}

    def put(self, array: Array, dtype: str) -> int:
        """Return the offset of an array's bytes."""
        data = np.ascontiguousarray(array, dtype).tobytes()
        if data not in self._known:
            self._known[data] = self.end
            self.parts.append(data + bytes(-len(data) % 4))
            self.end += len(self.parts[-1])
        return self._known[data]


def to_bytes(program: Program) -> bytes:
    """Return the file of a program; equal programs give equal bytes.

    Raises:
        ModelError: it has more than the format holds.
    """
    names = [program.input_name.encode(), program.output_name.encode()]
    if max(len(program.shapes), len(program.ops)) > MOST:
        raise ModelError(f"a sparse program holds at most {MOST} operations")
    start = HEAD.size + VALUE.size * len(program.shapes) + OP.size * len(program.ops)
    padding = bytes(-(start + sum(map(len, names))) % 4)
    data = _Data(start + sum(map(len, names)) + len(padding))
    records = [_record(op, data) for op in program.ops]
    if data.end >= 1 << 32:
        raise ModelError(f"{data.end} bytes are more than a sparse program can hold")
    head = HEAD.pack(
        MAGIC,
        *(VERSION, data.end, len(program.shapes), len(program.ops)),
        *(program.source, program.target, len(names[0]), len(names[1])),
    )
    values = [VALUE.pack(len(s), *s, *(1,) * (3 - len(s))) for s in program.shapes]
    return b"".join([head, *values, *records, *names, padding, *data.parts])


def _record(op: Op, data: _Data) -> bytes:
    offsets = [0, 0, 0, 0]
    entries = 0
    format_ = 0
    if op.weights is not None:
        stored = op.weights
        format_, entries = FORMATS.index(stored.format), stored.entries
        offsets[0] = data.put(stored.values, "<f4")
        if stored.format != "dense":
            offsets[1] = data.put(stored.index, "u1")
            offsets[2] = data.put(stored.counts, "<u4")
    if op.bias is not None:
        offsets[3] = data.put(op.bias, "<f4")
    listed = (0, 0)
    if op.kind == "concat":
        listed = (data.put(np.array(op.inputs), "<u4"), len(op.inputs))
    flags = COUNT_PAD * op.count_pad + REPEAT * op.repeat
    windows = (*op.kernel, *op.stride, *op.dilation, *op.before, *op.behind)
    return OP.pack(
        *(KINDS.index(op.kind) + 1, op.output, op.inputs[0]),
        op.inputs[1] if op.kind == "add" else 0,
        *(op.low, op.high, *windows, op.groups, format_, flags, entries),
        *(*offsets, *listed),
    )
