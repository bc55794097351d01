"""Where data sets and reference networks are kept between runs, and how a file gets there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable


def make_folder(folder: Path) -> None:
    """Make a cache folder and its parents.

    Raises:
        UsageError: the folder can't be made or isn't writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise cache_error(folder, PermissionError("permission denied"))


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Give `write` a new file and put it at `path` when it is whole: readers never see a part.

    Raises:
        UsageError: the folder can't be written, or the disk is full.
    """
    make_folder(path.parent)

    def fill(part: Path) -> None:
        with part.open("wb") as stream:
            write(stream)

    try:
        replace_file(path, fill)
    except OSError as error:
        raise cache_error(path, error) from error


def cache_error(path: Path, error: OSError) -> UsageError:
    """Return what to raise when something can't be written at `path`."""
    return UsageError(
        f"can't write the cache at {path}: {error.strerror or error}",
        hint="free the disk, or name another folder in FLATSAT_CACHE",
    )
