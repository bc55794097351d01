"""Who may use a board: a file lock per board, and an epoch that rises with every lease."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import time
from typing import TYPE_CHECKING

from flatsat.errors import InfrastructureError
from flatsat.targets.board import Lease
from flatsat.units import Clock, SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOOK_S = 0.02


class BoardBusy(InfrastructureError):  # noqa: N818
    """Another process holds the board, and did not let go in time."""


class LocalPool:
    """Lends the boards of one lab to the processes of one machine.

    The kernel lets go of a holder's lock when it dies, however it dies; the next one waiting then
    goes on within a fiftieth of a second. The epoch is written before the lease is given, and the
    board's agent refuses anything older.

    Args:
        directory: the lab's folder for locks and for what boards keep on this machine.
        clock: for the deadline.
    """

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self._directory = directory
        self._clock = clock or SystemClock()

    @contextlib.contextmanager
    def acquire(self, board: str, deadline_s: float = 0.0) -> Iterator[Lease]:
        """Hold the board called `board` for the length of a `with` block.

        Args:
            board: its name in the lab.
            deadline_s: how long to wait for another holder.

        Raises:
            BoardBusy: it is still held at the deadline; the message names the holder's process.
            InfrastructureError: the lab's folder can't be written.
        """
        folder = self._directory / board
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = (folder / "lock").open("a+")
        except OSError as error:
            raise InfrastructureError(
                f"can't write {folder}: {error.strerror}", hint="choose another lab folder"
            ) from error
        with stream:
            self._lock(stream.fileno(), board, deadline_s)
            stream.seek(0)
            stream.truncate()
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            yield Lease(board, self._next_epoch(folder), folder)

    def _lock(self, fd: int, board: str, deadline_s: float) -> None:
        deadline = self._clock.monotonic_s() + deadline_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._clock.monotonic_s() >= deadline:
                    holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                    raise BoardBusy(
                        f"board {board!r} is held by process {holder or 'unknown'}",
                        hint="wait for it, or end that process",
                    ) from None
                time.sleep(_LOOK_S)
            else:
                return

    def _next_epoch(self, folder: Path) -> int:
        """Return seconds since 1970, or one more than the last epoch; durably.

        After a crash no epoch is given twice. A board keeps the newest epoch that it was used
        under; by the seconds it still heeds a lab whose files were lost, and labs that share it.
        """
        path = folder / "epoch"
        now = datetime.datetime.fromisoformat(self._clock.utc())
        epoch = int(now.timestamp())
        with contextlib.suppress(OSError, ValueError):
            epoch = max(epoch, int(path.read_text()) + 1)
        fresh = folder / "epoch.new"
        with fresh.open("w") as stream:
            stream.write(f"{epoch}\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
        return epoch
