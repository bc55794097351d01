"""Coded weights: what was coded comes back bit for bit, and costs what theory says."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.coded.container import FLOAT32, INT8, UINT8, decode, read_header
from flatsat.coded.context import Coder
from flatsat.coded.errors import CodedError
from flatsat.compressors.base import Network
from flatsat.compressors.codec import AnsCodec, ContextCodec, HuffmanCodec, RangeCodec
from flatsat.compressors.codec import coder_library as find_library
from flatsat.compressors.entropy import entropy_bits, huffman_bits
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.tensor_ranges import TensorRange, tensor_ranges
from flatsat.datasets.nets import build
from flatsat.errors import DataError

if TYPE_CHECKING:
    from flatsat.coded.native import Library

CODECS: dict[str, Any] = {
    codec.name: codec for codec in (HuffmanCodec, RangeCodec, AnsCodec, ContextCodec)
}


@pytest.fixture(scope="module")
def library() -> Library:
    found = find_library()
    if found is None:
        pytest.skip("there is no C compiler")
    return found


def sparse_levels(rows: int, columns: int, *, seed: int = 0) -> np.ndarray:
    """Pruned and shared weights: busy columns in the middle, eight levels."""
    rng = np.random.default_rng(seed)
    density = 0.25 * np.exp(-(((np.arange(columns) - columns / 2) / (columns / 5)) ** 2))
    kept = rng.random((rows, columns)) < density
    levels = np.array([-0.3, -0.2, -0.13, -0.05, 0.04, 0.11, 0.21, 0.34], np.float32)
    return np.where(kept, rng.choice(levels, (rows, columns)), np.float32(0)).astype(np.float32)


def file_of(*tensors: np.ndarray) -> tuple[bytes, list[TensorRange]]:
    """A file with these tensors and something around them."""
    kinds = {"float32": FLOAT32, "int8": INT8, "uint8": UINT8}
    data, ranges = b"head of the file", []
    for number, tensor in enumerate(tensors):
        ranges.append(TensorRange(len(data), kinds[tensor.dtype.name], tensor.shape))
        data += tensor.tobytes() + b"between %d" % number
    return data, ranges


TENSORS = {
    "shared": sparse_levels(60, 90),
    "many levels": np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32),
    "pruned": np.where(
        sparse_levels(30, 40) != 0,
        np.random.default_rng(2).normal(size=(30, 40)).astype(np.float32),
        np.float32(0),
    ),
    "odd floats": np.array(
        [np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, -1e-45] * 40, np.float32
    ),
    "negative zeros": np.array([-0.0, 1.0] * 50, np.float32),
    "steps": (np.float32(-0.7) + np.arange(16) * np.float64(np.float32(0.093)))
    .astype(np.float32)[np.random.default_rng(3).integers(0, 16, (40, 25))],
    "multiples": (np.random.default_rng(4).integers(-9, 10, (8, 4, 5, 5)) * np.float64(0.0421875))
    .astype(np.float32),
    "int8": np.random.default_rng(5).normal(scale=20, size=(30, 50)).astype(np.int8),
    "uint8": np.random.default_rng(6).integers(0, 256, (7, 11)).astype(np.uint8),
    "constant": np.full((9, 9), 2.5, np.float32),
    "zeros": np.zeros((50, 40), np.float32),
    "one": np.ones((1,), np.float32),
    "none": np.zeros((0, 3), np.float32),
}  # fmt: skip


@pytest.mark.parametrize("coder", CODECS)
@pytest.mark.parametrize("suffix", ["onnx", "sparse-c"])
def test_files_come_back_bit_for_bit(coder: str, suffix: str) -> None:
    codec = CODECS[coder]()
    data, ranges = file_of(*TENSORS.values())
    coded = codec.encode(data, ranges, suffix)
    assert codec.decode(coded) == data
    assert decode(coded) == data
    header = read_header(coded)
    assert (header.suffix, header.file_bytes) == (suffix, len(data))
    assert codec.encode(data, ranges, suffix) == coded
    assert len(coded) < len(data)


@pytest.mark.parametrize("coder", CODECS)
@pytest.mark.parametrize("tensor", TENSORS)
def test_each_kind_of_tensor_comes_back_alone(coder: str, tensor: str) -> None:
    codec = CODECS[coder]()
    data, ranges = file_of(TENSORS[tensor])
    assert codec.decode(codec.encode(data, ranges, "bin")) == data
    assert codec.decode(codec.encode(data, [], "bin")) == data


matrices = st.tuples(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 7),
    st.integers(0, 4000),
    st.integers(0, 60),
).flatmap(
    lambda drawn: st.tuples(
        st.just(drawn),
        st.lists(
            st.integers(-drawn[4], drawn[3]) | st.just(0),
            min_size=drawn[0] * drawn[1],
            max_size=drawn[0] * drawn[1],
        ),
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(matrices, min_size=1, max_size=3))
def test_c_and_python_give_the_same_bytes(library: Library, drawn: list[Any]) -> None:
    python, native = Coder(), library.coder(room=1 << 20)
    for (rows, columns, period, high, low), symbols in drawn:
        shape = (rows, columns, -low, high, min(period, columns))
        python.matrix(symbols, *shape)
        native.matrix(array("i", symbols), *shape)
    coded = python.finish()
    assert native.finish() == coded
    for reader in (Coder(coded), library.coder(coded)):
        for (rows, columns, period, high, low), symbols in drawn:
            shape = (rows, columns, -low, high, min(period, columns))
            assert list(reader.matrix(None, *shape)) == symbols
        reader.finish()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CODECS)),
    st.lists(st.integers(0, 255) | st.just(0), min_size=1, max_size=300),
    st.integers(1, 5),
)
def test_every_tensor_comes_back(coder: str, values: list[int], scale: int) -> None:
    ints = np.array(values, np.uint8)
    floats = (ints.astype(np.float32) - 100) * np.float32(0.01 * scale)
    data, ranges = file_of(ints, ints.view(np.int8), floats)
    codec = CODECS[coder]()
    assert codec.decode(codec.encode(data, ranges)) == data


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_huffman_is_within_a_bit_of_shannon(counts: list[int]) -> None:
    total = sum(counts)
    least = entropy_bits(counts)
    assert least - 1e-6 <= huffman_bits(counts) <= least + total
    present = [count for count in counts if count]
    if len(set(present)) == 1 and math.log2(len(present)).is_integer() and len(present) > 1:
        assert huffman_bits(counts) == pytest.approx(least)


@pytest.mark.parametrize("coder", ["range", "ans", "context"])
def test_coders_come_near_to_shannon(coder: str) -> None:
    # Independent symbols, which no context can tell more of.
    rng = np.random.default_rng(7)
    weights = np.array([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    tensor = rng.choice(np.arange(6, dtype=np.float32), (250, 200), p=weights)
    data, ranges = file_of(tensor)
    size = len(CODECS[coder]().encode(data, ranges)) - len(CODECS[coder]().encode(b"", []))
    least = entropy_bits(np.bincount(tensor.astype(int).ravel()).tolist()) / 8
    assert least <= size + 100
    # An adaptive model pays for what it learns.
    assert size <= least * (1.02 if coder == "context" else 1.005) + 130


def test_contexts_pay_where_weights_have_structure() -> None:
    data, ranges = file_of(sparse_levels(300, 784))
    sizes = {name: len(codec().encode(data, ranges)) for name, codec in CODECS.items()}
    assert sizes["context"] < 0.95 * min(sizes["huffman"], sizes["ans"], sizes["range"])


def test_zeros_of_pruned_floats_are_not_stored() -> None:
    tensor = TENSORS["pruned"]
    data, ranges = file_of(tensor)
    kept = 4 * int((tensor != 0).sum())
    assert len(ContextCodec().encode(data, ranges)) < kept + tensor.size // 8 + 150


@pytest.mark.parametrize("coder", CODECS)
def test_files_that_are_cut_off_are_refused(coder: str) -> None:
    data, ranges = file_of(sparse_levels(12, 20), TENSORS["uint8"])
    coded = CODECS[coder]().encode(data, ranges)
    for end in range(len(coded)):
        with pytest.raises(CodedError) as caught:
            decode(coded[:end])
        assert "\n" not in str(caught.value)
    with pytest.raises(CodedError, match="behind its end"):
        decode(coded + b"\0")


def test_foreign_newer_and_swollen_files_are_refused() -> None:
    data, ranges = file_of(TENSORS["shared"])
    coded = ContextCodec().encode(data, ranges)
    with pytest.raises(CodedError, match="no file of coded weights"):
        decode(b"PK\3\4" + coded)
    with pytest.raises(CodedError, match="version 2"):
        decode(coded[:4] + b"\2" + coded[5:])
    with pytest.raises(CodedError, match="too large"):
        read_header(coded, limit_bytes=1000)
    with pytest.raises(DataError):
        ContextCodec().decode(coded[:-1])


MUTATE = """
import json, random, resource, sys
sys.path[:0] = json.loads(sys.argv[4])
from flatsat.coded.container import decode
from flatsat.coded.errors import CodedError
from flatsat.coded.native import Library

library = Library(sys.argv[1]) if sys.argv[1] else None
files = [bytes.fromhex(line) for line in open(sys.argv[2])]
whole = [decode(data, library=library) for data in files]
for data in files:
    try:
        decode(data[:-1], library=library)
    except CodedError:
        pass
have = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (have + (64 << 20),) * 2)
chance = random.Random(5)
told = {"same": 0, "refused": 0}
for number in range(int(sys.argv[3])):
    which = number % len(files)
    data = bytearray(files[which])
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del data[at : at + chance.randrange(1, 9)]
        else:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        if not data:
            break
    try:
        found = decode(bytes(data), library=library)
    except CodedError as error:
        assert str(error) and "\\n" not in str(error)
        told["refused"] += 1
    else:
        # Bits behind the last symbol may be any.
        assert found == whole[which]
        told["same"] += 1
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("native", "count"), [(True, 20_000), (False, 400)], ids=["c", "python"])
def test_damaged_files_neither_crash_nor_swell(
    library: Library, tmp_path: Path, native: bool, count: int
) -> None:
    """`benchmarks/hostile_files.py` damages 100,000, those of real networks."""
    path = library._c._name if native else ""
    files = []
    for codec in CODECS.values():
        # Python is no other decoder of the static codecs.
        if native or codec.name in ("huffman", "context"):
            for tensors in (
                (sparse_levels(6, 10), TENSORS["multiples"][:1, :1]),
                (TENSORS["uint8"], TENSORS["pruned"][:4]),
            ):
                data, ranges = file_of(*tensors)
                files.append(codec().encode(data, ranges).hex())
    (tmp_path / "files").write_text("\n".join(files) + "\n")
    argv = [sys.executable, "-c", MUTATE, path, str(tmp_path / "files"), str(count)]
    done = subprocess.run(
        [*argv, json.dumps(sys.path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["refused"] > 0.9 * count
    assert told["refused"] + told["same"] == count


def test_random_bytes_are_refused() -> None:
    chance = random.Random(3)
    for _ in range(200):
        with pytest.raises(CodedError):
            decode(b"FSCW\1" + chance.randbytes(chance.randrange(200)))


def test_what_exported_files_have_in_common_costs_next_to_nothing(tmp_path, blobs) -> None:
    module = build(
        "lenet300", classes=10, input_shape=(1, 28, 28), generator=torch.Generator()
    ).eval()
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    context = blobs((1, 28, 28), classes=10, n=16)
    artifact = OnnxLower(OnnxLower.Params(goldens=2)).lower(
        Network(module, (1, 28, 28)), tmp_path, context
    )
    data = (tmp_path / artifact.file).read_bytes()
    coded = ContextCodec().encode(data, tensor_ranges(data, "onnx"), "onnx")
    assert ContextCodec().decode(coded) == data
    assert len(coded) < 450
