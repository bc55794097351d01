"""A process that ends with this one, however this one ends; and the QEMU that is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.errors import InfrastructureError
from flatsat.targets.qemu_tools import install_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

QEMU = "qemu-system-aarch64"
QEMU_IMG = "qemu-img"
OLDEST = (6, 0)
"""The oldest QEMU whose options the board's command line uses."""

_TOOL_S = 60.0
_LOOK_S = 0.005
_CHATTER = "char device redirected to "
"""QEMU says so of each pseudo-terminal that it makes."""
_LAUNCH = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""PR_SET_PDEATHSIG is 1, SIGKILL is 9; a parent that died before is seen by its id."""


class EmulatorError(InfrastructureError):
    """QEMU is missing, does not start, or gave up; its own last words are in the message."""


@dataclass(frozen=True)
class Emulator:
    """The QEMU of this machine.

    Attributes:
        program: qemu-system-aarch64.
        image_tool: qemu-img.
        version: as it tells it, with the packager's own, such as "7.2.22 (Debian 1:7.2+dfsg-7)".
    """

    program: str
    image_tool: str
    version: str


def find_emulator() -> Emulator:
    """Return the installed QEMU.

    Raises:
        EmulatorError: it is missing or too old; the hint is the command that installs it.
    """
    fix = install_command(["qemu-system-arm", "qemu-utils"])
    found = {name: shutil.which(name) for name in (QEMU, QEMU_IMG)}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise EmulatorError(f"{' and '.join(missing)} is not installed", hint=fix)
    program, image_tool = str(found[QEMU]), str(found[QEMU_IMG])
    try:
        told = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_TOOL_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmulatorError(f"{program} does not run: {error}", hint=fix) from error
    match = re.search(r"version ((\d+)\.(\d+)\S*(?: \(.*?\))?)", told)
    if match is None:
        raise EmulatorError(f"{program} tells no version: {told.strip()[:80]!r}", hint=fix)
    if (int(match[2]), int(match[3])) < OLDEST:
        raise EmulatorError(
            f"QEMU {match[1]} is too old, {OLDEST[0]}.{OLDEST[1]} is the oldest that will do",
            hint=fix,
        )
    return Emulator(program, image_tool, match[1])


class OwnedProcess:
    """A child that the kernel kills when this process ends, even by SIGKILL.

    The kernel binds that promise to the thread that started the child, so a thread of its own
    starts it and stays until the child has ended. The child is in a session of its own: an
    interrupt from the terminal is for this process to handle.

    Args:
        argv: the command; its first entry is a path.
        folder: to run in.
        log: takes its standard output and error.
        passed: open file descriptors that it inherits under the same numbers.
        environment: of the process, or None for this one's.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        log: Path,
        passed: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.argv = tuple(argv)
        self.log = log
        self._folder = folder
        self._passed = tuple(passed)
        self._environment = environment
        self._started: Future[subprocess.Popen[bytes]] = Future()
        threading.Thread(target=self._keep, name=f"owner of {argv[0]}", daemon=True).start()
        try:
            self._process = self._started.result()
        except OSError as error:
            raise EmulatorError(f"can't start {argv[0]}: {error.strerror}") from error

    def _keep(self) -> None:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *self.argv]
        try:
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    launcher,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._folder,
                    env=None if self._environment is None else dict(self._environment),
                    pass_fds=self._passed,
                    start_new_session=True,
                )
        except OSError as error:
            self._started.set_exception(error)
            return
        self._started.set_result(process)
        process.wait()

    @property
    def pid(self) -> int:
        """Its process id; another process's once this one has ended."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self, deadline_s: float) -> bool:
        """Wait for its end; return whether it came within `deadline_s`."""
        deadline = time.monotonic() + deadline_s
        while self.code is None:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def last_words(self) -> str:
        """Return the last line that it wrote, without its own name in front."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        said = (line.strip() for line in reversed(lines) if not line.startswith(_CHATTER))
        line = next((line for line in said if line), "")
        return line.removeprefix(f"{self.argv[0]}: ").removeprefix(f"{QEMU}: ")
