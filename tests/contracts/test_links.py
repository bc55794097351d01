"""What every link must do, whatever lies beneath it. A new link adds itself to `LINKS`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from flatsat.targets.board import LinkDown
from flatsat.targets.links import Link, LinkTimeout, PipeLink
from flatsat.targets.ssh import SshLink

LONG_S = 60.0
ECHO = (
    "import os\n"
    "while True:\n"
    "    data = os.read(0, 65536)\n"
    "    if not data or b'END' in data: break\n"
    "    while data: data = data[os.write(1, data):]\n"
)
"""The far end: sends back what it gets, and ends at the word END."""


def pipe(_: pytest.FixtureRequest) -> Callable[[], Link]:
    return lambda: PipeLink([sys.executable, "-S", "-c", ECHO])


def ssh(request: pytest.FixtureRequest) -> Callable[[], Link]:
    program = request.getfixturevalue("tmp_path") / "flatsat-agent-echo.pyz"
    program.write_text(ECHO)
    settings = request.getfixturevalue("make_sshd")().link_settings()
    return lambda: SshLink(**settings, agent=program)


LINKS: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Link]]] = {"pipe": pipe, "ssh": ssh}


@pytest.fixture(params=LINKS)
def make(request: pytest.FixtureRequest) -> Callable[[], Link]:
    """Return a maker of links of one kind to the far end."""
    return LINKS[request.param](request)


async def read_exactly(link: Link, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await link.read(LONG_S)
    return data


async def test_bytes_arrive_whole_and_in_order(make: Callable[[], Link]) -> None:
    link = make()
    await link.open(LONG_S)
    sent = [bytes(range(256)), b"\0", b"\n" * 1000, b"\x11\x13\x03\xff"]
    for data in sent:
        await link.write(data, LONG_S)
    assert await read_exactly(link, sum(map(len, sent))) == b"".join(sent)
    await link.close()


async def test_silence_is_a_timeout_and_the_link_stays_good(make: Callable[[], Link]) -> None:
    link = make()
    await link.open(LONG_S)
    with pytest.raises(LinkTimeout):
        await link.read(0.05)
    with pytest.raises(LinkTimeout):
        await link.read(0.0)
    await link.write(b"late", LONG_S)
    assert await read_exactly(link, 4) == b"late"
    await link.close()


async def test_a_far_end_that_is_gone_is_a_link_down(make: Callable[[], Link]) -> None:
    link = make()
    await link.open(LONG_S)
    await link.write(b"END", LONG_S)
    with pytest.raises(LinkDown) as caught:
        await link.read(LONG_S)
    assert not isinstance(caught.value, LinkTimeout)
    with pytest.raises(LinkDown):
        for _ in range(1000):
            await link.write(b"anybody there?" * 1000, LONG_S)
    await link.close()


async def test_a_far_end_that_reads_nothing_does_not_hold_the_writer(
    make: Callable[[], Link],
) -> None:
    link = make()
    await link.open(LONG_S)
    # Nobody reads the echo, so the far end stops reading, too. What was sent by halves can't be
    # mended: the link is down, not only late.
    with pytest.raises(LinkDown) as caught:
        for _ in range(1000):
            await link.write(b"\x55" * (1 << 20), 0.2)
    assert not isinstance(caught.value, LinkTimeout)
    await link.close()


async def test_close_may_come_early_and_twice(make: Callable[[], Link]) -> None:
    await make().close()
    link = make()
    await link.open(LONG_S)
    await link.close()
    await link.close()
