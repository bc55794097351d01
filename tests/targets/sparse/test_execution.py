"""The library's outputs against PyTorch's, for every operation and each form of weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.compressors import sparse_run
from flatsat.compressors.sparse_program import FORMATS, Op, Program, store, stretched, to_bytes
from flatsat.targets.agent.runtime_sparse import Program as Loaded
from flatsat.targets.agent.runtime_sparse import SparseLibrary


def require_equal(library: SparseLibrary, program: Program, images: Any) -> None:
    """Assert that the library computes what PyTorch does, twice the same."""
    loaded = Loaded(library, to_bytes(program))
    found, expected = loaded.run(images), sparse_run.run(program, images)
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    assert np.allclose(found, expected, rtol=0, atol=2e-5 * scale, equal_nan=True)
    assert np.array_equal(loaded.run(images), found, equal_nan=True)


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_convolutions(library: SparseLibrary, programs: Any, data: st.DataObject) -> None:
    pick = data.draw
    groups = pick(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = (pick(st.integers(1, 5)), pick(st.integers(1, 5)))
    dilation = (pick(st.sampled_from([1, 1, 2])), pick(st.sampled_from([1, 1, 3])))
    before = (pick(st.integers(0, 3)), pick(st.integers(0, 3)))
    behind = (pick(st.integers(0, 3)), pick(st.integers(0, 3)))
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - before[i] - behind[i]) for i in (0, 1)]
    taken = (
        groups * pick(st.integers(1, 3)),
        least[0] + pick(st.integers(0, 9)),
        least[1] + pick(st.integers(0, 40)),
    )
    program = programs.conv(
        taken,
        groups * pick(st.integers(1, 6)),
        pick(st.sampled_from(FORMATS)),
        pick(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        pick(st.integers(0, 99)),
        kernel=kernel,
        stride=(pick(st.integers(1, 3)), pick(st.integers(1, 3))),
        dilation=dilation,
        before=before,
        behind=behind,
        groups=groups,
        low=pick(st.sampled_from([-math.inf, 0.0])),
        high=pick(st.sampled_from([math.inf, 1.5])),
    )
    require_equal(library, program, programs.images(program))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("kernel", "sides"), [((1, 40), (3, 90)), ((1, 1), (7, 64)), ((3, 33), (5, 33))]
)
def test_wide_kernels_and_wide_rows(
    library: SparseLibrary, programs: Any, kernel: Any, sides: Any, format_: str
) -> None:
    program = programs.conv((2, *sides), 7, format_, kernel=kernel, low=0.0)
    require_equal(library, program, programs.images(program))


@pytest.mark.parametrize("format_", FORMATS)
def test_depthwise_convolutions(library: SparseLibrary, programs: Any, format_: str) -> None:
    for channels, rows, stride in ((5, 5, 1), (8, 16, 2)):
        program = programs.conv(
            *((channels, 9, 20), rows, format_),
            kernel=(3, 3),
            stride=(stride, stride),
            before=(1, 1),
            behind=(1, 1),
            groups=channels,
        )
        require_equal(library, program, programs.images(program))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 900),
    st.sampled_from([0.0, 0.003, 0.1, 1.0]),
    st.sampled_from(FORMATS),
    st.booleans(),
)
def test_dense_layers(
    library: SparseLibrary,
    programs: Any,
    rows: int,
    columns: int,
    density: float,
    format_: str,
    biased: bool,
) -> None:
    weights = store(programs.matrix((rows, columns), density), format_)
    bias = np.ones(rows, np.float32) if biased else None
    program = programs.one(Op("fc", 1, (0,), weights=weights, bias=bias), (columns,), (rows,))
    require_equal(library, program, programs.images(program, 3))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_pools(library: SparseLibrary, programs: Any, data: st.DataObject) -> None:
    pick = data.draw
    kernel = (pick(st.integers(1, 4)), pick(st.integers(1, 4)))
    stride = (pick(st.integers(1, 3)), pick(st.integers(1, 3)))
    before = tuple(pick(st.integers(0, size - 1)) for size in kernel)
    behind = tuple(pick(st.integers(0, size - 1)) for size in kernel)
    taken = (2, pick(st.integers(4, 9)), pick(st.integers(4, 30)))
    ceil = pick(st.booleans())
    places = []
    for i in (0, 1):
        room = taken[i + 1] + before[i] + behind[i] - kernel[i]
        count = (-(-room // stride[i]) if ceil else room // stride[i]) + 1
        places.append(count - ((count - 1) * stride[i] >= taken[i + 1] + before[i]))
    op = Op(
        *(pick(st.sampled_from(["maxpool", "avgpool"])), 1, (0,), -1.0, 0.5),
        kernel=kernel,
        stride=stride,
        before=before,  # type: ignore[arg-type]
        behind=behind,  # type: ignore[arg-type]
        count_pad=pick(st.booleans()),
    )
    program = programs.one(op, taken, (2, *places))
    require_equal(library, program, programs.images(program))


@pytest.mark.parametrize("sides", [(2, 2), (9, 8), (8, 9), (6, 27)])
def test_the_usual_pool(library: SparseLibrary, programs: Any, sides: tuple[int, int]) -> None:
    op = Op("maxpool", 1, (0,), kernel=(2, 2), stride=(2, 2))
    program = programs.one(op, (3, *sides), (3, sides[0] // 2, sides[1] // 2))
    images = programs.images(program)
    images[0, 1, 1, 1] = np.nan
    require_equal(library, program, images)


def test_a_mean_over_all_places(library: SparseLibrary, programs: Any) -> None:
    for size in ((1, 1), (3, 5), (7, 7)):
        op = Op("avgpool", 1, (0,), kernel=size)
        program = programs.one(op, (3, *size), (3, 1, 1))
        require_equal(library, program, programs.images(program))


@pytest.mark.parametrize("format_", FORMATS)
def test_every_kind_of_operation_in_a_row(
    library: SparseLibrary, programs: Any, format_: str
) -> None:
    program = programs.everything(format_)
    require_equal(library, program, programs.images(program, 5))


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1), (1, 4)])
def test_stretching(
    library: SparseLibrary, programs: Any, stride: tuple[int, int], repeat: bool
) -> None:
    op = Op("stretch", 1, (0,), -0.5, 2.0, stride=stride, repeat=repeat)
    places = [stretched(op, length, axis) for axis, length in enumerate((4, 5))]
    program = programs.one(op, (3, 4, 5), (3, *places))
    require_equal(library, program, programs.images(program))


def test_values_that_are_no_numbers_stay_so(library: SparseLibrary, programs: Any) -> None:
    program = programs.everything("dense")
    images = programs.images(program, 1)
    images[0, 0, 3, 3] = np.nan
    images[0, 1, 6, 1] = np.inf
    expected = sparse_run.run(program, images)
    found = Loaded(library, to_bytes(program)).run(images)
    assert np.isnan(found).all() == np.isnan(expected).all()
    assert np.isnan(expected).any()


def test_buffers_are_shared_where_lives_do_not_meet(library: SparseLibrary, programs: Any) -> None:
    count, shape = 40, (4, 16, 16)
    ops = tuple(Op("copy", i + 1, (i,), low=-1.0) for i in range(count))
    program = Program((shape,) * (count + 1), ops, 0, count, "image", "logits")
    loaded = Loaded(library, to_bytes(program))
    one = 4 * 4 * 16 * 16
    assert 2 * one <= loaded.arena_bytes < 4 * one + 40_000
    images = programs.images(program)
    assert np.array_equal(loaded.run(images), np.maximum(images, -1))


def test_an_input_of_another_shape_is_refused(library: SparseLibrary, programs: Any) -> None:
    program = programs.everything()
    loaded = Loaded(library, to_bytes(program))
    with pytest.raises(ValueError, match="shape"):
        loaded.run(np.zeros((1, 3, 8, 8), np.float32))
    assert loaded.run(np.zeros((0, 2, 8, 8), np.float32)).shape == (0, 5)
