"""Images as they come from a source: bytes with labels, checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.datasets.idx import read_idx
from flatsat.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Raw grey images.

    Attributes:
        pixels: uint8 (n, h, w).
        labels: uint8 (n,).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_pair(images: Path, labels: Path, *, side: int, classes: int) -> LabelledImages:
    """Read an IDX file of images and the one of its labels.

    Args:
        images: the file of the images.
        labels: the file of their labels.
        side: height and width that the images must have, in pixels.
        classes: labels must lie in 0..classes-1.

    Raises:
        DataError: a file is damaged, or the two don't belong together.
    """
    pixels = read_idx(images, axes=3)
    marks = read_idx(labels, axes=1)
    if pixels.shape[1:] != (side, side):
        raise DataError(
            f"{images}: expected images of {side} x {side} pixels, "
            f"found {pixels.shape[1]} x {pixels.shape[2]}",
            hint="this workload's networks take no other size",
        )
    if len(pixels) != len(marks):
        raise DataError(
            f"{labels}: expected {len(pixels)} labels, one for each image of {images.name}, "
            f"found {len(marks)}",
            hint="take both files from the same set",
        )
    if int(marks.max()) >= classes:
        raise DataError(
            f"{labels}: expected labels from 0 to {classes - 1}, found {int(marks.max())}",
            hint="give the labels of a set with this many classes",
        )
    return LabelledImages(pixels, marks)


def find_idx_file(folder: Path, stem: str, *, hint: str) -> Path:
    """Return `stem` in `folder`, plain or `.gz`, with a dash or a dot before "idx".

    Raises:
        DataError: there is no such file; the message names it, `hint` says where to get it.
    """
    for name in (stem, stem.replace("-idx", ".idx")):
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise DataError(f"{folder}: expected the file {stem} or {stem}.gz, found neither", hint=hint)


def read_official_set(folder: Path, part: str, *, hint: str) -> LabelledImages:
    """Read one part of a set with MNIST's file names.

    Args:
        folder: where the four files lie.
        part: "train" or "t10k".
        hint: where to get a file that is missing.

    Raises:
        DataError: a file is missing or damaged.
    """
    images = find_idx_file(folder, f"{part}-images-idx3-ubyte", hint=hint)
    labels = find_idx_file(folder, f"{part}-labels-idx1-ubyte", hint=hint)
    return read_pair(images, labels, side=28, classes=10)


def source_folder(name: str, path: str | None, default: Path | None, *, hint: str) -> Path:
    """Return the folder that workload `name` is read from.

    Looked for in this order: `path`; the folder `name` in $FLATSAT_DATA; `default`.

    Raises:
        DataError: there is no such folder; `hint` says where to get it.
    """
    folder = default
    if path is not None:
        folder = Path(path).expanduser()
    elif (root := os.environ.get("FLATSAT_DATA")) and (Path(root) / name).is_dir():
        folder = Path(root) / name
    if folder is None:
        raise DataError(f"workload {name}: no folder was given", hint=hint)
    if not folder.is_dir():
        raise DataError(f"workload {name}: expected the folder {folder}, found none", hint=hint)
    return folder
