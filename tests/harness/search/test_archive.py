"""States as bytes: arrays and JSON come back to the bit, and nothing in them can run."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flatsat.errors import DataError
from flatsat.harness.search.archive import generator_state, pack, restore_generator, unpack

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
NAMES = st.from_regex(r"\A[a-z][a-z0-9_-]{0,8}\Z").filter(lambda name: name != "head")


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(NAMES, ARRAYS, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_back_to_the_bit(head, arrays) -> None:
    data = pack(head, arrays)
    again_head, again = unpack(data, "it")
    assert again_head == head
    assert again.keys() == arrays.keys()
    for name, values in arrays.items():
        assert again[name].dtype == values.dtype
        assert again[name].shape == values.shape
        assert again[name].tobytes() == values.tobytes()
    assert pack(again_head, again) == data


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_other_bytes_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(DataError, match=r"damaged|no state") as caught:
        unpack(data, "the checkpoint")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_truncated_state_is_refused(cut: int) -> None:
    data = pack({"a": 1}, {"x": np.arange(50)})
    with pytest.raises(DataError):
        unpack(data[:-cut], "the checkpoint")


def test_a_pickle_in_the_archive_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, head=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError):
        unpack(buffer.getvalue(), "the checkpoint")


@given(st.integers(0, 2**32), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_generator_goes_on_where_it_was(seed: int, drawn: int) -> None:
    draw = np.random.Generator(np.random.PCG64(seed))
    draw.random(drawn)
    draw.integers(0, 5, drawn, dtype=np.int32)  # leaves half a word in the generator
    head, _ = unpack(pack({"draw": generator_state(draw)}, {}), "it")
    again = restore_generator(head["draw"])
    assert again.integers(0, 9, 20).tolist() == draw.integers(0, 9, 20).tolist()
    assert again.random(5).tolist() == draw.random(5).tolist()
