"""What tests of the SSH link share: links to a server of theirs, and a relay before it."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from flatsat.targets.board import BoardRefused, Lease, LinkDown
from flatsat.targets.provision import write_agent
from flatsat.targets.session import open_session
from flatsat.targets.ssh import SshLink
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG_S = 60.0


class Relay:
    """A TCP relay before a server: counts what goes through, cuts it, or lets it run dry."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._pairs: list[asyncio.StreamWriter] = []
        self.up_bytes = 0
        self.limit_bytes: int | None = None
        self._open = asyncio.Event()
        self._open.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        for writer in self._pairs:
            writer.transport.abort()
        self._pairs.clear()

    def freeze(self) -> None:
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._pairs += [writer, far_writer]
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pump(reader, far_writer, True), self._pump(far_reader, writer, False)
            )

    async def _pump(self, reader: Any, writer: Any, up: bool) -> None:
        while data := await reader.read(1 << 14):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
            if up:
                self.up_bytes += len(data)
                if self.limit_bytes is not None and self.up_bytes > self.limit_bytes:
                    self.cut()
        writer.close()


class Ssh:
    """Makes links, with the agent of this checkout unless told otherwise."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.agent = write_agent(folder / "agent")

    def link(self, sshd: Any, **changes: Any) -> SshLink:
        return SshLink(**{**sshd.link_settings(), "agent": self.agent, **changes})

    def program(self, text: str) -> Path:
        """Return an "agent" that is a Python program of ours."""
        path = self._folder / "flatsat-agent-test.pyz"
        path.write_text(text)
        return path

    async def greet(self, link: SshLink, epoch: int = 1) -> str:
        """Open a session over the link, close it, and return the board's id."""
        lease = Lease("b", epoch, self._folder)
        session = await open_session(link, lease, kind="linux", time_kind=TimeKind.WALL)
        await session.close()
        return session.identity.board_id

    async def refusal(self, link: SshLink) -> LinkDown | BoardRefused:
        """Return the error that the link opens with: one line."""
        with pytest.raises((LinkDown, BoardRefused)) as caught:
            await link.open(LONG_S)
        await link.close()
        assert "\n" not in str(caught.value)
        return caught.value

    @contextlib.asynccontextmanager
    async def relayed(self, sshd: Any) -> AsyncIterator[tuple[Relay, dict[str, Any]]]:
        """Relay a server, and give what a link needs to go through the relay."""
        async with Relay(sshd.port) as relay:
            key = sshd.known_hosts.split(" ", 1)[1]
            yield relay, {"port": relay.port, "known_hosts": key}


@pytest.fixture
def ssh(tmp_path: Path) -> Ssh:
    return Ssh(tmp_path)
