"""Reading sparse programs: the whole file is checked, since every number in it may be wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flatsat.compressors.csr import columns_of
from flatsat.compressors.sparse_program import (
    BLOCK_ROWS,
    COUNT_PAD,
    FORMATS,
    HEAD,
    KINDS,
    MOST,
    MOST_ELEMENTS,
    OP,
    REPEAT,
    VALUE,
    VERSION,
    Op,
    Program,
    Shape,
    Stored,
    is_sparse_program,
    reach,
    sides,
    stretched,
)
from flatsat.errors import DataError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


@dataclass
class _Reader:
    """Reads one file; every number in it may be wrong."""

    data: bytes
    where: str
    floor: int = 0
    sections: dict[tuple[int, int, str], Array] = field(default_factory=dict)
    weights: dict[tuple[object, ...], Stored] = field(default_factory=dict)

    def wrong(self, text: str) -> ModelError:
        return ModelError(f"{self.where}: damaged, or no sparse program: {text}")

    def section(self, offset: int, count: int, dtype: str, what: str) -> Array:
        """Return `count` numbers at an offset."""
        width = np.dtype(dtype).itemsize
        end = offset + count * width
        if offset < self.floor or end > len(self.data) or (width > 1 and offset % 4):
            raise self.wrong(f"{what} lie outside the file")
        # What two operations share is one object, as it was when it was written.
        key = (offset, count, dtype)
        return self.sections.setdefault(key, np.frombuffer(self.data, dtype, count, offset))


def from_bytes(data: bytes, where: str = "the sparse program") -> Program:
    """Read a program's file and check all of it.

    Args:
        data: the file.
        where: stands before the message of an error.

    Raises:
        ModelError: it is damaged, or of another version.
    """
    return _read(_Reader(data, where))


def read(path: Path) -> tuple[Program, bytes]:
    """Return a program and its file's bytes.

    Raises:
        ModelError: the file can't be read, or as `from_bytes`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    return from_bytes(data, str(path)), data


def tensor_ranges(data: bytes) -> list[tuple[int, int, str]]:
    """Return (offset, elements, NumPy type) of every section of weights, without overlaps.

    Types are "<f4" (values and biases), "u1" (relative indices) and "<u4" (counts).

    Raises:
        ModelError: as `from_bytes`.
    """
    reader = _Reader(data, "the sparse program")
    _read(reader)
    found: list[tuple[int, int, str]] = []
    end = 0
    for offset, count, dtype in sorted(reader.sections):
        if offset >= end and count:
            found.append((offset, count, dtype))
            end = offset + count * np.dtype(dtype).itemsize
    return found


def _read(reader: _Reader) -> Program:
    data = reader.data
    if len(data) < HEAD.size or not is_sparse_program(data):
        raise reader.wrong("it doesn't begin like one")
    _, version, size, values, ops, source, target, *lengths = HEAD.unpack_from(data)
    if version != VERSION:
        raise ModelError(
            f"{reader.where}: sparse program of version {version}; this FlatSat reads {VERSION}"
        )
    if size != len(data):
        raise reader.wrong(f"it has {len(data)} bytes and tells of {size}")
    if not (0 < values <= MOST and 0 < ops <= MOST and max(source, target) < values):
        raise reader.wrong("its counts are impossible")
    tables = HEAD.size + VALUE.size * values + OP.size * ops
    if not all(0 < length <= 1024 for length in lengths) or tables + sum(lengths) > size:
        raise reader.wrong("its names are impossible")
    reader.floor = tables + sum(lengths)
    try:
        names = data[tables : reader.floor].decode()
        input_name = data[tables : tables + lengths[0]].decode()
    except UnicodeDecodeError:
        raise reader.wrong("its names are no text") from None
    shapes = tuple(
        _shape(reader, *VALUE.unpack_from(data, HEAD.size + VALUE.size * i)) for i in range(values)
    )
    first = HEAD.size + VALUE.size * values
    records = [OP.unpack_from(data, first + OP.size * i) for i in range(ops)]
    written = {source}
    made = []
    for i, record in enumerate(records):
        op = _op(reader, f"operation {i}", record, shapes)
        if not set(op.inputs) <= written or op.output in written:
            raise reader.wrong(f"operation {i} reads what is not there, or writes it twice")
        written.add(op.output)
        made.append(op)
    if target not in written or target == source:
        raise reader.wrong("nothing writes its output")
    return Program(shapes, tuple(made), source, target, input_name, names[len(input_name) :])


def _shape(reader: _Reader, rank: int, *axes: int) -> Shape:
    if (
        rank not in (1, 3)
        or not all(axes)
        or math.prod(axes) > MOST_ELEMENTS
        or (rank == 1 and axes[1:] != (1, 1))
    ):
        raise reader.wrong(f"a shape is {axes}")
    return axes[:rank]


def _op(reader: _Reader, name: str, record: tuple[Any, ...], shapes: tuple[Shape, ...]) -> Op:
    kind, output, source, other, low, high = record[:6]
    if not 1 <= kind <= len(KINDS):
        raise reader.wrong(f"{name} is of kind {kind}")
    word = KINDS[kind - 1]
    inputs: tuple[int, ...] = (source, other) if word == "add" else (source,)
    if word == "concat":
        if not 0 < record[25] <= MOST:
            raise reader.wrong(f"{name} joins {record[25]} values")
        inputs = tuple(int(n) for n in reader.section(record[24], record[25], "<u4", name))
        del reader.sections[record[24], record[25], "<u4"]
        if inputs[0] != source:
            raise reader.wrong(f"{name} names two first inputs")
    if max(output, *inputs) >= len(shapes):
        raise reader.wrong(f"{name} names a value that isn't there")
    if not low <= high:
        raise reader.wrong(f"{name} holds its outputs between {low} and {high}")
    op = Op(
        *(word, output, inputs, low, high),
        kernel=(record[6], record[7]),
        stride=(record[8], record[9]),
        dilation=(record[10], record[11]),
        before=(record[12], record[13]),
        behind=(record[14], record[15]),
        groups=record[16],
        count_pad=bool(record[18] & COUNT_PAD),
        repeat=bool(record[18] & REPEAT),
    )
    if fault := _misfit(op, shapes):
        raise reader.wrong(f"{name} ({word}): {fault}")
    if word in ("conv", "fc"):
        weights = _weights(reader, name, op, record, shapes)
        rows = weights.shape[0]
        bias = reader.section(record[23], rows, "<f4", f"{name}'s biases") if record[23] else None
        op = replace(op, groups=op.groups if word == "conv" else 1, weights=weights, bias=bias)
    return op


def _misfit(op: Op, shapes: tuple[Shape, ...]) -> str:
    """Return why the shapes around an operation are impossible, or ""."""
    taken, given = sides(shapes[op.inputs[0]]), sides(shapes[op.output])
    if op.kind == "add":
        fits = taken == given == sides(shapes[op.inputs[1]])
    elif op.kind == "concat":
        parts = [sides(shapes[i]) for i in op.inputs]
        fits = sum(p[0] for p in parts) == given[0] and all(p[1:] == given[1:] for p in parts)
    elif op.kind == "copy":
        fits = math.prod(taken) == math.prod(given)
    elif op.kind == "fc":
        fits = given[1:] == (1, 1)
    elif op.kind == "stretch":
        fits = taken[0] == given[0] and all(
            0 < op.stride[i] < 65536 and stretched(op, taken[i + 1], i) == given[i + 1]
            for i in (0, 1)
        )
    elif max(*op.kernel, *op.stride, *op.dilation, *op.before, *op.behind) > 65535 or not min(
        *op.kernel, *op.stride, *op.dilation
    ):
        return "its window is impossible"
    elif op.kind == "conv":
        fits = op.groups > 0 and taken[0] % op.groups == given[0] % op.groups == 0
        fits = fits and all(
            taken[i + 1] + op.before[i] + op.behind[i] >= reach(op, i)
            and (taken[i + 1] + op.before[i] + op.behind[i] - reach(op, i)) // op.stride[i] + 1
            == given[i + 1]
            for i in (0, 1)
        )
    else:
        fits = taken[0] == given[0] and all(
            op.dilation[i] == 1
            and op.before[i] < op.kernel[i]
            and (given[i + 1] - 1) * op.stride[i] < taken[i + 1] + op.before[i]
            for i in (0, 1)
        )
    return "" if fits else f"it can't make {given} of {taken}"


def _weights(
    reader: _Reader, name: str, op: Op, record: tuple[Any, ...], shapes: tuple[Shape, ...]
) -> Stored:
    taken, rows = sides(shapes[op.inputs[0]]), shapes[op.output][0]
    groups = op.groups if op.kind == "conv" else 1
    columns = math.prod(taken)
    if op.kind == "conv":
        columns = taken[0] // groups * op.kernel[0] * op.kernel[1]
    format_, entries, at_values, at_index, at_counts = record[17], *record[19:23]
    key = (rows, columns, groups, *record[17:23])
    if key in reader.weights:
        return reader.weights[key]
    if format_ >= len(FORMATS) or columns > MOST_ELEMENTS:
        raise reader.wrong(f"{name}'s weights are impossible")
    word, what = FORMATS[format_], f"{name}'s weights"
    if word == "dense":
        if entries != rows * columns:
            raise reader.wrong(f"{what} are {entries}, not {rows} x {columns}")
        values = reader.section(at_values, entries, "<f4", what).reshape(rows, columns)
        none = (np.zeros(0, np.uint8), np.zeros(0, np.uint32))
        reader.weights[key] = Stored(word, (rows, columns), groups, values, *none)
        return reader.weights[key]
    tall = BLOCK_ROWS if word == "block4x1" else 1
    panels = groups * -(-(rows // groups) // tall)
    values = reader.section(at_values, entries * tall, "<f4", what)
    index = reader.section(at_index, entries, "u1", what)
    counts = reader.section(at_counts, panels, "<u4", what)
    try:
        columns_of(index, counts.astype(np.int64), columns)
    except DataError as error:
        raise reader.wrong(f"{what}: {error.message}") from error
    shaped = values.reshape(entries, tall) if tall > 1 else values
    reader.weights[key] = Stored(word, (rows, columns), groups, shaped, index, counts)
    return reader.weights[key]
