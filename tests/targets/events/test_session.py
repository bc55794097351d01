"""Energy jobs between a board and its metered sibling, both scripted, and a log that goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Failed, Fault, Inconclusive, Measured, Owner, Samples
from flatsat.targets.board import BoardIdentity, BoardRefused, LinkDown
from flatsat.targets.energy import EnergyModel
from flatsat.targets.events import CacheGeometry, EventsSession, NoMeter

MODEL = "a" * 64
ENERGY = JobSpec(JobKind.ENERGY, MODEL, "onnx", "qemu", plan=VIRTUAL_PLAN)
LATENCY = replace(ENERGY, kind=JobKind.LATENCY)
TOLD = {"empty": 3, "warm_up": 1, "counted": 2}
RAM = Samples("rss_bytes", "ru_maxrss", 0, True, (1,))


def window(**changes: Any) -> dict[str, Any]:
    counts = ("instructions", "loads", "load_bytes", "stores", "store_bytes")
    misses = ("l1_misses", "l1_writebacks", "l2_misses", "l2_writebacks")
    plain = dict.fromkeys((*counts, *misses, "switches", "away"), 0)
    return {"fault": None, **plain, "tracked": True, **changes}


EMPTY = [window(instructions=n, loads=3) for n in (900, 100, 100)]
INFERENCES = [
    window(instructions=5_000, loads=3),
    window(instructions=1_100, loads=13, load_bytes=80, l1_misses=4, l1_writebacks=1),
    window(instructions=1_200, loads=3, stores=5, store_bytes=40, l2_misses=2, l2_writebacks=1),
]


class Scripted:
    """A session that answers as it is told, and writes windows like the plugin."""

    def __init__(self, log: Path | None = None, board_id: str = "board") -> None:
        self.identity = BoardIdentity(board_id, "qemu", "qemu-arm64")
        self.log = log
        self.windows: list[dict[str, Any]] = []
        self.written = 0
        self.asked: list[tuple[str, str]] = []
        self.had: list[str] = []
        self.closed = 0
        self.fails: BaseException | None = None
        self.refuses: BoardRefused | None = None
        self.outcome: Any = Measured((RAM,), evidence={"processes": [{"windows": TOLD}]})
        self.running = asyncio.Event()
        self.hold: asyncio.Event | None = None

    async def put(self, sha256: str, source: Path, coded: tuple[str, Path] | None = None) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.had.append(sha256)

    async def run(self, job_id: str, spec: JobSpec, *, meter: str = "") -> Any:
        self.asked.append((job_id, meter))
        self.running.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.log is not None:
            self.write(self.windows)
        if self.fails is not None:
            raise self.fails
        return self.outcome

    def write(self, windows: Sequence[dict[str, Any]]) -> None:
        assert self.log is not None
        with self.log.open("a") as stream:
            for one in windows:
                self.written += 1
                stream.write(json.dumps({"window": self.written, **one}) + "\n")

    async def close(self) -> None:
        self.closed += 1


class Lab:
    """An events session between two scripted ones; `siblings` are those that were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inner = Scripted()
        self.siblings: list[Scripted] = []
        self.prepare: Callable[[Scripted], None] = lambda _: None
        self.session = EventsSession(
            self.inner,  # type: ignore[arg-type]
            self.start,  # type: ignore[arg-type]
            EnergyModel(instruction_pj=1000.0, l1_pj=0.0, l2_pj=0.0, dram_pj=8000.0),
            CacheGeometry(),
        )

    async def start(self) -> tuple[Scripted, Path]:
        log = self.folder / f"events-{len(self.siblings)}.log"
        log.write_text('{"events": 1}\n')
        sibling = Scripted(log)
        sibling.windows = [*EMPTY, *INFERENCES]
        self.prepare(sibling)
        self.siblings.append(sibling)
        return sibling, log


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def values(
    outcome: Measured | Inconclusive, quantity: str, *, warm: bool = True
) -> tuple[int, ...]:
    (found,) = (s for s in outcome.samples if (s.quantity, s.warm) == (quantity, warm))
    return found.values


async def test_only_energy_jobs_start_and_use_the_sibling(lab: Lab, tmp_path: Path) -> None:
    lab.inner.outcome = Measured((RAM,))
    await lab.session.put(MODEL, tmp_path)
    assert await lab.session.run("l", LATENCY) == lab.inner.outcome
    assert lab.siblings == []
    for job in ("e0", "e1"):
        assert isinstance(await lab.session.run(job, ENERGY), Measured)
    (sibling,) = lab.siblings
    assert sibling.asked == [("e0", "events"), ("e1", "events")]
    assert set(sibling.had) == {MODEL}
    assert lab.inner.asked == [("l", "")]
    await lab.session.close()
    assert (sibling.closed, lab.inner.closed) == (1, 1)


async def test_counts_are_less_the_cost_of_a_window(lab: Lab) -> None:
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Measured)
    assert RAM in outcome.samples
    assert values(outcome, "instructions") == (1_000, 1_100)
    assert values(outcome, "instructions", warm=False) == (4_900,)
    assert values(outcome, "loads") == (10, 0)
    assert values(outcome, "load_bytes") == (80, 0)
    assert values(outcome, "stores") == (0, 5)
    assert values(outcome, "cache_misses") == (4, 0)
    assert values(outcome, "l2_bytes") == (5 * 64, 0)
    assert values(outcome, "dram_bytes") == (0, 3 * 64)
    # A nanojoule an instruction and a byte of DRAM.
    assert values(outcome, "energy_nj") == (1_000, 1_100 + 3 * 64)
    assert {s.kind for s in outcome.samples if s.quantity == "energy_nj"} == {"modelled"}
    told: Any = outcome.evidence["energy"]
    assert told["class"] == "modelled"
    assert told["empty_window"]["instructions"] == 100
    assert (told["disturbed_windows"], told["other_tasks_seen"]) == (0, True)


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ([], "0 windows instead of 6"),
        ([*EMPTY, *INFERENCES[1:]], "5 windows instead of 6"),
        ([*EMPTY, *INFERENCES, window()], "7 windows instead of 6"),
        ([*EMPTY, window(fault="reopened"), *INFERENCES[1:]], "a window reopened"),
        ([window(fault="not-open"), *EMPTY[1:], *INFERENCES], "a window not-open"),
    ],
)
async def test_windows_that_do_not_fit_the_job_are_a_transient_fault(
    lab: Lab, windows: list[dict[str, Any]], said: str
) -> None:
    lab.prepare = lambda sibling: setattr(sibling, "windows", windows)
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.transient) == (Owner.BOARD, True)
    assert said in outcome.fault.message
    # A transient fault is not kept: asked again, it is measured again.
    lab.siblings[0].windows = [*EMPTY, *INFERENCES]
    assert isinstance(await lab.session.run("e", ENERGY), Measured)


async def test_a_window_that_an_earlier_job_died_in_is_not_this_ones(lab: Lab) -> None:
    left = window(fault="reopened", instructions=10**9)
    lab.prepare = lambda sibling: setattr(sibling, "windows", [left, *EMPTY, *INFERENCES])
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Measured)
    assert values(outcome, "instructions") == (1_000, 1_100)


async def test_windows_from_before_the_job_are_passed_over(lab: Lab) -> None:
    lab.prepare = lambda sibling: sibling.write([window(), window(fault="not-open")])
    assert isinstance(await lab.session.run("e", ENERGY), Measured)


async def test_a_disturbed_window_is_kept_but_does_not_count(lab: Lab) -> None:
    crowded = window(instructions=9_000, away=8_000, switches=2)
    lab.prepare = lambda sibling: setattr(sibling, "windows", [*EMPTY, *INFERENCES[:2], crowded])
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Measured)
    assert values(outcome, "instructions") == (1_000,)
    assert values(outcome, "instructions", warm=False) == (4_900, 8_900)
    told: Any = outcome.evidence["energy"]
    assert told["disturbed_windows"] == 1


async def test_nothing_but_disturbed_windows_is_inconclusive(lab: Lab) -> None:
    crowded = window(instructions=9_000, away=8_000, switches=2)
    lab.prepare = lambda sibling: setattr(
        sibling, "windows", [*EMPTY, INFERENCES[0], crowded, crowded]
    )
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Inconclusive)
    assert "another program" in outcome.why
    assert values(outcome, "instructions", warm=False) == (4_900, 8_900, 8_900)
    # With several threads, other tasks may well be the model's own.
    threaded = await lab.session.run("t", replace(ENERGY, threads=4))
    assert isinstance(threaded, Measured)
    assert values(threaded, "instructions") == (8_900, 8_900)


async def test_asked_twice_for_one_job_it_measures_once(lab: Lab) -> None:
    first = await lab.session.run("e", ENERGY)
    assert await lab.session.run("e", ENERGY) == first
    assert len(lab.siblings[0].asked) == 1


async def test_two_askers_at_once_share_one_sibling(lab: Lab) -> None:
    outcomes = await asyncio.gather(*(lab.session.run(job, ENERGY) for job in "ab"))
    assert all(isinstance(outcome, Measured) for outcome in outcomes)
    assert len(lab.siblings) == 1


async def test_a_failed_job_is_handed_on_as_it_is(lab: Lab) -> None:
    crash = Failed(Fault(Owner.CANDIDATE, False, "crash", "it crashed"))
    lab.prepare = lambda sibling: setattr(sibling, "outcome", crash)
    assert await lab.session.run("e", ENERGY) == crash


async def test_a_sibling_whose_link_goes_down_is_ended_and_started_anew(lab: Lab) -> None:
    lab.prepare = lambda sibling: setattr(sibling, "fails", LinkDown("QEMU ended"))
    with pytest.raises(LinkDown, match="QEMU ended"):
        await lab.session.run("e", ENERGY)
    assert lab.siblings[0].closed == 1
    lab.prepare = lambda _: None
    assert isinstance(await lab.session.run("e", ENERGY), Measured)
    assert len(lab.siblings) == 2
    assert isinstance(await lab.session.run("l", LATENCY), Measured)


async def test_a_cancelled_job_ends_the_sibling(lab: Lab) -> None:
    lab.prepare = lambda sibling: setattr(sibling, "hold", asyncio.Event())
    job = asyncio.create_task(lab.session.run("e", ENERGY))
    while not lab.siblings:
        await asyncio.sleep(0)
    await lab.siblings[0].running.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert lab.siblings[0].closed == 1
    assert lab.inner.closed == 0


async def test_a_sibling_that_refuses_a_file_is_a_failed_job(lab: Lab, tmp_path: Path) -> None:
    full = BoardRefused(Fault(Owner.BOARD, False, "disk-full", "no room"))
    lab.prepare = lambda sibling: setattr(sibling, "refuses", full)
    await lab.session.put(MODEL, tmp_path)
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Failed)
    assert outcome.fault.code == "disk-full"


async def test_a_meter_that_cannot_be_built_is_a_failed_job(lab: Lab) -> None:
    def refuse(_: Scripted) -> None:
        raise NoMeter("no compiler", hint="apt-get install gcc")

    lab.prepare = refuse
    outcome = await lab.session.run("e", ENERGY)
    assert isinstance(outcome, Failed)
    assert (outcome.fault.code, outcome.fault.transient) == ("no-meter", False)
    assert outcome.fault.hint == "apt-get install gcc"
    await lab.session.close()
    assert lab.inner.closed == 1


async def test_a_sibling_that_is_another_board_is_not_believed(lab: Lab) -> None:
    other = BoardIdentity("another", "qemu", "qemu-arm64")
    lab.prepare = lambda sibling: setattr(sibling, "identity", other)
    with pytest.raises(LinkDown, match="not the board"):
        await lab.session.run("e", ENERGY)
    assert lab.siblings[0].closed == 1


@pytest.mark.parametrize("how", ["gone", "no JSON", "gap"])
async def test_a_log_that_cannot_be_read_is_a_link_down(lab: Lab, how: str) -> None:
    await lab.session.run("e0", ENERGY)
    (sibling,) = lab.siblings
    assert sibling.log is not None
    if how == "gone":
        sibling.log.unlink()
    elif how == "no JSON":
        with sibling.log.open("a") as stream:
            stream.write('{"window": 7, "fault": nu\n')
    else:
        sibling.written += 1
    with pytest.raises(LinkDown, match="log"):
        await lab.session.run("e1", ENERGY)
    assert sibling.closed == 1


async def test_a_line_that_is_not_finished_is_not_read_yet(lab: Lab) -> None:
    def half(sibling: Scripted) -> None:
        assert sibling.log is not None
        with sibling.log.open("a") as stream:
            stream.write('{"events":')

    await lab.session.run("e0", ENERGY)
    sibling = lab.siblings[0]
    half(sibling)
    sibling.windows = []
    outcome = await lab.session.run("e1", ENERGY)
    assert isinstance(outcome, Failed)
    assert "0 windows" in outcome.fault.message
