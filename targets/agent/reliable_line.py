"""The supervisor's end of a line that can't be trusted: a tty, or whatever stands for one."""

from __future__ import annotations

import time
from typing import Optional, Tuple

from .arq import BOARD, Arq, Stalled
from .line import Line, SessionEnd
from .loader import LEAVE

_MOST_WAITING_BYTES = 64 << 10
_SETTLE_S = 5.0
_TRICKLE_BYTES = 256
_TRICKLE_S = 0.01
_FLUSH_S = 2.0


class ReliableLine(Line):
    """A line that repeats what got lost; it sends nothing unless something is unacknowledged.

    Args:
        fd_in, fd_out, patience_s: see `Line`; without any acknowledgement it ends after the same
            time.
        nonce: of this session, see `Arq`.
    """

    def __init__(self, fd_in: int, fd_out: int, patience_s: float, nonce: int) -> None:
        super().__init__(fd_in, fd_out, patience_s)
        self._arq = Arq(nonce, BOARD, patience_s)
        self._inbox = b""
        self._tail = b""
        self._over = False
        # The host learns from this that the agent listens.
        self._arq.probe()

    def wait(self, timeout_s: float, other: Optional[int] = None) -> Tuple[bool, bool]:
        """Sleep until there is something to `read`, or `other` can be read; return which."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._send()
            now = time.monotonic()
            due = self._arq.next_deadline(now)
            until = deadline if due is None else min(deadline, due)
            left_s = 0.0 if self._inbox else max(0.0, until - now)
            readable, ready = super().wait(left_s, other)
            if readable:
                self._take()
                # What came is acknowledged before anything that takes its time is done about it.
                self._send()
            if self._inbox or ready or time.monotonic() >= deadline:
                return bool(self._inbox), ready

    def read(self) -> bytes:
        """Return what has come. Raises SessionEnd as `Line.read`."""
        data, self._inbox = self._inbox, b""
        return data

    def write(self, data: bytes) -> None:
        """Send everything, or have it on its way. Raises SessionEnd as `Line.write`."""
        self._arq.send(data)
        self._until(_MOST_WAITING_BYTES, time.monotonic() + self._patience_s)

    def settle(self) -> None:
        """Wait, for some seconds at most, until the host has everything and both ends are quiet."""
        self._until(0, time.monotonic() + _SETTLE_S)

    def close(self) -> None:
        """Give the host a moment to take the last words, if it still listens."""
        if self._over:
            return
        try:
            self._until(0, time.monotonic() + _FLUSH_S)
        except SessionEnd:
            pass

    def _until(self, backlog_bytes: int, deadline: float) -> None:
        """Send and listen until no more than that is unacknowledged."""
        self._send()
        while self._arq.backlog_bytes > backlog_bytes:
            now = time.monotonic()
            if now >= deadline:
                return
            due = self._arq.next_deadline(now)
            until = deadline if due is None else min(deadline, due)
            if super().wait(max(0.0, until - now))[0]:
                self._take()
            self._send()

    def _take(self) -> None:
        wire = super().read()
        seen = self._tail + wire
        if LEAVE in seen:
            self._over = True
            raise SessionEnd(6)
        self._tail = seen[-len(LEAVE) :]
        self._inbox += self._arq.feed(wire, time.monotonic())
        if len(wire) < _TRICKLE_BYTES and not wire.endswith(b"\0"):
            # A driver wakes its reader for every few bytes, which keeps a slow board from
            # everything else: the rest of the frame is let come first.
            time.sleep(_TRICKLE_S)

    def _send(self) -> None:
        while True:
            try:
                wire = self._arq.outgoing(time.monotonic())
            except Stalled:
                self._over = True
                raise SessionEnd(4) from None
            if not wire:
                return
            super().write(wire)
            # Acknowledgements that wait here spare copies.
            if super().wait(0.0)[0]:
                self._take()
