"""Start the agent from a shell behind a serial line, and bring it over first where it is missing.

A program of a few lines is typed into the shell; it takes `agent/loader.py`, which takes the agent
and starts it. Each of the three is checked, and asked what it still lacks until it lacks nothing.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import time
import zlib
from importlib import resources
from typing import TYPE_CHECKING

from flatsat.outcome import Fault, Owner
from flatsat.targets.agent.arq import BOARD
from flatsat.targets.agent.frames import Decoder
from flatsat.targets.agent.loader import UNIT
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.targets.links import LinkTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flatsat.targets.serial_port import SerialPort
    from flatsat.targets.serial_shell import SerialShell

# Takes COUNT lines "NUMBER CRC TEXT" from a tty that need not be raw, and runs what they give.
# A line with a question mark is answered with the numbers that are missing.
_FIRST = """
import sys,zlib,base64,signal
signal.alarm(99)
d={}
for l in sys.stdin.buffer:
 try:
  i,c,t=l.split()
  if zlib.crc32(i+t)&0xffffffff==int(c,16):d[int(i)]=t
 except Exception:0
 if b"?"in l:
  m=[i for i in range(COUNT)if i not in d]
  print("#WORD",m[:9],flush=1)
  if not m:break
exec(zlib.decompress(base64.b64decode(b"".join(d[i]for i in range(COUNT)))))
"""
_TYPED = 'import zlib,base64;exec(zlib.decompress(base64.b64decode("{}")))'
# Whoever ended the agent, the terminal is put right and the shell says how it went. Thrice, since
# the line may lose it.
_RUN = '"$y" -S -s -c "$c";z=$?;stty sane 2>/dev/null;for i in 1 2 3;do echo;echo "$m<end:$z>";done'
_NOT_FOUND = (126, 127)
_LINE = 96
_UNITS = 16
_LEAST_PACE_S = 0.15
_FIRST_PACE_S = 0.7
_MOST_PACE_S = 4.0
_SILENCE_S = 12.0
_TRIALS = 3
_HINTS = {
    "disk-full": "free some room there, or set the board's store",
    "permission": "log in as another user, or set store to a folder that this one may write",
    "no-python": "install python3 there, or set the board's python",
    "old-python": "set the board's python to one of 3.8 or newer",
    "disk": "look at the board's kernel log",
}


def bare(source: str) -> str:
    """Return a Python source without docstrings, comments, annotations and wide indents."""
    text = ast.unparse(ast.fix_missing_locations(_Bare().visit(ast.parse(source))))
    return re.sub(r"(?m)^ +", lambda spaces: " " * (len(spaces[0]) // 4), text)


class _Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module in ("__future__", "typing") else node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        assert node.value is not None
        return ast.Assign([node.target], node.value, lineno=node.lineno)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else node


class Boot:
    """One start of the agent.

    Args:
        port: open.
        shell: reached, with the interpreter's path in its variable `y`.
        agent: the archive on this machine.
        store: the agent's folder on the board; `~` is the user's home there.
        arguments: of the agent besides its store.
        nonce: of this session.

    Attributes:
        early: what has come from the agent when `start` returns.
    """

    def __init__(
        self,
        port: SerialPort,
        shell: SerialShell,
        agent: Path,
        store: str,
        arguments: Sequence[str],
        nonce: int,
    ) -> None:
        self.early = b""
        self._port = port
        self._shell = shell
        self._nonce = nonce
        data = agent.read_bytes()
        self._packed = zlib.compress(data, 9)
        orders = {
            "nonce": str(nonce),
            "store": store,
            "name": agent.name,
            "sha": hashlib.sha256(data).hexdigest(),
            "size": len(self._packed),
            "arguments": [*arguments, "--arq", str(nonce)],
        }
        self._second = _lines(_loader(orders))
        self._units = 1 if shell.noisy else _UNITS
        self._first = -1
        self._pace_s = _FIRST_PACE_S
        self._rtt_s = 0.0
        self._silent = 0
        self._heard = b""

    async def start(self, end: float) -> bool:
        """Start it, before `end` (monotonic); False if the shell has to be reached again first.

        Raises:
            LinkDown: it does not start, and what the board said last.
            BoardRefused: there is no Python or no room.
        """
        first = _FIRST.strip().replace("COUNT", str(len(self._second)))
        first = first.replace("WORD", str(self._nonce))
        packed = base64.b64encode(zlib.compress(first.encode(), 9)).decode()
        await self._shell.assign("c", _TYPED.format(packed), end)
        leave = ";exit" if self._shell.ours else ""
        await self._shell.assign("u", _RUN + leave, end)
        for _ in range(_TRIALS):
            await self._shell.run('eval "$u"', end)
            said = await self._load(end)
            if said == "have":
                return await self._go(end)
            if said == "end" and self._shell.ours:
                return False
        raise self._failed("the board's Python does not do what it is told")

    async def _load(self, end: float) -> str:
        """Bring the loader and the agent over; return "have", or "end" if that ended."""
        patience = time.monotonic() + _SILENCE_S
        started = False
        await self._write(b"", end)
        while time.monotonic() < patience:
            said = await self._status(end)
            if said is None:
                # Maybe the command did not arrive. A program that is on its way takes it for noise.
                self._silent += 1
                if not started and self._silent % 3 == 0:
                    await self._shell.run('\neval "$u"', end)
                continue
            started = True
            patience = time.monotonic() + _SILENCE_S
            kind, _, rest = said.partition(" ")
            if kind == "end":
                self._check_end(int(rest))
                return "end"
            if kind == "have":
                return "have"
            if kind == "fault":
                code, _, text = rest.partition(" ")
                raise self._refused(code, text)
            if kind == "#":
                numbers = [int(number) for number in re.findall(r"\d+", rest)]
                known = [number for number in numbers if number < len(self._second)]
                await self._write(b"".join(self._second[number] for number in known), end)
            else:
                await self._write(self._missing(int(kind), rest), end)
        return "end"

    async def _go(self, end: float) -> bool:
        """Let the loader start the agent, and wait until it speaks."""
        decoder = Decoder()
        order = f"\ngo {self._nonce}\n".encode()
        while True:
            await self._port.write(order, self._left(end))
            until = min(end, time.monotonic() + self._pace_s)
            while (left_s := until - time.monotonic()) > 0:
                try:
                    data = await self._port.read(left_s)
                except LinkTimeout:
                    break
                self.early += data
                if any(f.epoch == self._nonce and f.chan == BOARD for f in decoder.feed(data)):
                    return True
                ended = self._end_in(self.early)
                if ended is not None:
                    self._check_end(ended)
                    return False
            self._pace_s = min(_MOST_PACE_S, self._pace_s * 1.5)

    # What the board says.

    async def _status(self, end: float) -> str | None:
        """Return what the board still lacks, as it says itself; None if that does not come.

        "# NUMBERS" comes from the typed program, what the loader says otherwise, "end CODE" if both
        are gone.
        """
        begun_s = time.monotonic()
        until = min(end, begun_s + self._pace_s)
        while (left_s := until - time.monotonic()) > 0:
            try:
                self._heard += await self._port.read(left_s)
            except LinkTimeout:
                break
            said = self._understood()
            if said is not None:
                took_s = time.monotonic() - begun_s
                self._rtt_s = max(took_s, 0.7 * self._rtt_s)
                self._pace_s = max(_LEAST_PACE_S, 4 * self._rtt_s)
                return said
        self._pace_s = min(_MOST_PACE_S, self._pace_s * 1.5)
        await self._write(b"", end)
        return None

    def _understood(self) -> str | None:
        said = None
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            found = re.search(rb"! %d ([0-9a-f]{8}) (.+?)\r?$" % self._nonce, line)
            if found and zlib.crc32(found[2]) == int(found[1], 16):
                said = found[2].decode("utf-8", "replace")
            found = re.search(rb"#%d \[([\d, ]*)\]" % self._nonce, line)
            if found and found[1]:
                said = "# " + found[1].decode()
        ended = self._end_in(b"\n".join(lines))
        return said if ended is None else f"end {ended}"

    def _end_in(self, text: bytes) -> int | None:
        found = re.search(rb"%s<end:(\d+)>" % self._shell.word.encode(), text)
        return None if found is None else int(found[1])

    def _check_end(self, code: int) -> None:
        if code in _NOT_FOUND:
            raise self._refused("no-python", "there is no Python under that name")
        if code and not self._shell.noisy:
            raise self._failed(f"the agent ended with code {code} before it spoke")

    def _refused(self, code: str, text: str) -> BoardRefused:
        message = f"{self._port.name}: {text}"
        if code == "old-python":
            message = f"{self._port.name}: its Python is {text}, which is too old"
        return BoardRefused(Fault(Owner.BOARD, False, code, message, _HINTS.get(code, "")))

    def _failed(self, what: str) -> LinkDown:
        words = self._port.last_words()
        return LinkDown(
            f"{self._port.name}: {what}" + (f"; last seen: {words}" if words else ""),
            hint="look at the console: flatsat board console",
        )

    # What it is told.

    async def _write(self, lines: bytes, end: float) -> None:
        """Send lines, and ask what is missing then; twice, where a line may be lost."""
        question = b"\n? %d\n" % self._nonce
        await self._port.write(lines + question * (1 + self._shell.noisy), self._left(end))

    def _left(self, end: float) -> float:
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise self._failed("the agent does not start in time")
        return left_s

    def _missing(self, first: int, bits: str) -> bytes:
        """Return lines for those of the units from `first` on that the board lacks."""
        if first == self._first:
            # What was sent last did not arrive: shorter lines have a better chance.
            self._units = max(1, self._units // 2)
        self._first = first
        shown = bin(int(bits, 16))[3:]
        lines = []
        for run in re.finditer("0+", shown):
            for unit in range(run.start(), run.end(), self._units):
                last = min(unit + self._units, run.end())
                data = self._packed[(first + unit) * UNIT : (first + last) * UNIT]
                lines.append(_checked(b"%d %s" % (first + unit, base64.b64encode(data))))
        return b"".join(lines)


def _lines(text: bytes) -> list[bytes]:
    """Return a text in lines for the typed program, short ones that a bad line carries, too."""
    lines = []
    for at in range(0, len(text), _LINE):
        number, piece = b"%d" % (at // _LINE), text[at : at + _LINE]
        lines.append(b"%s %x %s\n" % (number, zlib.crc32(number + piece), piece))
    return lines


def _checked(rest: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


def _loader(orders: Mapping[str, object]) -> bytes:
    """Return the loader with its orders, packed for the typed program."""
    source = resources.files("flatsat.targets.agent").joinpath("loader.py").read_text()
    program = f"{bare(source)}\nmain({json.dumps(orders)})"
    return base64.b64encode(zlib.compress(program.encode(), 9))
