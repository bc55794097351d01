"""A bad serial line: joins a pseudo-terminal or a socket to a program on a terminal of its own.

    python uart_shim.py [--socket] '{"lose": 0.01, "rate": 100000, "seed": 1}' COMMAND...

The first line of output is JSON: {"port": "/dev/pts/7"} or {"port": "socket://127.0.0.1:4711"}.
The command is started anew whenever it ends, as init does with a login. Orders come as JSON lines
on standard input: more settings, or {"ask": true}, answered by a line of JSON with what was done to
bytes so far. The end of standard input ends everything.

Settings: `rate` (bytes a second, 0 for no limit), and the probabilities `lose`, `flip`, `double`
for each byte both ways and `kernel` for a kernel message after a byte from the board.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pty
import random
import select
import signal
import socket
import sys
import termios
import time
import tty

MESSAGE = b"[   12.345678] usb 1-1: reset high-speed USB device number 2\r\n"
HELD_BYTES = 16384
SLICE_S = 0.004


class Way:
    """One direction."""

    def __init__(self, settings: dict[str, float], seed: int, kernel: bool) -> None:
        self.settings = settings
        self.rng = random.Random(seed)
        self.kinds = ["lose", "flip", "double"] + ["kernel"] * kernel
        self.next: dict[str, int] = {}
        self.done = dict.fromkeys(self.kinds, 0)
        self.bytes = 0
        self.queue = bytearray()
        self.free_s = 0.0
        self.draw()

    def draw(self) -> None:
        for kind in self.kinds:
            self.next[kind] = self.gap(kind)

    def gap(self, kind: str) -> int:
        """Return how many bytes pass until this happens next."""
        p = self.settings.get(kind, 0.0)
        if p <= 0:
            return sys.maxsize
        return int(math.log(1 - self.rng.random()) / math.log(1 - p))

    def put(self, data: bytes) -> None:
        self.bytes += len(data)
        while data:
            kind = min(self.kinds, key=self.next.__getitem__)
            n = self.next[kind]
            if n >= len(data):
                self.queue += data
                for each in self.kinds:
                    self.next[each] -= len(data)
                return
            self.queue += data[:n]
            self.done[kind] += 1
            if kind == "flip":
                self.queue.append(data[n] ^ 1 << self.rng.randrange(8))
            elif kind == "double":
                self.queue += data[n : n + 1] * 2
            elif kind == "kernel":
                self.queue += data[n : n + 1] + MESSAGE
            data = data[n + 1 :]
            for each in self.kinds:
                self.next[each] -= n + 1
            self.next = {k: max(v, 0) for k, v in self.next.items()}
            self.next[kind] = self.gap(kind)

    def allowed(self, now: float) -> int:
        """Return how many bytes may go now."""
        rate = self.settings.get("rate", 0.0)
        if not rate:
            return len(self.queue)
        return min(len(self.queue), max(0, int((now - self.free_s) * rate)))

    def went(self, count: int, now: float) -> None:
        rate = self.settings.get("rate", 0.0)
        if rate:
            # No more than a slice is made up for.
            self.free_s = max(self.free_s, now - SLICE_S) + count / rate


class Host:
    """The end that the host opens."""

    def __init__(self, listen: bool) -> None:
        self.listener: socket.socket | None = None
        self.fd = -1
        if listen:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.port = f"socket://127.0.0.1:{self.listener.getsockname()[1]}"
        else:
            self.fd, slave = pty.openpty()
            # Held open, so that a host that goes is not noticed here, as on a real line.
            tty.setraw(slave)
            self.port = os.ttyname(slave)
            os.set_blocking(self.fd, False)

    def accept(self) -> None:
        assert self.listener is not None
        connection, _ = self.listener.accept()
        self.drop()
        self.fd = connection.detach()
        os.set_blocking(self.fd, False)

    def drop(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def spawn(command: list[str]) -> tuple[int, int]:
    pid, fd = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        # A terminal's programs can be interrupted, even if whoever started us ignores that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execvp(command[0], command)
    os.set_blocking(fd, False)
    return pid, fd


def read(fd: int) -> bytes | None:
    """Return what is there, b"" for nothing, None at the end."""
    try:
        return os.read(fd, 4096) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


def write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except (BlockingIOError, OSError):
        return 0


def say(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    arguments = sys.argv[1:]
    host = Host("--socket" in arguments)
    arguments = [each for each in arguments if each != "--socket"]
    settings = {"seed": 1, **json.loads(arguments[0])}
    up, down = Way(settings, int(settings["seed"]), False), Way(settings, 999, True)
    pid, board = spawn(arguments[1:])
    say({"port": host.port})
    orders = b""
    try:
        while True:
            now = time.monotonic()
            readers = [0, *([host.listener] if host.listener else [])]
            if host.fd >= 0 and len(up.queue) < HELD_BYTES:
                readers.append(host.fd)
            if len(down.queue) < HELD_BYTES:
                readers.append(board)
            writers = [fd for fd, way in ((board, up), (host.fd, down)) if fd >= 0 and way.queue]
            limited = writers and settings.get("rate")
            ready, writable, _ = select.select(
                readers, [] if limited else writers, [], SLICE_S if limited else 1.0
            )
            if limited:
                writable = select.select([], writers, [], 0)[1]
            if 0 in ready:
                data = os.read(0, 4096)
                if not data:
                    return
                *lines, orders = (orders + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    if order.pop("ask", False):
                        told = {k: up.done.get(k, 0) + down.done[k] for k in down.done}
                        say({**told, "up": up.bytes, "down": down.bytes})
                    settings.update(order)
                    up.draw()
                    down.draw()
            if host.listener in ready:
                host.accept()
                continue
            if host.fd in ready:
                data = read(host.fd)
                if data is None:
                    host.drop()
                    continue
                up.put(data)
            if board in ready:
                data = read(board)
                if data is None:
                    os.close(board)
                    os.waitpid(pid, 0)
                    pid, board = spawn(arguments[1:])
                    continue
                down.put(data)
            for fd, way in ((board, up), (host.fd, down)):
                now = time.monotonic()
                if fd in writable and (count := way.allowed(now)):
                    count = write(fd, bytes(way.queue[:count]))
                    del way.queue[:count]
                    way.went(count, now)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(board)


if __name__ == "__main__":
    with contextlib.suppress(termios.error, KeyboardInterrupt):
        main()
