"""`flatsat sensitivity`: from a network's name to its page, or one line that says why not."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flatsat.compressors.recipe import check, from_mapping
from flatsat.compressors.sensitivity import METHODS, LayerScan, Scan, Scanner, Target
from flatsat.harness.cli.completion import complete_workloads
from flatsat.harness.cli.sensitivity import Method
from flatsat.harness.sensitivity import SensitivityRequest, suggest

Flatsat = Callable[..., Any]
OWN = ("sensitivity", "images-32/lenet5", "--data", "photos", "--open", "no")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one reference of these tests is kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own(flatsat: Flatsat, cache: Path, tmp_path: Path, monkeypatch: Any) -> Flatsat:
    """The command line beside images of two classes: bright above, bright below."""
    monkeypatch.setenv("FLATSAT_CACHE", str(cache))
    rng = np.random.default_rng(5)
    for label in ("above", "below"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for index in range(60):
            pixels = rng.integers(0, 120, (36, 40, 3), dtype=np.uint8)
            pixels[slice(0, 18) if label == "above" else slice(18, 36)] += 60
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return flatsat


def test_a_scan_is_shown_and_its_page_told(own: Flatsat, tmp_path: Path) -> None:
    said = own(*OWN, "--points", "0.5,0.9", "--csv", "out/scan.csv")
    assert said.code == 0, said.err
    page = tmp_path / "lab" / "sensitivity" / "images-32-lenet5-magnitude-s0.html"
    assert f"report: {page}" in said.out
    text = page.read_text(encoding="utf-8")
    for words in ("images-32/lenet5", "Which layer can be pruned how far?", "conv2", "[[recipe."):
        assert words in text, words
    for words in ("layer", "room, 1 pt", "50 %", "90 %", "conv1", "fc2", "together"):
        assert words in said.out, words
    rows = list(csv.DictReader((tmp_path / "out" / "scan.csv").open()))
    assert [(row["layer"], row["value"]) for row in rows[:3]] == [
        ("conv1", "0.5"),
        ("conv1", "0.9"),
        ("conv2", "0.5"),
    ]
    assert len(rows) == 8
    assert {row["images"] for row in rows} == {"12"}


@pytest.mark.parametrize("method", list(METHODS))
def test_what_is_suggested_is_a_recipes_step(own: Flatsat, tmp_path: Path, method: str) -> None:
    said = own(*OWN, "--method", method, "--images", "10", "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert (told["schema"], told["split"], told["images"]) == (
        "flatsat.sensitivity/1",
        "validation",
        10,
    )
    assert Path(told["page"]).is_file()
    known = METHODS[method]
    for layer in told["layers"]:
        assert [value for value, _ in layer["points"]] == list(known.values)
        held = [a for v, a in layer["points"] if layer["room"] and _mild(known.unit, v, layer)]
        assert all(told["dense"] - accuracy <= 0.01 + 1e-9 for accuracy in held)
    step = _step(told["recipe"])
    assert (step["use"], step[known.key]) == (known.step, told["step"][known.key])
    held = told["held"]
    if held["values"]:
        assert told["dense"] - held["accuracy"] <= 0.01 + 1e-9
    if held["milder"]:
        assert told["dense"] - told["together"] > 0.01
    if held["milder"] and held["values"]:
        lines = told["recipe"].splitlines()
        instead = [line.removeprefix("# ") for line in lines if line.startswith(f"# {known.key}")]
        assert _step("\n".join([*lines[:2], *instead]))[known.key] == held["values"]


def _step(recipe: str) -> dict[str, Any]:
    """Read what is suggested as a user would paste it."""
    table = tomllib.loads(
        f'[recipe.NAME]\nworkload = "images-32/lenet5"\ndata = "photos"\n{recipe}'
    )["recipe"]["NAME"]
    check(from_mapping("NAME", table))
    (step,) = table["step"]
    return dict(step)


def _mild(unit: str, value: float, layer: dict[str, Any]) -> bool:
    return bool(value >= layer["room"] if unit == "bits" else value <= layer["room"])


def test_equal_calls_give_equal_figures(own: Flatsat) -> None:
    calls = [own(*OWN, "--images", "8", "--points", "0.6,0.9", "--json").out for _ in range(2)]
    assert calls[0] == calls[1]


def test_a_scan_that_is_interrupted_leaves_nothing(
    own: Flatsat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Scanner, "scan", interrupted)
    said = own(*OWN, "--csv", "scan.csv")
    assert said.code == 130
    assert "interrupted; nothing was written" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mnist-mini"], "expected workload/network"),
        (["mnist-min/lenet5"], "did you mean 'mnist-mini'?"),
        (["mnist-mini/lenet"], "did you mean 'lenet"),
        (["mnist-mini/vgg16"], "mnist-mini has no network 'vgg16'"),
        (["mnist-mini/lenet5", "--method", "l1"], "'l1' is not one of"),
        (["mnist-mini/lenet5", "--points", "0.5,x"], "no list of numbers"),
        (["mnist-mini/lenet5", "--points", "50"], "share of 50"),
        (["mnist-mini/lenet5", "--points", ","], "no points"),
        (["mnist-mini/lenet5", "--method", "bits", "--points", "0.5"], "0.5 bits"),
        (["mnist-mini/lenet5", "--images", "0"], "images"),
        (["mnist-mini/lenet5", "--out", "."], "is a folder"),
        (["mnist-mini/lenet5", "--out", "/dev/null/page.html"], "can't write"),
        (["images/lenet5", "--data", "absent"], "absent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_can_not_be_scanned_is_one_line(
    flatsat: Flatsat, tmp_path: Path, arguments: list[str], words: str
) -> None:
    said = flatsat("sensitivity", *arguments)
    assert said.code == 2, said.err
    assert said.out == ""
    assert words in said.error
    assert not list(tmp_path.iterdir())


def test_help_has_examples_and_methods_are_those_of_the_scan(flatsat: Flatsat) -> None:
    said = flatsat("sensitivity", "--help")
    assert said.code == 0
    assert "flatsat sensitivity mnist-mini/lenet5" in said.out.split("Examples")[1]
    assert [method.value for method in Method] == list(METHODS)
    found = [name for name, _ in complete_workloads(None, "mnist-mini/le")]  # type: ignore[arg-type]
    assert found == ["mnist-mini/lenet300", "mnist-mini/lenet5"]


class Fragile:
    """A network whose layers bear much alone and little together."""

    images, skipped, forward_passes = 100, (), 0

    def accuracy(self, settings: dict[str, float]) -> float:
        return 1.0 - max(0.0, sum(settings.values()) - 1.0)


def test_what_layers_bear_alone_is_milder_until_they_bear_it_together() -> None:
    layers = tuple(
        LayerScan(Target(name, (), 10), ((0.3, 1.0), (0.5, 1.0), (0.9, accuracy)))
        for name, accuracy in (("a", 1.0), ("b", 0.9), ("c", 0.995))
    )
    found = Scan(METHODS["magnitude"], 100, 1.0, layers, (), 0)
    result = suggest(SensitivityRequest("w/n"), Fragile(), found, "accuracy")  # type: ignore[arg-type]
    assert result.room == {"a": 0.9, "b": 0.5, "c": 0.9}
    assert result.scan.together == (0.01, pytest.approx(-0.3))
    # One step milder: 0.5 + 0.3 + 0.5 is still too much; two steps leave b dense.
    assert (result.milder, result.held) == (2, {"a": 0.3, "c": 0.3})
    assert result.held_accuracy == 1.0
    assert "# sparsity = { a = 0.3, c = 0.3 }" in result.scan.recipe
