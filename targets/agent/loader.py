"""What is typed into the shell of a board behind a serial line: it takes the agent and starts it.

The line may lose and damage bytes. So the host says everything in lines that are checked, and may
say everything twice (NONCE is this session's):

    ? NONCE              -> ! NONCE CRC STATUS
    go NONCE             starts the agent in place of this
    CRC FIRST BASE64     units of the packed archive, from unit FIRST on

STATUS is "have", or "FIRST BITS": the first missing unit, and for those from there on whether they
have come, as hexadecimal digits behind a 1; or "fault CODE TEXT". CRC is CRC-32 over what follows.

This source is sent packed, without comments and annotations, to a program of a few lines that is
typed into the shell.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import select
import signal
import sys
import termios
import zlib
from typing import Any, Dict, List

LEAVE = b"\0flatsat: leave this line\0"
"""What a host that finds an older session's agent on the line says to it. It is no frame and can't
stand in one, and harmless where a shell or a login prompt hears it."""
UNIT = 48
"""Bytes; 64 characters in base64."""
SHOWN = 128
"""Units that a status tells of."""
_SILENCE_S = 20.0
_CODES = {
    errno.ENOSPC: "disk-full",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
}


class Loader:
    """The agent's archive as far as it has come.

    Args:
        orders: "nonce", "store", "name", "sha", "size" (packed), "arguments" of the agent.
    """

    def __init__(self, orders: Dict[str, Any]) -> None:
        self.orders = orders
        self.packed = bytearray(orders["size"])
        self.came = bytearray(-(-orders["size"] // UNIT))
        self.fault = ""
        self.store = os.path.abspath(os.path.expanduser(orders["store"]))
        self.path = os.path.join(self.store, orders["name"])
        try:
            if sys.version_info < (3, 8):
                self.fault = "fault old-python %d.%d" % sys.version_info[:2]
            os.makedirs(self.store, 0o700, exist_ok=True)
            with open(self.path, "rb") as stream:
                self.have = self.right(stream.read())
        except OSError as error:
            self.have = False
            if error.errno != errno.ENOENT:
                self.failed(error)

    def right(self, data: bytes) -> bool:
        """Tell whether this is the archive."""
        return hashlib.sha256(data).hexdigest() == str(self.orders["sha"])

    def failed(self, error: OSError) -> None:
        """Keep what the host is to be told."""
        code = _CODES.get(error.errno or 0, "disk")
        self.fault = "fault %s %s: %s" % (code, error.strerror, error.filename)

    def take(self, line: bytes) -> None:
        """Take some units."""
        crc, _, rest = line.partition(b" ")
        try:
            if int(crc, 16) != zlib.crc32(rest):
                return
            first, _, text = rest.partition(b" ")
            data = base64.b64decode(text)
            unit = int(first)
        except (ValueError, binascii.Error):
            return
        at = unit * UNIT
        if at + len(data) > len(self.packed):
            return
        self.packed[at : at + len(data)] = data
        units = -(-len(data) // UNIT)
        self.came[unit : unit + units] = b"\1" * units
        if 0 not in self.came:
            self.keep()

    def keep(self) -> None:
        """Write the archive under its name, if its bytes are right; else begin anew."""
        data = b""
        try:
            data = zlib.decompress(bytes(self.packed))
        except zlib.error:
            pass
        if not self.right(data):
            self.came = bytearray(len(self.came))
            return
        part = "%s.%d" % (self.path, os.getpid())
        try:
            with open(part, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(part, self.path)
            self.have = True
        except OSError as error:
            self.failed(error)
            if os.path.exists(part):
                os.unlink(part)

    def status(self) -> str:
        """Say how far it is."""
        if self.fault or self.have:
            return self.fault or "have"
        first = self.came.find(0)
        bits = "".join("01"[unit] for unit in self.came[first : first + SHOWN])
        return "%d %x" % (first, int("1" + bits, 2))

    def serve(self) -> List[str]:
        """Do what the host says; return how to start the agent, or [] to end."""
        word = self.orders["nonce"]
        asked, start = b"? " + word.encode(), b"go " + word.encode()
        rest = b""
        while select.select([0], [], [], _SILENCE_S)[0]:
            data = os.read(0, 65536)
            rest += data
            if not data or LEAVE in rest:
                break
            lines = rest.split(b"\n")
            rest = lines.pop()[-8192:]
            for line in lines:
                if line.endswith(asked):
                    said = self.status().encode()
                    os.write(1, b"\n! %s %08x %s\n" % (word.encode(), zlib.crc32(said), said))
                elif line.endswith(start) and self.have:
                    return [sys.executable, self.path, "--store", self.store]
                else:
                    self.take(line)
        return []


def raw_mode(fd: int) -> None:
    """Let every byte pass a tty as it is, and no byte do anything else."""
    mode = termios.tcgetattr(fd)
    # A break is noise, not an order. IXON, IXOFF and IXANY must go, too: Python's tty.setraw
    # leaves IXOFF, and the driver then puts its own bytes into the stream.
    mode[0] = termios.IGNBRK
    mode[1] &= ~termios.OPOST
    mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8 | termios.CREAD
    mode[3] = 0
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSANOW, mode)


def main(orders: Dict[str, Any]) -> None:
    """Serve the host; the terminal is raw from now on, and left so to the agent."""
    signal.alarm(0)
    before = termios.tcgetattr(0)
    raw_mode(0)
    start: List[str] = []
    try:
        start = Loader(orders).serve()
    finally:
        if not start:
            termios.tcsetattr(0, termios.TCSANOW, before)
    if start:
        os.execv(start[0], start + orders["arguments"])  # noqa: S606
    sys.exit(7)
