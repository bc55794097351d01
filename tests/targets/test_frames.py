"""The wire format: what is sent arrives, whatever lies around it; hostile bytes do no harm."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.targets.agent.frames import (
    MAX_MESSAGE,
    MAX_PAYLOAD,
    MORE,
    Decoder,
    Frame,
    Peer,
    Type,
    cobs_decode,
    cobs_encode,
    decode,
    encode,
)

u8 = st.integers(0, 0xFF)
u32 = st.integers(0, 0xFFFFFFFF)
frames = st.builds(
    Frame,
    type=u8,
    payload=st.binary(max_size=700),
    flags=u8,
    chan=u8,
    epoch=u32,
    seq=u32,
    ack=u32,
)


def test_layout_is_the_documented_one() -> None:
    frame = Frame(Type.RUN, b"ab", flags=2, chan=3, epoch=4, seq=5, ack=6)
    body = struct.pack("<BBBBIIIH", 1, 7, 2, 3, 4, 5, 6, 2) + b"ab"
    body += struct.pack("<I", zlib.crc32(body))
    assert encode(frame) == b"\0" + cobs_encode(body) + b"\0"


@pytest.mark.parametrize(
    ("plain", "coded"),
    [
        (b"", b"\x01"),
        (b"\0", b"\x01\x01"),
        (b"\x11\x22\0\x33", b"\x03\x11\x22\x02\x33"),
        (bytes(range(1, 254)), b"\xfe" + bytes(range(1, 254))),
    ],
)
def test_cobs_matches_the_published_examples(plain: bytes, coded: bytes) -> None:
    assert cobs_encode(plain) == coded
    assert cobs_decode(coded) == plain


@given(st.one_of(st.binary(max_size=2000), st.integers(0, 1100).map(lambda n: b"\x07" * n)))
def test_cobs_has_no_zero_and_little_overhead(data: bytes) -> None:
    coded = cobs_encode(data)
    assert 0 not in coded
    assert len(coded) <= len(data) + len(data) // 254 + 1
    assert cobs_decode(coded) == data


@given(frames)
def test_a_frame_comes_back(frame: Frame) -> None:
    assert Decoder().feed(encode(frame)) == [frame]


@given(st.lists(frames, max_size=4), st.lists(st.integers(1, 40), min_size=1))
def test_fragments_of_any_size_give_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(encode(frame) for frame in sent)
    decoder, got, at, turn = Decoder(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += decoder.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert got == sent
    assert decoder.bad == 0


@given(frames, st.binary(max_size=400), st.binary(max_size=400))
def test_noise_on_both_sides_costs_no_frame(frame: Frame, before: bytes, after: bytes) -> None:
    assert frame in Decoder().feed(before + encode(frame) + after + b"\0")


@given(frames, st.data())
def test_a_flipped_bit_never_gives_another_frame(frame: Frame, data: st.DataObject) -> None:
    wire = bytearray(encode(frame))
    at = data.draw(st.integers(1, len(wire) - 2))
    wire[at] ^= 1 << data.draw(st.integers(0, 7))
    assert Decoder().feed(bytes(wire)) in ([], [frame])


@given(st.binary(max_size=4000))
def test_hostile_bytes_raise_nothing(data: bytes) -> None:
    peer = Peer(1)
    peer.feed(data)
    peer.feed(b"\0" + data + b"\0")


def test_a_stream_without_a_zero_holds_no_memory() -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        for _ in range(64):
            assert decoder.feed(b"\x55" * (1 << 20)) == []
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    frame = Frame(Type.PING, b"still here")
    assert decoder.feed(encode(frame)) == [frame]
    assert decoder.bad == 1


def test_a_message_that_never_ends_holds_bounded_memory() -> None:
    peer = Peer()
    part = b"x" * MAX_PAYLOAD
    turns = 2 * MAX_MESSAGE // MAX_PAYLOAD
    tracemalloc.start()
    try:
        for seq in range(turns):
            assert peer.feed(encode(Frame(Type.RUN, part, flags=MORE, seq=seq))) == []
        assert tracemalloc.get_traced_memory()[0] < 3 * MAX_MESSAGE
    finally:
        tracemalloc.stop()
    assert peer.bad >= 1


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 3 * MAX_PAYLOAD])
def test_long_messages_are_cut_and_joined(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    (message,) = Peer().feed(Peer(9).pack(Type.SAMPLES, payload))
    assert (message.type, message.payload, message.epoch) == (Type.SAMPLES, payload, 9)


def test_too_long_a_message_is_refused_by_the_sender() -> None:
    with pytest.raises(ValueError, match="at most"):
        Peer().pack(Type.CHUNK, b"x" * (MAX_MESSAGE + 1))
    with pytest.raises(ValueError, match="at most"):
        encode(Frame(Type.CHUNK, b"x" * (MAX_PAYLOAD + 1)))


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=3, max_size=8), st.data())
def test_a_lost_frame_is_noticed_by_the_next(payloads: list[bytes], data: st.DataObject) -> None:
    sender, receiver = Peer(), Peer()
    wires = [sender.pack(Type.LOG, payload) for payload in payloads]
    gone = data.draw(st.integers(1, len(payloads) - 2))
    got = receiver.feed(b"".join(wires[:gone] + wires[gone + 1 :]))
    assert [message.payload for message in got] == payloads[:gone] + payloads[gone + 1 :]
    assert receiver.lost == 1


def test_half_a_message_is_forgotten_when_its_rest_is_lost() -> None:
    receiver = Peer()
    receiver.feed(encode(Frame(Type.RUN, b"first half, ", flags=MORE, seq=0)))
    (message,) = receiver.feed(encode(Frame(Type.RUN, b"whole", seq=2)))
    assert message.payload == b"whole"


@settings(max_examples=20)
@given(st.integers(0xFFFFFFFD, 0xFFFFFFFF))
def test_numbers_wrap_without_a_loss(start: int) -> None:
    receiver = Peer()
    for turn in range(6):
        receiver.feed(encode(Frame(Type.PING, b"", seq=(start + turn) % (1 << 32))))
    assert receiver.lost == 0


def test_another_version_is_no_frame() -> None:
    body = struct.pack("<BBBBIIIH", 2, 7, 0, 0, 0, 0, 0, 0)
    body += struct.pack("<I", zlib.crc32(body))
    assert decode(cobs_encode(body)) is None
