"""Bring files to a board over SSH: the agent's archive first of all. Once, resumed, checked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
import zlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from flatsat.outcome import Fault, Owner
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.targets.ssh_connection import explain
from flatsat.targets.ssh_shell import CommandResult, SshShell, last_line, posix

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flatsat.targets.ssh_connection import SshAddress

_SFTP_S = 10.0
_CHUNK = 128 << 10
_SPARE_BYTES = 1 << 20
_NOT_FOUND = (126, 127)

# `exec` leaves no shell behind. An interpreter that the settings name is not tried out first.
_FIND = (
    'p="$1"; shift; case "$p" in "~/"*) p="$HOME/${p#??}";; esac; '
    'if [ -n "$p" ]; then exec "$p" "$@"; fi; '
    "for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; "
    'do if command -v "$p" >/dev/null 2>&1 && '
    '"$p" -S -s -c "import sys;sys.exit(sys.version_info<(3,8))" 2>/dev/null; '
    'then exec "$p" "$@"; fi; done; echo "no Python 3.8 or newer" >&2; exit 127'
)
# Any Python can run this and say that it is too old; only newer ones can read the foothold. All is
# packed, since small SSH servers take a command of 9,000 bytes at most.
_RUN = (
    "import sys,json,zlib,binascii;"
    "f=json.loads(zlib.decompress(binascii.a2b_base64(sys.argv[1])).decode());"
    "v=list(sys.version_info[:3]);"
    "g={'__name__':'foothold','main':lambda m,o:sys.stdout.write("
    "chr(10)+m+json.dumps({'fault':'old-python','text':'%d.%d.%d'%tuple(v)})+chr(10))};"
    "exec(f[0] if v>=[3,8] else '',g);g['main'](f[1],f[2])"
)
_HINTS = {
    "disk-full": "free some room there, or set the board's store",
    "permission": "log in as another user, or set store to a folder that this one may write",
    "no-python": "install python3 there, or set the board's python",
    "old-python": "set the board's python to one of 3.8 or newer",
    "disk": "look at the board's kernel log",
}


@dataclass(frozen=True)
class Foothold:
    """What the board says of itself and of a file.

    Attributes:
        executable: its Python.
        store: the agent's folder, absolute.
        have: the file is there, whole.
        offset: bytes of an unfinished transfer that are there.
        free_bytes: on the store's disk.
    """

    executable: str
    store: str
    have: bool
    offset: int
    free_bytes: int


class Carrier:
    """Puts one file into one board's store.

    Args:
        shell: connected.
        python: the board's interpreter, or "" to find one.
        store: the agent's folder there; `~` is the user's home.
        source: on this machine.
        name: in the store; by default the source's.
        partial: its name while it is not whole.
        sftp: False does without.
    """

    def __init__(
        self,
        shell: SshShell,
        python: str,
        store: str,
        source: Path,
        *,
        name: str | None = None,
        partial: str | None = None,
        sftp: bool = True,
    ) -> None:
        self._shell = shell
        self._python = python
        self._data = source.read_bytes()
        self._sftp = sftp
        name = name or source.name
        self._orders: Mapping[str, object] = {
            "store": store,
            "name": name,
            "partial": partial or f"{name}.part",
            "sha": hashlib.sha256(self._data).hexdigest(),
            "size": len(self._data),
        }

    async def bring(self, deadline_s: float) -> Foothold:
        """Have the file on the board, and return where.

        Raises:
            LinkDown: the board does not answer as it should.
            BoardRefused: it has no Python, no room, or lets us not write.
        """
        end = time.monotonic() + deadline_s
        found = await self._ask("look", end)
        for _ in range(2):
            if found.have:
                return found
            if found.free_bytes < len(self._data) - found.offset + _SPARE_BYTES:
                name = self._orders["name"]
                raise self._refused("disk-full", f"no room for {name} in {found.store}")
            if self._sftp and await self._upload(found, end):
                found = await self._ask("finish", end)
            if not found.have:
                found = await self._ask("take", end, found.offset)
        if found.have:
            return found
        raise LinkDown(f"{self._shell.address}: {self._orders['name']} does not arrive whole")

    async def _upload(self, found: Foothold, end: float) -> bool:
        """Write what is missing over sftp; False where the server has none that works.

        Raises:
            LinkDown: the connection broke, or the time is over.
        """
        import asyncssh

        partial = f"{found.store}/{self._orders['partial']}"
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
        started = False
        try:
            async with asyncio.timeout(min(_SFTP_S, _left(end))) as limit:
                async with self._shell.connection.start_sftp_client() as client:
                    started = True
                    limit.reschedule(asyncio.get_running_loop().time() + _left(end))
                    async with client.open(partial, flags, encoding=None) as file:
                        for start in range(found.offset, len(self._data), _CHUNK):
                            await file.write(self._data[start : start + _CHUNK], start)
        except TimeoutError as error:
            if started:
                raise LinkDown(
                    f"{self._shell.address}: bringing {self._orders['name']} over took too long"
                ) from error
            # Its channel stays open, and may be the only one that the server allows.
            await self._shell.close()
            await self._shell.open(_left(end))
            return False
        except (asyncssh.Error, OSError) as error:
            if self._shell.broken:
                raise explain(error, self._shell.address) from error
            # Noise of a start-up file spoils sftp and spares commands, which also tell better
            # than "failure" what is wrong.
            return False
        return True

    async def _ask(self, order: str, end: float, offset: int = 0) -> Foothold:
        """Run `agent/foothold.py` there, for "take" with the file's rest on its input.

        Raises:
            LinkDown: no answer came.
            BoardRefused: it can't do it.
        """
        mark = f"flatsat:{secrets.token_hex(8)}:"
        source = resources.files("flatsat.targets.agent").joinpath("foothold.py").read_text()
        orders = {**self._orders, "do": order, "offset": offset}
        packed = zlib.compress(json.dumps([source, mark, orders]).encode(), 9)
        argument = base64.b64encode(packed).decode()
        command = posix(_FIND, self._python, "-S", "-s", "-c", _RUN, argument)
        stdin = self._data[offset:] if order == "take" else b""
        result = await self._shell.run(command, _left(end), stdin)
        _, marked, rest = result.stdout.rpartition(mark.encode())
        if not marked:
            raise self._no_answer(result)
        answer: dict[str, Any] = json.loads(rest.partition(b"\n")[0])
        if "fault" in answer:
            text = answer["text"]
            if answer["fault"] == "old-python":
                text = f"its Python is {text}, which is too old"
            raise self._refused(answer["fault"], text)
        return Foothold(**{key: answer[key] for key in Foothold.__annotations__})

    def _no_answer(self, result: CommandResult) -> LinkDown | BoardRefused:
        words = last_line(result.stderr.encode()) or last_line(result.stdout)
        told = f": {words}" if words else ""
        if result.exit_status in _NOT_FOUND:
            what = f"no interpreter {self._python}" if self._python else "no Python 3.8 or newer"
            return self._refused("no-python", f"there is {what}{told}")
        return LinkDown(
            f"{self._shell.address}: the server ran something else than it was asked to{told}",
            hint="is this user bound to a forced command or a restricted shell?",
        )

    def _refused(self, code: str, text: str) -> BoardRefused:
        message = f"{self._shell.address}: {text}"
        return BoardRefused(Fault(Owner.BOARD, False, code, message, _HINTS.get(code, "")))


async def carry_files(
    address: SshAddress,
    store: str,
    files: Mapping[str, Path],
    *,
    python: str | None = None,
    deadline_s: float,
) -> None:
    """Put files into the store where an agent that runs there looks for them.

    Args:
        address: of the board's SSH server.
        store: the agent's folder there.
        files: SHA-256 -> file on this machine.
        python: the board's interpreter; None finds one.
        deadline_s: for all of it.

    Raises:
        LinkDown: the server can't be reached, or the time is over.
        BoardRefused: there is no room, or no right to write.
    """
    end = time.monotonic() + deadline_s
    shell = SshShell(address)
    try:
        await shell.open(deadline_s)
        for sha256, path in files.items():
            carrier = Carrier(
                shell,
                python or "",
                store,
                path,
                name=f"blobs/{sha256}",
                partial=f"partial/{sha256}",
            )
            await carrier.bring(_left(end))
    finally:
        await shell.close()


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
