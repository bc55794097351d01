"""The file of a sparse program: read back as written, equal each time, damage always told."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.compressors import sparse_run
from flatsat.compressors.sparse_program import (
    FORMATS,
    MAGIC,
    Op,
    Program,
    is_sparse_program,
    occupied,
    store,
    to_bytes,
)
from flatsat.compressors.sparse_read import from_bytes, tensor_ranges
from flatsat.errors import ModelError

Array = np.ndarray[Any, Any]


def pruned(shape: tuple[int, int], density: float, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal(shape) * (rng.random(shape) < density)
    return np.asarray(dense, np.float32)


def small(format_: str = "csr") -> Program:
    """Return a program with an operation of every kind."""
    bias = np.arange(6, dtype=np.float32)
    first = store(pruned((6, 18), 0.4), format_)
    shapes = ((2, 8, 8), (6, 8, 8), (6, 4, 4), (6, 4, 4), (6, 4, 4), (12, 4, 4), (192,), (5,))
    ops = (
        Op(
            "conv",
            1,
            (0,),
            0.0,
            6.0,
            (3, 3),
            before=(1, 1),
            behind=(1, 1),
            weights=first,
            bias=bias,
        ),
        Op("maxpool", 2, (1,), kernel=(2, 2), stride=(2, 2)),
        Op("avgpool", 3, (1,), kernel=(2, 2), stride=(2, 2)),
        Op("add", 4, (2, 3), low=0.0),
        Op("concat", 5, (4, 2)),
        Op("copy", 6, (5,)),
        Op("fc", 7, (6,), weights=store(pruned((5, 192), 0.05, 1), format_), bias=bias[:5]),
    )
    return Program(shapes, ops, 0, 7, "image", "logits")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 700),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from(FORMATS),
    st.integers(1, 3),
)
def test_every_format_gives_the_matrix_back(
    rows: int, columns: int, density: float, format_: str, groups: int
) -> None:
    matrix = pruned((rows * groups, columns), density)
    stored = store(matrix, format_, groups)
    assert np.array_equal(stored.matrix, matrix)
    if format_ == "csr":
        assert stored.entries >= np.count_nonzero(matrix)
    if format_ == "block4x1":
        assert stored.entries >= occupied(matrix, groups)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_program_is_read_back_as_it_was(format_: str) -> None:
    program = small(format_)
    data = to_bytes(program)
    assert is_sparse_program(data)
    again = from_bytes(data)
    assert to_bytes(again) == data == to_bytes(small(format_))
    assert (again.shapes, again.inputs, again.outputs) == (
        *(program.shapes, program.inputs),
        program.outputs,
    )
    images = np.random.default_rng(3).standard_normal((3, 2, 8, 8)).astype(np.float32)
    assert np.array_equal(sparse_run.run(again, images), sparse_run.run(program, images))


def test_counts_are_of_the_network_and_of_what_is_executed() -> None:
    program = small("csr")
    kept = [np.count_nonzero(op.weights.matrix) for op in program.ops if op.weights is not None]
    assert program.params == 6 * 18 + 6 + 5 * 192 + 5
    # The biases count from zero.
    assert program.nonzeros == sum(kept) + 5 + 4
    assert program.macs == 64 * 6 * 18 + 5 * 192
    executed = [op.weights.entries for op in program.ops if op.weights is not None]
    assert program.executed_macs == 64 * executed[0] + executed[1]
    assert small("dense").executed_macs == program.macs
    assert small("dense").nonzeros == program.nonzeros


def test_equal_weights_stand_in_the_file_once() -> None:
    program = small("dense")
    conv = program.ops[0]
    assert conv.weights is not None
    twice = store(pruned((6, 54), 0.5), "dense")
    grown = Program(
        ((2, 8, 8), (6, 8, 8), (6, 8, 8), (6, 8, 8)),
        (
            conv,
            replace(conv, output=2, inputs=(1,), weights=twice),
            replace(conv, output=3, inputs=(2,), weights=twice),
        ),
        *(0, 3, "image", "logits"),
    )
    once = replace(grown, ops=grown.ops[:2], shapes=grown.shapes[:3], target=2)
    assert len(to_bytes(grown)) - len(to_bytes(once)) == 128 + 16
    assert from_bytes(to_bytes(grown)).params == grown.params


def test_ranges_tell_where_the_weights_lie() -> None:
    program = small("csr")
    data = to_bytes(program)
    ranges = tensor_ranges(data)
    end = 0
    for offset, count, dtype in ranges:
        assert offset >= end
        end = offset + count * np.dtype(dtype).itemsize
    assert end <= len(data)
    floats = [np.frombuffer(data, d, n, at) for at, n, d in ranges if d == "<f4"]
    conv = program.ops[0].weights
    assert conv is not None
    assert any(np.array_equal(each, conv.values) for each in floats)
    assert {dtype for _, _, dtype in ranges} == {"<f4", "u1", "<u4"}


def test_what_is_no_program_is_told_in_one_line() -> None:
    data = to_bytes(small())
    for bad in (b"", data[:40], b"x" * 200, data[:-1], data + b"x", MAGIC + bytes(200)):
        with pytest.raises(ModelError) as caught:
            from_bytes(bad, "a.sparse-c")
        assert str(caught.value).startswith("a.sparse-c")
        assert "\n" not in str(caught.value)
    newer = data[:8] + struct.pack("<I", 2) + data[12:]
    with pytest.raises(ModelError, match="version 2"):
        from_bytes(newer)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_is_told_or_harmless(data: st.DataObject) -> None:
    good = bytearray(to_bytes(small(data.draw(st.sampled_from(FORMATS)))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) // 4 - 1)) * 4
        value = data.draw(st.sampled_from([0, 1, 3, 64, 2**16, 2**28, 2**31, 2**32 - 1]))
        good[at : at + 4] = struct.pack("<I", value)
    try:
        program = from_bytes(bytes(good))
    except ModelError as error:
        assert "\n" not in str(error)
    else:
        assert program.params >= 0
