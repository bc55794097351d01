"""A user's own data, from a folder to a candidate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatsat.compressors.candidate import load
from flatsat.errors import DataError
from flatsat.harness import supply
from flatsat.harness.cli.candidates import candidates_table
from flatsat.harness.lab import Lab

RECIPE = """schema = 1
[recipe.own]
workload = "images-32/lenet5"
data = "photos"
[[recipe.own.step]]
use = "magnitude-prune"
sparsity = 0.3
rounds = 1
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes: bright above, bright below."""
    rng = np.random.default_rng(5)
    for label in ("above", "below"):
        folder = tmp_path / "recipes" / "photos" / label
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 90, (36, 40, 3), dtype=np.uint8)
            half = slice(0, 18) if label == "above" else slice(18, 36)
            pixels[half] += 140
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "recipes" / "photos"


@pytest.fixture
def recipe(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe beside its data, whose references are kept in the test's own folder."""
    monkeypatch.setenv("FLATSAT_CACHE", str(photos.parent / "cache"))
    path = photos.parent / "own.toml"
    path.write_text(RECIPE)
    return path


def built(said: Any) -> dict[str, Any]:
    assert said.code == 0, said.err
    (candidate,) = json.loads(said.out)["candidates"]
    return dict(json.loads((Path(candidate["folder"]) / "candidate.json").read_text()))


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_candidate(
    flatsat: Callable[..., Any], recipe: Path, photos: Path
) -> None:
    first = built(flatsat("compress", str(recipe), "--json"))
    assert first["recipe"]["data"] == str(photos)
    assert first["accuracy_host"]["validation"] == 1.0
    assert first["artifacts"][0]["outputs"][0]["shape"] == ["batch", 2]
    # Data that only moved are the same data: nothing is built again.
    moved = photos.rename(photos.with_name("moved"))
    recipe.write_text(RECIPE.replace("photos", "moved"))
    again = built(flatsat("compress", str(recipe), "--json"))
    assert again["recipe_id"] == first["recipe_id"]
    assert again["recipe"]["data"] == str(photos)  # The candidate that was built before.
    # Other data are another recipe.
    (moved / "above" / "0.png").unlink()
    other = built(flatsat("compress", str(recipe), "--json"))
    assert other["recipe_id"] != first["recipe_id"]
    assert other["splits"] != first["splits"]


def test_the_test_split_is_of_the_same_data_or_refused(
    flatsat: Callable[..., Any], recipe: Path, photos: Path, tmp_path: Path
) -> None:
    told = built(flatsat("compress", str(recipe), "--json"))
    lab = Lab(tmp_path / "lab")
    candidate = load(lab.candidates_dir / told["candidate_id"])
    datasets, labels = supply.test_images(lab, [candidate])
    (sha256,) = datasets.values()
    assert labels[sha256].y.tolist().count(0) == 4
    assert len(labels[sha256].y) == 8
    Image.new("RGB", (9, 9)).save(photos / "below" / "new.png")
    with pytest.raises(DataError, match="changed since own was made"):
        supply.test_images(lab, [candidate])


@pytest.mark.parametrize(
    ("replacement", "words"),
    [
        ('data = "absent"', "absent"),
        ("", "no folder was given"),
        ("data = 5", "data"),
    ],
)
def test_a_recipe_without_its_data_is_refused_with_its_line(
    flatsat: Callable[..., Any],
    recipe: Path,
    replacement: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    recipe.write_text(RECIPE.replace('data = "photos"', replacement))
    said = flatsat("compress", str(recipe))
    assert said.code == 2
    assert words in said.error
    assert "own.toml" in said.error


def test_a_damaged_image_is_named_by_the_command(
    flatsat: Callable[..., Any], recipe: Path, photos: Path
) -> None:
    (photos / "above" / "3.png").write_bytes(b"not an image")
    said = flatsat("compress", str(recipe))
    assert said.code == 2
    assert "above/3.png" in said.err


def test_workloads_that_need_a_path_say_so(
    flatsat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    rows = {r["name"]: r for r in json.loads(flatsat("workloads", "--json").out)["workloads"]}
    assert [name for name, row in rows.items() if row["needs_path"]] == [
        "mnist",
        "cifar10",
        "cifar100",
        "images",
        "images-32",
        "images-224",
    ]
    assert rows["agreement"]["metric"] == "agreement"
    assert "needs a path" in flatsat("workloads").out


def test_a_workload_shows_what_a_users_data_hold(
    flatsat: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    said = flatsat("workloads", "images-32", "--data", str(photos), "--json")
    assert said.code == 0, said.err
    (row,) = json.loads(said.out)["workloads"]
    assert (row["source"], row["classes"]) == (str(photos), 2)
    assert row["splits"] == {"train": 24, "calibration": 4, "validation": 4, "test": 8}
    lenet = next(network for network in row["networks"] if network["name"] == "lenet5")
    assert lenet["parameters"] == 653_072
    shown = flatsat("workloads", "images-32", "--data", str(photos)).out
    for words in ("train 24, calibration 4, validation 4, test 8", "classes 2", "images-32/lenet5"):
        assert words in shown, words
    assert "fashion" not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images", "--data", "absent"], "expected the folder absent"),
        (["cifar10", "--data", "."], "data_batch_1.bin"),
        (["image"], "did you mean 'images'?"),
        (["--data", "."], "name the workload"),
    ],
)
def test_data_that_do_not_fit_are_one_line(
    flatsat: Callable[..., Any], arguments: list[str], words: str
) -> None:
    said = flatsat("workloads", *arguments)
    assert (said.code, said.out) == (2, "")
    assert words in said.error


def test_agreement_is_called_so(flatsat: Callable[..., Any]) -> None:
    shown = flatsat("workloads", "agreement").out
    heads = next(line for line in shown.splitlines() if line.split()[:1] == ["network"])
    assert heads.split()[3] == "agreement"
    told = {"name": "a", "role": "compressed", "seed": 0, "params": 9, "nonzeros": 9, "macs": 9}
    told |= {"size_bytes": 9, "candidate_id": "f" * 64, "accuracy_host": {"validation": 0.889}}
    rows = [
        SimpleNamespace(workload=workload, **told)
        for workload in ("agreement/efficientnet-lite0", "fashion/lenet5", "")
    ]
    cells = list(candidates_table(rows).columns[8].cells)  # type: ignore[arg-type]
    assert sorted(map(str, cells)) == ["88.9 %", "88.9 %", "88.9 % agreement"]
