"""Headers that claim more than their file can hold are refused before memory is taken."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from flatsat.coded import container
from flatsat.coded.container import decode, read_header
from flatsat.coded.errors import CodedError
from flatsat.compressors.codec import ContextCodec, coder_library, number
from flatsat.compressors.tensor_ranges import TensorRange


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def coded(tensors: list[bytes], inside: int, stream: bytes = b"") -> bytes:
    """Return a file of these tensors, which stand for so many bytes, and nothing around them."""
    skeleton = deflated(b"")
    return b"".join(
        (
            container.MAGIC,
            bytes([container.VERSION]),
            bytes(32),
            number(inside),
            b"\4onnx",
            number(len(skeleton)) + skeleton,
            number(len(tensors)) + b"".join(tensors),
            number(len(stream)) + stream,
        )
    )


def levels(size: int) -> bytes:
    told = bytes([container.STEPS]) + number(size) + number(0)
    return told + struct.pack("<ff", 0.0, 0.5) + number(0) + b"\0"


def head(elements: int, coding: int) -> bytes:
    return number(0) + number(elements) + bytes([container.FLOAT32, coding])


def peak_bytes(file: bytes, **given: Any) -> int:
    """Return the memory that it takes Python to refuse a file."""
    tracemalloc.start()
    try:
        with pytest.raises(CodedError) as caught:
            decode(file, **given)
        assert "\n" not in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_tensors_with_many_levels_take_no_memory() -> None:
    one = head(0, container.CONTEXT) + levels(65_536) + number(1) + number(0)
    file = coded([one] * 400, 0)
    assert len(file) < 10_000
    assert peak_bytes(file) < 1 << 20


def test_few_levels_of_few_elements_are_read() -> None:
    one = head(1, container.CONTEXT) + levels(68) + number(1) + number(0)
    assert len(read_header(coded([one], 4)).tensors[0].levels or ()) == 68
    one = head(1, container.CONTEXT) + levels(69) + number(1) + number(0)
    with pytest.raises(CodedError, match="number of levels"):
        read_header(coded([one], 4))


def test_more_codes_than_bits_are_refused_before_there_is_room_for_them() -> None:
    elements = 250_000
    lengths = deflated(b"\1\1")
    one = head(elements, container.HUFFMAN) + levels(2) + number(1) + b"\0" + number(elements)
    one += number(len(lengths)) + lengths + number(2) + b"\0\0"
    assert peak_bytes(coded([one], 4 * elements)) < 1 << 16


@pytest.mark.parametrize("coding", [container.RANGE, container.ANS])
@pytest.mark.parametrize("counts", [[4], [4, 0], [0, 4]])
def test_static_models_that_no_writer_makes_are_refused(coding: int, counts: list[int]) -> None:
    one = head(4, coding) + levels(len(counts)) + number(1)
    one += b"".join(map(number, counts)) + number(4) + b"\1\2\3\4"
    with pytest.raises(CodedError) as caught:
        decode(coded([one], 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("native", [True, False])
def test_a_stream_that_ends_early_is_not_read_on_for_long(native: bool) -> None:
    library = coder_library() if native else None
    if native and library is None:
        pytest.skip("there is no C compiler")
    # Behind its end a stream goes on as zeros, which here are ones of highest surprise.
    values = np.tile(np.arange(8, dtype=np.float32), 4000)
    sound = ContextCodec().encode(values.tobytes(), [TensorRange(0, 4, values.shape)])
    header = read_header(sound)
    cut = header._replace(stream=header.stream[:40])
    reader = container.pieces(cut, library=library)
    with pytest.raises(CodedError, match=r"too early|isn't there"):
        b"".join(reader)


def test_levels_are_the_nearest_floats() -> None:
    found = container.steps(-0.7, 0.1, -3, 9, 4)
    value, number_ = [], -3
    for place in range(9):
        value.append(0.0 if place == 4 else -0.7 + number_ * 0.1)
        number_ += place != 4
    assert found.tobytes() == np.array(value, np.float32).tobytes()
    assert container.steps(0.0, 1.0, 0, 0, None).tobytes() == b""
    with pytest.raises(CodedError, match="beyond float32"):
        container.steps(0.0, 3e38, 0, 3, None)
    with pytest.raises(CodedError, match="beyond float32"):
        container.steps(0.0, 3e38, -2, 3, None)
