"""A link over SSH: brings the agent over by its hash, starts it, and carries its bytes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING

from flatsat.targets.board import LinkDown
from flatsat.targets.links import LinkTimeout
from flatsat.targets.ssh_carrier import Carrier, Foothold
from flatsat.targets.ssh_connection import SshAddress
from flatsat.targets.ssh_shell import (
    KEPT_BYTES,
    NOISE_BYTES,
    READ_BYTES,
    CommandResult,
    Running,
    SshShell,
    last_line,
    posix,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CLOSE_S = 3.0
_EPITAPH_S = 2.0
_START = 'echo; echo "flatsat:$1"; shift; exec "$@"'


class SshLink:
    """An agent on a board behind an SSH server.

    `open` connects, looks whether this very agent lies in the store, puts it there if not (over
    sftp, or where there is none through a command), and starts it. One channel is open at a time.

    Args:
        host, port: of the server.
        user: to log in as.
        known_hosts: a file, lines of it, or a public key: see `SshAddress`.
        keys: private key files; () tries the agent's keys and the usual files.
        password: or None.
        python: the board's interpreter; None finds one of 3.8 or newer.
        store: the agent's folder on the board; `~` is its user's home there.
        agent: the agent's archive on this machine; its name must begin with "flatsat-agent".
        sites: per runtime, a folder on the board that its modules lie in.
        keepalive_s: see `connect`; None on a board where nothing may disturb a measurement.
        sftp: False goes straight to commands.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        user: str,
        known_hosts: str | Path,
        agent: Path,
        keys: tuple[Path, ...] = (),
        password: str | None = None,
        python: str | None = None,
        store: str = "~/.cache/flatsat",
        sites: Mapping[str, str] | None = None,
        keepalive_s: float | None = None,
        sftp: bool = True,
    ) -> None:
        self.address = SshAddress(host, port, user, known_hosts, keys, password)
        self._shell = SshShell(self.address, keepalive_s)
        self._python = python or ""
        self._store = store
        self._agent = agent
        self._sites = dict(sites or {})
        self._sftp = sftp
        self._running: Running | None = None
        self._early = b""
        self._noise = b""

    async def open(self, deadline_s: float) -> None:
        """Connect, bring the agent over if need be, and start it.

        Raises:
            LinkDown: the server can't be reached, is not the one it should be, lets us not in, or
                runs something else than it is asked to.
            BoardRefused: there is no Python, no room or no right to write.
        """
        end = time.monotonic() + deadline_s
        await self._shell.open(deadline_s)
        carrier = Carrier(self._shell, self._python, self._store, self._agent, sftp=self._sftp)
        found = await carrier.bring(_left(end))
        await self._start(found, _left(end))

    async def _start(self, found: Foothold, deadline_s: float) -> None:
        """Start the agent, and skip whatever comes before its mark.

        Raises:
            LinkDown: the mark does not come.
        """
        word = secrets.token_hex(8)
        sites = [part for site in self._sites.items() for part in ("--site", "=".join(site))]
        path = f"{found.store}/{self._agent.name}"
        command = posix(_START, word, found.executable, path, "--store", found.store, *sites)
        self._running = await self._shell.begin(command, deadline_s)
        mark = f"flatsat:{word}\n".encode()
        end = time.monotonic() + deadline_s
        seen, size = b"", 0
        while mark not in seen:
            data = await self.read(_left(end))
            size += len(data)
            if size > NOISE_BYTES:
                raise LinkDown(f"{self.address}: the board talks without end")
            seen = seen[-len(mark) :] + data
            self._noise = (self._noise + data)[-KEPT_BYTES:]
        self._noise = b""
        self._early = seen.partition(mark)[2]

    async def run_command(self, text: str, deadline_s: float) -> CommandResult:
        """Run a command line in the user's shell on the board.

        A link that is not open connects for this. On an open one the server must allow two
        sessions.

        Raises:
            LinkDown: the server can't be reached or refuses, or the command takes too long.
        """
        end = time.monotonic() + deadline_s
        own = self._shell.broken
        if own:
            await self._shell.open(deadline_s)
        try:
            return await self._shell.run(text, _left(end))
        finally:
            if own:
                await self._shell.close()

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown at the end, LinkTimeout at the deadline."""
        import asyncssh

        assert self._running is not None
        if self._early:
            data, self._early = self._early, b""
            return data
        try:
            async with asyncio.timeout(deadline_s):
                data = await self._running.process.stdout.read(READ_BYTES)
        except TimeoutError as error:
            raise LinkTimeout(
                f"{self.address}: the agent did not answer within {deadline_s:.0f} s"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise LinkDown(await self._epitaph()) from error
        if not data:
            raise LinkDown(await self._epitaph())
        return data

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Send all of `data`. Raises LinkDown if the link is gone or takes nothing."""
        import asyncssh

        assert self._running is not None
        process = self._running.process
        try:
            async with asyncio.timeout(deadline_s):
                if process.is_closing():
                    raise BrokenPipeError
                process.stdin.write(data)
                await process.stdin.drain()
        except TimeoutError as error:
            raise LinkDown(
                f"{self.address}: the agent took nothing for {deadline_s:.0f} s"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise LinkDown(await self._epitaph()) from error

    async def _epitaph(self) -> str:
        """Say how the agent ended, and its last line on standard error."""
        assert self._running is not None
        await self._running.finished(_EPITAPH_S)
        how = f"the agent {self._running.ending()}" if self._running.ending() else ""
        if not how:
            how = "the connection broke" if self._shell.broken else "the agent closed its output"
        words = self.last_words()
        return f"{self.address}: {how}: {words}" if words else f"{self.address}: {how}"

    def set_keepalive(self, keepalive_s: float | None) -> None:
        """Change how often a silent server is asked for a sign of life; None stops asking.

        For a measurement of a board's own that nothing may disturb; see `connect`.
        """
        self._shell.set_keepalive(keepalive_s)

    async def close(self) -> None:
        """End the agent's input, give it a moment, then cut the connection; never raises."""
        import asyncssh

        running, self._running = self._running, None
        if running is not None:
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(_CLOSE_S):
                    running.process.stdin.write_eof()
                    while await running.process.stdout.read(READ_BYTES):
                        pass
            await running.end()
        await self._shell.close()

    def last_words(self) -> str:
        """Return the last line of the agent's standard error, or of what came before it began."""
        said = self._running.said if self._running is not None else b""
        return last_line(said) or last_line(self._noise)


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
