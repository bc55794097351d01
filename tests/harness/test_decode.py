"""`flatsat decode`: from what came up to the model file, or one line that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from flatsat.canonical import sha256_bytes
from flatsat.compressors.codec import ContextCodec
from flatsat.compressors.tensor_ranges import tensor_ranges

Flatsat = Callable[..., Any]


@pytest.fixture
def model(onnx_file: Any) -> Path:
    weights = np.random.default_rng(0).choice([0.0, 0.0, -0.5, 0.25], (64, 32)).astype(np.float32)
    path: Path = onnx_file(
        "small.onnx",
        {"x": (TensorProto.FLOAT, ("batch", 64))},
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"y": (TensorProto.FLOAT, ("batch", 32))},
        {"w": weights},
    )
    return path


@pytest.fixture
def coded(model: Path) -> Path:
    data = model.read_bytes()
    path = model.with_name("small.onnx.fscw")
    path.write_bytes(ContextCodec().encode(data, tensor_ranges(data, "onnx"), "onnx"))
    return path


def test_decode_gives_the_model_file_back(flatsat: Flatsat, model: Path, coded: Path) -> None:
    data = model.read_bytes()
    model.unlink()
    said = flatsat("decode", str(coded), "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert (told["schema"], told["path"], told["coder"]) == (
        "flatsat.decode/1",
        str(model),
        "context",
    )
    assert told["sha256"] == sha256_bytes(data)
    assert (told["size_bytes"], told["coded_bytes"]) == (len(data), coded.stat().st_size)
    assert told["size_bytes"] > 4 * told["coded_bytes"]
    assert model.read_bytes() == data


def test_a_name_that_says_nothing_gets_the_ending_of_the_model(
    flatsat: Flatsat, model: Path, coded: Path
) -> None:
    other = coded.rename(coded.with_name("uplinked"))
    said = flatsat("decode", str(other))
    assert said.code == 0, said.err
    assert "checked" in said.out
    assert other.with_name("uplinked.onnx").read_bytes() == model.read_bytes()


def test_a_file_that_is_there_is_kept_unless_forced(
    flatsat: Flatsat, model: Path, coded: Path, tmp_path: Path
) -> None:
    data = model.read_bytes()
    model.write_bytes(b"mine")
    said = flatsat("decode", str(coded))
    assert said.code == 2
    assert "is there already" in said.error
    assert "--force" in said.error
    assert model.read_bytes() == b"mine"
    assert flatsat("decode", str(coded), "--force").code == 0
    assert model.read_bytes() == data
    assert flatsat("decode", str(coded), "-o", str(tmp_path / "a b" / "c.onnx")).code == 0
    assert (tmp_path / "a b" / "c.onnx").read_bytes() == data


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "ends too early"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:], "damaged"),
        (lambda data: b"PK" + data, "no file of coded weights"),
        (lambda _data: b"", "no file of coded weights"),
        (lambda data: data[:4] + b"\7" + data[5:], "version 7"),
    ],
    ids=["cut", "flipped", "foreign", "empty", "newer"],
)
def test_a_bad_file_is_one_line_and_leaves_nothing(
    flatsat: Flatsat, model: Path, coded: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    model.unlink()
    coded.write_bytes(damage(coded.read_bytes()))
    before = sorted(coded.parent.iterdir())
    said = flatsat("decode", str(coded))
    assert said.code == 2
    assert says in said.error
    assert str(coded) in said.error
    assert sorted(coded.parent.iterdir()) == before


def test_places_that_cannot_be_are_told(flatsat: Flatsat, coded: Path, tmp_path: Path) -> None:
    assert "No such file" in flatsat("decode", str(tmp_path / "none")).error
    assert "is a folder" in flatsat("decode", str(coded), "-o", str(tmp_path)).error
    (tmp_path / "file").write_text("")
    said = flatsat("decode", str(coded), "-o", str(tmp_path / "file" / "x.onnx"))
    assert said.code == 2
    assert "can't write" in said.error


def test_a_coded_file_is_measured_like_its_model(
    flatsat: Flatsat, model: Path, coded: Path
) -> None:
    quick = ("--processes", "1", "--min-inferences", "5", "--min-s", "0", "--json")
    shas = []
    for path in (model, coded.rename(coded.with_name("up"))):
        said = flatsat("measure", str(path), *quick)
        assert said.code in (0, 4), said.err
        shas.append(json.loads(said.out)["outcomes"][0]["artifact"]["sha256"])
    assert shas[0] == shas[1]
    coded.with_name("up").write_bytes(b"FSCW\1")
    said = flatsat("measure", str(coded.with_name("up")), *quick)
    assert said.code == 2
    assert "ends too early" in said.error
