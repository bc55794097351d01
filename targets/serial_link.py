"""A link over a serial console: logs in, brings the agent over by its hash, starts it."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from typing import TYPE_CHECKING

from flatsat.errors import ConfigError
from flatsat.outcome import Fault, Owner
from flatsat.targets.agent.loader import LEAVE
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.targets.links import LinkTimeout
from flatsat.targets.reliable import ReliableLink
from flatsat.targets.serial_boot import Boot
from flatsat.targets.serial_port import SerialPort
from flatsat.targets.serial_shell import SerialShell, ShellGone

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CLOSE_S = 3.0
_KILL_LINE = b"\x15"
_SEEN_BYTES = 256


class SerialLink:
    """An agent on a board behind its serial console.

    `open` finds a shell there whatever the console is doing, logs in where it is asked to, brings
    the agent over if this very one isn't in the store, and starts it. Whatever the line does to
    bytes, the stream is whole. When the agent ends, a login of ours ends, too, so that no shell
    stays open.

    Args:
        port: a device such as "/dev/serial/by-id/...", a pseudo-terminal, or "socket://HOST:PORT".
        baud: bits a second.
        user: to log in as where it asks.
        password: of that user, or None.
        python: the board's interpreter, 3.8 or newer; None takes the shell's `python3`.
        store: the agent's folder on the board; `~` is its user's home there.
        agent: the agent's archive on this machine.
        sites: per runtime, a folder on the board that its modules lie in.
    """

    def __init__(
        self,
        port: str,
        *,
        agent: Path,
        baud: int = 115200,
        user: str = "root",
        password: str | None = None,
        python: str | None = None,
        store: str = "~/.cache/flatsat",
        sites: Mapping[str, str] | None = None,
    ) -> None:
        self._port = SerialPort(port, baud)
        self._shell = SerialShell(self._port, user, password)
        self._python = python
        self._store = store
        self._agent = agent
        self._sites = dict(sites or {})
        self._stream: ReliableLink | None = None

    @property
    def bytes_per_s(self) -> float | None:
        """What the line carries to the board, as measured; None before `open`."""
        return None if self._stream is None else self._stream.bytes_per_s

    async def open(self, deadline_s: float) -> None:
        """Start the agent behind the console.

        Raises:
            ConfigError: there can't be such a port or interpreter.
            LinkDown: the port can't be used, or the board does not get that far in time.
            BoardRefused: it doesn't let us in, or has no Python, no room or no right to write.
        """
        end = time.monotonic() + deadline_s
        nonce = secrets.randbits(31)
        arguments = [part for site in self._sites.items() for part in ("--site", "=".join(site))]
        await self._port.open(deadline_s)
        try:
            started = False
            while not started:
                await self._shell.reach(end)
                with contextlib.suppress(ShellGone):
                    await self._choose_python(end)
                    boot = Boot(self._port, self._shell, self._agent, self._store, arguments, nonce)
                    started = await boot.start(end)
            line = _AgentLine(self._port, self._shell.word, boot.early)
            self._stream = ReliableLink(line, nonce)
            await self._stream.open(_left(end))
            await self._stream.measure(_left(end))
        except BaseException:
            await self.close()
            raise

    async def _choose_python(self, end: float) -> None:
        python = self._python or await self._shell.ask("$(command -v python3)", end)
        if not python:
            message = f"{self._port.name}: the board has no python3"
            hint = "install python3 there, or set the board's python"
            raise BoardRefused(Fault(Owner.BOARD, False, "no-python", message, hint))
        if not python.isprintable() or set(python) & set("'\\"):
            raise ConfigError(f"python = {python!r} can't be typed into a console")
        await self._shell.assign("y", python, end)

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown at the end, LinkTimeout at the deadline."""
        assert self._stream is not None
        return await self._stream.read(deadline_s)

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Have all of `data` on its way. Raises LinkDown, see `ReliableLink.write`."""
        assert self._stream is not None
        await self._stream.write(data, deadline_s)

    async def close(self) -> None:
        """End the agent, see the console given back, and close the port; never raises."""
        if self._stream is not None:
            await self._stream.close()
        await self._port.close()

    def last_words(self) -> str:
        """Return the last line of text on the console."""
        return self._port.last_words()


class _AgentLine:
    """The console while the agent has it; the shell around the agent tells when it has ended.

    Args:
        port: open.
        word: what the shell says before its code.
        early: what has come already.
    """

    def __init__(self, port: SerialPort, word: str, early: bytes) -> None:
        self._port = port
        self._ending = re.compile(rb"%s<end:(\d+)>" % word.encode())
        self._early = early
        self._seen = b""
        self._ended: LinkDown | None = None

    async def open(self, deadline_s: float) -> None:
        """Nothing is to be done."""

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown once the agent has ended."""
        if self._ended is not None:
            raise self._ended
        if self._early:
            data, self._early = self._early, b""
        else:
            data = await self._port.read(deadline_s)
        self._seen = (self._seen + data)[-_SEEN_BYTES - len(data) :]
        found = self._ending.search(self._seen)
        if found:
            said = self._seen[: found.start()].rpartition(b"\0")[2].decode("ascii", "ignore")
            words = [line.strip() for line in said.splitlines() if len(line.strip()) > 3]
            told = f": {words[-1]}" if words else ""
            self._ended = LinkDown(f"the agent ended with code {int(found[1])}{told}")
        return data

    async def write(self, data: bytes, deadline_s: float) -> None:
        """Send all of `data`. Raises LinkDown as the port does."""
        await self._port.write(data, deadline_s)

    async def close(self) -> None:
        """Have the agent go, if it has not gone, and see it gone."""
        with contextlib.suppress(LinkDown):
            if self._ended is None:
                await self._port.write(LEAVE * 3, _CLOSE_S)
                await self._see_it_gone(_CLOSE_S)
                # It may have gone by itself, and the shell have got our words: strike them out.
                await self._port.write(_KILL_LINE, _CLOSE_S)

    async def _see_it_gone(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while self._ended is None and time.monotonic() < deadline:
            with contextlib.suppress(LinkTimeout):
                await self.read(0.1)

    def last_words(self) -> str:
        """Return the last line of text that came."""
        return self._port.last_words()


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
