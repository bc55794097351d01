"""What every registered codec must hold to; a new one is tested by being registered.

`tests/compressors/test_codec.py` has what is particular to the built-in ones, and damage without
end; here stand the promises of the seam, for tensors that hypothesis makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flatsat.coded.container import FLOAT32, INT8, UINT8
from flatsat.compressors.entropy import entropy_bits, huffman_bits
from flatsat.compressors.registry import describe, entry, step_class, step_names
from flatsat.compressors.tensor_ranges import TensorRange
from flatsat.errors import DataError, FlatSatError, RecipeError

CODECS = step_names("codec")
KINDS = {"float32": FLOAT32, "int8": INT8, "uint8": UINT8}
SLACK_BYTES = 16
"""Lengths of payloads and words that aren't full."""
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
codecs = pytest.mark.parametrize("name", CODECS)

shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=7)
odd = st.sampled_from(
    [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, 1e-45, -1e-45, 3.4028235e38, 0.1]
)
constants = st.tuples(shapes, odd).map(lambda drawn: np.full(drawn[0], drawn[1], np.float32))
words = hnp.arrays(np.uint32, shapes).map(lambda array: array.view(np.float32))
levels = st.tuples(hnp.arrays(np.uint8, shapes, elements=st.integers(0, 3)), st.lists(odd)).map(
    lambda drawn: np.array([0.0, -0.5, 0.25, *drawn[1], 2.0], np.float32)[drawn[0]]
)
even = st.tuples(
    hnp.arrays(np.int16, shapes, elements=st.integers(-40, 40)),
    st.floats(0.001953125, 4, width=32),
    st.floats(-2, 2, width=32),
).map(lambda d: (d[2] + d[0].astype(np.float64) * d[1]).astype(np.float32))
integers = hnp.arrays(st.sampled_from([np.int8, np.uint8]), shapes)
tensors = st.one_of(constants, words, levels, even, integers, hnp.arrays(np.float32, shapes))


def in_file(*arrays: np.ndarray) -> tuple[bytes, list[TensorRange]]:
    """Put tensors into a file, with something between."""
    data, ranges = b"begin", []
    for array in arrays:
        ranges.append(TensorRange(len(data), KINDS[array.dtype.name], array.shape))
        data += array.tobytes() + b"<>"
    return data, ranges


def made(name: str) -> Any:
    return step_class(name, "codec")()


def sample(size: int = 400) -> np.ndarray:
    rng = np.random.default_rng(2)
    values = np.array([0, 0, 0, 0, 0.5, -0.25, 1.5], np.float32)
    return rng.choice(values, (20, size // 20))


@codecs
def test_it_is_registered_under_its_own_name(name: str) -> None:
    assert step_class(name, "codec").name == name
    assert entry(name, "codec").summary
    assert describe(name).text
    assert describe(name).schema["type"] == "object"


@codecs
@few
@given(arrays=st.lists(tensors, max_size=4))
def test_any_tensors_come_back_bit_for_bit(name: str, arrays: list[np.ndarray]) -> None:
    data, ranges = in_file(*arrays)
    codec = made(name)
    coded = codec.encode(data, ranges, "onnx")
    assert codec.decode(coded) == data
    assert made(name).encode(data, ranges, "onnx") == coded


@codecs
@few
@given(data=st.binary(max_size=300))
def test_a_file_without_tensors_comes_back(name: str, data: bytes) -> None:
    assert made(name).decode(made(name).encode(data, [], "tflite")) == data


@codecs
def test_each_codec_reads_the_files_of_all(name: str) -> None:
    data, ranges = in_file(sample())
    for other in CODECS:
        assert made(name).decode(made(other).encode(data, ranges)) == data


@codecs
@few
@given(st.data())
def test_damaged_files_are_refused_in_one_line(name: str, data: st.DataObject) -> None:
    file, ranges = in_file(sample(), np.arange(60, dtype=np.float32))
    coded = made(name).encode(file, ranges)
    at = data.draw(st.integers(0, len(coded) - 1))
    how = data.draw(st.sampled_from(["cut", "magic", "version", "hash", "longer"]))
    bad = {
        "cut": coded[:at],
        "magic": bytes([coded[0] ^ 1]) + coded[1:],
        "version": coded[:4] + b"\x09" + coded[5:],
        "hash": coded[:5] + bytes([coded[5] ^ 128]) + coded[6:],
        "longer": coded + data.draw(st.binary(min_size=1, max_size=9)),
    }[how]
    with pytest.raises(DataError) as caught:
        made(name).decode(bad)
    assert caught.value.message
    assert "\n" not in caught.value.message


@codecs
@few
@given(st.binary(max_size=200))
def test_what_was_never_coded_is_refused(name: str, data: bytes) -> None:
    for file in (data, b"FSCW" + data, b"FSCW\x01" + data):
        with pytest.raises(FlatSatError):
            made(name).decode(file)


@codecs
@pytest.mark.parametrize("offset", [-1, 1000])
def test_tensors_outside_of_the_file_are_refused(name: str, offset: int) -> None:
    data, (place,) = in_file(sample())
    moved = TensorRange(offset, place.element, place.shape)
    with pytest.raises(RecipeError):
        made(name).encode(data, [moved])
    with pytest.raises(RecipeError):
        made(name).encode(data, [place, place])


def counted(counts: list[int]) -> np.ndarray:
    """Return independent symbols that occur so often, as floats."""
    values = np.repeat(np.arange(len(counts)), counts).astype(np.float32) * np.float32(0.75)
    return np.random.default_rng(len(counts)).permutation(values).reshape(1, -1)


def payload(name: str, tensor: np.ndarray) -> int:
    """Return the bytes that a tensor takes in a coded file."""
    return len(made(name).encode(*in_file(tensor))) - len(made(name).encode(*in_file()))


counts = st.lists(st.integers(1, 3000), min_size=2, max_size=12).filter(lambda c: sum(c) >= 2000)


@codecs
@few
@given(counts)
def test_symbols_cost_what_theory_says(name: str, drawn: list[int]) -> None:
    tensor = counted(drawn)
    least = entropy_bits(drawn) / 8
    # Counts, codes and levels, a few bytes each; packing them is the codec's affair.
    told = 12 * len(drawn) + 40
    if name == "huffman":
        # Within a bit a symbol, and exactly a Huffman code where no index pays.
        most = min(least + tensor.size / 8, huffman_bits(drawn) / 8 + SLACK_BYTES)
    elif name in ("range", "ans"):
        most = least * 1.005 + SLACK_BYTES
    else:
        # A codec that adapts pays for what it learns; symbols are independent, so it can't win.
        most = least * 1.02 + 12 * len(drawn) + SLACK_BYTES
    size = payload(name, tensor)
    assert size <= most + told
    assert size >= least * 0.98
