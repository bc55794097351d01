"""Boards while jobs run on them: which may work at once, who holds them, how they are recovered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

from flatsat.errors import InfrastructureError
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.progress import Progress
    from flatsat.targets.board import Board, Lease, Session

ATTEMPTS = 3
"""How often a board is opened, and a job tried, when the board or its link is at fault."""
LEASE_WAIT_S = 3600.0
BOOT_S = 60.0
"""How long a board that was up before may take to come up by itself: it may have lost its power."""
_PAUSE_S = 0.5


def by_machine(boards: Mapping[str, Board]) -> tuple[list[str], list[str], list[str]]:
    """Return the boards that need this machine alone, that may share it, and that don't use it.

    A real clock feels whatever else this machine computes, counted instructions don't.
    """
    here = [name for name, board in boards.items() if board.runs_here]
    alone = [name for name in here if boards[name].time_kind is TimeKind.WALL]
    together = [name for name in here if name not in alone]
    return alone, together, [name for name in boards if name not in here]


async def prepare(board: Board, progress: Progress) -> None:
    """Do what a board needs once before its first use, before anything is timed on this machine.

    Raises:
        InfrastructureError: that fails, or lacks a program.
    """
    from flatsat.targets.board import Prepared

    if isinstance(board, Prepared):
        await board.prepare(progress)


@contextlib.asynccontextmanager
async def leased(lab: Lab, board: str) -> AsyncIterator[Lease]:
    """Hold a board; waiting for another holder leaves the other boards working."""
    acquired = lab.pool().acquire(board, LEASE_WAIT_S)
    lease = await asyncio.to_thread(acquired.__enter__)
    try:
        yield lease
    finally:
        acquired.__exit__(None, None, None)


class BoardGoneError(Exception):
    """A board couldn't be reached at all."""


class Connection:
    """One session at a time with a leased board; a dropped one is opened anew when needed.

    The ladder of a board that does not answer: connect again, which starts its agent anew, and
    give it time to boot if it was up before; then cut its power, where it has a switch; then give
    it up. One that answers, but refuses for good, is given up at once: it may be lent to somebody
    else by now, or its disk be full.
    """

    def __init__(self, board: Board, lease: Lease, say: Callable[[str], None]) -> None:
        self._board = board
        self._lease = lease
        self._say = say
        self._session: Session | None = None
        self._was_up = False

    async def session(self) -> Session:
        """Return the open session, or open one.

        Raises:
            BoardGoneError: the ladder has been climbed in vain.
        """
        last: InfrastructureError | None = None
        for attempt in range(ATTEMPTS):
            if self._session is not None:
                return self._session
            try:
                if attempt == ATTEMPTS - 1:
                    await self._power_cycle()
                patience_s = BOOT_S if self._was_up and attempt == 0 else 0.0
                self._session = await self._open(patience_s)
                self._was_up = True
            except InfrastructureError as error:
                last = error
                self._say(f"board {self._board.name} can't be opened: {error.message}")
                if refused_for_good(error):
                    break
        if self._session is None:
            raise BoardGoneError(str(last))
        return self._session

    async def _open(self, patience_s: float) -> Session:
        """Open a session; tries that begin within `patience_s` may fail."""
        loop = asyncio.get_running_loop()
        end = loop.time() + patience_s
        while True:
            try:
                return await self._board.open(self._lease)
            except InfrastructureError as error:
                if refused_for_good(error) or loop.time() + _PAUSE_S > end:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _power_cycle(self) -> None:
        from flatsat.targets.board import Powered

        if isinstance(self._board, Powered):
            self._say(f"board {self._board.name}: cutting its power")
            await self._board.power_cycle(self._lease)

    async def drop(self) -> None:
        """Close the session, if one is open; the next call of `session` opens another."""
        session, self._session = self._session, None
        if session is not None:
            try:
                await session.close()
            except InfrastructureError:
                return

    async def close(self) -> None:
        """End the use of the board."""
        await self.drop()


def refused_for_good(error: Exception) -> bool:
    """Return whether a board answered, and asking it again would not help."""
    from flatsat.targets.board import BoardRefused

    return isinstance(error, BoardRefused) and not error.fault.transient
