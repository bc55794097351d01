"""CIFAR's binary files, whole and damaged."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from flatsat.datasets.summary import workload_summary
from flatsat.datasets.workload import workload
from flatsat.errors import DataError


def records(count: int, classes: int, coarse: bool, seed: int) -> bytes:
    """Images whose first red pixel is their number, with labels in turn."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    pixels[:, 0] = np.arange(count)
    labels = (np.arange(count) % classes).astype(np.uint8)[:, None]
    columns = [np.full_like(labels, 200), labels] if coarse else [labels]
    return np.concatenate([*columns, pixels], axis=1).tobytes()


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    folder = tmp_path / "c10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for index in range(1, 6):
        (folder / f"data_batch_{index}.bin").write_bytes(records(20, 10, False, index))
    (folder / "test_batch.bin").write_bytes(records(30, 10, False, 9))
    return folder


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    folder = tmp_path / "c100"
    folder.mkdir()
    (folder / "train.bin").write_bytes(records(200, 100, True, 1))
    (folder / "test.bin").write_bytes(records(100, 100, True, 2))
    return folder


def test_splits_of_cifar10(cifar10: Path) -> None:
    task = workload("cifar10", cifar10)
    splits = task.splits()
    test = splits.open_test()
    assert task.split_sizes() == {"train": 88, "calibration": 2, "validation": 10, "test": 30}
    assert [len(s) for s in (splits.train, splits.calibration, splits.validation)] == [88, 2, 10]
    assert np.bincount(splits.validation.y).tolist() == [1] * 10  # Stratified.
    assert test.x.shape == (30, 3, 32, 32)
    # Records stay whole: pixel and label of one image belong together, in file order.
    assert np.rint(test.x[:, 0, 0, 0] * 255).tolist() == list(range(30))
    assert test.y.tolist() == [i % 10 for i in range(30)]
    assert np.array_equal(splits.train.y, np.rint(splits.train.x[:, 0, 0, 0] * 255) % 10)
    assert 0 <= splits.train.x.min() < splits.train.x.max() <= 1


def test_planes_are_red_green_blue_by_rows(tmp_path: Path, cifar10: Path) -> None:
    """The format: 1,024 red bytes, 1,024 green, 1,024 blue, each plane row by row."""
    image = bytes([7]) + bytes([10] * 1024) + bytes([20] * 1024) + bytes(range(256)) * 4
    (cifar10 / "test_batch.bin").write_bytes(image)
    (x,) = workload("cifar10", cifar10).splits().open_test().x
    assert np.rint(x[0] * 255).max() == 10
    assert np.rint(x[1] * 255).max() == 20
    assert np.rint(x[2, 1] * 255).tolist() == list(range(32, 64))


def test_cifar100_takes_the_fine_labels(cifar100: Path) -> None:
    splits = workload("cifar100", cifar100).splits()
    assert sorted(set(splits.train.y)) == list(range(100))
    assert splits.open_test().y.max() == 99


def test_the_folder_above_will_do(cifar10: Path) -> None:
    assert workload("cifar10", cifar10.parent).split_sizes()["test"] == 30


def test_the_hash_is_of_the_content(cifar10: Path, tmp_path: Path) -> None:
    before = workload("cifar10", cifar10).data_sha256()
    moved = tmp_path / "moved"
    cifar10.rename(moved)
    assert workload("cifar10", moved).data_sha256() == before
    (moved / "readme.html").write_text("not read")
    assert workload("cifar10", moved).data_sha256() == before
    (moved / "test_batch.bin").write_bytes(records(40, 10, False, 9))
    assert workload("cifar10", moved).data_sha256() != before


def test_the_pickled_version_is_refused_unread(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": []}))
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": []}))
    for path in (folder, tmp_path):
        with pytest.raises(DataError, match=r"pickle.*can run code") as caught:
            workload("cifar10", path).splits()
        assert "cifar-10-binary.tar.gz" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_without_a_folder_the_way_is_told(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"")
    for path in (None, tmp_path / "absent", tmp_path, archive):
        with pytest.raises(DataError) as caught:
            workload(name, path).splits()
        assert "data =" in str(caught.value.hint)
    summary = workload_summary(name, cache_dir=tmp_path)
    assert summary["needs_path"]
    assert "data =" in summary["problem"]


def test_damaged_files_are_named(cifar10: Path) -> None:
    batch = cifar10 / "data_batch_3.bin"
    whole = batch.read_bytes()
    wrong = bytearray(whole)
    wrong[3073 * 4] = 10
    for content, words in (
        (whole[:-1], "whole records of 3,073 bytes"),
        (b"", "whole records"),
        (bytes(wrong), "labels from 0 to 9, found 10 at image 4"),
    ):
        batch.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            workload("cifar10", f"{cifar10}/.").splits()
        assert "data_batch_3.bin" in str(caught.value)
        assert "cifar-10-binary.tar.gz" in str(caught.value.hint)
    batch.unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        workload("cifar10", cifar10).splits()
