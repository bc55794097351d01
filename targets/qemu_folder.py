"""A running machine's own folder: short in name, and swept away when its owner is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_LONGEST_BASE = 60
_STALE_S = 3600.0
_PREFIX = "flatsat-qemu-"


class RunFolder:
    """A machine's own folder with a short path, since a unix socket's path has at most 107 bytes.

    Its owner holds a lock in it, which the kernel takes back when the owner dies; whoever makes
    the next folder removes those that nobody owns.
    """

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        if len(str(base)) > _LONGEST_BASE:
            base = Path("/tmp")  # noqa: S108
        _sweep(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            self._lock = _locked(self.path)
            if self._lock is not None:
                return

    def remove(self) -> None:
        """Remove it and what is in it; once is enough."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """Return a descriptor that holds the folder's lock, or None if another process has it."""
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    if not (folder / "lock").exists():
        # Whoever held it a moment ago has removed the folder.
        os.close(handle)
        return None
    return handle


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            fresh = time.time() - folder.stat().st_mtime < _STALE_S
            if fresh and not (folder / "lock").exists():
                continue
            handle = _locked(folder)
            if handle is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)
