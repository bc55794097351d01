"""The host's side against an agent that follows a script: answers no real board gives on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flatsat.canonical import sha256_bytes
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Failed, Inconclusive, Measured, Owner
from flatsat.targets.agent.frames import Message, Peer, Type
from flatsat.targets.board import BoardRefused, Lease, LinkDown
from flatsat.targets.links import LinkTimeout
from flatsat.targets.session import AgentSession, open_session
from flatsat.units import TimeKind

Answers = list[tuple[int, object]]
Script = Mapping[int, Callable[[Message], Answers]]

WELCOME = {
    "protocol": 1,
    "agent": "0" * 64,
    "identity": {"cpu_model": "scripted"},
    "health": {"load1": 0.0},
}
SPEC = JobSpec(
    JobKind.ACCURACY, "0" * 64, "onnx", "s", plan=MeasurePlan(processes=1, deadline_s=0.01)
)


class ScriptedLink:
    """An agent in this process that answers each message as the script says."""

    def __init__(self, script: Script) -> None:
        self._script = {Type.HELLO: lambda _: [(Type.WELCOME, WELCOME)], **script}
        self._host, self._agent = Peer(), Peer()
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self.heard: list[int] = []

    async def open(self, deadline_s: float) -> None:
        pass

    async def write(self, data: bytes, deadline_s: float) -> None:
        for message in self._host.feed(data):
            self.heard.append(message.type)
            for kind, value in self._script.get(message.type, lambda _: [])(message):
                payload = value if isinstance(value, bytes) else json.dumps(value).encode()
                self._out.put_nowait(self._agent.pack(kind, payload))

    async def read(self, deadline_s: float) -> bytes:
        try:
            return await asyncio.wait_for(self._out.get(), deadline_s)
        except TimeoutError:
            raise LinkTimeout("silent") from None

    async def close(self) -> None:
        pass

    def last_words(self) -> str:
        return ""


async def session_with(script: Script) -> tuple[AgentSession, ScriptedLink]:
    link = ScriptedLink(script)
    session = await open_session(
        link, Lease("s", 1, Path()), kind="scripted", time_kind=TimeKind.WALL, grace_s=0.1
    )
    return session, link


def fault(code: str, owner: str = "harness", **more: object) -> dict[str, object]:
    value = {"owner": owner, "transient": True, "code": code, "message": code, "hint": ""}
    return {"fault": value, **more}


async def test_a_job_beyond_its_deadline_on_the_hosts_clock_is_cancelled() -> None:
    script: Script = {
        Type.RUN: lambda _: [(Type.STARTED, {"job_id": "j", "process": 0})],
        Type.CANCEL: lambda _: [(Type.FAULT, fault("cancelled", job_id="j"))],
    }
    session, link = await session_with(script)
    outcome = await session.run("j", SPEC)
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.code) == (Owner.CANDIDATE, "timeout")
    assert link.heard == [Type.HELLO, Type.RUN, Type.CANCEL]
    await session.close()


async def test_values_from_a_throttled_board_are_inconclusive() -> None:
    states = [
        {"phase": "before", "throttle_bits": 0},
        {"phase": "after", "throttle_bits": 0x40004},
    ]
    about = json.dumps({"process": 0, "quantity": "latency_ns", "kind": "clock", "warm": True})
    samples = len(about).to_bytes(2, "little") + about.encode() + (7).to_bytes(8, "little")
    script: Script = {
        Type.RUN: lambda _: [(Type.SAMPLES, samples), (Type.RESULT, {"health": states})]
    }
    session, _ = await session_with(script)
    outcome = await session.run("j", SPEC)
    assert isinstance(outcome, Inconclusive)
    assert "0x40004" in outcome.why
    assert outcome.samples[0].values == (7,)
    await session.close()


@pytest.mark.parametrize("how", ["right", "other bytes", "out of order"])
async def test_outputs_are_taken_only_by_their_hash(how: str) -> None:
    data = b"logits!!"
    sha256 = sha256_bytes(data)
    logits = {"sha256": sha256, "size": 8, "dtype": "float32", "shape": [1, 2]}
    sent = b"LOGITS!!" if how == "other bytes" else data
    offset = 4 if how == "out of order" else 0
    chunk = bytes.fromhex(sha256) + offset.to_bytes(8, "little") + sent
    script: Script = {
        Type.RUN: lambda _: [(Type.RESULT, {"logits": logits})],
        Type.NEED: lambda _: [(Type.CHUNK, chunk)],
    }
    session, _ = await session_with(script)
    if how == "right":
        outcome = await session.run("j", SPEC)
        assert isinstance(outcome, Measured)
        assert outcome.logits is not None
        assert (outcome.logits.data, outcome.logits.shape) == (data, (1, 2))
    else:
        with pytest.raises(LinkDown):
            await session.run("j", SPEC)
    await session.close()


async def test_a_board_that_refuses_a_file_says_why(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    script: Script = {Type.HAVE: lambda _: [(Type.FAULT, fault("disk-full", "board"))]}
    session, _ = await session_with(script)
    with pytest.raises(BoardRefused) as caught:
        await session.put(sha256_bytes(b"x"), source)
    assert (caught.value.fault.owner, caught.value.fault.code) == (Owner.BOARD, "disk-full")
    await session.close()


async def test_bytes_that_arrive_wrong_twice_are_given_up(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"x")
    need: Any = {"sha256": sha256_bytes(b"x"), "offset": 0}
    script: Script = {
        Type.HAVE: lambda _: [(Type.NEED, need)],
        Type.CHUNK: lambda _: [(Type.FAULT, fault("blob-corrupt", "board"))],
    }
    session, link = await session_with(script)
    with pytest.raises(BoardRefused, match="blob-corrupt"):
        await session.put(sha256_bytes(b"x"), source)
    assert link.heard.count(Type.CHUNK) == 2
    await session.close()


@pytest.mark.parametrize(
    "greeting",
    [{**WELCOME, "protocol": 2}, b"no json", [1]],
    ids=["another version", "no JSON", "no object"],
)
async def test_a_greeting_that_makes_no_sense_is_a_link_down(greeting: object) -> None:
    with pytest.raises(LinkDown):
        await session_with({Type.HELLO: lambda _: [(Type.WELCOME, greeting)]})
