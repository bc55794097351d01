"""A link over SSH: brings the agent over by its hash, starts it, and carries its bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.outcome import Fault, Owner
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.targets.links import LinkTimeout
from flatsat.targets.ssh_connection import SshAddress, connect, explain

if TYPE_CHECKING:
    import asyncssh

_READ_BYTES = 1 << 16
_CLOSE_S = 3.0
_KEPT_BYTES = 4096
_NOISE_BYTES = 4 << 20
_SFTP_S = 10.0
_CHUNK = 128 << 10
_SPARE_BYTES = 1 << 20
_CHANNEL_TRIES = 5
_OLDEST = "(3,8)"

# Found on the PATH unless the board's settings name one. `exec` leaves no shell behind.
_FIND = (
    'p="$1"; shift; case "$p" in "~/"*) p="$HOME/${p#??}";; esac; '
    'if [ -n "$p" ]; then exec "$p" "$@"; fi; '
    "for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; "
    'do if command -v "$p" >/dev/null 2>&1 && '
    f'"$p" -c "import sys;sys.exit(sys.version_info<{_OLDEST})" 2>/dev/null; '
    'then exec "$p" "$@"; fi; done; echo "no Python 3.8 or newer" >&2; exit 127'
)
_RUN = (
    "import sys,json;f=[bytes.fromhex(a).decode() for a in sys.argv[1:]];"
    "g={'__name__':'foothold'};exec(f[0],g);g['main'](f[1],json.loads(f[2]))"
)


@dataclass(frozen=True)
class CommandResult:
    """What a command on the board came to.

    Attributes:
        exit_status: its code, or None if a signal or a cut ended it.
        stdout, stderr: what it wrote, as text.
    """

    exit_status: int | None
    stdout: str
    stderr: str


@dataclass
class _Running:
    """A process on the board, with its standard error read so that it never blocks."""

    process: asyncssh.SSHClientProcess[bytes]
    said: bytes = b""
    listener: asyncio.Task[None] | None = field(default=None)


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
        agent: the agent's archive on this machine.
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
        keys: tuple[Path, ...] = (),
        password: str | None = None,
        python: str | None = None,
        store: str = "~/.cache/flatsat",
        agent: Path,
        sites: Mapping[str, str] | None = None,
        keepalive_s: float | None = None,
        sftp: bool = True,
    ) -> None:
        self.address = SshAddress(host, port, user, known_hosts, keys, password)
        self._python = python or ""
        self._store = store
        self._agent = agent
        self._sites = dict(sites or {})
        self._keepalive_s = keepalive_s
        self._sftp = sftp
        self._connection: asyncssh.SSHClientConnection | None = None
        self._running: _Running | None = None
        self._early = b""
        self._noise = b""

    # Opening.

    async def open(self, deadline_s: float) -> None:
        """Connect, bring the agent over if need be, and start it.

        Raises:
            LinkDown: the server can't be reached, is not the one it should be, lets us not in, or
                runs something else than it is asked to.
            BoardRefused: there is no Python, no room or no right to write.
        """
        end = time.monotonic() + deadline_s
        data = self._agent.read_bytes()
        orders = {
            "store": self._store,
            "name": self._agent.name,
            "sha": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        self._connection = await connect(self.address, deadline_s, self._keepalive_s)
        found = await self._foothold({**orders, "do": "look"}, _left(end))
        if not found["have"]:
            found = await self._bring(data, orders, found, end)
        await self._start(found, _left(end))

    async def _bring(
        self, data: bytes, orders: Mapping[str, Any], found: Mapping[str, Any], end: float
    ) -> Mapping[str, Any]:
        """Put the archive there, going on where an earlier transfer broke off; once more at most.

        Raises:
            LinkDown, BoardRefused: it does not get there.
        """
        for _ in range(2):
            offset = int(found["offset"])
            if found["free_bytes"] < len(data) - offset + _SPARE_BYTES:
                raise _refused("disk-full", f"no room for the agent in {found['store']}")
            if self._sftp and await self._upload(data, orders, found, end):
                found = await self._foothold({**orders, "do": "finish"}, _left(end))
            if not found["have"]:
                offset = int(found["offset"])
                take = {**orders, "do": "take", "offset": offset}
                found = await self._foothold(take, _left(end), data[offset:])
            if found["have"]:
                return found
        raise LinkDown(f"{self.address}: the agent's archive does not arrive whole")

    async def _upload(
        self, data: bytes, orders: Mapping[str, Any], found: Mapping[str, Any], end: float
    ) -> bool:
        """Write what is missing over sftp; False where the server has none that works."""
        import asyncssh

        assert self._connection is not None
        partial = f"{found['store']}/{orders['name']}.part"
        started = False
        try:
            async with asyncio.timeout(min(_SFTP_S, _left(end))) as limit:
                async with self._connection.start_sftp_client() as client:
                    limit.reschedule(asyncio.get_running_loop().time() + _left(end))
                    started = True
                    flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
                    async with client.open(partial, flags, encoding=None) as file:
                        for start in range(int(found["offset"]), len(data), _CHUNK):
                            await file.write(data[start : start + _CHUNK], start)
        except TimeoutError as error:
            if started:
                raise LinkDown(f"{self.address}: the agent's transfer took too long") from error
            return False
        except (asyncssh.Error, OSError) as error:
            # A noisy start-up file spoils sftp and spares commands; a full disk is told by them.
            if self._connection.is_closed():
                raise explain(error, self.address) from error
            return False
        return True

    async def _foothold(
        self, orders: Mapping[str, Any], deadline_s: float, stdin: bytes = b""
    ) -> Mapping[str, Any]:
        """Run `agent/foothold.py` there and return its answer.

        Raises:
            LinkDown: no answer came.
            BoardRefused: it could not do it.
        """
        mark = f"flatsat:{secrets.token_hex(8)}:"
        source = resources.files("flatsat.targets.agent").joinpath("foothold.py").read_text()
        hexed = [text.encode().hex() for text in (source, mark, json.dumps(dict(orders)))]
        command = _shell(_FIND, self._python, "-S", "-s", "-c", _RUN, *hexed)
        async with self._process(command, deadline_s) as running:
            process = running.process
            try:
                async with asyncio.timeout(deadline_s):
                    process.stdin.write(stdin)
                    with contextlib.suppress(BrokenPipeError, ConnectionError):
                        await process.stdin.drain()
                        process.stdin.write_eof()
                    output = await self._tail(process)
                    await process.wait_closed()
            except TimeoutError as error:
                raise LinkDown(
                    f"{self.address}: the board did not answer within {deadline_s:.0f} s"
                    + self._quoted(running)
                ) from error
            except OSError as error:
                raise explain(error, self.address) from error
            line = output.rpartition(mark.encode())[2].partition(b"\n")[0]
            if mark.encode() not in output:
                self._noise = output[-_KEPT_BYTES:]
                raise self._no_answer(running)
        answer = json.loads(line)
        if "fault" in answer:
            raise _refused(answer["fault"], f"{self.address}: {answer['text']}")
        return dict(answer)

    async def _tail(self, process: asyncssh.SSHClientProcess[bytes]) -> bytes:
        """Read standard output to its end; of a flood only the last part is kept."""
        output = b""
        while data := await process.stdout.read(_READ_BYTES):
            output = (output + data)[-_NOISE_BYTES:]
        return output

    def _no_answer(self, running: _Running) -> LinkDown | BoardRefused:
        process = running.process
        told = self._quoted(running)
        if self._connection is not None and self._connection.is_closed():
            return LinkDown(f"{self.address}: the connection broke{told}")
        if process.exit_status == 127 or (self._python and process.exit_status == 126):
            what = f"no interpreter {self._python}" if self._python else "no Python 3.8 or newer"
            return _refused("no-python", f"{self.address}: the board has {what}{told}")
        return LinkDown(
            f"{self.address}: the server ran something else than it was asked to{told}",
            hint="is this user bound to a forced command or a restricted shell?",
        )

    def _quoted(self, running: _Running) -> str:
        words = _last_line(running.said) or _last_line(self._noise)
        return f": {words}" if words else ""

    async def _start(self, found: Mapping[str, Any], deadline_s: float) -> None:
        """Start the agent, and skip whatever comes before its mark.

        Raises:
            LinkDown: the mark does not come.
        """
        word = secrets.token_hex(8)
        sites = [part for site in self._sites.items() for part in ("--site", "=".join(site))]
        path = f"{found['store']}/{self._agent.name}"
        script = 'echo; echo "flatsat:$1"; shift; exec "$@"'
        argv = [str(found["executable"]), path, "--store", str(found["store"]), *sites]
        self._running = await self._begin(_shell(script, word, *argv), deadline_s)
        mark = f"flatsat:{word}\n".encode()
        seen = b""
        size = 0
        end = time.monotonic() + deadline_s
        while mark not in seen:
            data = await self.read(_left(end))
            size += len(data)
            if size > _NOISE_BYTES:
                raise LinkDown(f"{self.address}: the server talks and talks before it obeys")
            seen = seen[-len(mark) :] + data
            self._noise = (self._noise + data)[-_KEPT_BYTES:]
        self._noise = b""
        self._early = seen.partition(mark)[2]

    # Processes.

    @contextlib.asynccontextmanager
    async def _process(self, command: str, deadline_s: float) -> AsyncIterator[_Running]:
        running = await self._begin(command, deadline_s)
        try:
            yield running
        finally:
            await self._end(running)

    async def _begin(self, command: str, deadline_s: float) -> _Running:
        """Start a command in a channel of its own.

        A server that allows one session may take a moment to notice that the last one is over.

        Raises:
            LinkDown: the server refuses, or does not answer.
        """
        import asyncssh

        assert self._connection is not None
        refusal: asyncssh.ChannelOpenError | None = None
        try:
            async with asyncio.timeout(deadline_s):
                for attempt in range(_CHANNEL_TRIES):
                    try:
                        process = await self._connection.create_process(command, encoding=None)
                    except asyncssh.ChannelOpenError as error:
                        refusal = error
                        await asyncio.sleep(0.05 * 2**attempt)
                    else:
                        running = _Running(process)
                        running.listener = asyncio.create_task(_listen(running))
                        return running
        except TimeoutError as error:
            raise LinkDown(
                f"{self.address}: the server started nothing within {deadline_s:.0f} s"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise explain(error, self.address) from error
        raise LinkDown(
            f"{self.address}: the server allows no session: {refusal and refusal.reason}",
            hint="raise MaxSessions in its sshd_config to 1 at least",
        )

    async def _end(self, running: _Running) -> None:
        """Close the channel and stop to listen; never raises."""
        running.process.close()
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSE_S):
                await running.process.wait_closed()
        if running.listener is not None:
            running.listener.cancel()
            await asyncio.wait([running.listener])

    async def run_command(self, text: str, deadline_s: float) -> CommandResult:
        """Run a command line in the board's shell; its output is kept up to 4 MiB.

        On a link that is not open it connects for this; on an open one the server must allow a
        second session.

        Raises:
            LinkDown: the server can't be reached, or the command takes too long.
        """
        end = time.monotonic() + deadline_s
        own = self._connection is None
        if own:
            self._connection = await connect(self.address, deadline_s, self._keepalive_s)
        try:
            async with self._process(text, _left(end)) as running:
                try:
                    async with asyncio.timeout(_left(end)):
                        running.process.stdin.write_eof()
                        output = await self._tail(running.process)
                        await running.process.wait_closed()
                except TimeoutError as error:
                    raise LinkDown(f"{self.address}: {text!r} took over {deadline_s:.0f} s") from (
                        error
                    )
                status = running.process.exit_status
                said = running.said.decode("utf-8", "replace")
                return CommandResult(status, output.decode("utf-8", "replace"), said)
        finally:
            if own:
                await self.close()

    # The stream.

    async def read(self, deadline_s: float) -> bytes:
        """Return the next bytes. Raises LinkDown at the end, LinkTimeout at the deadline."""
        import asyncssh

        assert self._running is not None
        if self._early:
            data, self._early = self._early, b""
            return data
        try:
            async with asyncio.timeout(deadline_s):
                data = await self._running.process.stdout.read(_READ_BYTES)
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
        process = self._running.process
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(2.0):
                await process.wait_closed()
        if process.exit_status is not None:
            how = f"the agent ended with code {process.exit_status}"
        elif process.exit_signal is not None:
            how = f"the agent ended by SIG{process.exit_signal[0]}"
        elif self._connection is not None and self._connection.is_closed():
            how = "the connection broke"
        else:
            how = "the agent closed its output"
        words = self.last_words()
        return f"{self.address}: {how}: {words}" if words else f"{self.address}: {how}"

    def set_keepalive(self, keepalive_s: float | None) -> None:
        """Change how often a silent server is asked for a sign of life; None stops asking."""
        self._keepalive_s = keepalive_s
        if self._connection is not None:
            self._connection.set_keepalive(keepalive_s or 0)

    async def close(self) -> None:
        """End the agent's input, give it a moment, then cut the connection; never raises."""
        running, self._running = self._running, None
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if running is not None:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_CLOSE_S):
                    running.process.stdin.write_eof()
                    while await running.process.stdout.read(_READ_BYTES):
                        pass
            await self._end(running)
        connection.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()

    def last_words(self) -> str:
        """Return the last line of the agent's standard error, or of what came before it began."""
        said = self._running.said if self._running is not None else b""
        return _last_line(said) or _last_line(self._noise)


async def _listen(running: _Running) -> None:
    """Keep the end of standard error; left unread it would fill the window and stop the agent."""
    with contextlib.suppress(OSError):
        while data := await running.process.stderr.read(_READ_BYTES):
            running.said = (running.said + data)[-_KEPT_BYTES:]


def _shell(script: str, *arguments: str) -> str:
    """Return a command line for any login shell that runs `script` in a POSIX shell."""
    return "exec " + shlex.join(["/bin/sh", "-c", script, "sh", *arguments])


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "".join(c if c.isprintable() else " " for c in last)[:300]


_HINTS = {
    "disk-full": "free some room there, or set the board's store",
    "permission": "log in as another user, or set the board's store to a folder that it may write",
    "no-python": "install python3 there, or set the board's python",
    "disk": "look at the board's kernel log",
}


def _refused(code: str, message: str) -> BoardRefused:
    return BoardRefused(Fault(Owner.BOARD, False, code, message, _HINTS.get(code, "")))
