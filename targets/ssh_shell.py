"""Commands on a board over one SSH connection, one channel at a time."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flatsat.targets.board import LinkDown
from flatsat.targets.ssh_connection import SshAddress, connect, explain

if TYPE_CHECKING:
    import asyncssh

READ_BYTES = 1 << 16
KEPT_BYTES = 4096
NOISE_BYTES = 8 << 20
"""What a board may say before it is asked, or besides what it is asked for; then it is given up."""

_CLOSE_S = 3.0
_END_S = 1.0
_CHANNEL_TRIES = 5
_CHANNEL_PAUSE_S = 0.05


@dataclass
class Running:
    """A process on the board.

    Attributes:
        process: with its standard input and output as bytes.
        said: the end of its standard error, which is read all the time so that it never blocks.
    """

    process: asyncssh.SSHClientProcess[bytes]
    said: bytes = b""
    _listener: asyncio.Task[None] | None = field(default=None)

    def listen(self) -> None:
        """Begin to read standard error."""
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        import asyncssh

        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await self.process.stderr.read(READ_BYTES):
                self.said = (self.said + data)[-KEPT_BYTES:]

    async def finished(self, deadline_s: float) -> bool:
        """Wait for its end and for all that it said; False if that does not come in time."""
        try:
            async with asyncio.timeout(deadline_s):
                await self.process.wait_closed()
                if self._listener is not None:
                    await asyncio.wait([self._listener])
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """Kill it if it still runs, and close the channel; never raises."""
        with contextlib.suppress(OSError):
            if not self.ending():
                self.process.kill()
        self.process.close()
        await self.finished(_END_S)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])

    def ending(self) -> str:
        """Say how it ended, or "" if nothing tells."""
        if self.process.exit_signal is not None:
            return f"was ended by SIG{self.process.exit_signal[0]}"
        if self.process.exit_status is not None:
            return f"ended with code {self.process.exit_status}"
        return ""


@dataclass(frozen=True)
class CommandResult:
    """What a command on the board came to.

    Attributes:
        exit_status: its code, or None if a signal ended it.
        stdout: all that it wrote there.
        stderr: the end of what it wrote there, as text.
    """

    exit_status: int | None
    stdout: bytes
    stderr: str


class SshShell:
    """A connection to a board's SSH server that runs commands.

    Args:
        address: of the server.
        keepalive_s: see `connect`.
    """

    def __init__(self, address: SshAddress, keepalive_s: float | None = None) -> None:
        self.address = address
        self._keepalive_s = keepalive_s
        self._connection: asyncssh.SSHClientConnection | None = None

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        """The open connection."""
        assert self._connection is not None, "not open"
        return self._connection

    @property
    def broken(self) -> bool:
        """Whether there is no connection, or none any more."""
        return self._connection is None or self._connection.is_closed()

    async def open(self, deadline_s: float) -> None:
        """Connect. Raises LinkDown as `connect` does."""
        self._connection = await connect(self.address, deadline_s, self._keepalive_s)

    def set_keepalive(self, keepalive_s: float | None) -> None:
        """Change how often a silent server is asked for a sign of life; None stops asking."""
        self._keepalive_s = keepalive_s
        if not self.broken:
            self.connection.set_keepalive(keepalive_s or 0)

    async def close(self) -> None:
        """Cut the connection; never raises."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()

    async def begin(self, command: str, deadline_s: float) -> Running:
        """Start a command line in the user's shell.

        A server that allows one session takes a moment to notice that the last one is over.

        Raises:
            LinkDown: the server refuses, or does not answer.
        """
        import asyncssh

        refusal = ""
        try:
            async with asyncio.timeout(deadline_s):
                for attempt in range(_CHANNEL_TRIES):
                    try:
                        process = await self.connection.create_process(command, encoding=None)
                    except asyncssh.ChannelOpenError as error:
                        if self.broken:
                            raise
                        refusal = error.reason
                        await asyncio.sleep(_CHANNEL_PAUSE_S * 2**attempt)
                    else:
                        running = Running(process)
                        running.listen()
                        return running
        except TimeoutError as error:
            raise LinkDown(
                f"{self.address}: the server started nothing within {deadline_s:.0f} s",
                hint="connect by hand to see what it does",
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise explain(error, self.address) from error
        raise LinkDown(
            f"{self.address}: the server allows no session: {refusal}",
            hint="its sshd_config needs MaxSessions 1 at least",
        )

    @contextlib.asynccontextmanager
    async def started(self, command: str, deadline_s: float) -> AsyncIterator[Running]:
        """Start a command, and close its channel at the end of a `with` block."""
        running = await self.begin(command, deadline_s)
        try:
            yield running
        finally:
            await running.end()

    async def run(self, command: str, deadline_s: float, stdin: bytes = b"") -> CommandResult:
        """Run a command line to its end.

        Raises:
            LinkDown: the server is gone or refuses, or the command takes too long or says too much.
        """
        import asyncssh

        end = time.monotonic() + deadline_s
        async with self.started(command, deadline_s) as running:
            process = running.process
            try:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    feeding = asyncio.create_task(_feed(process, stdin))
                    try:
                        output = bytearray()
                        while data := await process.stdout.read(READ_BYTES):
                            output += data
                            if len(output) > NOISE_BYTES:
                                raise LinkDown(f"{self.address}: the board talks without end")
                        await process.wait_closed()
                    finally:
                        feeding.cancel()
                        await asyncio.wait([feeding])
            except TimeoutError as error:
                words = last_line(running.said)
                raise LinkDown(
                    f"{self.address}: the board did not answer within {deadline_s:.0f} s"
                    + (f": {words}" if words else ""),
                    hint="is this user bound to a forced command, or the board overloaded?",
                ) from error
            except (asyncssh.Error, OSError) as error:
                raise explain(error, self.address) from error
            await running.finished(_CLOSE_S)
            if process.exit_status is None and self.broken:
                raise LinkDown(f"{self.address}: the connection broke")
            status = None if process.exit_signal is not None else process.exit_status
            return CommandResult(status, bytes(output), running.said.decode("utf-8", "replace"))


async def _feed(process: asyncssh.SSHClientProcess[bytes], data: bytes) -> None:
    import asyncssh

    # A command that ends before it has read everything says itself what is wrong.
    with contextlib.suppress(OSError, asyncssh.Error):
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.write_eof()


def posix(script: str, *arguments: str) -> str:
    """Return a command line for any login shell that runs `script` in a POSIX shell.

    Args:
        script: on one line, without a backslash, which not every shell keeps in quotes.
        arguments: its `$1`, `$2`...; any text.
    """
    return "exec " + shlex.join(["/bin/sh", "-c", script, "sh", *arguments])


def last_line(said: bytes) -> str:
    """Return the last line that is not empty, fit to be shown."""
    lines = said.decode("utf-8", "replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "".join(c if c.isprintable() else " " for c in last)[:300]
