"""MNIST (LeCun et al. 1998) from the four IDX files that a user has; FlatSat fetches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsat.datasets.images import source_folder
from flatsat.datasets.official import official_files, official_sizes, official_splits

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.datasets.splits import Splits

HINT = (
    "give the folder of MNIST's four IDX files (train-*, t10k-*): "
    'data = "PATH" in a recipe, or $FLATSAT_DATA/mnist'
)


def mnist_splits(path: str | None = None) -> Splits:
    """Read MNIST from `path` or $FLATSAT_DATA/mnist.

    Raises:
        DataError: no folder was given, there is none, or a file is missing or damaged.
    """
    return official_splits("mnist", source_folder("mnist", path, None, hint=HINT), hint=HINT)


def mnist_sizes(path: str | None = None) -> dict[str, int]:
    """Return the images of each split by the files' headers alone.

    Raises:
        DataError: as `mnist_splits`.
    """
    return official_sizes(source_folder("mnist", path, None, hint=HINT), hint=HINT)


def mnist_files(path: str | None = None) -> tuple[Path, list[Path]]:
    """Return the folder and the four files that are read.

    Raises:
        DataError: as `mnist_splits`.
    """
    folder = source_folder("mnist", path, None, hint=HINT)
    return folder, official_files(folder, hint=HINT)
