"""Sessions with real agents when something breaks: the link, the agent, the host, the lease."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest

from flatsat.canonical import sha256_bytes
from flatsat.errors import DataError
from flatsat.jobspec import JobSpec
from flatsat.outcome import Failed, Measured
from flatsat.targets.agent.frames import Message, Peer, Type
from flatsat.targets.board import BoardRefused, Lease, LinkDown
from flatsat.targets.host import HostBoard
from flatsat.targets.links import PipeLink
from flatsat.targets.provision import write_agent
from flatsat.targets.session import AgentSession, open_session
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from pathlib import Path

MakeJob = Callable[..., JobSpec]
LONG_S = 60.0


class TappedLink(PipeLink):
    """A pipe that tells when the agent has started a process."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(argv)
        self.started = asyncio.Event()
        self._tap = Peer()

    async def read(self, deadline_s: float) -> bytes:
        data = await super().read(deadline_s)
        if any(message.type == Type.STARTED for message in self._tap.feed(data)):
            self.started.set()
        return data

    async def children(self) -> list[psutil.Process]:
        """Return the agent's workers, once there is one."""
        await asyncio.wait_for(self.started.wait(), LONG_S)
        agent = psutil.Process(self.pid)
        while not (found := agent.children(recursive=True)):
            await asyncio.sleep(0)
        return found


def argv(lease: Lease, *more: str) -> list[str]:
    store = lease.directory / "store"
    return [sys.executable, str(write_agent(lease.directory)), "--store", str(store), *more]


async def tapped(lease: Lease, *more: str) -> tuple[AgentSession, TappedLink]:
    link = TappedLink(argv(lease, *more))
    session = await open_session(link, lease, kind="host", time_kind=TimeKind.WALL)
    return session, link


class Raw:
    """The host's side by hand: sends any message, reads the next."""

    def __init__(self, lease: Lease, *more: str) -> None:
        self.link = PipeLink(argv(lease, *more))
        self.peer = Peer(lease.epoch)
        self._inbox: list[Message] = []

    async def __aenter__(self) -> Self:
        await self.link.open(LONG_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()

    async def send(self, kind: int, value: object, flags: int = 0) -> None:
        payload = value if isinstance(value, bytes) else json.dumps(value).encode()
        await self.link.write(self.peer.pack(kind, payload, flags), LONG_S)

    async def receive(self) -> tuple[int, Any]:
        while not self._inbox:
            self._inbox += self.peer.feed(await self.link.read(LONG_S))
        message = self._inbox.pop(0)
        return message.type, json.loads(message.payload or b"null")

    async def greet(self) -> Any:
        await self.send(Type.HELLO, {})
        kind, welcome = await self.receive()
        assert kind == Type.WELCOME
        return welcome


def chunk(sha256: str, offset: int, data: bytes) -> bytes:
    return bytes.fromhex(sha256) + offset.to_bytes(8, "little") + data


@pytest.mark.parametrize("isolation", ["spawn", "fork"])
async def test_a_killed_agent_is_a_link_down_and_leaves_no_orphan(
    lease: Lease, files: Any, make_faulty: MakeJob, isolation: str
) -> None:
    session, link = await tapped(lease)
    hang = files.fault("hang")
    await session.put(hang, files.paths[hang])
    job = asyncio.create_task(session.run("j", make_faulty(hang, plan={"isolation": isolation})))
    workers = await link.children()
    psutil.Process(link.pid).kill()
    with pytest.raises(LinkDown, match="ended with code -9"):
        await job
    with pytest.raises(LinkDown):
        await session.run("k", make_faulty(hang))
    await session.close()
    assert psutil.wait_procs(workers, timeout=LONG_S)[1] == []


async def test_a_closed_session_ends_a_running_worker(
    lease: Lease, files: Any, make_faulty: MakeJob
) -> None:
    session, link = await tapped(lease)
    hang = files.fault("hang")
    await session.put(hang, files.paths[hang])
    job = asyncio.create_task(session.run("j", make_faulty(hang)))
    workers = await link.children()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    with pytest.raises(LinkDown, match="cancelled"):
        await session.put(hang, files.paths[hang])
    await session.close()
    assert psutil.wait_procs(workers, timeout=LONG_S)[1] == []


HOST_PROGRAM = """
import asyncio, sys
from pathlib import Path
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.targets.board import Lease
from flatsat.targets.links import PipeLink
from flatsat.targets.session import open_session
from flatsat.units import TimeKind

async def main(folder, sha, source, *argv):
    link = PipeLink(argv)
    lease = Lease("host", 1, Path(folder))
    session = await open_session(link, lease, kind="host", time_kind=TimeKind.WALL)
    await session.put(sha, Path(source))
    print(link.pid, flush=True)
    plan = MeasurePlan(processes=1)
    await session.run("j", JobSpec(JobKind.FAULTS, sha, "fault", "host", "fault", plan=plan))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_host_takes_agent_and_worker_with_it(lease: Lease, files: Any) -> None:
    hang = files.fault("hang")
    arguments = [str(lease.directory), hang, str(files.paths[hang]), *argv(lease)]
    host = subprocess.Popen(
        [sys.executable, "-c", HOST_PROGRAM, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    agent = psutil.Process(int(host.stdout.readline()))
    while not (workers := agent.children()):
        await asyncio.sleep(0)
    host.kill()
    host.communicate()
    assert psutil.wait_procs([agent, *workers], timeout=LONG_S)[1] == []


async def test_a_silent_host_is_given_up(lease: Lease) -> None:
    async with Raw(lease, "--silence", "0.2") as raw:
        await raw.greet()
        with pytest.raises(LinkDown, match="ended with code 2"):
            await raw.receive()


async def test_noise_is_no_sign_of_life(lease: Lease) -> None:
    async with Raw(lease, "--silence", "0.2") as raw:
        await raw.greet()

        async def chatter() -> None:
            while True:
                await raw.link.write(b"\x01noise\0", LONG_S)
                await asyncio.sleep(0.02)

        noise = asyncio.create_task(chatter())
        with pytest.raises(LinkDown, match="ended with code 2"):
            await raw.receive()
        noise.cancel()
        await asyncio.wait([noise])


async def test_noise_before_the_greeting_costs_nothing(lease: Lease) -> None:
    async with Raw(lease) as raw:
        await raw.link.write(b"Welcome to board 7!\r\nlogin: \0\0\x05\x01", LONG_S)
        assert (await raw.greet())["protocol"] == 1


async def test_an_older_epoch_is_refused(lease: Lease) -> None:
    newer = Lease(lease.board, 7, lease.directory)
    await (await HostBoard().open(newer)).close()
    with pytest.raises(BoardRefused, match="epoch 1 is over") as caught:
        await HostBoard().open(lease)
    assert caught.value.fault.code == "stale-epoch"
    await (await HostBoard().open(newer)).close()


async def test_a_frame_of_another_epoch_is_refused_in_mid_session(lease: Lease) -> None:
    async with Raw(lease) as raw:
        await raw.greet()
        raw.peer.epoch = 0
        await raw.send(Type.RUN, {"job_id": "j", "spec": {}})
        kind, answer = await raw.receive()
        assert (kind, answer["fault"]["code"]) == (Type.FAULT, "stale-epoch")


async def test_nothing_is_done_before_the_greeting(lease: Lease) -> None:
    async with Raw(lease) as raw:
        await raw.send(Type.PING, {})
        await raw.send(Type.HAVE, {"sha256": "0" * 64, "size": 1})
        await raw.greet()


async def test_a_newer_lease_ends_an_agent_that_still_runs(
    lease: Lease, files: Any, make_faulty: MakeJob
) -> None:
    session, link = await tapped(lease)
    hang = files.fault("hang")
    await session.put(hang, files.paths[hang])
    job = asyncio.create_task(session.run("j", make_faulty(hang)))
    workers = await link.children()
    newer = await HostBoard().open(Lease(lease.board, 2, lease.directory))
    with pytest.raises(LinkDown):
        await job
    assert psutil.wait_procs(workers, timeout=LONG_S)[1] == []
    await session.close()
    await newer.close()


async def test_a_half_sent_file_goes_on_where_it_broke_off(lease: Lease, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    sha256 = sha256_bytes(data)
    async with Raw(lease) as raw:
        await raw.greet()
        await raw.send(Type.HAVE, {"sha256": sha256, "size": len(data)})
        assert await raw.receive() == (Type.NEED, {"sha256": sha256, "offset": 0})
        await raw.send(Type.CHUNK, chunk(sha256, 0, data[:50_000]))
        await raw.send(Type.PING, {})
        assert (await raw.receive())[0] == Type.PONG
        psutil.Process(raw.link.pid).kill()
    async with Raw(lease) as raw:
        await raw.greet()
        await raw.send(Type.HAVE, {"sha256": sha256, "size": len(data)})
        assert await raw.receive() == (Type.NEED, {"sha256": sha256, "offset": 50_000})
    source = tmp_path / "data"
    source.write_bytes(data)
    session = await HostBoard().open(lease)
    await session.put(sha256, source)
    await session.close()
    assert (lease.directory / "store" / "blobs" / sha256).read_bytes() == data


async def test_a_transfer_that_rotted_on_the_board_is_sent_again(
    lease: Lease, tmp_path: Path
) -> None:
    data = b"model" * 1000
    source = tmp_path / "data"
    source.write_bytes(data)
    partial = lease.directory / "store" / "partial"
    partial.mkdir(parents=True)
    (partial / sha256_bytes(data)).write_bytes(b"rotten")
    session = await HostBoard().open(lease)
    await session.put(sha256_bytes(data), source)
    await session.close()


async def test_a_file_that_is_not_what_it_was_is_refused(lease: Lease, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.write_bytes(b"changed")
    session = await HostBoard().open(lease)
    with pytest.raises(DataError, match="not the file it was"):
        await session.put(sha256_bytes(b"original"), source)
    with pytest.raises(DataError, match="can't read"):
        await session.put(sha256_bytes(b"original"), tmp_path / "none")
    await session.put(sha256_bytes(b"changed"), source)
    await session.close()


@pytest.mark.parametrize("fill", [b"\0", b"\x55", None])
async def test_files_of_any_content_arrive(
    lease: Lease, tmp_path: Path, fill: bytes | None
) -> None:
    size = 300_001
    data = fill * size if fill else bytes((i * i >> 3) & 0xFF for i in range(size))
    source = tmp_path / "data"
    source.write_bytes(data)
    session = await HostBoard().open(lease)
    await session.put(sha256_bytes(data), source)
    await session.put(sha256_bytes(data), source)
    await session.close()
    assert (lease.directory / "store" / "blobs" / sha256_bytes(data)).read_bytes() == data


@pytest.mark.parametrize(
    ("kind", "value", "flags"),
    [
        (Type.RUN, b"no json", 0),
        (Type.RUN, {"job_id": "j"}, 0),
        (Type.RUN, {"job_id": "j", "spec": {"kind": "latency"}}, 0),
        (Type.HAVE, {"sha256": "../../etc/passwd", "size": 3}, 0),
        (Type.HAVE, {"sha256": "0" * 64, "size": "many"}, 0),
        (Type.HAVE, {"sha256": "0" * 64, "size": 1 << 60}, 0),
        (Type.NEED, {"sha256": "0" * 64, "offset": 0}, 0),
        (Type.NEED, [1, 2], 0),
    ],
)
async def test_requests_that_make_no_sense_get_a_fault_and_no_more(
    lease: Lease, kind: Type, value: object, flags: int
) -> None:
    async with Raw(lease) as raw:
        await raw.greet()
        await raw.send(kind, value, flags)
        answer, fault = await raw.receive()
        assert answer == Type.FAULT
        assert fault["fault"]["message"]
        await raw.send(99, b"a type from the future")
        await raw.send(Type.PING, {"still": "here"})
        assert await raw.receive() == (Type.PONG, {"still": "here"})


async def test_a_cancelled_job_is_the_harnesses_and_can_be_asked_again(
    lease: Lease, files: Any, make_faulty: MakeJob
) -> None:
    hang = files.fault("hang")
    async with Raw(lease) as raw:
        await raw.greet()
        data = files.paths[hang].read_bytes()
        await raw.send(Type.HAVE, {"sha256": hang, "size": len(data)})
        await raw.receive()
        await raw.send(Type.CHUNK, chunk(hang, 0, data))
        assert (await raw.receive())[0] == Type.STORED
        for _ in range(2):
            spec = make_faulty(hang).to_json()
            await raw.send(Type.RUN, {"job_id": "j", "spec": spec})
            assert (await raw.receive())[0] == Type.STARTED
            await raw.send(Type.CANCEL, {"job_id": "j"})
            kind, answer = await raw.receive()
            assert (kind, answer["fault"]["code"]) == (Type.FAULT, "cancelled")
            assert answer["fault"]["owner"] == "harness"


async def test_the_line_is_silent_from_the_start_to_the_end_of_a_window(
    lease: Lease, files: Any, make_faulty: MakeJob
) -> None:
    model = files.fault("none", busy_ns=100_000)
    async with Raw(lease) as raw:
        await raw.greet()
        data = files.paths[model].read_bytes()
        await raw.send(Type.HAVE, {"sha256": model, "size": len(data)})
        await raw.receive()
        await raw.send(Type.CHUNK, chunk(model, 0, data))
        await raw.receive()
        spec = make_faulty(model, plan={"processes": 2}).to_json()
        await raw.send(Type.RUN, {"job_id": "j", "spec": spec})
        assert (await raw.receive()) == (Type.STARTED, {"job_id": "j", "process": 0})
        # A question within the window waits for its answer.
        await raw.send(Type.PING, {})
        kinds = []
        while Type.PONG not in kinds:
            while not raw._inbox:
                raw._inbox += raw.peer.feed(await raw.link.read(LONG_S))
            kinds.append(raw._inbox.pop(0).type)
        assert kinds[0] == Type.STARTED
        assert set(kinds[1:-2]) == {Type.SAMPLES}
        assert kinds[-2:] == [Type.RESULT, Type.PONG]


async def test_lost_frames_end_the_session(lease: Lease) -> None:
    async with Raw(lease) as raw:
        await raw.greet()
        raw.peer.pack(Type.PING, b"never sent")
        await raw.send(Type.PING, {})
        kind, answer = await raw.receive()
        assert (kind, answer["fault"]["code"]) == (Type.FAULT, "frames-lost")
        with pytest.raises(LinkDown):
            await raw.receive()


async def test_an_interpreter_that_is_none_is_named(lease: Lease) -> None:
    with pytest.raises(LinkDown, match="/no/such/python"):
        await HostBoard(python="/no/such/python").open(lease)


async def test_an_agent_that_dies_at_once_tells_its_last_words(lease: Lease) -> None:
    link = PipeLink([sys.executable, "-c", "raise SystemExit('no room on this board')"])
    with pytest.raises(LinkDown, match="no room on this board"):
        await open_session(link, lease, kind="host", time_kind=TimeKind.WALL)


async def test_calls_from_two_tasks_take_turns(
    lease: Lease, files: Any, make_latency: MakeJob
) -> None:
    model = files.dense()
    session = await HostBoard().open(lease)
    await asyncio.gather(*(session.put(model, files.paths[model]) for _ in range(3)))
    outcomes = await asyncio.gather(
        *(session.run(f"j{n}", make_latency(model, plan={"isolation": "fork"})) for n in range(3))
    )
    assert all(isinstance(outcome, Measured) for outcome in outcomes)
    await session.close()
    await session.close()


async def test_virtual_boards_are_told_apart(
    lease: Lease, files: Any, make_latency: MakeJob
) -> None:
    link = PipeLink(argv(lease))
    session = await open_session(link, lease, kind="host", time_kind=TimeKind.VIRTUAL)
    model = files.dense()
    await session.put(model, files.paths[model])
    outcome = await session.run("j", make_latency(model))
    await session.close()
    assert isinstance(outcome, Measured)
    assert {s.kind for s in outcome.samples if s.quantity == "latency_ns"} == {"virtual"}


async def test_a_job_without_its_file_is_the_harnesses_fault(
    lease: Lease, make_latency: MakeJob
) -> None:
    session = await HostBoard().open(lease)
    outcome = await session.run("j", make_latency("0" * 64))
    await session.close()
    assert isinstance(outcome, Failed)
    assert outcome.fault.code == "no-blob"


async def test_a_host_may_greet_again(lease: Lease) -> None:
    async with Raw(lease) as raw:
        await raw.greet()
        raw.peer = Peer(lease.epoch + 1)
        await raw.greet()
        await raw.send(Type.PING, {})
        assert (await raw.receive())[0] == Type.PONG


async def test_a_stopped_agent_is_given_up_on_the_hosts_clock(
    lease: Lease, files: Any, make_faulty: MakeJob
) -> None:
    link = TappedLink(argv(lease))
    session = await open_session(link, lease, kind="host", time_kind=TimeKind.WALL, grace_s=0.1)
    hang = files.fault("hang")
    await session.put(hang, files.paths[hang])
    psutil.Process(link.pid).suspend()
    with pytest.raises(LinkDown, match="did not answer"):
        await session.run("j", make_faulty(hang, plan={"deadline_s": 0.3}))
    await session.close()
    assert not psutil.pid_exists(link.pid or 0)


async def test_a_board_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(LinkDown, match="can't write the agent"):
        await HostBoard().open(Lease("host", 1, blocker))
