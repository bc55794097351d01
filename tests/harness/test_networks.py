"""`flatsat networks`: counts of the reference architectures, and untrained files of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from flatsat.datasets.nets import build, network_names
from flatsat.seeds import integer_seed

Flatsat = Callable[..., Any]


def test_the_list_has_the_papers_counts(flatsat: Flatsat) -> None:
    rows = json.loads(flatsat("networks", "list", "--json").out)["networks"]
    assert [row["name"] for row in rows] == list(network_names())
    vgg = next(row for row in rows if row["name"] == "vgg16")
    assert vgg["input"] == [3, 224, 224]
    assert (vgg["classes"], vgg["parameters"], vgg["macs"]) == (1000, 138_357_544, 15_470_264_320)
    shown = flatsat("networks", "list").out
    assert "138,357,544" in shown
    assert "mobilenet-small" in shown


def test_other_images_have_other_counts_or_a_reason(flatsat: Flatsat) -> None:
    said = flatsat("networks", "list", "--input", "1x28x28", "--classes", "4", "--json")
    rows = {row["name"]: row for row in json.loads(said.out)["networks"]}
    assert rows["lenet300"]["parameters"] == 266_610 - 6 * 101
    assert "too small" in rows["vgg16"]["problem"]
    assert "vgg16: an input of side" in flatsat("networks", "list", "--input", "1x28x28").out


def test_an_untrained_network_is_a_file_that_runs(flatsat: Flatsat, tmp_path: Path) -> None:
    asked = ("--input", "3x16x16", "--classes", "5", "--width", "0.5", "--seed", "3")
    said = flatsat("networks", "export", "mobilenet-small", *asked, "-o", "a/m.onnx", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    path = tmp_path / "a" / "m.onnx"
    assert told["size_bytes"] == path.stat().st_size
    x = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"image": x})
    module = build(
        "mobilenet-small",
        classes=5,
        input_shape=(3, 16, 16),
        width=0.5,
        generator=torch.Generator().manual_seed(integer_seed(3, "compressors/untrained")),
    )
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert told["parameters"] == sum(p.numel() for p in module.parameters())
    # Equal asks give equal bytes; a file that is there is kept.
    again = flatsat("networks", "export", "mobilenet-small", *asked, "-o", "b.onnx", "--json")
    assert json.loads(again.out)["sha256"] == told["sha256"]
    assert "is there already" in flatsat("networks", "export", "lenet5", "-o", "b.onnx").error
    assert flatsat("networks", "export", "lenet5", "-o", "b.onnx", "--force").code == 0
    assert flatsat(
        "measure", "b.onnx", "--processes", "1", "--min-inferences", "2", "--min-s", "0"
    ).code in (0, 4)


def test_a_segmenters_file_gives_a_map(flatsat: Flatsat, tmp_path: Path) -> None:
    assert flatsat("networks", "export", "unet", "--input", "4x16x24", "--classes", "2").code == 0
    session = onnxruntime.InferenceSession(tmp_path / "unet.onnx")
    (found,) = session.run(None, {"image": np.zeros((3, 4, 16, 24), np.float32)})
    assert found.shape == (3, 2, 16, 24)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "lenet6"], "did you mean 'lenet"),
        (["export", "vgg16", "--input", "1x8x8"], "too small"),
        (["export", "unet", "--input", "3x30x30"], "multiples of 4"),
        (["export", "lenet5", "--input", "28"], "is no image"),
        (["export", "lenet5", "--input", "3x-1x28"], "is no image"),
        (["export", "lenet5", "--width", "0"], "width is 0"),
        (["export", "lenet5", "--classes", "0"], "classes"),
        (["export", "lenet5", "-o", "."], "is a folder"),
        (["export", "lenet5", "-o", "/dev/null/a.onnx"], "can't write"),
        (["list", "--width", "-1"], "width is -1"),
    ],
)
def test_what_can_not_be_made_is_one_line(
    flatsat: Flatsat, tmp_path: Path, arguments: list[str], words: str
) -> None:
    said = flatsat("networks", *arguments)
    assert (said.code, said.out) == (2, "")
    assert words in said.error
    assert not list(tmp_path.iterdir())
