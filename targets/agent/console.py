"""A tty as a clean line for bytes while the agent uses it, and as a console before and after."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import sys
import termios
from typing import Any, List, Optional

from .loader import raw_mode

_PRINTK = "/proc/sys/kernel/printk"


def console_mode(fd: int) -> None:
    """Make it fit for a shell or a login, as `stty sane` does."""
    mode = termios.tcgetattr(fd)
    mode[0] = termios.BRKINT | termios.ICRNL | termios.IXON
    mode[1] |= termios.OPOST | termios.ONLCR
    mode[3] = termios.ISIG | termios.ICANON | termios.IEXTEN
    mode[3] |= termios.ECHO | termios.ECHOE | termios.ECHOK
    termios.tcsetattr(fd, termios.TCSANOW, mode)


class Console:
    """A tty that the agent has for itself.

    Hardware flow control is used where the other end's line is up, so that a board without these
    wires isn't held for ever. The kernel's log is kept off the line where that is allowed.

    Attributes:
        fd: reads and writes; the shell that started the agent keeps its own.
    """

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        self._control = termios.tcgetattr(self.fd)[2]
        self._log_level = _swap_log_level(None)
        raw_mode(self.fd)
        if _clear_to_send(self.fd):
            mode = termios.tcgetattr(self.fd)
            mode[2] |= termios.CRTSCTS
            termios.tcsetattr(self.fd, termios.TCSANOW, mode)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda number, _: sys.exit(128 + number))

    def close(self) -> None:
        """Leave it as a console."""
        _swap_log_level(self._log_level)
        try:
            mode: List[Any] = termios.tcgetattr(self.fd)
            mode[2] = self._control
            termios.tcsetattr(self.fd, termios.TCSANOW, mode)
            # What the host still sent to us would be the beginning of somebody's next command.
            termios.tcflush(self.fd, termios.TCIFLUSH)
            console_mode(self.fd)
        except termios.error:
            # It has been hung up.
            pass
        os.close(self.fd)


def _clear_to_send(fd: int) -> bool:
    lines = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.TIOCMGET, lines)
    except OSError:
        return False
    return bool(lines[0] & termios.TIOCM_CTS)


def _swap_log_level(level: Optional[str]) -> Optional[str]:
    """Let only the worst of the kernel's messages on consoles, or what `level` says."""
    try:
        with open(_PRINTK, "r+") as stream:
            before = stream.read().split()[0]
            stream.seek(0)
            stream.write(level or "1")
    except (OSError, IndexError):
        return None
    return before
