from __future__ import annotations

import gzip
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.datasets.idx import read_idx, read_idx_shape
from flatsat.errors import DataError

IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
HEADER = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in IMAGES.shape)
PLAIN = HEADER + IMAGES.tobytes()
ZIPPED = gzip.compress(PLAIN, mtime=0)


def read(content: bytes, axes: int = 3) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f-idx3-ubyte"
        path.write_bytes(content)
        return read_idx(path, axes=axes)


@pytest.mark.parametrize("content", [PLAIN, ZIPPED], ids=["plain", "gzip"])
def test_reads_what_the_format_says_whatever_the_name(content: bytes) -> None:
    np.testing.assert_array_equal(read(content), IMAGES)


def test_labels_have_one_axis(to_idx: Callable[..., bytes]) -> None:
    labels = np.array([3, 1, 2])
    np.testing.assert_array_equal(read(to_idx(labels), axes=1), labels)


def test_shape_comes_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(HEADER)
    assert read_idx_shape(path, axes=3) == IMAGES.shape


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not an IDX file", "00 00 08 03", "nothing"]),
        (b"<html><body>404", ["not an IDX file", "3c 68 74 6d"]),
        (PLAIN[:-7], ["truncated", "expected 60 bytes", "found 53"]),
        (PLAIN[:10], ["truncated", "header of 16 bytes", "found 10"]),
        (PLAIN + b"!", ["trailing data", "expected 60 bytes"]),
        (gzip.compress(PLAIN + b"!!", mtime=0), ["trailing data", "expected 60 bytes"]),
        (gzip.compress(PLAIN[:-7], mtime=0), ["truncated", "expected 60 bytes", "found 53"]),
        (ZIPPED[:-6], ["truncated gzip"]),
        (ZIPPED + b"junk", ["gzip"]),
        (b"\0\0\x0d\x03" + PLAIN[4:], ["type 0d"]),
        (b"\0\0\x08\x01" + PLAIN[4:], ["with 1 axes", "swapped"]),
        (HEADER[:4] + b"\xff" * 12, ["the header claims", "fetch"]),
        (HEADER[:4] + bytes(12), ["the header claims 0 x 0 x 0"]),
    ],
    ids=itertools.count(),
)
def test_a_wrong_file_is_one_line_with_file_figures_and_hint(
    tmp_path: Path, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, axes=3)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint
    for word in [str(path), *words]:
        assert word in text


def test_a_folder_and_a_missing_file_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "nul\0"):
        with pytest.raises(DataError, match="can't be read"):
            read_idx(path, axes=3)


def test_a_damaged_checksum_inside_gzip_is_found() -> None:
    damaged = bytearray(ZIPPED)
    damaged[-8] ^= 1
    with pytest.raises(DataError, match="gzip"):
        read(bytes(damaged))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([PLAIN, ZIPPED]), st.data())
def test_every_truncation_is_a_data_error(content: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DataError):
        read(content[:cut])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([PLAIN, ZIPPED]), st.data())
def test_no_mutation_raises_anything_else(content: bytes, data: st.DataObject) -> None:
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        how = data.draw(st.sampled_from(["set", "insert", "delete"]))
        if how == "set":
            mutated[place] = data.draw(st.integers(0, 255))
        elif how == "insert":
            mutated[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            del mutated[place : place + data.draw(st.integers(1, 5))]
        mutated = mutated or bytearray(b"\0")
    try:
        read_back = read(bytes(mutated))
    except DataError:
        return
    assert read_back.dtype == np.uint8
    assert read_back.ndim == 3


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08", HEADER[:4]]))
def test_random_bytes_are_a_data_error(content: bytes, start: bytes) -> None:
    with pytest.raises(DataError):
        read(start + content[: 12 + 10])
