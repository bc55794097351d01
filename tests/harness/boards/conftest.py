"""Runs on emulated boards, and faults that strike at a moment of a run rather than after a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_file
from flatsat.harness.config import load_lab_boards
from flatsat.harness.execute import Supplies, Tally, execute, job_row
from flatsat.harness.lab import Lab
from flatsat.harness.plan import PlannedJob
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.reports.rows import CandidateRow, OutcomeRow, RunRow
from flatsat.targets.agent.frames import Decoder, Type
from flatsat.targets.qmp import QmpClient
from flatsat.targets.serial_link import SerialLink
from flatsat.targets.ssh import SshLink

if TYPE_CHECKING:
    from flatsat.outcome import Outcome

BOARD = "qemu-arm64"
QUICK = MeasurePlan(
    processes=1, min_inferences=4, min_s=0.0, warmup="fixed", max_warmup=1, deadline_s=120.0
)
Act = Callable[[], Awaitable[object]]


@dataclass
class Model:
    """A file and how it is run.

    Attributes:
        name: unique in its run.
        path: the file.
        changes: fields of the JobSpec.
        board: its board's name.
    """

    name: str
    path: Path
    changes: dict[str, Any] = field(default_factory=dict)
    board: str = BOARD

    def spec(self) -> JobSpec:
        """Return a quick job; `plan` may be a dict of changes to the quick plan."""
        changes = dict(self.changes)
        plan = replace(QUICK, **changes.pop("plan", {}))
        spec = JobSpec(JobKind.LATENCY, sha256_file(self.path), "onnx", self.board, plan=plan)
        return replace(spec, **changes)


class Sink:
    """Keeps what a run says, and acts when it says something.

    Attributes:
        lines: all that was logged.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._awaited: list[tuple[str, Callable[[], object]]] = []

    def when(self, words: str, act: Callable[[], object]) -> None:
        """Call `act` once, when a line has these words."""
        self._awaited.append((words, act))

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Ignore."""

    def log(self, message: str) -> None:
        """Keep a line."""
        self.lines.append(message)
        for entry in list(self._awaited):
            if entry[0] in message:
                self._awaited.remove(entry)
                entry[1]()

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


class Wire:
    """What goes over this process's links to boards, and faults at moments of it.

    Attributes:
        sent: bytes written, link by link in the order of their opening.
        link: the latest.
        errors: of acts that failed; to the run they look like a link's.
    """

    def __init__(self) -> None:
        self.link: Any = None
        self.sent: list[int] = []
        self.errors: list[Exception] = []
        self._uploads: list[tuple[int, Act]] = []
        self._jobs: list[tuple[str, Act]] = []
        self._closings: list[Act] = []

    def in_mid_upload(self, act: Act, after_bytes: int = 1 << 20) -> None:
        """Call `act` once, when a link has taken so many bytes."""
        self._uploads.append((after_bytes, act))

    def in_mid_job(self, act: Act, job_id: str = "") -> None:
        """Call `act` once, when the board says that a job (whose id begins so) has started.

        Several strike at one start after the other.
        """
        self._jobs.append((job_id, act))

    def when_given_up(self, act: Act) -> None:
        """Call `act` once, when a link is closed."""
        self._closings.append(act)

    async def wrote(self, size: int) -> None:
        self.sent[-1] += size
        for entry in list(self._uploads):
            if self.sent[-1] >= entry[0]:
                self._uploads.remove(entry)
                await self._strike(entry[1])

    async def started(self, job_id: str) -> None:
        entry = next((entry for entry in self._jobs if job_id.startswith(entry[0])), None)
        if entry is not None:
            self._jobs.remove(entry)
            await self._strike(entry[1])

    async def closing(self) -> None:
        while self._closings:
            await self._strike(self._closings.pop())

    async def _strike(self, act: Act) -> None:
        try:
            await act()
        except Exception as error:
            self.errors.append(error)
            raise

    @property
    def armed(self) -> bool:
        """Whether a fault has not struck yet."""
        return bool(self._uploads or self._jobs or self._closings)


def watched(link: type[Any], wire: Wire) -> type[Any]:
    """Return a class of links that tells `wire` what goes over it."""

    class Watched(link):  # type: ignore[misc]
        async def open(self, deadline_s: float) -> None:
            self._frames = Decoder()
            await super().open(deadline_s)
            wire.link = self
            wire.sent.append(0)

        async def write(self, data: bytes, deadline_s: float) -> None:
            await super().write(data, deadline_s)
            await wire.wrote(len(data))

        async def read(self, deadline_s: float) -> bytes:
            data: bytes = await super().read(deadline_s)
            for frame in self._frames.feed(data):
                if frame.type == Type.STARTED:
                    await wire.started(json.loads(frame.payload)["job_id"])
            return data

        async def close(self) -> None:
            await wire.closing()
            await super().close()

    return Watched


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Watch the links to emulated boards."""
    seen = Wire()
    for room in ("qemu", "linux"):
        monkeypatch.setattr(f"flatsat.targets.{room}.SshLink", watched(SshLink, seen))
    monkeypatch.setattr("flatsat.targets.serial_link.SerialLink", watched(SerialLink, seen))
    yield seen
    assert not seen.errors


@pytest.fixture
def sink() -> Sink:
    return Sink()


@dataclass(frozen=True)
class Ran:
    """What a run came to.

    Attributes:
        tally: of the execution.
        rows: by the names of the models; models without an outcome are not there.
        log: what was said.
    """

    tally: Tally
    rows: dict[str, OutcomeRow]
    log: str

    def outcome(self, name: str) -> Outcome:
        return self.rows[name].outcome


Run = Callable[..., Ran]


@pytest.fixture
def run(sink: Sink) -> Run:
    """Execute one job a model in a lab, as a run of its own with the real record."""

    def go(lab: Lab, models: Sequence[Model], run_id: str = "run") -> Ran:
        lab.prepare()
        store = lab.store()
        # The same identifier goes on with the run.
        store.begin_run(RunRow(run_id, "run", "{}", "0", "0", "2026-01-01T00:00:00", "h", 0))
        jobs, files, names = [], {}, {}
        for index, model in enumerate(models):
            spec = model.spec()
            shape = (spec.artifact, spec.format, "float", 1, model.path.name, 17, 8, "", (), ())
            store.put_candidate(CandidateRow(model.name, None, model.name, "imported", ""), run_id)
            store.put_artifact(Artifact(*shape), model.name)
            job_id = f"{model.name}-{run_id}"
            jobs.append(PlannedJob(job_id, spec, model.name, model.board, 0, index, "c"))
            files[spec.artifact], names[spec.artifact] = model.path, model.name
        store.add_jobs(run_id, [job_row(run_id, job) for job in jobs])
        tally = execute(lab, store, run_id, jobs, Supplies(files, {}, names), progress=sink)
        rows = {row.job.job_id: row for row in store.outcomes(run_id=run_id)}
        found = {j.candidate_id: rows[j.job_id] for j in jobs if j.job_id in rows}
        store.close()
        return Ran(tally, found, sink.text)

    return go


@pytest.fixture
def good(dense_file: Callable[..., Path]) -> Callable[..., Model]:
    """Make a model that any board measures in a moment: `good(name)`."""

    def make(name: str = "good", board: str = BOARD) -> Model:
        return Model(name, dense_file(f"{name}.onnx", hidden=16), board=board)

    return make


@pytest.fixture
def large(onnx_file: Callable[..., Path], request: pytest.FixtureRequest) -> Model:
    """Return a good model of three megabytes, which hardly shrink; each test gets its own."""
    from onnx import TensorProto, helper

    draw = np.random.default_rng(zlib.crc32(request.node.name.encode()))
    path = onnx_file(
        "large.onnx",
        {"x": (TensorProto.FLOAT, ["batch", 8])},
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "v"], ["y"]),
        ],
        {"y": (TensorProto.FLOAT, ["batch", 4])},
        {
            "w": draw.normal(size=(8, 65536)).astype(np.float32),
            "v": draw.normal(size=(65536, 4)).astype(np.float32),
        },
    )
    return Model("large", path)


@pytest.fixture
def model() -> Callable[..., Model]:
    """Make a model: `model(name, path, plan=..., ...)`."""
    return lambda name, path, **changes: Model(name, path, changes)


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[..., Model]:
    """Make a file for the agent's runtime that fails on purpose: `faulty(fault, plan=..., ...)`."""

    def make(fault: str, plan: dict[str, Any] | None = None, **more: Any) -> Model:
        path = tmp_path / f"{fault}.json"
        path.write_text(json.dumps({"fault": fault, **more}))
        about = {"kind": JobKind.FAULTS, "runtime": "fault", "format": "fault"}
        return Model(fault, path, {**about, "plan": plan or {}})

    return make


class Guest:
    """The other way into a board that is kept up: commands, and the switches of its QEMU."""

    def __init__(self, booted: Any, image: Any, folder: Path) -> None:
        self._booted = booted
        self._link = lambda: SshLink(
            "127.0.0.1",
            booted.kept.ssh_port,
            user="root",
            known_hosts=image.host_key,
            keys=(image.user_key,),
            agent=folder / "none",
        )

    async def sh(self, command: str) -> str:
        """Run a command line on the board; return what it printed."""
        result = await self._link().run_command(command, 60.0)
        assert result.exit_status == 0, result
        return result.stdout.decode("utf-8", "replace")

    def now(self, command: str) -> str:
        """Run a command line, outside of any run."""
        return asyncio.run(self.sh(command))

    def processes(self, word: str) -> list[str]:
        """Return the command lines of the board's processes that hold a word."""
        # With its last letter in brackets, the pattern does not find itself.
        script = f"for p in /proc/[0-9]*/cmdline; do grep -l '{word[:-1]}[{word[-1]}]' $p; done"
        return self.now(f"({script}) 2>/dev/null || true").split()

    def boot_id(self) -> str:
        """Return what changes with every boot."""
        return self.now("cat /proc/sys/kernel/random/boot_id")

    @contextlib.asynccontextmanager
    async def monitor(self) -> AsyncIterator[QmpClient]:
        """Use QEMU's monitor."""
        qmp = await QmpClient.connect(self._booted.kept.qmp, 30.0)
        try:
            yield qmp
        finally:
            await qmp.close()

    def switch(self, command: str, **arguments: Any) -> Act:
        """Return the act of telling QEMU something."""

        async def act() -> None:
            async with self.monitor() as qmp:
                await qmp.execute(command, **arguments)

        return act

    def command(self, text: str) -> Act:
        """Return the act of running a command line on the board."""

        async def act() -> None:
            await self.sh(text)

        return act


@pytest.fixture
def guest(booted_board: Any, board_image: Any, tmp_path: Path) -> Iterator[Guest]:
    """Look into the board that is up; it runs, and its cable is in, when the test is over."""
    booted_board.bring_up()
    found = Guest(booted_board, board_image, tmp_path)
    yield found
    booted_board.bring_up()
    asyncio.run(found.switch("set_link", name="n0", up=True)())
    asyncio.run(found.switch("cont")())


@pytest.fixture
def lab(booted_board: Any) -> Lab:
    """Return a lab whose board `qemu-arm64` is up."""
    return Lab(booted_board.lab)


SHARED = """
[board.shared]
kind = "linux"
python = "{image.python}"
store = "{image.store}"
sites = {{ onnxruntime = "{image.sites[onnxruntime]}" }}

[[board.shared.links]]
host = "127.0.0.1"
port = {port}
user = "root"
key = "{image.user_key}"
known_hosts = "{image.host_key}"
keepalive_s = 3
"""


@pytest.fixture
def shared_lab(booted_board: Any, board_image: Any, tmp_path: Path) -> Lab:
    """Return another lab, whose board `shared` is the one that is up in `lab`.

    It is of kind `linux` there: it has no switch, and a server that is asked for signs of life.
    """
    root = tmp_path / "shared-lab"
    root.mkdir()
    port = booted_board.kept.ssh_port
    (root / "lab.toml").write_text(SHARED.format(image=board_image, port=port))
    return Lab(root, load_lab_boards(root))
