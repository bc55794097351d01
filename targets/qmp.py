"""QEMU's machine protocol: the power switch of an emulated board.

One JSON object a line over a unix socket: a greeting, then answers to commands by their "id", and
events in between (QEMU, "QEMU Machine Protocol Specification"). QEMU talks to one client a socket;
a second one waits until the first has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from flatsat.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_LINE_BYTES = 16 << 20
_ANSWER_S = 20.0
_CLOSE_S = 2.0
_KEPT_EVENTS = 256


class QmpError(InfrastructureError):
    """QEMU refused a command, or does not answer.

    Attributes:
        kind: QEMU's class of the error, such as "CommandNotFound"; "" where QEMU did not answer.
    """

    def __init__(self, message: str, *, kind: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class QmpClient:
    """A connection to one QEMU. Made by `connect`; commands may overlap."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self._changed = asyncio.Event()
        self._gone: QmpError | None = None
        self._listener: asyncio.Task[None] | None = None
        self.version: Mapping[str, Any] = {}

    @classmethod
    async def connect(cls, path: Path, deadline_s: float) -> QmpClient:
        """Connect to the socket at `path`, read the greeting and leave negotiation mode.

        Raises:
            QmpError: nothing listens there, what listens is no QEMU, or it takes too long.
        """
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(deadline_s):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=_LINE_BYTES)
                client = cls(reader, writer)
                greeting = await client._line()
                client.version = greeting["QMP"]["version"]
                client._listener = asyncio.create_task(client._listen())
                await client.execute("qmp_capabilities", deadline_s)
                return client
        except BaseException as error:
            if writer is not None:
                writer.close()
            if isinstance(error, TimeoutError):
                raise QmpError(f"QEMU did not greet within {deadline_s:.0f} s") from error
            if isinstance(error, OSError | ValueError | KeyError | TypeError):
                raise QmpError(f"can't talk to QEMU at {path}: {error}") from error
            raise

    @property
    def events(self) -> tuple[Mapping[str, Any], ...]:
        """The latest events, oldest first."""
        return tuple(self._events)

    def forget_events(self) -> None:
        """Forget the events so far, so that `wait_for` sees only later ones."""
        self._events.clear()

    async def execute(
        self, command: str, deadline_s: float = _ANSWER_S, /, **arguments: Any
    ) -> Any:
        """Run a command and return its result.

        Raises:
            QmpError: QEMU refuses it, is gone, or does not answer in time.
        """
        if self._gone is not None:
            raise self._gone
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        request = {"execute": command, "id": number}
        if arguments:
            # Names with a hyphen are written with an underscore in Python.
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        try:
            async with asyncio.timeout(deadline_s):
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                return await answer
        except TimeoutError as error:
            raise QmpError(f"QEMU did not answer {command!r} within {deadline_s:.0f} s") from error
        except ConnectionError as error:
            raise self._lost() from error
        finally:
            self._waiting.pop(number, None)
            if answer.done() and not answer.cancelled():
                answer.exception()

    async def human(self, line: str, deadline_s: float = _ANSWER_S) -> str:
        """Run a line of the human monitor and return what it prints.

        Raises:
            QmpError: as `execute`; the human monitor's own complaints are in what it prints.
        """
        answer = await self.execute("human-monitor-command", deadline_s, command_line=line)
        return str(answer)

    async def wait_for(
        self, wanted: Callable[[Mapping[str, Any]], bool], deadline_s: float
    ) -> Mapping[str, Any]:
        """Return the first kept event that `wanted` accepts, waiting for it if need be.

        Raises:
            QmpError: QEMU is gone, or no such event came in time.
        """
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    self._changed.clear()
                    for event in self._events:
                        if wanted(event):
                            return event
                    if self._gone is not None:
                        raise self._gone
                    await self._changed.wait()
        except TimeoutError as error:
            raise QmpError(f"QEMU told nothing of the kind within {deadline_s:.0f} s") from error

    async def close(self) -> None:
        """Let go of the socket, so that another client is served; never raises."""
        self._gone = self._gone or QmpError("the connection to QEMU was closed")
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._writer.wait_closed()

    async def _line(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("QEMU closed the connection")
        value = json.loads(line)
        if not isinstance(value, dict):
            raise TypeError("QEMU sent a line that is no JSON object")
        return value

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await self._line())
        except (OSError, ValueError, TypeError, asyncio.LimitOverrunError):
            self._lost()
        finally:
            self._changed.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._events.append(message)
            self._changed.set()
            return
        answer = self._waiting.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if "error" in message:
            error = message["error"]
            kind, words = str(error.get("class", "")), str(error.get("desc", "no reason given"))
            answer.set_exception(QmpError(f"QEMU refused: {words}", kind=kind))
        else:
            answer.set_result(message.get("return"))

    def _lost(self) -> QmpError:
        self._gone = self._gone or QmpError("QEMU has ended")
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._gone)
        return self._gone
