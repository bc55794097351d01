"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the binary files that a user has.

A record is the label (CIFAR-100: coarse label, fine label) and 3,072 pixels: red, green and blue
planes of 32 x 32. The fine labels are used. The version "for Python" is a pickle, which can run
code when it is read: it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flatsat.datasets.colour import ColourImages, as_split
from flatsat.datasets.images import source_folder
from flatsat.datasets.splits import Split, Splits, stratified
from flatsat.errors import DataError

SIDE = 32
_PIXELS = 3 * SIDE * SIDE


@dataclass(frozen=True)
class _Set:
    title: str
    archive: str
    folder: str
    pickled_folder: str
    pickled_files: tuple[str, ...]
    train: tuple[str, ...]
    test: str
    label_bytes: int
    classes: int


_SETS = {
    "cifar10": _Set(
        "CIFAR-10",
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        ("data_batch_1", "batches.meta"),
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test_batch.bin",
        1,
        10,
    ),
    "cifar100": _Set(
        "CIFAR-100",
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        "cifar-100-python",
        ("train", "meta"),
        ("train.bin",),
        "test.bin",
        2,
        100,
    ),
}


def cifar_splits(name: str, path: str | None = None) -> Splits:
    """Split CIFAR's training part: n // 50 for calibration, n // 10 for validation, the rest.

    Of 50,000: 1,000 and 5,000, which leaves 44,000 to train on. The test file is read by
    `open_test()` only.

    Args:
        name: "cifar10" or "cifar100".
        path: the folder of the binary files, or the one that holds it; None for
            $FLATSAT_DATA/<name>.

    Raises:
        DataError: a folder or file is missing, damaged, or of the version for Python.
    """
    known = _SETS[name]
    folder = _folder(name, path)
    parts = [_read(folder / file, known) for file in known.train]
    images = ColourImages(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    dealt = stratified(
        images.labels, _train_sizes(len(images.labels), folder), f"datasets.splits/{name}"
    )
    splits = {key: as_split(key, images, indices) for key, indices in dealt.items()}
    return Splits(**splits, _load_test=partial(_test, folder / known.test, known))


def cifar_sizes(name: str, path: str | None = None) -> dict[str, int]:
    """Return the images of each split by the sizes of the files.

    Raises:
        DataError: as `cifar_splits`.
    """
    known = _SETS[name]
    folder = _folder(name, path)
    count = sum(_records(folder / file, known) for file in known.train)
    sizes = _train_sizes(count, folder) | {"test": _records(folder / known.test, known)}
    return {key: sizes[key] for key in ("train", "calibration", "validation", "test")}


def cifar_files(name: str, path: str | None = None) -> tuple[Path, list[Path]]:
    """Return the folder and the files that are read.

    Raises:
        DataError: a folder or file is missing.
    """
    known = _SETS[name]
    folder = _folder(name, path)
    return folder, [folder / file for file in (*known.train, known.test)]


def _folder(name: str, path: str | None) -> Path:
    """Return the folder of the binary files."""
    known = _SETS[name]
    hint = (
        f"unpack {known.archive} (the binary version) and give its folder {known.folder}: "
        f'data = "PATH" in a recipe, or $FLATSAT_DATA/{name}'
    )
    if path is not None and Path(path).expanduser().is_file():
        raise DataError(f"{path}: expected a folder, found a file", hint=hint)
    folder = source_folder(name, path, None, hint=hint)
    wanted = (*known.train, known.test)
    for place in (folder, folder / known.folder):
        missing = [file for file in wanted if not (place / file).is_file()]
        if not missing:
            return place
        if len(missing) < len(wanted):
            raise DataError(f"{place}: expected the file {missing[0]}, found none", hint=hint)
    for place in (folder, folder / known.pickled_folder):
        if all((place / file).is_file() for file in known.pickled_files):
            raise DataError(
                f"{place}: this is {known.title} in its version for Python, a pickle, which can "
                "run code when it is read",
                hint=hint,
            )
    raise DataError(f"{folder}: expected the file {wanted[0]}, found none", hint=hint)


def _train_sizes(n: int, folder: Path) -> dict[str, int]:
    if n < 50:
        raise DataError(
            f"{folder}: expected at least 50 training images, found {n}", hint="give the whole set"
        )
    sizes = {"calibration": n // 50, "validation": n // 10}
    return sizes | {"train": n - sum(sizes.values())}


def _records(path: Path, known: _Set) -> int:
    """Return how many images a file holds, by its size."""
    record = known.label_bytes + _PIXELS
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error, known) from error
    if size_bytes == 0 or size_bytes % record:
        raise DataError(
            f"{path}: expected whole records of {record:,} bytes, found {size_bytes:,} bytes",
            hint=f"it is cut off or no file of {known.title}: unpack {known.archive} again",
        )
    return size_bytes // record


def _read(path: Path, known: _Set) -> ColourImages:
    count = _records(path, known)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise _unreadable(path, error, known) from error
    table = data.reshape(count, known.label_bytes + _PIXELS)
    labels = table[:, known.label_bytes - 1].astype(np.int64)
    if int(labels.max()) >= known.classes:
        at = int(np.argmax(labels >= known.classes))
        raise DataError(
            f"{path}: expected labels from 0 to {known.classes - 1}, found {labels[at]} at "
            f"image {at}",
            hint=f"it is damaged or no file of {known.title}: unpack {known.archive} again",
        )
    return ColourImages(table[:, known.label_bytes :].reshape(-1, 3, SIDE, SIDE), labels)


def _test(path: Path, known: _Set) -> Split:
    return as_split("test", _read(path, known), None)


def _unreadable(path: Path, error: OSError, known: _Set) -> DataError:
    return DataError(
        f"{path}: can't be read: {error.strerror or error}", hint=f"unpack {known.archive} again"
    )
