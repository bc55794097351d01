"""Image folders that a user has: a sub-folder a class, PNG, JPEG or PPM files in it.

With folders `train` and `test` on top the test split is the latter; else it is a fifth of all
images. Images are turned as their EXIF says, the shorter side is resized, the middle is cut out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flatsat.datasets.colour import ColourImages, as_split, require_memory
from flatsat.datasets.images import source_folder
from flatsat.datasets.splits import Split, Splits, stratified
from flatsat.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".ppm", ".pgm"})
_HINT = (
    "give a folder with a sub-folder of images (PNG, JPEG, PPM) for each class: "
    'data = "PATH" in a recipe, or $FLATSAT_DATA/images'
)
_PURPOSE = "datasets.splits/images"


@dataclass(frozen=True)
class _Part:
    """Files with the positions of their classes, in order of names."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class _Tree:
    root: Path
    classes: tuple[str, ...]
    train: _Part
    test: _Part | None  # None: a share of `train`.


def folder_classes(path: str | None = None) -> tuple[str, ...]:
    """Return the names of the classes: the sub-folders, in order of names.

    Raises:
        DataError: no folder was given, there is none, or it holds no classes.
    """
    return _tree(path).classes


def folder_sizes(path: str | None = None) -> dict[str, int]:
    """Return the images of each split, without reading one.

    Raises:
        DataError: as `folder_classes`; or too few images.
    """
    tree = _tree(path)
    sizes = _sizes(tree)
    test = sizes.get("test", 0) if tree.test is None else len(tree.test.files)
    return {key: sizes[key] for key in ("train", "calibration", "validation")} | {"test": test}


def folder_files(path: str | None = None) -> tuple[Path, list[Path]]:
    """Return the folder and the image files in it.

    Raises:
        DataError: as `folder_classes`.
    """
    tree = _tree(path)
    return tree.root, [*tree.train.files, *(() if tree.test is None else tree.test.files)]


def folder_splits(path: str | None, side: int) -> Splits:
    """Read an image folder: a tenth each for calibration (at most 1,000) and validation.

    The test split is opened by `open_test()` only.

    Args:
        path: the folder; None for $FLATSAT_DATA/images.
        side: height and width that images are brought to.

    Raises:
        DataError: no such folder, too few or too many images, or a damaged one.
    """
    tree = _tree(path)
    labels = np.array(tree.train.labels, dtype=np.int64)
    require_memory(
        tree.root,
        len(labels),
        side,
        hint="give fewer images, or choose the workload images-32 or images (64 x 64)",
    )
    dealt = stratified(labels, _sizes(tree), _PURPOSE)
    held = dealt.pop("test", None)
    test = tree.test
    if test is None:
        assert held is not None
        test = _part_of(tree.train, held)
    splits = {
        key: as_split(key, _read(_part_of(tree.train, indices), side), None)
        for key, indices in dealt.items()
    }
    return Splits(**splits, _load_test=partial(_test, test, side))


def read_images(files: Sequence[Path], side: int) -> NDArray[np.uint8]:
    """Read image files as RGB, bring them to `side` x `side`; return uint8 (n, 3, side, side).

    Raises:
        DataError: a file is damaged or no image; the message names it.
    """
    pixels = np.empty((len(files), 3, side, side), dtype=np.uint8)
    for index, file in enumerate(files):
        pixels[index] = _image(file, side)
    return pixels


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, in order of names; hidden ones are left out.

    Raises:
        DataError: the folder can't be read.
    """
    try:
        found = [
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in _ENDINGS
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
    except OSError as error:
        raise DataError(
            f"{folder}: can't be read: {error.strerror or error}", hint="check its permissions"
        ) from error
    return sorted(found)


def _tree(path: str | None) -> _Tree:
    if path is not None and Path(path).expanduser().is_file():
        raise DataError(f"{path}: expected a folder, found a file", hint=_HINT)
    root = source_folder("images", path, None, hint=_HINT)
    train, test = root / "train", root / "test"
    if not (train.is_dir() and test.is_dir()):
        classes = _class_names(root)
        return _Tree(root, classes, _part(root, classes), None)
    classes = _class_names(train)
    strange = sorted(set(_class_names(test)) - set(classes))
    if strange:
        raise DataError(
            f"{test}: the class {strange[0]!r} is not among those of {train}",
            hint="name the sub-folders of both alike",
        )
    return _Tree(root, classes, _part(train, classes), _part(test, classes))


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise DataError(
            f"{folder}: can't be read: {error.strerror or error}", hint="check its permissions"
        ) from error
    if len(names) < 2:
        raise DataError(
            f"{folder}: expected a sub-folder for each of two classes or more, "
            f"found {len(names) or 'none'}",
            hint=_HINT,
        )
    return tuple(names)


def _part(folder: Path, classes: Sequence[str]) -> _Part:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name)
        if not found and (folder / name).is_dir():
            raise DataError(
                f"{folder / name}: expected images (PNG, JPEG, PPM), found none",
                hint="put the images of this class there, or remove the folder",
            )
        files += found
        labels += [label] * len(found)
    return _Part(tuple(files), tuple(labels))


def _part_of(part: _Part, indices: NDArray[np.int64]) -> _Part:
    return _Part(tuple(part.files[i] for i in indices), tuple(part.labels[i] for i in indices))


def _sizes(tree: _Tree) -> dict[str, int]:
    n = len(tree.train.files)
    if n < 20:
        raise DataError(
            f"{tree.root}: expected at least 20 images to split, found {n}", hint="give more images"
        )
    sizes = {} if tree.test is not None else {"test": n // 5}
    sizes |= {"calibration": min(1000, n // 10), "validation": n // 10}
    return sizes | {"train": n - sum(sizes.values())}


def _read(part: _Part, side: int) -> ColourImages:
    return ColourImages(read_images(part.files, side), np.array(part.labels, dtype=np.int64))


def _test(part: _Part, side: int) -> Split:
    return as_split("test", _read(part, side), None)


def _image(path: Path, side: int) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG", "JPEG", "PPM")) as opened:
            # JPEG decoders can leave out detail that no pixel of the result would show.
            opened.draft("RGB", (2 * side, 2 * side))
            image = ImageOps.exif_transpose(opened).convert("RGB")
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: no PNG, JPEG or PPM image, or a damaged one",
            hint="replace it or take it out of the folder",
        ) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        text = " ".join(str(error).split())[:120]
        raise DataError(
            f"{path}: a damaged image: {text}", hint="replace it or take it out of the folder"
        ) from error
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)
