"""Colour images as bytes, and as the splits that networks take."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from flatsat.canonical import sha256_file
from flatsat.datasets.splits import Split
from flatsat.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

# Splits are held in memory as float32.
_LIMIT_BYTES = 8 << 30


@dataclass(frozen=True, eq=False)
class ColourImages:
    """Raw images with labels.

    Attributes:
        pixels: uint8 (n, 3, h, w).
        labels: int64 (n,).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def as_split(
    name: str, images: ColourImages, indices: NDArray[np.int64] | None, *, signed: bool = False
) -> Split:
    """Return the images at `indices` (None: all) as a split.

    Preprocessing is pixel / 255, or (pixel - 127) / 128 where `signed`.
    """
    pixels = images.pixels if indices is None else images.pixels[indices]
    labels = images.labels if indices is None else images.labels[indices]
    x = pixels.astype(np.float32)
    if signed:
        x -= np.float32(127)
        x /= np.float32(128)
    else:
        x /= np.float32(255)
    y = labels.astype(np.int64)
    x.flags.writeable = False
    y.flags.writeable = False
    return Split(name, x, y)


def require_memory(where: Path, count: int, side: int, *, hint: str) -> None:
    """Refuse a set whose splits would not fit into memory.

    Raises:
        DataError: they would take more than 8 GiB.
    """
    needed = count * 3 * side * side * 4
    if needed > _LIMIT_BYTES:
        raise DataError(
            f"{where}: {count:,} images of {side} x {side} take {needed / 2**30:.1f} GiB as "
            f"float32; the limit is {_LIMIT_BYTES / 2**30:.0f} GiB",
            hint=hint,
        )


def content_sha256(root: Path, files: Sequence[Path]) -> str:
    """Return a hash of the files' names below `root` and of their bytes, in order of names.

    What was read once in this process is read again only where a size or a time of writing changed.

    Raises:
        DataError: a file can't be read.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(root).as_posix() if file != root else file.name
        try:
            status = file.stat()
            found = _file_sha256(file, status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise DataError(
                f"{file}: can't be read: {error.strerror or error}", hint="check its permissions"
            ) from error
        digest.update(f"{name}\0{found}\n".encode())
    return digest.hexdigest()


@cache
def _file_sha256(path: Path, size_bytes: int, written_ns: int) -> str:
    """Return a file's hash; size and time are there for the cache."""
    del size_bytes, written_ns
    return sha256_file(path)
