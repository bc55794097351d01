"""The terminal of the command line as a board's console."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator

from flatsat.errors import InfrastructureError, UsageError

LEAVE = b"\x1d"
"""Ctrl-]."""
_BYTES = 4096


def relay(console: str) -> None:
    """Carry bytes between this terminal and a console until Ctrl-] or either end's end.

    Args:
        console: path of a tty, or "socket://HOST:PORT".

    Raises:
        UsageError: standard input is no terminal.
        InfrastructureError: the console can't be opened.
    """
    if not sys.stdin.isatty():
        raise UsageError("the console needs a terminal", hint="run it in one, without a pipe")
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()
    with _opened(console) as line, _raw(keyboard):
        while True:
            ready, _, _ = select.select([keyboard, line], [], [])
            if keyboard in ready:
                typed = os.read(keyboard, _BYTES)
                before, left, _ = typed.partition(LEAVE)
                _write(line, before)
                if left or not typed:
                    return
            if line in ready:
                try:
                    shown = os.read(line, _BYTES)
                except OSError:
                    # A tty whose other end is gone has no end of file.
                    return
                if not shown:
                    return
                _write(screen, shown)


@contextlib.contextmanager
def _opened(console: str) -> Iterator[int]:
    """Lend a file descriptor of the console."""
    try:
        if console.startswith("socket://"):
            host, _, port = console.removeprefix("socket://").rpartition(":")
            with socket.create_connection((host, int(port))) as connection:
                yield connection.fileno()
            return
        line = os.open(console, os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        raise InfrastructureError(f"can't open the console {console}: {error.strerror}") from error
    try:
        tty.setraw(line)
        yield line
    finally:
        os.close(line)


@contextlib.contextmanager
def _raw(keyboard: int) -> Iterator[None]:
    """Let keys through as they are typed, and put the terminal back as it was."""
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _write(line: int, data: bytes) -> None:
    while data:
        data = data[os.write(line, data) :]
