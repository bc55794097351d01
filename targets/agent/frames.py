"""The wire format between host and board; both ends use this file.

The stream is `0x00 COBS(frame) 0x00 ...`, so that after any noise the next zero byte gets both ends
back in step. A frame is, little-endian:

    ver u8 = 1 | type u8 | flags u8 | chan u8 | epoch u32 | seq u32 | ack u32 | len u16 | payload
    | crc32 u32 of everything before it

A message longer than one frame travels as frames of one type, all but the last with `MORE` set.
Bytes that make no valid frame are counted and dropped: they raise nothing and hold no memory.
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import Dict, List, NamedTuple, Optional, Tuple

VERSION = 1
MORE = 1
"""Flag: the message goes on in the next frame of this type."""
PACKED = 2
"""Flag of CHUNK: the data behind the chunk's head is compressed by zlib."""

MAX_PAYLOAD = 0xFFFF
MAX_MESSAGE = 16 << 20

_HEAD = struct.Struct("<BBBBIIIH")
_CRC = struct.Struct("<I")
_LARGEST = _HEAD.size + MAX_PAYLOAD + _CRC.size
_LARGEST_CODED = _LARGEST + _LARGEST // 254 + 2
_BLOCK = 254
_WRAP = 1 << 32


class Type(enum.IntEnum):
    """What a frame says."""

    HELLO = 1
    WELCOME = 2
    HAVE = 3
    NEED = 4
    CHUNK = 5
    STORED = 6
    RUN = 7
    STARTED = 8
    SAMPLES = 9
    RESULT = 10
    FAULT = 11
    LOG = 12
    PING = 13
    PONG = 14
    CANCEL = 15
    BYE = 16
    INSTALL = 17
    INSTALLED = 18
    SEGMENT = 19
    SEGMENT_ACK = 20
    DECODE = 21
    DECODED = 22


class Frame(NamedTuple):
    """One frame; `type` is a plain number, since a peer may know more types than we do."""

    type: int
    payload: bytes
    flags: int = 0
    chan: int = 0
    epoch: int = 0
    seq: int = 0
    ack: int = 0


class Message(NamedTuple):
    """The payloads of one or more frames put together."""

    type: int
    payload: bytes
    flags: int
    epoch: int


def cobs_encode(data: bytes) -> bytes:
    """Return `data` without zero bytes: at most one byte longer for each 254, plus one."""
    out = bytearray()
    for piece in data.split(b"\0"):
        start, left = 0, len(piece)
        while left >= _BLOCK:
            out.append(0xFF)
            out += piece[start : start + _BLOCK]
            start += _BLOCK
            left -= _BLOCK
        out.append(left + 1)
        out += piece[start:]
    return bytes(out)


def cobs_decode(data: bytes) -> Optional[bytes]:
    """Return what `cobs_encode` was given, or None for bytes that it can't have made."""
    out = bytearray()
    at, size = 0, len(data)
    while at < size:
        code = data[at]
        end = at + code
        if code == 0 or end > size:
            return None
        out += data[at + 1 : end]
        if code < 0xFF and end < size:
            out.append(0)
        at = end
    return bytes(out)


def encode(frame: Frame) -> bytes:
    """Return the bytes of one frame on the wire, its zero delimiters included.

    Raises:
        ValueError: the payload is longer than `MAX_PAYLOAD`.
    """
    if len(frame.payload) > MAX_PAYLOAD:
        raise ValueError("a frame carries at most %d bytes" % MAX_PAYLOAD)
    head = _HEAD.pack(
        VERSION,
        frame.type,
        frame.flags,
        frame.chan,
        frame.epoch,
        frame.seq % _WRAP,
        frame.ack % _WRAP,
        len(frame.payload),
    )
    body = head + frame.payload
    return b"\0" + cobs_encode(body + _CRC.pack(zlib.crc32(body))) + b"\0"


def decode(coded: bytes) -> Optional[Frame]:
    """Return the frame between two zero bytes, or None if it is damaged or of another version."""
    if len(coded) > _LARGEST_CODED:
        return None
    body = cobs_decode(coded)
    if body is None or not _HEAD.size + _CRC.size <= len(body) <= _LARGEST:
        return None
    (crc,) = _CRC.unpack_from(body, len(body) - _CRC.size)
    if zlib.crc32(body[: -_CRC.size]) != crc:
        return None
    version, kind, flags, chan, epoch, seq, ack, length = _HEAD.unpack_from(body)
    if version != VERSION or length != len(body) - _HEAD.size - _CRC.size:
        return None
    return Frame(kind, body[_HEAD.size : -_CRC.size], flags, chan, epoch, seq, ack)


class Decoder:
    """Cuts a byte stream into frames, whatever lies between them.

    Attributes:
        bad: pieces of the stream that were no frame.
    """

    def __init__(self) -> None:
        self.bad = 0
        self._piece = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> List[Frame]:
        """Take the next bytes and return the frames that they complete."""
        frames: List[Frame] = []
        pieces = data.split(b"\0")
        for piece in pieces[:-1]:
            self._take(piece)
            self._close(frames)
        self._take(pieces[-1])
        return frames

    def _take(self, piece: bytes) -> None:
        if len(self._piece) + len(piece) > _LARGEST_CODED:
            # No frame is so long: forget it, and whatever follows up to the next zero byte.
            self._piece = bytearray()
            self._skipping = True
        elif not self._skipping:
            self._piece += piece

    def _close(self, frames: List[Frame]) -> None:
        if self._skipping:
            self.bad += 1
        elif self._piece:
            frame = decode(bytes(self._piece))
            if frame is None:
                self.bad += 1
            else:
                frames.append(frame)
        self._piece = bytearray()
        self._skipping = False


class Peer:
    """One end's view of the stream: numbers what it sends, joins what it gets; does no I/O.

    Attributes:
        epoch: written into every frame that is sent.
        lost: frames that the other end sent and that never came, by their numbers.
    """

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self.lost = 0
        self._decoder = Decoder()
        self._seq = 0
        self._last: Optional[int] = None
        self._parts: Dict[Tuple[int, int], bytearray] = {}
        self._held = 0

    @property
    def bad(self) -> int:
        """Pieces of the stream that were no frame."""
        return self._decoder.bad

    def pack(self, kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
        """Return the bytes of one message.

        Raises:
            ValueError: the payload is longer than `MAX_MESSAGE`, which the other end would drop.
        """
        if len(payload) > MAX_MESSAGE:
            raise ValueError("a message carries at most %d bytes" % MAX_MESSAGE)
        out = bytearray()
        last = max(0, len(payload) - 1) // MAX_PAYLOAD
        for index in range(last + 1):
            part = payload[index * MAX_PAYLOAD : (index + 1) * MAX_PAYLOAD]
            more = MORE if index < last else 0
            ack = 0 if self._last is None else self._last
            out += encode(Frame(kind, part, flags | more, 0, self.epoch, self._seq, ack))
            self._seq = (self._seq + 1) % _WRAP
        return bytes(out)

    def feed(self, data: bytes) -> List[Message]:
        """Take the next bytes and return the messages that they complete."""
        messages = []
        for frame in self._decoder.feed(data):
            self._count(frame.seq)
            message = self._join(frame)
            if message is not None:
                messages.append(message)
        return messages

    def _count(self, seq: int) -> None:
        expected = seq if self._last is None else (self._last + 1) % _WRAP
        if seq != expected:
            self.lost += (seq - expected) % _WRAP
            self._parts.clear()
            self._held = 0
        self._last = seq

    def _join(self, frame: Frame) -> Optional[Message]:
        key = (frame.chan, frame.type)
        if frame.flags & MORE:
            if self._held + len(frame.payload) > MAX_MESSAGE:
                self._parts.clear()
                self._held = 0
                self._decoder.bad += 1
                return None
            self._parts.setdefault(key, bytearray()).extend(frame.payload)
            self._held += len(frame.payload)
            return None
        before = self._parts.pop(key, None)
        payload = frame.payload
        if before is not None:
            self._held -= len(before)
            payload = bytes(before) + payload
        return Message(frame.type, payload, frame.flags, frame.epoch)
