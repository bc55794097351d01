"""A serial port, or what stands for one, as a stream of bytes with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import termios
import time
from typing import Any

from flatsat.errors import ConfigError
from flatsat.targets.board import LinkDown
from flatsat.targets.links import LinkTimeout

_READ_BYTES = 1 << 16
_KEPT_BYTES = 1 << 20
_TAIL_BYTES = 2048
_TEXT_BYTES = 4
_HINTS = {
    errno.ENOENT: "is it plugged in? /dev/serial/by-id names what is",
    errno.EACCES: "join the group that owns it, often dialout, and log in anew",
    errno.EBUSY: "another program holds it",
    errno.EAGAIN: "another program holds it",
}


class SerialPort:
    """A tty device, a pseudo-terminal or a TCP socket, through pySerial.

    The port is locked, so that a second program that asks for the lock is refused.

    Args:
        name: "/dev/...", or "socket://HOST:PORT".
        baud: bits a second; without meaning for a socket.
    """

    def __init__(self, name: str, baud: int) -> None:
        self.name = name
        self.baud = baud
        self._port: Any = None
        self._fd = -1
        self._got = bytearray()
        self._tail = b""
        self._arrived = asyncio.Event()
        self._reading = False
        self._end: LinkDown | None = None

    async def open(self, deadline_s: float) -> None:
        """Open it; nothing happens if it is open.

        Raises:
            ConfigError: there can't be such a port.
            LinkDown: it isn't there, may not be used, or is in use.
        """
        if self._port is not None:
            return
        opening = asyncio.ensure_future(asyncio.to_thread(self._opened))
        try:
            async with asyncio.timeout(deadline_s):
                self._port = await asyncio.shield(opening)
        except BaseException as error:
            opening.add_done_callback(_close_late)
            if isinstance(error, TimeoutError):
                raise LinkDown(f"{self.name} does not open within {deadline_s:.0f} s") from error
            raise
        self._fd = self._port.fileno()
        os.set_blocking(self._fd, False)
        with contextlib.suppress(termios.error):
            # Else nothing to read and the end of the line look alike.
            mode = termios.tcgetattr(self._fd)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        self._watch()

    def _opened(self) -> Any:
        import serial

        try:
            port = serial.serial_for_url(
                self.name, baudrate=self.baud, timeout=0, write_timeout=0, exclusive=True
            )
            port.fileno()
        except serial.SerialException as error:
            why = error.errno if isinstance(error.errno, int) else _errno_in(error)
            text = os.strerror(why) if why else str(error)
            raise LinkDown(f"can't open {self.name}: {text}", hint=_HINTS.get(why)) from error
        except (ValueError, AttributeError, io.UnsupportedOperation, ImportError) as error:
            raise ConfigError(
                f"{self.name} is no serial port at {self.baud} baud: {error}",
                hint='write a device such as "/dev/ttyUSB0", or "socket://HOST:PORT"',
            ) from error
        return port

    # Reading.

    def _watch(self) -> None:
        asyncio.get_running_loop().add_reader(self._fd, self._take)
        self._reading = True

    def _unwatch(self) -> None:
        if self._reading:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._reading = False

    def _take(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(os.strerror(error.errno or errno.EIO))
            return
        if not data:
            self._ended("it was hung up")
            return
        self._got += data
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        self._arrived.set()
        if len(self._got) > _KEPT_BYTES:
            # Whoever sends is held back, where the line has flow control.
            self._unwatch()

    def _ended(self, why: str) -> None:
        self._end = self._end or LinkDown(
            f"the line at {self.name} is gone: {why}", hint="is the board on, and plugged in?"
        )
        self._unwatch()
        self._arrived.set()

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown at the end, LinkTimeout at the deadline."""
        deadline = time.monotonic() + deadline_s
        while not self._got:
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._arrived.wait()
            except TimeoutError as error:
                raise LinkTimeout(f"{self.name} said nothing for {deadline_s:.0f} s") from error
        data = bytes(self._got)
        self._got.clear()
        if not self._reading and self._end is None:
            self._watch()
        return data

    # Writing.

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Send all of `data`. Raises LinkDown if the line is gone or takes nothing."""
        view = memoryview(data)
        try:
            async with asyncio.timeout(deadline_s):
                while view:
                    if self._end is not None:
                        raise self._end
                    try:
                        view = view[os.write(self._fd, view) :]
                    except BlockingIOError:
                        await self._writable()
        except TimeoutError as error:
            raise LinkDown(
                f"{self.name} took nothing for {deadline_s:.0f} s",
                hint="is flow control on where the cable has no wires for it?",
            ) from error
        except OSError as error:
            self._ended(os.strerror(error.errno or errno.EIO))
            assert self._end is not None
            raise self._end from error

    async def _writable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self._fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._fd)

    async def close(self) -> None:
        """Close it; never raises."""
        port, self._port = self._port, None
        if port is None:
            return
        self._ended("it was closed")
        with contextlib.suppress(Exception):
            # It takes a third of a second for a socket.
            await asyncio.to_thread(port.close)

    def last_words(self) -> str:
        """Return the last line of text that came, a whole one if there is one, or ""."""
        text = self._tail.rpartition(b"\0")[2].decode("ascii", "replace")
        shown = "".join(c if c.isprintable() and c != "\ufffd" else "\n" for c in text)
        *whole, last = [line.strip() for line in shown.split("\n")]
        lines = (line[:200] for line in (*reversed(whole), last) if len(line) >= _TEXT_BYTES)
        return next(lines, "")


def _errno_in(error: BaseException) -> int:
    """Find the number that pySerial has put into a text."""
    cause = error.__context__
    number = getattr(cause, "errno", None)
    return number if isinstance(number, int) else 0


def _close_late(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
