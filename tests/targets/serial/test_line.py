"""Jobs and files over lines of every quality: what arrives is the same."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Measured, Outcome, Owner
from flatsat.targets.board import LinkDown
from flatsat.targets.host import HostBoard
from flatsat.targets.linux import LinuxBoard, SerialWay
from flatsat.targets.wheels import Site, Wheels

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.targets.board import Lease
    from flatsat.targets.session import AgentSession

PASSWORD = "a secret: 17"
Join = Callable[..., Any]
MakeJob = Callable[..., JobSpec]

# One byte in a hundred lost, one in ten thousand flipped, doubled, or followed by a kernel message.
BAD = {"lose": 0.01, "flip": 1e-4, "double": 1e-4, "kernel": 1e-4}


@pytest.fixture
def accuracy(files: Any, make_latency: MakeJob) -> JobSpec:
    """A job whose answer is a matter of arithmetic."""
    x = np.random.default_rng(3).standard_normal((200, 6)).astype(np.float32)
    return make_latency(
        files.dense(),
        kind=JobKind.ACCURACY,
        batch=16,
        dataset=files.arrays("data", {"in:image": x}),
    )


async def do(session: AgentSession, spec: JobSpec, files: Any) -> dict[str, Any]:
    """Run a job; return all of its outcome but durations and the state of this machine."""
    for sha256 in spec.blobs:
        await session.put(sha256, files.paths[sha256])
    return answer(await session.run("job", spec))


def answer(outcome: Outcome) -> dict[str, Any]:
    assert isinstance(outcome, Measured), outcome
    evidence: Any = {**outcome.evidence, "environment": {**outcome.evidence["environment"]}}
    del evidence["processes"], evidence["environment"]["before"], evidence["environment"]["after"]
    return {"logits": outcome.logits, "agreement": outcome.agreement, "evidence": evidence}


async def test_one_job_gives_one_answer_over_every_link(
    uart: Join, start: Any, lease: Lease, accuracy: JobSpec, files: Any
) -> None:
    session = await HostBoard(python=sys.executable).open(lease)
    expected = await do(session, accuracy, files)
    await session.close()
    assert expected["logits"] is not None
    for socket in (False, True):
        session = await start(uart(socket=socket))
        assert await do(session, accuracy, files) == expected
        await session.close()


@pytest.mark.slow
async def test_over_a_bad_line_everything_arrives_and_the_record_is_the_clean_ones(
    uart: Join, start: Any, lease: Lease, accuracy: JobSpec, files: Any, tmp_path: Path
) -> None:
    session = await HostBoard(python=sys.executable).open(lease)
    expected = await do(session, accuracy, files)
    await session.close()
    line = uart(**BAD)
    session = await start(line)
    data = np.random.default_rng(4).bytes(1_000_000)
    sha256 = files.keep("large", data)
    await session.put(sha256, files.paths[sha256])
    assert (tmp_path / "a store" / "blobs" / sha256).read_bytes() == data
    assert await do(session, accuracy, files) == expected
    await session.close()
    done = line.tell()
    assert done["lose"] > 10_000
    assert min(done["flip"], done["double"]) > 100
    assert done["kernel"] > 5


async def test_a_line_that_turns_bad_under_way_is_got_over(
    uart: Join, start: Any, accuracy: JobSpec, files: Any
) -> None:
    line = uart()
    session = await start(line)
    line.tell(**BAD)
    data = np.random.default_rng(4).bytes(60_000)
    sha256 = files.keep("some", data)
    await session.put(sha256, files.paths[sha256])
    assert (await do(session, accuracy, files))["logits"] is not None
    assert line.tell()["lose"] > 100
    await session.close()


async def test_an_upload_that_was_cut_goes_on_where_it_was(
    uart: Join, make_link: Any, start: Any, files: Any, lease: Lease
) -> None:
    line = uart()
    data = np.random.default_rng(4).bytes(600_000)
    sha256 = files.keep("large", data)
    session = await start(line)
    line.tell(rate=400_000)
    link: Any = session._link
    upload = asyncio.create_task(session.put(sha256, files.paths[sha256]))
    sent = line.tell()["up"]
    while line.tell()["up"] < sent + 300_000:
        await asyncio.sleep(0.05)
    await link._port.close()
    with pytest.raises(LinkDown, match="gone"):
        await upload
    await session.close()
    session = await start(line)
    before = line.tell()["up"]
    await session.put(sha256, files.paths[sha256])
    assert 250_000 < line.tell()["up"] - before < 450_000
    await session.close()


async def test_the_line_tells_how_fast_it_is(uart: Join, make_link: Any) -> None:
    line = uart()
    link = make_link(line)
    assert link.bytes_per_s is None
    await link.open(60.0)
    await link.close()
    rates = []
    for rate in (20_000, 200_000):
        line.tell(rate=rate)
        link = make_link(line)
        await link.open(60.0)
        rates.append(link.bytes_per_s)
        await link.close()
    assert 5_000 < rates[0] < 40_000 < rates[1] < 600_000


async def test_a_linux_board_may_have_its_agent_behind_a_console(
    uart: Join,
    lease: Lease,
    accuracy: JobSpec,
    files: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONSOLE_PASSWORD", PASSWORD)
    way = SerialWay(uart().port, user="tester", password_env="CONSOLE_PASSWORD")
    board = LinuxBoard("em1", (way,), python=sys.executable, store=str(tmp_path / "there"))
    session = await board.open(lease)
    assert (await do(session, accuracy, files))["logits"] is not None
    await session.close()


async def test_wheels_are_not_sent_over_a_line_that_would_take_too_long(
    uart: Join,
    lease: Lease,
    files: Any,
    make_latency: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wheel = tmp_path / "large.whl"
    wheel.write_bytes(b"never sent")
    site = Site("onnxruntime", "onnxruntime-1-0123456789ab", (wheel,), 40_000_000, ("0" * 64,))
    monkeypatch.setattr(Wheels, "site", lambda *_: site)
    monkeypatch.setenv("CONSOLE_PASSWORD", PASSWORD)
    line = uart()
    way = SerialWay(line.port, user="tester", password_env="CONSOLE_PASSWORD")
    board = LinuxBoard("em1", (way,), store=str(tmp_path / "there"))
    await (await board.open(lease)).close()
    line.tell(rate=11_520)
    session = await board.open(lease)
    outcome = await session.run("job", make_latency(files.dense(), plan={"processes": 1}))
    await session.close()
    assert isinstance(outcome, Failed)
    assert outcome.fault.owner == Owner.CONFIG
    assert re.search(
        r"carries \d+\.\d kB/s.*\(40 MB\) would take \d+ minutes", outcome.fault.message
    )
    assert "provision_via" in outcome.fault.hint
