"""Byte streams to a board, with a deadline on every wait."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from typing import TYPE_CHECKING, Protocol

from flatsat.targets.board import LinkDown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_READ_BYTES = 1 << 16
_PIPE_BYTES = 1 << 20
_CLOSE_S = 3.0
_KEPT_BYTES = 4096


class LinkTimeout(LinkDown):
    """Nothing came in time; the link itself may still be good."""


class Link(Protocol):
    """A byte stream to the agent on a board."""

    async def open(self, deadline_s: float) -> None:
        """Connect and start the agent.

        Raises:
            LinkDown: that fails, or takes longer than `deadline_s`.
        """

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes, at least one.

        Raises:
            LinkTimeout: nothing came within `deadline_s`.
            LinkDown: the stream has ended.
        """

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Send all of `data`.

        Raises:
            LinkDown: the stream has ended, or did not take it within `deadline_s`.
        """

    async def close(self) -> None:
        """End the stream and the agent behind it; never raises."""

    def last_words(self) -> str:
        """Return what the other end said outside the stream before it went, or ""."""


class PipeLink:
    """An agent in a process of this machine, over its standard input and output.

    The process ends when this one does: it sees the end of its input, and the kernel tells it.

    Args:
        argv: the command, not through a shell.
        environment: of the process, or None for this one's.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._argv = list(argv)
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._said = b""

    @property
    def pid(self) -> int | None:
        """The process's id, or None before `open`."""
        return None if self._process is None else self._process.pid

    async def open(self, deadline_s: float) -> None:
        """Start the process. Raises LinkDown if it can't be started."""
        try:
            async with asyncio.timeout(deadline_s):
                self._process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=None if self._environment is None else dict(self._environment),
                )
        except (OSError, TimeoutError) as error:
            raise LinkDown(
                f"can't start the agent with {self._argv[0]}: {error}",
                hint="check the board's python setting",
            ) from error
        assert self._process.stdin is not None
        pipe = self._process.stdin.get_extra_info("pipe")
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        """Keep the end of standard error; left unread it would fill up and block the agent."""
        assert self._process is not None
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(_READ_BYTES):
            self._said = (self._said + chunk)[-_KEPT_BYTES:]

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown at the end, LinkTimeout at the deadline."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(deadline_s):
                data = await self._process.stdout.read(_READ_BYTES)
        except TimeoutError as error:
            raise LinkTimeout(f"the agent did not answer within {deadline_s:.0f} s") from error
        if not data:
            raise LinkDown(await self._epitaph())
        return data

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Send all of `data`. Raises LinkDown if the process is gone or does not read."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(deadline_s):
                self._process.stdin.write(data)
                await self._process.stdin.drain()
        except TimeoutError as error:
            raise LinkDown(f"the agent took nothing for {deadline_s:.0f} s") from error
        except (ConnectionError, RuntimeError) as error:
            raise LinkDown(await self._epitaph()) from error

    async def _epitaph(self) -> str:
        """Say how the process ended, and its last line on standard error."""
        assert self._process is not None
        code: int | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                code = await self._process.wait()
                if self._listener is not None:
                    await asyncio.wait([self._listener], timeout=1.0)
        how = "the agent closed its output" if code is None else f"the agent ended with code {code}"
        words = self.last_words()
        return f"{how}: {words}" if words else how

    async def close(self) -> None:
        """Close its input, give it a moment, then kill it."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        # asyncio calls a process ended only after its output was read to the end.
        rest = asyncio.create_task(self._discard(process.stdout))
        if not await self._ended(process):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # What it started may still hold the pipes; that must not hold us.
            await self._ended(process)
        for task in (rest, self._listener):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def _discard(self, stream: asyncio.StreamReader) -> None:
        while await stream.read(_READ_BYTES):
            pass

    async def _ended(self, process: asyncio.subprocess.Process) -> bool:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await process.wait()
        except TimeoutError:
            return False
        return True

    def last_words(self) -> str:
        """Return the last line on the process's standard error."""
        lines = self._said.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
