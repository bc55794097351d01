"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of clothing in ten classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.datasets.images import source_folder
from flatsat.datasets.official import official_files, official_sizes, official_splits

if TYPE_CHECKING:
    from flatsat.datasets.splits import Splits

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HINT = "apt-get install dataset-fashion-mnist, or give the folder of its four IDX files"


def fashion_splits(path: str | None = None) -> Splits:
    """Read Fashion-MNIST from `path`, $FLATSAT_DATA/fashion or Debian's `dataset-fashion-mnist`.

    Raises:
        DataError: no such folder (the message names the package), or a damaged file.
    """
    return official_splits(
        "fashion", source_folder("fashion", path, DEBIAN_FOLDER, hint=HINT), hint=HINT
    )


def fashion_sizes(path: str | None = None) -> dict[str, int]:
    """Return the images of each split by the files' headers alone.

    Raises:
        DataError: as `fashion_splits`.
    """
    return official_sizes(source_folder("fashion", path, DEBIAN_FOLDER, hint=HINT), hint=HINT)


def fashion_files(path: str | None = None) -> tuple[Path, list[Path]]:
    """Return the folder and the four files that are read.

    Raises:
        DataError: as `fashion_splits`.
    """
    folder = source_folder("fashion", path, DEBIAN_FOLDER, hint=HINT)
    return folder, official_files(folder, hint=HINT)
