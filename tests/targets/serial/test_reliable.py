"""The host's and the board's end of the reliable stream, over links that lose whole writes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from flatsat.targets.agent.arq import BOARD, HOST, Arq
from flatsat.targets.agent.frames import Decoder, Peer, Type
from flatsat.targets.agent.line import SessionEnd
from flatsat.targets.agent.loader import LEAVE
from flatsat.targets.agent.reliable_line import ReliableLine
from flatsat.targets.board import LinkDown
from flatsat.targets.links import LinkTimeout, PipeLink
from flatsat.targets.provision import write_agent
from flatsat.targets.reliable import ReliableLink
from flatsat.targets.session import open_session
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from flatsat.targets.board import Lease

NONCE = 4711
LONG_S = 60.0


class Board:
    """A link to an end in this process that gives back what it gets.

    Attributes:
        lose: whether a write or an answer of that number is lost.
        dead: nothing passes any more.
    """

    def __init__(self, lose: Callable[[int], bool] = lambda _: False) -> None:
        self.lose = lose
        self.dead = False
        self.closed = False
        self.got = bytearray()
        self.writes = 0
        self._arq = Arq(NONCE, BOARD, 1e6)
        self._wire: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._timer: asyncio.Task[None] | None = None

    async def open(self, deadline_s: float) -> None:
        self._timer = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self._speak()
            await asyncio.sleep(0.01)

    def _passes(self) -> bool:
        self.writes += 1
        return not self.dead and not self.lose(self.writes)

    def _speak(self) -> None:
        while wire := self._arq.outgoing(time.monotonic()):
            if self._passes():
                self._wire.put_nowait(wire)

    async def write(self, data: bytes, deadline_s: float) -> None:
        if self._passes():
            payload = self._arq.feed(data, time.monotonic())
            self.got += payload
            self._arq.send(payload)
            self._speak()

    async def read(self, deadline_s: float) -> bytes:
        data = await self._wire.get()
        if data is None:
            raise LinkDown("the cable is out")
        return data

    def hang_up(self) -> None:
        self._wire.put_nowait(None)

    async def close(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()

    def last_words(self) -> str:
        return "login:"


async def opened(board: Board, **changes: float) -> ReliableLink:
    link = ReliableLink(board, NONCE, **changes)
    await link.open(LONG_S)
    return link


async def read_all(link: ReliableLink, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await link.read(LONG_S)
    return data


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_written_comes_back_whole(seed: int) -> None:
    rng = random.Random(seed)
    board = Board(lambda _: rng.random() < 0.4)
    link = await opened(board)
    sent = [rng.randbytes(rng.choice([1, 60, 5000, 40_000])) for _ in range(6)]
    back = asyncio.create_task(read_all(link, sum(map(len, sent))))
    for data in sent:
        await link.write(data, LONG_S)
    assert await back == b"".join(sent)
    await link.close()
    assert board.closed


async def test_closing_has_the_last_words_taken() -> None:
    rng = random.Random(3)
    board = Board(lambda _: rng.random() < 0.4)
    link = await opened(board)
    await link.write(b"goodbye", LONG_S)
    await link.close()
    assert board.got == b"goodbye"
    with pytest.raises(LinkDown, match="closed"):
        await link.write(b"again", LONG_S)


async def test_a_dead_line_ends_a_write_and_a_read_at_their_deadlines() -> None:
    board = Board()
    link = await opened(board)
    await link.write(b"x", LONG_S)
    assert await link.read(LONG_S) == b"x"
    board.dead = True
    with pytest.raises(LinkTimeout, match="did not answer"):
        await link.read(0.05)
    with pytest.raises(LinkDown, match="took nothing"):
        await link.write(bytes(100_000), 0.1)
    await link.close()


async def test_a_board_that_acknowledges_nothing_is_given_up() -> None:
    board = Board()
    link = await opened(board, patience_s=0.2)
    board.dead = True
    await link.write(b"x", LONG_S)
    with pytest.raises(LinkDown, match="acknowledged nothing"):
        await link.read(LONG_S)
    with pytest.raises(LinkDown, match="acknowledged nothing"):
        await link.write(b"x", LONG_S)
    await link.close()


async def test_the_end_of_the_line_below_is_the_links_end() -> None:
    board = Board()
    link = await opened(board)
    await link.write(b"x", LONG_S)
    assert await read_all(link, 1) == b"x"
    board.hang_up()
    with pytest.raises(LinkDown, match="cable is out"):
        await link.read(LONG_S)
    assert link.last_words() == "login:"
    await link.close()


async def test_measuring_leaves_no_trace_in_the_messages() -> None:
    board = Board(lambda number: number % 5 == 0)
    link = await opened(board)
    assert link.bytes_per_s is None
    peer = Peer()
    await link.write(peer.pack(Type.PING, b"before"), LONG_S)
    rate = await link.measure(LONG_S)
    assert link.bytes_per_s == rate > 0
    await link.write(peer.pack(Type.PING, b"after"), LONG_S)
    seen = Peer()
    heard: list[bytes] = []
    while len(heard) < 2:
        heard += [message.payload for message in seen.feed(await link.read(LONG_S))]
    assert heard == [b"before", b"after"]
    assert seen.lost == 0
    await link.close()


# The board's end.


class Ends:
    """A `ReliableLine` in a thread's reach and the host's end of it by hand."""

    def __init__(self, patience_s: float = LONG_S) -> None:
        to_board, self._write = os.pipe()
        self._read, from_board = os.pipe()
        self.line = ReliableLine(to_board, from_board, patience_s, NONCE)
        self.host = Arq(NONCE, HOST, LONG_S)
        self._fds = [to_board, self._write, self._read, from_board]

    def listen(self) -> list[int]:
        """Read what the board has sent, and return the types of its frames."""
        wire = os.read(self._read, 1 << 16)
        self.heard = self.host.feed(wire, time.monotonic())
        return [frame.type for frame in Decoder().feed(wire)]

    def speak(self, data: bytes = b"") -> None:
        """Send the host's acknowledgements and `data`."""
        self.host.send(data)
        while wire := self.host.outgoing(time.monotonic()):
            os.write(self._write, wire)

    def say(self, raw: bytes) -> None:
        os.write(self._write, raw)

    def close(self) -> None:
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def ends() -> Any:
    made: list[Ends] = []

    def make(patience_s: float = LONG_S) -> Ends:
        made.append(Ends(patience_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_board_speaks_first_and_falls_silent(ends: Any) -> None:
    both = ends()
    assert both.line.wait(0.0) == (False, False)
    assert both.listen() == [Type.SEGMENT]
    both.speak(b"hello")
    assert both.line.wait(LONG_S) == (True, False)
    assert both.line.read() == b"hello"
    assert both.listen() == [Type.SEGMENT_ACK]
    assert both.line.wait(0.3) == (False, False)
    os.set_blocking(both._read, False)
    with pytest.raises(BlockingIOError):
        both.listen()


def test_settling_waits_for_the_hosts_acknowledgement(ends: Any) -> None:
    both = ends()
    both.line.wait(0.0)
    both.line.write(b"started")
    settled = threading.Event()
    thread = threading.Thread(target=lambda: (both.line.settle(), settled.set()))
    thread.start()
    heard = b""
    while heard != b"started":
        both.listen()
        heard += both.heard
    assert not settled.is_set()
    both.speak()
    assert settled.wait(LONG_S)
    thread.join()


def test_a_host_that_wants_the_line_gets_it(ends: Any) -> None:
    both = ends()
    both.say(b"noise" + LEAVE[:7])
    both.say(LEAVE[7:] + b"\x03")
    with pytest.raises(SessionEnd) as caught:
        while True:
            both.line.wait(LONG_S)
    assert caught.value.code == 6


def test_a_host_that_acknowledges_nothing_is_given_up(ends: Any) -> None:
    both = ends(patience_s=0.2)
    with pytest.raises(SessionEnd) as caught:
        both.line.wait(LONG_S)
    assert caught.value.code == 4
    both.line.close()


def test_the_end_of_the_stream_ends_the_session(ends: Any) -> None:
    both = ends()
    os.close(both._write)
    with pytest.raises(SessionEnd) as caught:
        both.line.wait(LONG_S)
    assert caught.value.code == 0


class Tap(PipeLink):
    """Keeps what the agent sends."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(argv)
        self.wire = b""

    async def read(self, deadline_s: float) -> bytes:
        data = await super().read(deadline_s)
        self.wire += data
        return data


async def test_nothing_is_sent_while_a_job_runs(
    lease: Lease, files: Any, make_latency: Any
) -> None:
    store = str(lease.directory / "store")
    agent = str(write_agent(lease.directory))
    tap = Tap([sys.executable, agent, "--store", store, "--arq", str(NONCE)])
    session = await open_session(
        ReliableLink(tap, NONCE), lease, kind="host", time_kind=TimeKind.WALL
    )
    spec = make_latency(files.dense())
    for sha256 in spec.blobs:
        await session.put(sha256, files.paths[sha256])
    tap.wire = b""
    await session.run("job", spec)
    await session.close()
    # After STARTED has gone, and maybe once more, there is nothing but the answer.
    seen = [(frame.type, frame.seq) for frame in Decoder().feed(tap.wire)]
    started = next(i for i, (kind, _) in enumerate(seen) if kind == Type.SEGMENT)
    assert [kind for kind, _ in seen[:started]] == [Type.SEGMENT_ACK] * started
    first = seen[started][1]
    answer = [seq for kind, seq in seen[started:] if kind == Type.SEGMENT and seq > first]
    between = seen[started : seen.index((Type.SEGMENT, answer[0]))]
    assert set(between) == {(Type.SEGMENT, first)}


async def test_a_session_survives_a_line_that_loses_every_third_write(lease: Lease) -> None:
    store = str(lease.directory / "store")
    agent = str(write_agent(lease.directory))

    class Lossy(PipeLink):
        writes = 0

        async def write(self, data: bytes, deadline_s: float) -> None:
            Lossy.writes += 1
            if Lossy.writes % 3:
                await super().write(data, deadline_s)

    link = Lossy([sys.executable, agent, "--store", store, "--arq", str(NONCE)])
    session = await open_session(
        ReliableLink(link, NONCE), lease, kind="host", time_kind=TimeKind.WALL
    )
    assert session.welcome["identity"]
    await session.close()
    assert Lossy.writes >= 3
