"""Files that a reader may open at any moment: they see the old one or the new one, whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a file beside `path`, then rename it into place.

    Args:
        path: of the file; its folder is made if need be.
        write: takes the path of an empty file and fills it.
        durable: wait until the disk has it, so that not even a power cut leaves a part.

    Raises:
        OSError: the folder can't be written, or the disk is full; an older file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    part = Path(name)
    try:
        try:
            write(part)
            if durable:
                os.fsync(handle)
            # mkstemp makes files private; this one is as readable as those beside it.
            part.chmod(0o644)
        finally:
            os.close(handle)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
