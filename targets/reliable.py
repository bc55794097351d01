"""A link over one that loses bytes: the host's end of `agent/arq.py`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from flatsat.targets.agent.arq import HOST, Arq, Stalled
from flatsat.targets.board import LinkDown
from flatsat.targets.links import LinkTimeout

if TYPE_CHECKING:
    from flatsat.targets.links import Link

PATIENCE_S = 120.0
"""How long the board may acknowledge nothing: unpacking a large archive keeps its agent busy."""

_BACKLOG_BYTES = 16 << 10
_INBOX_BYTES = 4 << 20
_CLOSE_S = 3.0
_IDLE_S = 3600.0
_SAMPLE_BYTES = 4096
_LONG_SAMPLE_BYTES = 32 << 10
_SAMPLE_S = 0.1
_MEMORY_BYTES = 256 << 10


class ReliableLink:
    """Repeats what the link below lost, so that the stream is whole; nothing is sent when idle.

    Args:
        inner: the link to the board; `open` opens it.
        nonce: of this session, as the agent knows it; see `Arq`.
        patience_s: how long the board may acknowledge nothing.

    Attributes:
        bytes_per_s: what the line carried to the board, repeats not counted; None until `measure`
            or a larger transfer showed it.
    """

    def __init__(self, inner: Link, nonce: int, *, patience_s: float = PATIENCE_S) -> None:
        self.bytes_per_s: float | None = None
        self._inner = inner
        self._arq = Arq(nonce, HOST, patience_s)
        self._patience_s = patience_s
        self._carried_bytes = 0.0
        self._carried_s = 0.0
        self._inbox = bytearray()
        self._down: LinkDown | None = None
        self._to_send = asyncio.Event()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, deadline_s: float) -> None:
        """Open the link below, and listen. Raises LinkDown as that does."""
        await self._inner.open(deadline_s)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._transmit())]

    # The line below.

    async def _receive(self) -> None:
        try:
            while True:
                while len(self._inbox) > _INBOX_BYTES:
                    self._news.clear()
                    await self._news.wait()
                with contextlib.suppress(LinkTimeout):
                    wire = await self._inner.read(_IDLE_S)
                    self._inbox += self._arq.feed(wire, time.monotonic())
                    self._to_send.set()
                    self._news.set()
        except LinkDown as error:
            self._fail(error)

    async def _transmit(self) -> None:
        try:
            while True:
                now = time.monotonic()
                wire = self._arq.outgoing(now)
                if wire:
                    await self._inner.write(wire, self._patience_s)
                    continue
                due = self._arq.next_deadline(now)
                self._to_send.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if due is None else due - now):
                        await self._to_send.wait()
        except LinkDown as error:
            self._fail(error)
        except Stalled:
            self._fail(
                LinkDown(
                    f"the board acknowledged nothing for {self._patience_s:.0f} s",
                    hint="look at the cable, and at what the board's console shows",
                )
            )

    def _fail(self, error: LinkDown) -> None:
        self._down = self._down or error
        self._news.set()

    # The stream.

    async def _wait(self, deadline: float) -> bool:
        """Sleep until something has changed; False once `deadline` (monotonic) has passed."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._news.wait()
        return True

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown at the end, LinkTimeout at the deadline."""
        deadline = time.monotonic() + deadline_s
        while not self._inbox:
            if self._down is not None:
                raise self._down
            if not await self._wait(deadline):
                raise LinkTimeout(f"the agent did not answer within {deadline_s:.0f} s")
        data = bytes(self._inbox)
        self._inbox.clear()
        self._news.set()
        return data

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Have all of `data` on its way.

        Raises:
            LinkDown: the link is gone, or the board took nothing for `deadline_s`; the time counts
                anew whenever it takes something, since a line may be slow.
        """
        begun_s, before = time.monotonic(), self._arq.acked_bytes
        self._give(data)
        await self._until(_BACKLOG_BYTES, deadline_s)
        self._carried(self._arq.acked_bytes - before, time.monotonic() - begun_s)

    def _carried(self, size_bytes: int, took_s: float) -> None:
        """Keep the rate of the last transfers, larger ones alone."""
        if size_bytes >= _SAMPLE_BYTES:
            self._carried_bytes += size_bytes
            self._carried_s += took_s
            self.bytes_per_s = self._carried_bytes / max(1e-6, self._carried_s)
            if self._carried_bytes > _MEMORY_BYTES:
                self._carried_bytes /= 2
                self._carried_s /= 2

    def _give(self, data: bytes) -> None:
        if self._down is not None:
            raise self._down
        self._arq.send(data)
        self._to_send.set()

    async def _until(self, backlog_bytes: int, deadline_s: float) -> None:
        """Wait until no more than that is unacknowledged. Raises LinkDown without progress."""
        acked, deadline = -1, 0.0
        while self._arq.backlog_bytes > backlog_bytes:
            if self._down is not None:
                raise self._down
            if self._arq.acked_bytes != acked:
                acked, deadline = self._arq.acked_bytes, time.monotonic() + deadline_s
            if not await self._wait(deadline):
                raise LinkDown(f"the agent took nothing for {deadline_s:.0f} s")

    async def measure(self, deadline_s: float) -> float:
        """Find out how many bytes a second the line carries to the board, and return that.

        Only between two messages: what is sent for this is noise to the board, of 4 KiB, and of
        32 more on a fast line.

        Raises:
            LinkDown: the link is gone, or the board does not answer.
        """
        round_trip_s = await self._noise(1, deadline_s)
        for size in (_SAMPLE_BYTES, _LONG_SAMPLE_BYTES):
            took_s = await self._noise(size, deadline_s)
            # The way there and back would count for more than the bytes.
            self._carried(size, max(took_s - round_trip_s, took_s / 2))
            if took_s > _SAMPLE_S:
                break
        assert self.bytes_per_s is not None
        return self.bytes_per_s

    async def _noise(self, size: int, deadline_s: float) -> float:
        """Send so many bytes that are no message; return how long they took."""
        begun_s = time.monotonic()
        self._give(b"\0" + b"\xff" * size + b"\0")
        await self._until(0, deadline_s)
        return time.monotonic() - begun_s

    async def close(self) -> None:
        """Give what was written some seconds to be taken, and end the link below; never raises."""
        if self._tasks:
            with contextlib.suppress(LinkDown, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._until(0, _CLOSE_S)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        self._down = self._down or LinkDown("the link is closed")
        await self._inner.close()

    def last_words(self) -> str:
        """Return what the link below has to tell."""
        return self._inner.last_words()
