"""Sets that come as MNIST does: four IDX files, an official training part and test part."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flatsat.datasets.idx import read_idx_shape
from flatsat.datasets.images import find_idx_file, read_official_set
from flatsat.datasets.splits import Split, Splits, preprocess, stratified
from flatsat.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def official_splits(name: str, folder: Path, *, hint: str) -> Splits:
    """Split the official training part; the official test part stays the test split.

    Of n training images, n // 60 are for calibration and n // 12 for validation: 1,000 and 5,000
    of the 60,000, which leaves 54,000 to train on. The test files are read by `open_test()` only.

    Args:
        name: the workload's, which names the random stream.
        folder: of the four files.
        hint: where to get a file that is missing.

    Raises:
        DataError: a file is missing, damaged or too short to split.
    """
    images = read_official_set(folder, "train", hint=hint)
    sizes = _train_sizes(len(images.labels), folder)
    dealt = stratified(images.labels, sizes, f"datasets.splits/{name}")
    parts = {key: preprocess(key, images, indices) for key, indices in dealt.items()}
    return Splits(**parts, _load_test=partial(_official_test, folder, hint))


def official_sizes(folder: Path, *, hint: str) -> dict[str, int]:
    """Return the images of each split by the headers of the label files; no data are read.

    Raises:
        DataError: a file is missing, too short to split, or its header is damaged.
    """
    counts = [
        read_idx_shape(find_idx_file(folder, f"{part}-labels-idx1-ubyte", hint=hint), axes=1)[0]
        for part in ("train", "t10k")
    ]
    sizes = _train_sizes(counts[0], folder) | {"test": counts[1]}
    return {name: sizes[name] for name in ("train", "calibration", "validation", "test")}


def official_files(folder: Path, *, hint: str) -> list[Path]:
    """Return the four files of a set.

    Raises:
        DataError: one is missing.
    """
    return [
        find_idx_file(folder, f"{part}-{kind}", hint=hint)
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]


def _train_sizes(n: int, folder: Path) -> dict[str, int]:
    if n < 60:
        raise DataError(
            f"{folder}: expected at least 60 training images, found {n}", hint="give a larger set"
        )
    sizes = {"calibration": n // 60, "validation": n // 12}
    return sizes | {"train": n - sum(sizes.values())}


def _official_test(folder: Path, hint: str) -> Split:
    return preprocess("test", read_official_set(folder, "t10k", hint=hint), None)
