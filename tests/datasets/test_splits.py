from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.datasets.fashion import DEBIAN_FOLDER
from flatsat.datasets.splits import Splits, TestSplitClosedError, stratified
from flatsat.datasets.workload import workload
from flatsat.errors import DataError

# A change here changes every result: it needs a new workload name, not a new number.
MINI_SHA256 = {
    "train": "bba6483c06db952e3b8c805618c18ec26d0acfa59e166c9b69c6935f4ab52b2c",
    "calibration": "dd820ad54d66d197200c9a65442c7c2e93dd099f8da7d934b3c8e8e877b3816a",
    "validation": "7a0bf8011c40679eb61953d998aac87c371438a972569512c471e0f08e8c033b",
    "test": "3cc79de7f20251ca45796ecabdc5659b73ac0948526ef74166ec408042f8f9ec",
}
FASHION_SHA256 = {
    "train": "b8cb3e1847c8198f01ba0e25b59271e36f86cfcf8b87809419cf4fd6090cbf3b",
    "calibration": "8732e3646067b5c244fa8314091f6626a061a8e84382c49030e07c6d45c23dc6",
    "validation": "14e4944869be535eb4799c53f9a286a68f344e6772fa2297e524828bc01b0b16",
}


@pytest.fixture(scope="module")
def mini(data_cache: Path) -> Splits:
    return workload("mnist-mini").splits(data_cache)


def parts(splits: Splits) -> dict[str, object]:
    chosen = (splits.train, splits.calibration, splits.validation, splits.open_test())
    return {split.name: split for split in chosen}


def test_mnist_mini_is_fixed_for_ever(mini: Splits) -> None:
    assert {name: split.sha256 for name, split in parts(mini).items()} == MINI_SHA256


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="dataset-fashion-mnist isn't installed")
def test_fashion_is_fixed_for_ever(data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    splits = workload("fashion").splits(data_cache)
    found = (splits.train, splits.calibration, splits.validation)
    assert {split.name: split.sha256 for split in found} == FASHION_SHA256
    assert [len(split) for split in found] == [54000, 1000, 5000]
    assert np.bincount(splits.validation.y).tolist() == [500] * 10


def test_mnist_mini_is_stratified_disjoint_and_scaled(mini: Splits) -> None:
    seen: set[bytes] = set()
    for name, each in {"train": 300, "calibration": 50, "validation": 50, "test": 100}.items():
        split = parts(mini)[name]
        assert np.bincount(split.y).tolist() == [each] * 10
        assert split.x.shape == (10 * each, 1, 28, 28)
        assert split.x.dtype == np.float32
        assert (split.x.min(), split.x.max()) == (0.0, 1.0)
        images = {image.tobytes() for image in split.x}
        assert not seen & images
        seen |= images
    assert len(seen) == 5000


def test_the_first_images_of_a_split_hold_every_class(mini: Splits) -> None:
    for split in (mini.train, mini.calibration, mini.validation):
        assert len(np.unique(split.first(100).y)) == 10


def test_shared_arrays_cant_be_written(mini: Splits) -> None:
    with pytest.raises(ValueError, match="read-only"):
        mini.train.x[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        mini.train.y[0] = 0


def test_test_split_never_opens_by_accident(small_mnist: Path) -> None:
    splits = workload("mnist", small_mnist).splits()
    with pytest.raises(TestSplitClosedError, match="open_test"):
        _ = splits.test
    assert len(splits.open_test()) == 40
    with pytest.raises(TestSplitClosedError):  # Opening it elsewhere opens no door here.
        _ = splits.test


def test_test_files_are_not_read_before_they_are_opened(small_mnist: Path, tmp_path: Path) -> None:
    for file in small_mnist.glob("train-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    splits = workload("mnist", tmp_path).splits()
    assert len(splits.train) == 216
    with pytest.raises(DataError, match="t10k-images"):
        splits.open_test()


def test_splits_travel_to_other_processes(small_mnist: Path) -> None:
    splits = workload("mnist", small_mnist).splits()
    again = pickle.loads(pickle.dumps(splits))
    assert again.validation.sha256 == splits.validation.sha256
    assert again.open_test().sha256 == splits.open_test().sha256


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=8, max_size=300),
    st.lists(st.integers(1, 10), min_size=2, max_size=4),
)
def test_stratified_deals_out_everything_in_fair_shares(
    labels: list[int], weights: list[int]
) -> None:
    n = len(labels)
    marks = np.array(labels, dtype=np.uint8)
    sizes = {str(i): max(1, n * w // sum(weights)) for i, w in enumerate(weights[1:])}
    sizes["rest"] = n - sum(sizes.values())
    if sizes["rest"] < 1:
        with pytest.raises(DataError):
            stratified(marks, sizes, "t")
        return
    dealt = stratified(marks, sizes, "t")
    assert {name: len(indices) for name, indices in dealt.items()} == sizes
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == list(range(n))
    left = np.bincount(marks, minlength=10)
    for name, size in sizes.items():
        counts = np.bincount(marks[dealt[name]], minlength=10)
        assert (np.abs(counts - left * size / left.sum()) < 1).all()
        left = left - counts
    again = stratified(marks, sizes, "t")
    assert all(np.array_equal(dealt[name], again[name]) for name in sizes)


def test_the_purpose_chooses_the_stream() -> None:
    marks = np.repeat(np.arange(10, dtype=np.uint8), 30)
    one = stratified(marks, {"a": 100, "b": 200}, "one")
    other = stratified(marks, {"a": 100, "b": 200}, "other")
    assert not np.array_equal(one["a"], other["a"])
