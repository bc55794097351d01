"""Runtimes that a session gives to a board's agent: once, whole, resumed after a cut."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flatsat.canonical import sha256_file
from flatsat.errors import ConfigError, InfrastructureError
from flatsat.jobspec import JobSpec
from flatsat.outcome import Failed, Measured, Outcome, Owner
from flatsat.targets.board import BoardRefused, Lease, LinkDown
from flatsat.targets.links import PipeLink
from flatsat.targets.provision import write_agent
from flatsat.targets.session import AgentSession, open_session
from flatsat.targets.wheels import Interpreter, NoWheel, Site
from flatsat.units import TimeKind

MakeWheel = Callable[..., Path]
MakeJob = Callable[..., JobSpec]
RUNTIME = "tflite-runtime"
INTERPRETER = b"""
import enum
import numpy


class OpResolverType(enum.Enum):
    AUTO = 0
    BUILTIN_WITHOUT_DEFAULT_DELEGATES = 3


class Interpreter:
    def __init__(self, **settings):
        about = {"index": 0, "name": "image", "shape": [1, 2], "dtype": numpy.float32}
        self.get_input_details = self.get_output_details = lambda: [about]

    def allocate_tensors(self):
        pass

    def set_tensor(self, index, value):
        self.value = value

    def invoke(self):
        pass

    def get_tensor(self, index):
        return self.value
"""
"""A runtime in a few lines: its outputs are its inputs."""


def site_of(wheels: list[Path], version: str = "9.0") -> Site:
    hashes = tuple(sha256_file(path) for path in wheels)
    size = sum(path.stat().st_size for path in wheels)
    return Site(RUNTIME, f"{RUNTIME}-{version}-{hashes[0][:12]}", tuple(wheels), size, hashes)


@pytest.fixture
def site(tmp_path: Path, make_wheel: MakeWheel) -> Site:
    """Return a runtime of two wheels, one of them 4 MB that can't be packed."""
    engine = make_wheel(
        tmp_path,
        "tflite_runtime",
        "9.0",
        members={
            "tflite_runtime/__init__.py": b"__version__ = '9.0'\n",
            "tflite_runtime/interpreter.py": INTERPRETER,
        },
    )
    library = make_wheel(
        tmp_path, "library", members={"library/data": random.Random(7).randbytes(4_000_000)}
    )
    return site_of([engine, library])


class Provider:
    """Has one site, or an error; remembers what it was asked and told."""

    def __init__(self, site: Site | None, error: Exception | None = None) -> None:
        self.given = site
        self.error = error
        self.refusal: Exception | None = None
        self.asked: list[tuple[str, Interpreter]] = []
        self.sending: list[str] = []

    def site(self, runtime: str, interpreter: Interpreter) -> Site | None:
        self.asked.append((runtime, interpreter))
        if self.error is not None:
            raise self.error
        return self.given

    def before_sending(self, site: Site) -> None:
        self.sending.append(site.name)
        if self.refusal is not None:
            raise self.refusal


class Meter(PipeLink):
    """A pipe that counts what is written, and can be cut after so many bytes."""

    written = 0
    cut_after: int | None = None

    async def write(self, data: bytes, deadline_s: float) -> None:
        self.written += len(data)
        if self.cut_after is not None and self.written > self.cut_after:
            assert self.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
        await super().write(data, deadline_s)


class Bench:
    """Sessions with one board, one after the other, and the job that each does."""

    def __init__(self, lease: Lease, store: Path, spec: JobSpec, model: Path) -> None:
        self.store = store
        self._lease = lease
        self._spec = spec
        self._model = model
        self._jobs = 0

    @property
    def sites(self) -> list[str]:
        folder = self.store / "sites"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    async def open(
        self, provider: Provider | None, cut_after: int | None = None
    ) -> tuple[AgentSession, Meter]:
        self._lease = replace(self._lease, epoch=self._lease.epoch + 1)
        agent = write_agent(self._lease.directory)
        link = Meter([sys.executable, str(agent), "--store", str(self.store)])
        link.cut_after = cut_after
        session = await open_session(
            link, self._lease, kind="host", time_kind=TimeKind.WALL, sites=provider
        )
        return session, link

    async def job(self, session: AgentSession) -> Outcome:
        self._jobs += 1
        await session.put(self._spec.artifact, self._model)
        return await session.run(f"job-{self._jobs}", self._spec)

    async def once(self, provider: Provider | None) -> Outcome:
        """Do one job in a session of its own."""
        session, _ = await self.open(provider)
        try:
            return await self.job(session)
        finally:
            await session.close()


@pytest.fixture
def bench(lease: Lease, files: Any, tmp_path: Path, make_latency: MakeJob) -> Bench:
    artifact = files.keep("model.tflite", b"\0\0\0\0TFL3")
    spec = make_latency(artifact, format="tflite", runtime=RUNTIME, provider="xnnpack")
    return Bench(lease, tmp_path / "store", spec, files.paths[artifact])


def fault_of(outcome: Outcome) -> tuple[Owner, str]:
    assert isinstance(outcome, Failed), outcome
    return outcome.fault.owner, outcome.fault.code


async def test_a_runtime_goes_over_once_and_jobs_run_in_it(bench: Bench, site: Site) -> None:
    provider = Provider(site)
    session, link = await bench.open(provider)
    for _ in range(2):
        outcome = await bench.job(session)
        assert isinstance(outcome, Measured), outcome
        told: Any = outcome.evidence["runtime"]
        assert (told["name"], told["version"]) == (RUNTIME, "9.0")
    await session.close()
    assert link.written > site.size_bytes
    assert [runtime for runtime, _ in provider.asked] == [RUNTIME]
    assert provider.asked[0][1].version == sys.version_info[:2]
    assert bench.sites == [site.name]
    kept = {path.name for path in (bench.store / "blobs").iterdir()}
    assert kept.isdisjoint(site.sha256)

    session, link = await bench.open(provider)
    assert session.welcome["sites"] == [site.name]
    assert isinstance(await bench.job(session), Measured)
    await session.close()
    assert link.written < 10_000
    assert provider.sending == [site.name]


async def test_without_a_provider_a_site_that_is_there_is_left_alone(
    bench: Bench, site: Site
) -> None:
    assert isinstance(await bench.once(Provider(site)), Measured)
    assert fault_of(await bench.once(None)) == (Owner.BOARD, "no-runtime")


async def test_a_cut_transfer_goes_on_where_it_broke_off(bench: Bench, site: Site) -> None:
    session, _ = await bench.open(Provider(site), cut_after=3_000_000)
    with pytest.raises(LinkDown):
        await session.install(site)
    await session.close()
    assert bench.sites == []
    session, link = await bench.open(Provider(site))
    assert isinstance(await bench.job(session), Measured)
    await session.close()
    assert link.written < site.size_bytes - 1_000_000


@pytest.mark.parametrize("damage", ["marker", "file"])
async def test_a_damaged_site_is_made_anew(bench: Bench, site: Site, damage: str) -> None:
    assert isinstance(await bench.once(Provider(site)), Measured)
    folder = bench.store / "sites" / site.name
    if damage == "marker":
        (folder / ".complete").unlink()
    else:
        (folder / "tflite_runtime" / "interpreter.py").write_text("")
    (bench.store / "sites" / f".{site.name}.1.tmp").mkdir()
    assert isinstance(await bench.once(Provider(site)), Measured)
    assert bench.sites == [site.name]


async def test_the_newer_of_two_sites_is_used_when_it_is_asked_for(
    bench: Bench, site: Site, make_wheel: MakeWheel, tmp_path: Path
) -> None:
    newer = make_wheel(
        tmp_path,
        "tflite_runtime",
        "10.0",
        members={
            "tflite_runtime/__init__.py": b"__version__ = '10.0'\n",
            "tflite_runtime/interpreter.py": INTERPRETER,
        },
    )
    session, _ = await bench.open(Provider(site))
    for wanted in (site, site_of([newer], "10.0")):
        await session.install(wanted)
        for plan in ("spawn", "fork"):
            bench._spec = replace(bench._spec, plan=replace(bench._spec.plan, isolation=plan))
            outcome = await bench.job(session)
            assert isinstance(outcome, Measured), outcome
            told: Any = outcome.evidence["runtime"]
            assert told["version"] == wanted.name.split("-")[2]
    await session.close()
    assert len(bench.sites) == 2


@pytest.mark.parametrize("error", ["ImportError", "OSError", "AttributeError", "SystemError"])
async def test_a_runtime_that_does_not_load_there_is_the_boards_fault(
    bench: Bench, make_wheel: MakeWheel, tmp_path: Path, error: str
) -> None:
    code = f"raise {error}('version GLIBC_2.38 not found')".encode()
    broken = make_wheel(tmp_path, "broken", members={"tflite_runtime/__init__.py": code})
    outcome = await bench.once(Provider(site_of([broken])))
    assert fault_of(outcome) == (Owner.BOARD, "no-runtime")
    assert "GLIBC_2.38" in outcome.fault.message  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["no archive", "leads out"])
async def test_a_wheel_that_is_none_fails_the_job_and_leaves_nothing(
    bench: Bench, make_wheel: MakeWheel, tmp_path: Path, what: str
) -> None:
    wheel = make_wheel(tmp_path, "engine", members={"../../evil.py": b"evil"})
    if what == "no archive":
        wheel.write_bytes(b"404 not found")
    session, _ = await bench.open(Provider(site_of([wheel])))
    outcome = await bench.job(session)
    assert fault_of(outcome) == (Owner.HARNESS, "bad-wheel")
    assert wheel.name in outcome.fault.message  # type: ignore[union-attr]
    assert fault_of(await bench.job(session)) == (Owner.HARNESS, "bad-wheel")
    await session.close()
    assert bench.sites == []
    assert not list(tmp_path.rglob("evil.py"))


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Path]:
    """Return a file system with room, but for few files only."""
    folder = tmp_path / "small"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=200m,nr_inodes=36", "flatsat-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("no file system of a limited size can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_that_fills_up_meanwhile_is_the_boards_fault_and_the_session_lives(
    bench: Bench, site: Site, crowded: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    bench.store = crowded / "store"
    (agent := tmp_path / "agent").mkdir()
    (crowded / "store").mkdir()
    (crowded / "store" / "agent").symlink_to(agent)
    many = make_wheel(tmp_path, "many", members={f"many/{n}": b"data" for n in range(50)})
    session, _ = await bench.open(Provider(site_of([many])))
    outcome = await bench.job(session)
    assert fault_of(outcome) == (Owner.BOARD, "disk-full")
    assert bench.sites == []
    await session.install(site)
    assert bench.sites == [site.name]
    await session.close()


@pytest.mark.parametrize(
    ("error", "owner", "code"),
    [
        (NoWheel("nobody built it", hint="another Python"), Owner.CONFIG, "no-runtime"),
        (InfrastructureError("no network", hint="connect"), Owner.HARNESS, "no-wheels"),
    ],
)
async def test_without_wheels_the_job_says_why_and_is_not_asked_for_again(
    bench: Bench, error: InfrastructureError, owner: Owner, code: str
) -> None:
    provider = Provider(None, error)
    session, _ = await bench.open(provider)
    for _ in range(2):
        outcome = await bench.job(session)
        assert fault_of(outcome) == (owner, code)
        assert (outcome.fault.message, outcome.fault.hint) == (error.message, error.hint)  # type: ignore[union-attr]
    await session.close()
    assert len(provider.asked) == 1


async def test_without_a_network_an_earlier_site_serves(bench: Bench, site: Site) -> None:
    assert isinstance(await bench.once(Provider(site)), Measured)
    offline = Provider(None, InfrastructureError("no network"))
    assert isinstance(await bench.once(offline), Measured)
    assert isinstance(await bench.once(Provider(None, NoWheel("none"))), Failed)


async def test_a_link_that_is_too_slow_is_asked_first(bench: Bench, site: Site) -> None:
    provider = Provider(site)
    provider.refusal = ConfigError("it would take 40 min", hint='set provision_via = "ssh"')
    session, link = await bench.open(provider)
    outcome = await bench.job(session)
    assert fault_of(outcome) == (Owner.CONFIG, "no-runtime")
    assert "40 min" in outcome.fault.message  # type: ignore[union-attr]
    await session.close()
    assert link.written < 10_000


async def test_a_name_that_leads_out_of_the_store_is_refused(bench: Bench) -> None:
    session, _ = await bench.open(None)
    for name in ("../../etc", "", ".hidden", "a/b"):
        with pytest.raises(BoardRefused, match="not a site's name"):
            await session.use_installed(RUNTIME, name)
    with pytest.raises(BoardRefused, match="not here"):
        await session.use_installed(RUNTIME, "tflite-runtime-1.0-0")
    await session.close()
    assert bench.sites == []
