"""The reliable stream over every kind of bad line, on a clock of its own."""

from __future__ import annotations

import heapq
import random
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatsat.targets.agent.arq import BOARD, CELL, HOST, WINDOW, Arq, Stalled
from flatsat.targets.agent.frames import Decoder, Frame, Type, encode

NONCE = 0x5EED
MESSAGE = b"\r\n[   12.345678] usb 1-1: reset high-speed USB device\r\n"
SLOW_S = 0.02


@dataclass
class Line:
    """One direction: a rate, a delay, and what happens to bytes and to whole writes on the way.

    `schedule` names what becomes of the first writes: "drop", "double", "late", "noise" or "".
    """

    seed: int = 1
    rate: float = 100_000.0
    delay_s: float = 0.01
    lose: float = 0.0
    flip: float = 0.0
    double: float = 0.0
    insert: float = 0.0
    late: float = 0.0
    schedule: list[str] = field(default_factory=list)
    sent: int = 0
    free_s: float = 0.0
    arriving: list[tuple[float, int, bytes]] = field(default_factory=list)
    log: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def ready_s(self) -> float:
        """When the line takes the next write: a driver's buffer holds some 4 KiB."""
        return self.free_s - 4096 / self.rate

    def put(self, data: bytes, now_s: float) -> None:
        self.log.append(data)
        self.sent += len(data)
        self.free_s = max(now_s, self.free_s) + len(data) / self.rate
        fate = self.schedule.pop(0) if self.schedule else ""
        if fate == "drop":
            return
        late = fate == "late" or self.rng.random() < self.late
        out = self._spoilt(data + data if fate == "double" else data)
        if fate == "noise":
            out = self.rng.randbytes(90) + out
        due = self.free_s + self.delay_s + (0.3 if late else 0.0)
        heapq.heappush(self.arriving, (due, len(self.log), out))

    def _spoilt(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if self.rng.random() < self.lose:
                continue
            if self.rng.random() < self.flip:
                byte ^= 1 << self.rng.randrange(8)
            out.append(byte)
            if self.rng.random() < self.double:
                out.append(byte)
            if self.rng.random() < self.insert:
                out += MESSAGE
        return bytes(out)


@dataclass
class Pair:
    """Both ends and the line between them."""

    there: Line = field(default_factory=Line)
    back: Line = field(default_factory=Line)
    patience_s: float = 1e6
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.host = Arq(NONCE, HOST, self.patience_s)
        self.board = Arq(NONCE, BOARD, self.patience_s)
        self.at_board = bytearray()
        self.at_host = bytearray()

    def step(self) -> bool:
        """Write, go to the next event, read; False if nothing will ever happen."""
        times = []
        for end, line in ((self.host, self.there), (self.board, self.back)):
            while line.ready_s() <= self.now_s and (wire := end.outgoing(self.now_s)):
                line.put(wire, self.now_s)
            if line.ready_s() > self.now_s:
                times.append(line.ready_s())
            elif (due := end.next_deadline(self.now_s)) is not None:
                times.append(due)
            times += [line.arriving[0][0]] if line.arriving else []
        if not times:
            return False
        self.now_s = max(self.now_s, min(times)) + 1e-6
        for line, end, got in (
            (self.there, self.board, self.at_board),
            (self.back, self.host, self.at_host),
        ):
            while line.arriving and line.arriving[0][0] <= self.now_s:
                got += end.feed(heapq.heappop(line.arriving)[2], self.now_s)
        return True

    def until_quiet(self) -> None:
        while self.step():
            pass


def payload(size: int, seed: int = 5) -> bytes:
    return random.Random(seed).randbytes(size)


fates = st.lists(st.sampled_from(["", "drop", "double", "late", "noise"]), max_size=40)
lines = st.builds(
    Line,
    seed=st.integers(0, 1 << 32),
    rate=st.sampled_from([2_000.0, 100_000.0, 5e6]),
    delay_s=st.sampled_from([0.0, SLOW_S, 0.4]),
    lose=st.sampled_from([0.0, 1e-3, 1e-2]),
    flip=st.sampled_from([0.0, 1e-4, 2e-3]),
    double=st.sampled_from([0.0, 5e-3]),
    insert=st.sampled_from([0.0, 2e-3]),
    late=st.sampled_from([0.0, 0.2]),
    schedule=fates,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(lines, lines, st.lists(st.integers(1, 1500), min_size=1, max_size=5), st.integers(0, 3000))
def test_whatever_the_line_does_the_stream_arrives_whole(
    there: Line, back: Line, writes: list[int], answer: int
) -> None:
    pair = Pair(there, back)
    sent = b""
    for index, size in enumerate(writes):
        part = payload(size, index)
        pair.host.send(part)
        sent += part
    reply = payload(answer, 99)
    pair.board.send(reply)
    while pair.step():
        assert sent.startswith(pair.at_board)
        assert reply.startswith(pair.at_host)
    assert pair.at_board == sent
    assert pair.at_host == reply
    assert (pair.host.backlog_bytes, pair.host.acked_bytes) == (0, len(sent))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_hostile_frames_of_the_right_session_raise_nothing(data: st.DataObject) -> None:
    end = Arq(NONCE, HOST, 1e9)
    end.send(payload(3000))
    numbers = st.one_of(st.integers(0, 200), st.integers(0, (1 << 32) - 1))
    now_s = 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        frame = Frame(
            data.draw(st.sampled_from([Type.SEGMENT, Type.SEGMENT_ACK, Type.RUN])),
            data.draw(st.binary(max_size=300)),
            data.draw(st.integers(0, 3)),
            data.draw(st.sampled_from([HOST, BOARD])),
            NONCE,
            data.draw(numbers),
            data.draw(numbers),
        )
        end.feed(encode(frame), now_s)
        for _ in range(200):
            if not end.outgoing(now_s):
                break
        now_s += data.draw(st.sampled_from([0.0, 0.1, 5.0]))


def test_a_clean_line_costs_little_and_gets_large_segments() -> None:
    pair = Pair()
    sent = payload(300_000)
    pair.host.send(sent)
    pair.until_quiet()
    assert pair.at_board == sent
    assert pair.there.sent < 1.03 * len(sent)
    assert pair.back.sent < 0.02 * len(sent)
    assert pair.host.segment_bytes > 2048


@pytest.mark.parametrize("rate", [11_520.0, 100_000.0])
def test_one_byte_in_a_hundred_lost_still_moves(rate: float) -> None:
    bad = {"rate": rate, "lose": 1e-2, "flip": 1e-4, "double": 1e-4, "insert": 1e-4}
    pair = Pair(Line(2, **bad), Line(3, **bad))
    sent = payload(40_000)
    pair.host.send(sent)
    pair.until_quiet()
    assert pair.at_board == sent
    assert pair.there.sent < 8 * len(sent)
    assert pair.host.segment_bytes <= 3 * CELL


def test_a_line_that_turns_bad_and_good_again_is_followed() -> None:
    pair = Pair()
    sizes = []
    for lose in (0.0, 1e-2, 0.0):
        pair.there.lose = pair.back.lose = lose
        pair.host.send(payload(200_000 if lose == 0.0 else 30_000))
        pair.until_quiet()
        sizes.append(pair.host.segment_bytes)
    assert pair.host.backlog_bytes == 0
    assert sizes[0] > 2048 > 256 > sizes[1]
    assert sizes[2] > 512


def test_a_slow_line_is_not_flooded_with_copies() -> None:
    pair = Pair(Line(rate=1_000.0, delay_s=2.0), Line(rate=1_000.0, delay_s=2.0))
    sent = payload(60_000)
    pair.host.send(sent)
    pair.until_quiet()
    assert pair.at_board == sent
    assert pair.there.sent < 1.15 * len(sent)


def test_nothing_is_sent_once_everything_is_acknowledged() -> None:
    pair = Pair(Line(lose=1e-2), Line(2, lose=1e-2))
    pair.host.send(payload(5000))
    pair.board.send(payload(5000))
    pair.until_quiet()
    for end in (pair.host, pair.board):
        assert end.next_deadline(pair.now_s) is None
        for later_s in (1.0, 60.0, 1e5):
            assert end.outgoing(pair.now_s + later_s) == b""


def test_everything_again_and_much_later_does_nothing() -> None:
    pair = Pair(Line(lose=2e-3), Line(2))
    pair.host.send(payload(20_000))
    pair.until_quiet()
    pair.host.send(payload(100))
    pair.until_quiet()
    assert pair.board.feed(b"".join(pair.there.log), pair.now_s) == b""
    assert pair.host.feed(b"".join(pair.back.log), pair.now_s) == b""
    pair.until_quiet()
    pair.host.send(b"and on it goes")
    pair.until_quiet()
    assert pair.at_board.endswith(b"and on it goes")


def test_another_session_and_an_echoing_terminal_are_not_listened_to() -> None:
    old, new = Arq(1, HOST, 9.0), Arq(2, BOARD, 9.0)
    old.send(b"from yesterday")
    stale = old.outgoing(0.0)
    assert new.feed(stale, 0.0) == b""
    assert new.outgoing(0.0) == b""
    assert old.feed(stale, 0.0) == b""
    assert old.acked_bytes == 0


def test_cells_far_ahead_take_no_memory() -> None:
    end = Arq(NONCE, BOARD, 9.0)
    cell = b"\0\0" + b"x" * CELL
    tracemalloc.start()
    try:
        for seq in range(1, 20 * WINDOW):
            end.feed(encode(Frame(Type.SEGMENT, cell, 0, HOST, NONCE, seq)), 0.0)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def test_silence_is_given_up_after_the_patience() -> None:
    end = Arq(NONCE, HOST, patience_s=30.0)
    end.send(b"anybody?")
    now_s, writes = 0.0, 0
    with pytest.raises(Stalled, match="30 s"):
        while True:
            writes += bool(end.outgoing(now_s))
            due = end.next_deadline(now_s)
            assert due is not None
            now_s = max(due, now_s + 1e-3)
    assert 30.0 < now_s < 36.0
    assert 5 < writes < 40


def test_a_line_that_only_speaks_keeps_nobody_waiting() -> None:
    """Noise and frames of others are no acknowledgement."""
    end = Arq(NONCE, HOST, patience_s=30.0)
    end.send(b"anybody?")
    now_s = 0.0
    with pytest.raises(Stalled):
        while True:
            end.outgoing(now_s)
            end.feed(MESSAGE + encode(Frame(Type.SEGMENT_ACK, b"", 0, BOARD, 3)), now_s)
            now_s += 0.5
            assert now_s < 60.0


def test_a_probe_is_answered_and_repeated_until_it_is() -> None:
    pair = Pair(Line(schedule=["drop", "drop"]), Line(2, schedule=["drop"]))
    pair.host.probe()
    pair.until_quiet()
    kinds = [frame.type for wire in pair.back.log for frame in Decoder().feed(wire)]
    assert set(kinds) == {Type.SEGMENT_ACK}
    assert len(pair.there.log) >= 4
    assert not pair.at_board
    assert pair.host.next_deadline(pair.now_s) is None
