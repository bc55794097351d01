"""A reliable byte stream over a line that loses, damages, doubles and inserts bytes.

Both ends use this class; it does no I/O and knows no clock. The stream is cut into cells of 32
bytes (the last one of a write may be shorter), numbered from 0. A SEGMENT carries consecutive
cells, as many as the line's measured quality makes best; a SEGMENT_ACK says which cells came:

    SEGMENT      seq = first cell, ack = first missing cell of the other direction,
                 payload = u16 number of this transmission | cells
    SEGMENT_ACK  seq = number of the transmission that came last, ack = first missing cell,
                 payload = bits: cell ack + 1 + i has come, least significant first

A line keeps its order. So the echoed number tells that every earlier transmission has come or is
lost, without doubt even where cells were sent several times; it also measures the round trip
exactly (what Karn's rule is for). Where nothing is echoed, a timer as in RFC 6298 sends the first
missing cells again, in ever smaller segments and at ever longer intervals.

`epoch` holds a number that both ends know and no other session has; `chan` is 0 from the host and
1 from the board, so that an echoing terminal doesn't talk to itself.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, List, NamedTuple, Optional

from .frames import Decoder, Frame, Type, encode

HOST = 0
BOARD = 1

CELL = 32
WINDOW = 1024
"""Cells that may be on their way: 32 KiB, far below what a kernel keeps for a late reader."""

_CUT = 1
"""Flag of a SEGMENT_ACK: it says nothing of the cells beyond its bits."""
_TURN = 1 << 16
_LARGEST = 4096 // CELL
_BATCH = 1024
# A frame around a segment: header, number, CRC, COBS and its two zero bytes.
_OVERHEAD = 29
_FIRST_RTO_S = 0.5
_LEAST_RTO_S = 0.03
_MOST_RTO_S = 4.0
_MOST_COPIES = 3
_SHORT_ACK = 16
_LOST = -1
_CAME = -2
# What the estimate of losses per byte starts from, and after how many bytes it forgets half.
_PRIOR_LOSSES = 0.05
_PRIOR_BYTES = 16.0
_MEMORY_BYTES = 32768.0


class Stalled(Exception):  # noqa: N818
    """The other end acknowledged nothing for as long as this end is willing to wait."""


class _Sent(NamedTuple):
    """One transmission of a segment."""

    number: int
    first: int
    cells: int
    size: int
    at_s: float


class Arq:
    """One end of the stream.

    Args:
        nonce: this session's number, 32 bits, the same at both ends.
        end: `HOST` or `BOARD`.
        patience_s: how long to go on without any acknowledgement.

    Attributes:
        acked_bytes: how much of what was sent is known to have come.
    """

    def __init__(self, nonce: int, end: int, patience_s: float) -> None:
        self.acked_bytes = 0
        self._nonce = nonce
        self._end = end
        self._patience_s = patience_s
        self._decoder = Decoder()
        # Sending. `_cells[0]` is cell `_base`, the first that is not acknowledged in a row;
        # `_state` has, for the cells sent so far, the number of the last transmission or what
        # became of it; `_known` has the bits that acknowledgements named.
        self._cells: List[bytes] = []
        self._state: List[int] = []
        self._base = 0
        self._known = 0
        self._losses = 0
        self._waiting_bytes = 0
        self._number = 0
        self._flying: Deque[_Sent] = deque()
        self._probing = False
        self._probe_due = False
        self._timer_s = 0.0
        self._progress_s = 0.0
        self._retries = 0
        self._srtt_s: Optional[float] = None
        self._rttvar_s = 0.0
        self._rto_s = _FIRST_RTO_S
        self._lost_segments = 0.0
        self._judged_bytes = 0.0
        # Receiving.
        self._next = 0
        self._held: Dict[int, bytes] = {}
        self._bits = 0
        self._echo = 0
        self._heard = 0
        self._bad = 0

    @property
    def backlog_bytes(self) -> int:
        """Bytes given to `send` that are not known to have come."""
        return self._waiting_bytes

    @property
    def segment_bytes(self) -> int:
        """The segment size that the line's quality makes best at present."""
        return self._segment_cells() * CELL

    def send(self, data: bytes) -> None:
        """Add bytes to the stream; `outgoing` gives what is to be written."""
        self._cells += [data[at : at + CELL] for at in range(0, len(data), CELL)]
        self._waiting_bytes += len(data)

    def probe(self) -> None:
        """Have the other end acknowledge something even if there is nothing to send."""
        self._probing = self._probe_due = True

    # Receiving.

    def feed(self, wire: bytes, now_s: float) -> bytes:
        """Take what has come over the line; return the next bytes of the stream, or b""."""
        parts: List[bytes] = []
        for frame in self._decoder.feed(wire):
            if frame.epoch != self._nonce or frame.chan == self._end:
                continue
            if frame.type == Type.SEGMENT and len(frame.payload) >= 2:
                self._acknowledged(frame.ack, 0, None, now_s)
                self._echo = int.from_bytes(frame.payload[:2], "little")
                self._heard += 1
                self._take(frame.seq, frame.payload[2:], parts)
            elif frame.type == Type.SEGMENT_ACK:
                bits = int.from_bytes(frame.payload, "little")
                known = frame.ack + 1 + 8 * len(frame.payload) if frame.flags & _CUT else None
                self._acknowledged(frame.ack, bits, frame.seq, now_s, known)
        return b"".join(parts)

    def _take(self, first: int, data: bytes, parts: List[bytes]) -> None:
        cells = -(-len(data) // CELL)
        end = first + cells
        before = self._next
        if end <= before or end > before + WINDOW:
            return
        if first > before:
            for index in range(cells):
                self._held[first + index] = data[index * CELL : (index + 1) * CELL]
            self._bits |= ((1 << cells) - 1) << (first - before - 1)
            return
        parts.append(data[(before - first) * CELL :])
        after = end
        if self._held:
            for cell in range(before, end):
                self._held.pop(cell, None)
            while after in self._held:
                parts.append(self._held.pop(after))
                after += 1
        self._bits >>= after - before
        self._next = after

    # Acknowledgements.

    def _acknowledged(
        self,
        upto: int,
        bits: int,
        echo: Optional[int],
        now_s: float,
        horizon: Optional[int] = None,
    ) -> None:
        sent = len(self._state)
        if upto > self._base + sent:
            return
        news = self._forget(upto - self._base) if upto > self._base else False
        # An acknowledgement that came late counts from an earlier cell.
        bits >>= self._base - upto
        fresh = bits & ((1 << max(0, len(self._state) - 1)) - 1) & ~self._known
        if fresh:
            news = True
            self._known |= fresh
            while fresh:
                lowest = fresh & -fresh
                fresh ^= lowest
                at = lowest.bit_length()
                self._losses -= self._state[at] == _LOST
                self._state[at] = _CAME
        if echo is not None:
            echoed = self._number - 1 - (self._number - 1 - echo) % _TURN
            news = self._judge(echoed, now_s, horizon) or news
        if not self._waiting():
            # Whatever else is on its way is a copy of what has come.
            self._flying.clear()
        if news:
            self._timer_s = self._progress_s = now_s
            self._retries = 0

    def _forget(self, cells: int) -> bool:
        gone = sum(map(len, self._cells[:cells]))
        self.acked_bytes += gone
        self._waiting_bytes -= gone
        self._losses -= self._state[:cells].count(_LOST)
        del self._cells[:cells], self._state[:cells]
        self._base += cells
        self._known >>= cells
        return True

    def _waiting(self) -> bool:
        return bool(self._state) or self._probing

    def _judge(self, echoed: int, now_s: float, horizon: Optional[int]) -> bool:
        """Settle what became of the transmissions up to the echoed one.

        Nothing is known of the cells from `horizon` on, if it is given.
        """
        if not self._flying or echoed < self._flying[0].number:
            return False
        open_: List[_Sent] = []
        while self._flying and self._flying[0].number <= echoed:
            sent = self._flying.popleft()
            if sent.number == echoed:
                self._measured(now_s - sent.at_s)
                self._probing = False
            cells = range(max(0, sent.first - self._base), sent.first + sent.cells - self._base)
            missing = [at for at in cells if self._state[at] == sent.number]
            if missing and horizon is not None and self._base + missing[-1] >= horizon:
                open_.append(sent)
                continue
            for at in missing:
                self._state[at] = _LOST
            self._losses += len(missing)
            self._lost_segments += bool(missing)
            self._judged_bytes += sent.size
        self._flying.extendleft(reversed(open_))
        if self._judged_bytes > _MEMORY_BYTES:
            self._judged_bytes /= 2
            self._lost_segments /= 2
        return True

    def _measured(self, rtt_s: float) -> None:
        if self._srtt_s is None:
            self._srtt_s, self._rttvar_s = rtt_s, rtt_s / 2
        else:
            self._rttvar_s += (abs(self._srtt_s - rtt_s) - self._rttvar_s) / 4
            self._srtt_s += (rtt_s - self._srtt_s) / 8
        self._rto_s = max(_LEAST_RTO_S, self._srtt_s + 4 * self._rttvar_s)

    # Sending.

    def _segment_cells(self) -> int:
        """Return the size that wastes least: each segment costs a frame, each loss a segment."""
        losses = self._lost_segments + _PRIOR_LOSSES
        best = (_OVERHEAD * (self._judged_bytes + _PRIOR_BYTES) / losses) ** 0.5
        return min(_LARGEST, max(1, int(best) // CELL))

    def _limit_s(self) -> float:
        most = max(_MOST_RTO_S, 2 * (self._srtt_s or 0.0))
        return min(most, self._rto_s * 1.5**self._retries)

    def next_deadline(self, now_s: float) -> Optional[float]:
        """Return when `outgoing` has something to send if nothing comes before, or None."""
        if not self._waiting():
            return None
        return max(now_s, self._timer_s + self._limit_s())

    def outgoing(self, now_s: float) -> bytes:
        """Return what to write now, a KiB or one segment; call it again until it gives b"".

        Raises:
            Stalled: nothing was acknowledged for too long.
        """
        out: List[bytes] = []
        if self._heard:
            out.append(self._acks())
        if self._flying:
            if now_s - self._progress_s > self._patience_s:
                raise Stalled("nothing was acknowledged for %.0f s" % self._patience_s)
            if now_s >= self._timer_s + self._limit_s():
                self._retry(now_s, out)
        if self._probe_due:
            self._probe_due = False
            self._transmit(0, 0, now_s, out)
        most = max(1, self._segment_cells() >> self._retries)
        window = min(WINDOW, len(self._cells))
        size = 0
        while size < _BATCH:
            if self._losses:
                at = self._state.index(_LOST)
                end = at + 1
                while end - at < most and end < len(self._state) and self._state[end] == _LOST:
                    end += 1
            elif len(self._state) < window:
                at = len(self._state)
                end = min(window, at + most)
            else:
                break
            size += self._transmit(at, end, now_s, out)
        return b"".join(out)

    def _retry(self, now_s: float, out: List[bytes]) -> None:
        """Send the first missing cells again, more each time, since small ones are lost, too."""
        self._timer_s = now_s
        self._retries = min(self._retries + 1, 16)
        cells = max(1, self._segment_cells() >> self._retries)
        if not self._state:
            # Only probes are on their way.
            self._transmit(0, 0, now_s, out)
        for _ in range(2 + self._retries):
            at = next((at for at, state in enumerate(self._state) if state != _CAME), None)
            if at is None:
                return
            end = at + 1
            while end - at < cells and end < len(self._state) and self._state[end] != _CAME:
                end += 1
            self._transmit(at, end, now_s, out)

    def _transmit(self, at: int, end: int, now_s: float, out: List[bytes]) -> int:
        """Send cells `at` to `end`, or up to the first short one, as a segment; return its size."""
        if not self._flying:
            self._timer_s = self._progress_s = now_s
        number = self._number
        self._number += 1
        cells = []
        for cell in self._cells[at:end]:
            cells.append(cell)
            if len(cell) < CELL:
                break
        end = at + len(cells)
        self._losses -= self._state[at:end].count(_LOST)
        self._state[at:end] = [number] * (end - at)
        first = self._base + at
        payload = b"".join([(number % _TURN).to_bytes(2, "little"), *cells])
        wire = encode(Frame(Type.SEGMENT, payload, 0, self._end, self._nonce, first, self._next))
        self._flying.append(_Sent(number, first, len(cells), len(wire), now_s))
        out.append(wire)
        return len(wire)

    def _acks(self) -> bytes:
        """Acknowledge what has come; several times where the line shows that it loses much.

        Then a long acknowledgement hardly ever gets through: it goes with short ones.
        """
        copies = min(_MOST_COPIES, 1 + (self._decoder.bad > self._bad) + self._heard // 8)
        self._heard, self._bad = 0, self._decoder.bad
        bits = self._bits.to_bytes((self._bits.bit_length() + 7) // 8, "little")
        ack = Frame(Type.SEGMENT_ACK, bits, 0, self._end, self._nonce, self._echo, self._next)
        short = ack
        if len(bits) > _SHORT_ACK:
            short = ack._replace(payload=bits[:_SHORT_ACK], flags=_CUT)
        return encode(ack) + encode(short) * (copies - 1)
