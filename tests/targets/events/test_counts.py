"""Counts of loops whose counts are known, executed by the emulated board."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.canonical import sha256_file
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Failed, Measured
from flatsat.targets.events import GEOMETRIES, EventLog, EventsSession, build_plugin
from flatsat.targets.qemu_run import Plugin
from flatsat.targets.ssh import SshLink

if TYPE_CHECKING:
    from flatsat.targets.qemu import QemuBoard

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

TURNS = 1 << 20
BEGIN, END, RETURN = 0xD5032A1F, 0xD5032A3F, 0xD65F03C0
MANY = 0xD2A00201  # movz x1, #16, lsl #16: TURNS
LINES = 256
PAGES = 64
LOAD, STORE, NEXT_LINE = 0xF9400002, 0xF9000002, 0xF8440402  # ldr/str x2, [x0]; ldr x2, [x0], #64
NEXT_PAGE = 0x91400400  # add x0, x0, #4096
GETPID, SLEEP, CALL = 0xD2801588, 0xD2800CA8, 0xD4000001  # movz x8, #172 or #101; svc #0

GUEST = """
import ctypes, mmap, os, signal, struct
page = mmap.mmap(-1, 4096, prot=7)
data = ctypes.create_string_buffer(64 * %d + 64)
ctypes.memset(data, 1, len(data))
warm = (ctypes.addressof(data) + 63) & ~63
fresh = mmap.mmap(-1, 4096 * %d)
a_moment = (ctypes.c_long * 2)(0, 20_000_000)
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
for where, words in %r:
    page.seek(0)
    page.write(struct.pack("<%%dI" %% len(words), *words))
    at = warm
    if where == "fresh":
        at = ctypes.addressof(ctypes.c_char.from_buffer(fresh))
    elif where == "crowded":
        at = ctypes.addressof(a_moment)
    other = os.fork() if where == "crowded" else None
    while other == 0:
        pass
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(start)(at)
    if other:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
print("done")
"""


def some(turns: int) -> int:
    return 0xD2800001 | turns << 5  # movz x1, #turns


def loop(count: int, *body: int) -> list[int]:
    """Return a window with `turns * (len(body) + 2) + 2` instructions."""
    turn_back = 0x54000001 | (-(len(body) + 1) & 0x7FFFF) << 5
    return [BEGIN, count, *body, 0xF1000421, turn_back, END, RETURN]


LOOPS = {
    "loads": ("warm", loop(MANY, LOAD)),
    "loads again": ("warm", loop(MANY, LOAD)),
    "stores": ("warm", loop(MANY, STORE)),
    "lines": ("warm", loop(some(LINES), NEXT_LINE)),
    "lines again": ("warm", loop(some(LINES), NEXT_LINE)),
    "nothing": ("warm", [BEGIN, END, RETURN]),
    "kernel": ("warm", loop(some(TURNS >> 8), GETPID, CALL)),
    "faults": ("fresh", loop(some(PAGES), STORE, NEXT_PAGE)),
    "crowd": ("crowded", loop(some(1), SLEEP, CALL)),
}


@dataclass(frozen=True)
class Metered:
    windows: Mapping[str, Mapping[str, Any]]
    header: Mapping[str, Any]


@pytest.fixture(scope="module")
def counted(qemu_board: QemuBoard, tmp_path_factory: pytest.TempPathFactory) -> Metered:
    """Run all loops on one machine with the plugin; return the window of each."""

    async def run() -> Metered:
        # Each program is flushed to the instruction cache by its own page: code that was executed
        # before is written over, which the emulator sees by itself.
        script = GUEST % (LINES, PAGES, list(LOOPS.values()))
        machine = await qemu_board.start(
            plugin=Plugin(build_plugin(), GEOMETRIES[qemu_board.cpu].arguments())
        )
        try:
            link = SshLink(
                "127.0.0.1",
                machine.ssh_port,
                user="root",
                known_hosts=machine.image.host_key,
                keys=(machine.image.user_key,),
                python=machine.image.python,
                store=machine.image.store,
                agent=Path(),
            )
            text = base64.b64encode(script.encode()).decode()
            code = f"import base64; exec(base64.b64decode('{text}'))"
            said = await link.run_command(f'{machine.image.python} -c "{code}"', 120.0)
            assert said.stdout.strip() == b"done", said
            assert machine.events_log is not None
            windows = EventLog(machine.events_log).read()
        finally:
            await machine.stop()
        return Metered(dict(zip(LOOPS, windows, strict=True)), {})

    return asyncio.run(run())


def close(value: int, expected: int) -> bool:
    return abs(value - expected) <= max(40, expected // 1000)


@pytest.mark.parametrize(
    ("name", "loads", "stores"),
    [("loads", TURNS, 0), ("loads again", TURNS, 0), ("stores", 0, TURNS)],
)
def test_loops_count_what_they_do(counted: Metered, name: str, loads: int, stores: int) -> None:
    window = counted.windows[name]
    assert window["fault"] is None
    assert close(window["instructions"], 3 * TURNS)
    assert close(window["loads"], loads)
    assert close(window["load_bytes"], 8 * loads)
    assert close(window["stores"], stores)
    assert close(window["store_bytes"], 8 * stores)


def test_a_repetition_counts_the_same(counted: Metered) -> None:
    first, again = counted.windows["loads"], counted.windows["loads again"]
    for key in ("instructions", "loads", "load_bytes"):
        assert abs(first[key] - again[key]) <= first[key] / 1000


def test_each_new_line_misses_once_and_then_hits(counted: Metered) -> None:
    cold, warm = counted.windows["lines"], counted.windows["lines again"]
    assert cold["l1_misses"] == pytest.approx(LINES, abs=4)
    assert warm["l1_misses"] <= 4
    assert cold["loads"] == warm["loads"] == LINES


def test_an_empty_window_counts_next_to_nothing(counted: Metered) -> None:
    window = counted.windows["nothing"]
    assert window["instructions"] <= 4
    assert window["loads"] == window["stores"] == 0


def test_what_the_kernel_does_is_left_out(counted: Metered) -> None:
    window = counted.windows["kernel"]
    assert close(window["instructions"], 4 * (TURNS >> 8))
    assert window["loads"] == window["stores"] == 0


def test_a_page_that_is_not_there_yet_costs_one_instruction_more(counted: Metered) -> None:
    window = counted.windows["faults"]
    assert window["stores"] == PAGES
    assert 4 * PAGES <= window["instructions"] - 2 <= 5 * PAGES


def test_another_program_inside_a_window_is_told_apart(counted: Metered) -> None:
    window = counted.windows["crowd"]
    own = 4 + 2
    assert window["tracked"]
    assert window["switches"] > 0
    assert window["away"] > 0
    assert window["instructions"] - window["away"] == own
    assert all(counted.windows[name]["away"] == 0 for name in LOOPS if name != "crowd")


async def test_an_energy_job_counts_inferences_and_models_their_energy(
    booted_board: Any, tmp_path: Path, dense_onnx: Path
) -> None:
    board = replace(booted_board.board, meter="events")
    crash = tmp_path / "crash.json"
    crash.write_text('{"fault": "segfault", "after": 2}')
    sha256 = sha256_file(dense_onnx)
    spec = JobSpec(JobKind.ENERGY, sha256, "onnx", board.name, plan=VIRTUAL_PLAN)
    with booted_board.lease() as lease:
        session = await board.open(lease)
        assert isinstance(session, EventsSession)
        try:
            await session.put(sha256, dense_onnx)
            await session.put(sha256_file(crash), crash)
            died = await session.run(
                "c", replace(spec, artifact=sha256_file(crash), format="fault", runtime="fault")
            )
            outcomes = [await session.run(f"e{n}", spec) for n in range(2)]
            latency = await session.run("l", replace(spec, kind=JobKind.LATENCY))
        finally:
            await session.close()
    # It left its window open.
    assert isinstance(died, Failed)
    assert died.fault.code == "crash"
    medians = []
    for outcome in outcomes:
        assert isinstance(outcome, Measured), outcome
        by_quantity = {s.quantity: s for s in outcome.samples}
        assert by_quantity["energy_nj"].kind == "modelled"
        assert by_quantity["instructions"].kind == "counted"
        assert len(by_quantity["energy_nj"].values) == VIRTUAL_PLAN.min_inferences
        assert min(by_quantity["energy_nj"].values) > 0
        told = outcome.evidence["energy"]
        assert isinstance(told, Mapping)
        assert "Horowitz" in str(told["source"])
        assert told["disturbed_windows"] == 0
        assert told["other_tasks_seen"] is True
        counts = sorted(by_quantity["instructions"].values)
        medians.append(counts[len(counts) // 2])
    assert abs(medians[0] - medians[1]) <= medians[0] / 1000
    # The virtual clock counts the same instructions, two nanoseconds each.
    assert isinstance(latency, Measured)
    (timed,) = (s for s in latency.samples if s.quantity == "latency_ns" and s.warm)
    assert min(timed.values) / 2 == pytest.approx(medians[0], rel=0.05)


async def test_without_its_meter_a_board_refuses_energy_jobs(
    booted_board: Any, dense_onnx: Path
) -> None:
    sha256 = sha256_file(dense_onnx)
    spec = JobSpec(JobKind.ENERGY, sha256, "onnx", booted_board.board.name, plan=VIRTUAL_PLAN)
    with booted_board.lease() as lease:
        session = await booted_board.board.open(lease)
        try:
            await session.put(sha256, dense_onnx)
            outcome = await session.run("e", spec)
        finally:
            await session.close()
    assert isinstance(outcome, Failed)
    assert outcome.fault.code == "no-meter"
