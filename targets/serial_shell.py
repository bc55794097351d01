"""The way from a serial console in any state to a shell that does exactly what it was told.

Bytes may be lost or damaged both ways. So nothing long is typed: a text goes into shell variables
piece by piece, the shell says each piece back, and what came wrong is typed again.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING

from flatsat.outcome import Fault, Owner
from flatsat.targets.agent.loader import LEAVE
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.targets.links import LinkTimeout

if TYPE_CHECKING:
    from flatsat.targets.serial_port import SerialPort

_LONG_PIECE = 200
_SHORT_PIECE = 32
_GROUP = 8
_INSIST = 50
_LOGIN_TRIALS = 3
_NOISY_LOGIN_TRIALS = 8
_LOGIN_S = 12.0
_QUIET_S = 0.3
_LEAST_PACE_S = 0.15
_FIRST_PACE_S = 1.5
_MOST_PACE_S = 4.0
_KEPT_CHARS = 1 << 16
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# "Last login: ..." is news, no question; a kernel's message behind a question doesn't undo it.
_PROMPT = re.compile(
    r"(?<!last )(login|password)[^\n:]{0,20}:[ \t]*(\[ *\d+\.\d+\][^\n]*\n)*$", re.IGNORECASE
)
_REFUSED = re.compile(r"incorrect|denied|failure", re.IGNORECASE)


class ShellGone(LinkDown):
    """The shell has ended; it may be reached again."""


class SerialShell:
    """A console on which somebody may be logged in or not, typing or not.

    Args:
        port: open.
        user: to log in as where it asks.
        password: of that user, or None.

    Attributes:
        word: stands before whatever the shell is made to say.
        ours: this object has logged in; what it found open belongs to somebody else.
        noisy: something came wrong or not at all.
    """

    def __init__(self, port: SerialPort, user: str, password: str | None) -> None:
        self.word = ""
        self.ours = False
        self.noisy = False
        self._port = port
        self._user = user
        self._password = password
        self._trials = 0
        self._pace_s = _FIRST_PACE_S
        self._rtt_s = 0.0
        self._heard = ""
        self._question = ""

    # A shell, whatever the console was doing.

    async def reach(self, end: float) -> None:
        """Get a shell, before `end` (monotonic).

        Raises:
            LinkDown: there is none in time.
            BoardRefused: the board doesn't let this user in.
        """
        asked = await self._poke(end)
        while True:
            if asked == "login":
                asked = await self._log_in(end)
            elif asked == "password":
                # Of somebody's login that was left half way, or of one that went wrong.
                asked = await self._poke(end)
            elif await self._greets(end):
                return
            elif self._question:
                # It came late: the old login has gone, and a new one took its time.
                asked = self._question
            else:
                # An agent of a host that has died, or a program that somebody left running.
                await self._type(LEAVE * 3 + b"\x03", end)
                await self._listen(_QUIET_S, _QUIET_S, end)
                asked = await self._poke(end)

    async def _poke(self, end: float) -> str:
        """Return "login" or "password" if the console asks for that, else ""."""
        # A line that somebody left half typed must not be done.
        await self._type(b"\x15\n", end)
        # The answer to what is typed comes after a prompt that is on its way already.
        quiet_s = _QUIET_S * (1 + self._trials)
        return _asked(await self._listen(quiet_s, self._pace_s, end))

    async def _log_in(self, end: float) -> str:
        """Answer the questions once; return what the console asks then, as `_poke`."""
        self.ours = True
        await self._type(self._user.encode() + b"\n", end)
        echo = await self._listen(_QUIET_S, self._pace_s, end, prompt=True)
        self.noisy |= self._user not in echo
        if _asked(echo) != "password":
            return _asked(echo)
        if self._password is None:
            raise self._refused(
                "no-password", "it asks for a password", "password_env names where it is"
            )
        await self._type(self._password.encode() + b"\n", end)
        # A refusal takes its time.
        until = min(end, time.monotonic() + _LOGIN_S)
        text = ""
        while time.monotonic() < until and not text.strip():
            text += await self._listen(_QUIET_S, self._pace_s, until)
        if _REFUSED.search(text):
            self._trials += 1
            if self._trials >= (_NOISY_LOGIN_TRIALS if self.noisy else _LOGIN_TRIALS):
                raise self._refused(
                    "login-refused",
                    f"it refused the password of {self._user} {self._trials} times",
                    "check user and password_env in lab.toml",
                )
        return _asked(text)

    def _refused(self, code: str, text: str, hint: str) -> BoardRefused:
        return BoardRefused(Fault(Owner.CONFIG, False, code, f"{self._port.name}: {text}", hint))

    async def _greets(self, end: float) -> bool:
        """Tell whether a shell does a sum and says a new word before it."""
        self.word = "FS" + secrets.token_hex(3)
        one, two = secrets.randbelow(900) + 100, secrets.randbelow(900) + 100
        answer = await self._answer(f'm={self.word};echo "$m<$(({one}*{two}))>"', end)
        return answer == str(one * two)

    # What the shell is told.

    async def assign(self, name: str, text: str, end: float) -> None:
        """Give a variable a printable text without quotes (') and backslashes.

        Raises:
            ShellGone: there is no shell any more.
            LinkDown: it does not do it, or not in time.
        """
        assert text.isprintable(), text
        assert not set(text) & set("'\\"), text
        pieces: list[str] = []
        while (at := len("".join(pieces))) < len(text):
            if not self.noisy:
                # Long pieces only as long as nothing goes wrong.
                long, i = text[at : at + _LONG_PIECE], len(pieces)
                if await self._does(f"q{i:03}='{long}';echo \"$m<$q{i:03}>\"", long, end):
                    pieces.append(long)
                    continue
            piece, i = text[at : at + _SHORT_PIECE], len(pieces)
            # Names of one length: what a lost digit leaves is no other piece's name.
            await self._insist(f"q{i:03}='{piece}';echo \"$m<$q{i:03}>\"", piece, end)
            pieces.append(piece)
        # Joined in two steps, so that no line gets long; lengths show whether it went well.
        groups = range(0, len(pieces), _GROUP)
        for group, first in enumerate(groups):
            some = range(first, min(first + _GROUP, len(pieces)))
            parts = "".join(f"$q{i:03}" for i in some)
            await self._insist(
                f'r{group:03}="{parts}";echo "$m<{group}:${{#r{group:03}}}>"',
                f"{group}:{sum(len(pieces[i]) for i in some)}",
                end,
            )
        parts = "".join(f"$r{group:03}" for group in range(len(groups)))
        await self._insist(f'{name}="{parts}";echo "$m<${{#{name}}}>"', str(len(text)), end)

    async def ask(self, words: str, end: float) -> str:
        """Return what the shell makes of `words` between double quotes; asked until it is sure.

        Raises:
            LinkDown: as `assign`.
        """
        before = None
        while True:
            answer = await self._answer(f'echo "$m<{words}>"', end)
            if answer is not None and answer == before:
                return answer
            self._check_shell()
            before = answer

    async def run(self, command: str, end: float) -> None:
        """Type a command and wait for nothing."""
        await self._type(command.encode() + b"\n", end)

    async def _insist(self, command: str, expected: str, end: float) -> None:
        for _ in range(_INSIST):
            if await self._does(command, expected, end):
                return
        raise LinkDown(
            f"{self._port.name}: the shell does not do what it is told",
            hint="it must be a POSIX shell: bash, dash or busybox ash",
        )

    async def _does(self, command: str, expected: str, end: float) -> bool:
        if await self._answer(command, end) == expected:
            return True
        self._check_shell()
        self.noisy = True
        return False

    def _check_shell(self) -> None:
        if self._question:
            raise ShellGone(f"{self._port.name}: the console asks for a {self._question}")

    async def _answer(self, command: str, end: float) -> str | None:
        """Type a command and return what stands between `word`< and >, or None."""
        begun_s = time.monotonic()
        await self._type(command.encode() + b"\n", end)
        until = min(end, begun_s + self._pace_s)
        pattern = re.compile(re.escape(self.word) + r"<([^\r\n]*)>[\r\n]")
        text = ""
        while time.monotonic() < until:
            text += await self._listen(0.0, until - time.monotonic(), until)
            found = pattern.search(text)
            if found:
                took_s = time.monotonic() - begun_s
                self._rtt_s = max(took_s, 0.7 * self._rtt_s)
                self._pace_s = max(_LEAST_PACE_S, 4 * self._rtt_s)
                self._question = ""
                return found[1]
        self._question = _asked(text)
        if self._question:
            return None
        self._pace_s = min(_MOST_PACE_S, self._pace_s * 1.5)
        self.noisy = True
        # An open quote or half a line must not swallow the next command.
        await self._type(b"\x03", end)
        await self._listen(0.05, self._pace_s / 4, end)
        await self._type(b"\x15", end)
        return None

    # Bytes.

    async def _type(self, data: bytes, end: float) -> None:
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise self._silent()
        await self._port.write(data, left_s)

    async def _listen(
        self, quiet_s: float, patience_s: float, end: float, *, prompt: bool = False
    ) -> str:
        """Return what comes until it has been quiet for `quiet_s`, but after `patience_s` anyway.

        With `quiet_s` 0 it returns the first that comes; with `prompt` it ends at a question.
        """
        until = min(end, time.monotonic() + patience_s)
        text = ""
        while (left_s := until - time.monotonic()) > 0 and len(text) < _KEPT_CHARS:
            try:
                data = await self._port.read(min(left_s, quiet_s) if text else left_s)
            except LinkTimeout:
                break
            text += data.decode("ascii", "ignore").replace("\0", "")
            if not quiet_s or (prompt and _asked(text)):
                break
        self._heard = (self._heard + text)[-_KEPT_CHARS:]
        return text

    def _silent(self) -> LinkDown:
        words = self._port.last_words()
        if not self._heard.strip():
            what, hint = "nothing answers", "check the cable, the baud rate and the board's power"
        else:
            what, hint = "no shell answers", "look at the console: flatsat board console"
        told = f"; last seen: {words}" if words else ""
        return LinkDown(f"{self._port.name} at {self._port.baud} baud: {what}{told}", hint=hint)


def _asked(text: str) -> str:
    """Return "login" or "password" if a text ends with that question, else ""."""
    found = _PROMPT.search(_ESCAPE.sub("", text).replace("\r", ""))
    return found[1].lower() if found else ""
