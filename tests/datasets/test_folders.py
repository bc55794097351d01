"""Image folders, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flatsat.datasets.folders import read_images
from flatsat.datasets.summary import workload_summary
from flatsat.datasets.workload import workload
from flatsat.errors import DataError

COLOURS = {"amber": (255, 190, 0), "blue": (0, 0, 255), "coral": (255, 127, 80)}


def fill(root: Path, count: int) -> Path:
    """Write `count` images of each class: PNG, JPEG and PPM of changing sizes."""
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            image = Image.new("RGB", (40 + index, 50), colour)
            image.save(root / name / f"{index:03}.{('png', 'jpg', 'ppm')[index % 3]}", quality=95)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "photos", 20)


def test_a_subfolder_is_a_class(folder: Path) -> None:
    task = workload("images-32", folder)
    splits = task.splits()
    assert task.classes == 3
    assert task.output.shape == ("batch", 3)
    assert task.split_sizes() == {"train": 36, "calibration": 6, "validation": 6, "test": 12}
    test = splits.open_test()
    assert test.x.shape == (12, 3, 32, 32)
    assert np.bincount(test.y).tolist() == [4, 4, 4]
    for split in (splits.train, splits.validation, splits.calibration, test):
        want = np.array(list(COLOURS.values()))[split.y] / 255
        # JPEG keeps a colour to a level or two.
        assert np.abs(split.x.mean(axis=(2, 3)) - want).max() < 0.02


def test_sizes_have_workloads_of_their_own(folder: Path) -> None:
    assert workload("images", folder).image_shape == (3, 64, 64)
    assert workload("images", folder).splits().validation.x.shape == (6, 3, 64, 64)
    assert workload("images-224", folder).image_shape == (3, 224, 224)


def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "train", 10)
    fill(tmp_path / "test", 4)
    task = workload("images-32", tmp_path)
    assert task.split_sizes() == {"train": 24, "calibration": 3, "validation": 3, "test": 12}
    assert len(task.splits().open_test()) == 12
    (tmp_path / "test" / "green").mkdir()
    with pytest.raises(DataError, match="'green' is not among"):
        workload("images-32", tmp_path)


def test_the_middle_is_cut_out_and_turned_as_exif_says(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_images([tmp_path / "wide.png"], 10).min() == 255
    turned = np.zeros((10, 10, 3), dtype=np.uint8)
    turned[:5] = 255  # Bright above.
    exif = Image.Exif()
    exif[0x0112] = 3  # Turned by 180 degrees.
    Image.fromarray(turned).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (image,) = read_images([tmp_path / "turned.jpg"], 10)
    assert image[:, 8].mean() > 200 > 50 > image[:, 1].mean()


def test_grey_and_transparent_images_become_colour(tmp_path: Path) -> None:
    Image.new("L", (20, 20), 100).save(tmp_path / "grey.png")
    Image.new("RGBA", (20, 20), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    grey, clear = read_images([tmp_path / "grey.png", tmp_path / "clear.png"], 8)
    assert grey.tolist() == np.full((3, 8, 8), 100).tolist()
    assert clear[:, 0, 0].tolist() == [10, 20, 30]


def test_the_hash_is_of_names_and_contents(folder: Path, tmp_path: Path) -> None:
    before = workload("images", folder).data_sha256()
    folder = folder.rename(tmp_path / "elsewhere")
    assert workload("images-32", folder).data_sha256() == before
    (folder / "blue" / "notes.txt").write_text("not an image")
    (folder / "blue" / ".hidden.png").write_bytes(b"not read")
    assert workload("images", folder).data_sha256() == before
    (folder / "blue" / "000.png").rename(folder / "amber" / "blue.png")
    assert workload("images", folder).data_sha256() != before


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40), b"P6 4 4 255\n\0"]
)
def test_a_damaged_image_is_named(folder: Path, content: bytes) -> None:
    (folder / "coral" / "004.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"coral/004\.jpg") as caught:
        task = workload("images-32", folder)
        task.splits().open_test()
    assert "take it out" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["000.png", "001.jpg", "002.ppm"])
def test_an_image_that_is_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = fill(tmp_path / "photos", 3) / "blue" / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged"):
        read_images([path], 8)


def test_what_is_missing_is_told_with_the_way(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("FLATSAT_DATA", raising=False)
    file = tmp_path / "photo.png"
    file.write_bytes(b"")
    (tmp_path / "one" / "class").mkdir(parents=True)
    (tmp_path / "two" / "a").mkdir(parents=True)
    (tmp_path / "two" / "b").mkdir()
    few = fill(tmp_path / "few", 4)
    for path, words in (
        (tmp_path / "absent", "absent"),
        (file, "found a file"),
        (tmp_path / "one", "two classes or more, found 1"),
        (tmp_path / "two", "two/a: expected images"),
        (few, "at least 20 images to split, found 12"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            workload("images", path).split_sizes()
        assert caught.value.hint
    with pytest.raises(DataError, match="no folder was given"):
        workload("images").splits()
    summary = workload_summary("images", cache_dir=tmp_path)
    assert summary["needs_path"]
    assert "10 classes" in summary["title"]


def test_a_set_larger_than_memory_is_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("flatsat.datasets.colour._LIMIT_BYTES", 36 * 64 * 64 * 12)
    with pytest.raises(DataError, match="60 images of 64 x 64 take") as caught:
        workload("images", f"{folder}/.").splits()
    assert "images-32" in str(caught.value.hint)
