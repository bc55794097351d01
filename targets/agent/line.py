"""The supervisor's end of the link: two file descriptors as a byte stream with deadlines."""

from __future__ import annotations

import os
import select
import sys
from typing import Optional, Tuple


class SessionEnd(Exception):  # noqa: N818
    """The session is over; `code` is the exit code of the agent."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Line:
    """What the host sends and gets.

    Args:
        fd_in: read from; a pipe, a socket or a tty.
        fd_out: written to; may be the same.
        patience_s: how long the host may take nothing of what is sent.
    """

    def __init__(self, fd_in: int, fd_out: int, patience_s: float) -> None:
        self._fd_in = fd_in
        self._fd_out = fd_out
        self._patience_s = patience_s
        # A host that stopped reading must not hold the supervisor in a write.
        os.set_blocking(fd_out, False)

    def wait(self, timeout_s: float, other: Optional[int] = None) -> Tuple[bool, bool]:
        """Sleep until the line or `other` can be read; return which."""
        poll = select.poll()
        poll.register(self._fd_in, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(timeout_s * 1000)}
        return self._fd_in in ready, other in ready

    def read(self) -> bytes:
        """Return what has come.

        Raises:
            SessionEnd: the stream has ended.
        """
        try:
            data = os.read(self._fd_in, 1 << 16)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            raise SessionEnd(0)
        return data

    def write(self, data: bytes) -> None:
        """Send everything.

        Raises:
            SessionEnd: the host is gone, or takes nothing for too long.
        """
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._fd_out, select.POLLOUT)
        while view:
            if not poll.poll(self._patience_s * 1000):
                raise SessionEnd(4)
            try:
                view = view[os.write(self._fd_out, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise SessionEnd(0) from None

    def settle(self) -> None:
        """Wait until the host has everything; nothing to wait for on a line that loses nothing."""

    def close(self) -> None:
        """Give the host a moment to take the last words; not needed here, either."""


def take_stdio() -> Tuple[int, int]:
    """Return private copies of standard input and output, and send stray prints to stderr."""
    fd_in, fd_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return fd_in, fd_out
