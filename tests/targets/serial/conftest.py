"""A serial console in this machine: a login, a shell and the line to it, good or bad."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.targets.provision import write_agent
from flatsat.targets.serial_link import SerialLink
from flatsat.targets.session import AgentSession, open_session
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flatsat.targets.board import Lease

PASSWORD = "a secret: 17"
_HERE = Path(__file__).parent
LOGIN = ["/bin/sh", str(_HERE / "console_login.sh")]


class Uart:
    """A line to a program on a terminal of its own; see `uart_shim.py`."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        settings: dict[str, float],
        command: list[str],
        socket: bool,
        shell: str,
    ) -> None:
        options = ["--socket"] if socket else []
        argv = [sys.executable, str(_HERE / "uart_shim.py"), *options, json.dumps(settings)]
        self._process = subprocess.Popen(
            [*argv, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **environment,
                "HOME": str(folder),
                "TERM": "dumb",
                "ENV": "",
                "PS1": "# ",
                "FLATSAT_TEST_SHELL": shell,
            },
        )
        self.port: str = self._answer()["port"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def tell(self, **settings: float) -> dict[str, Any]:
        """Change the line; return what it has done so far."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**settings, "ask": True}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


class Console:
    """Somebody at the console who types and reads without any protocol."""

    def __init__(self, port: str) -> None:
        self._fd = os.open(port, os.O_RDWR | os.O_NOCTTY)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, text: str) -> str:
        """Read until that has come."""
        seen = b""
        while text.encode() not in seen:
            assert select.select([self._fd], [], [], 30.0)[0], seen
            seen += os.read(self._fd, 4096)
        return seen.decode("ascii", "replace")

    def log_in(self) -> None:
        self.until("login: ")
        self.type("tester\n")
        self.until("Password: ")
        self.type(PASSWORD + "\n")
        self.until("# ")

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def uart(tmp_path: Path, family: Any) -> Iterator[Callable[..., Uart]]:
    """Join a port to the login, or to another command, by a line with these settings."""
    opened: list[Uart] = []

    def join(*command: str, socket: bool = False, shell: str = "sh -i", **settings: float) -> Uart:
        opened.append(
            Uart(tmp_path, family.environment, settings, list(command) or LOGIN, socket, shell)
        )
        return opened[-1]

    yield join
    for line in opened:
        line.close()
    assert family.all_gone(), "something outlives the line that it was started over"


@pytest.fixture
def console() -> Iterator[Callable[[Uart], Console]]:
    opened: list[Console] = []

    def sit_down(line: Uart) -> Console:
        opened.append(Console(line.port))
        return opened[-1]

    yield sit_down
    for each in opened:
        with contextlib.suppress(OSError):
            each.close()


@pytest.fixture
def make_link(lease: Lease, tmp_path: Path) -> Callable[..., SerialLink]:
    """Make a link to the agent behind a line; nothing is opened."""

    def make(line: Uart | str, **changes: Any) -> SerialLink:
        settings = {
            "user": "tester",
            "password": PASSWORD,
            "python": sys.executable,
            "store": str(tmp_path / "a store"),
            "agent": write_agent(lease.directory),
            **changes,
        }
        return SerialLink(line if isinstance(line, str) else line.port, **settings)

    return make


@pytest.fixture
def start(lease: Lease, make_link: Callable[..., SerialLink]) -> Callable[..., Any]:
    """Open a session over a line."""

    async def start(line: Uart, **changes: Any) -> AgentSession:
        link = make_link(line, **changes)
        return await open_session(link, lease, kind="linux", time_kind=TimeKind.WALL)

    return start
