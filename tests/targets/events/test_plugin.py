"""The event meter on bare machine code: an emulator runs it without any system, in no time."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.targets.events import CacheGeometry, EventLog, build_plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QEMU = "qemu-system-aarch64"
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"no {QEMU} on this machine"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine"),
]

BEGIN, END, CLEAR = 0xD5032A1F, 0xD5032A3F, 0xD5032A5F
VECTORS_ON = [0xD2A00600, 0xD5181040, 0xD5033FDF]  # mov x0, #3 << 20; msr cpacr_el1, x0; isb
POWER_OFF = [0xD2800100, 0xF2B08000, 0xD4000002]  # mov x0, #0x84000008; hvc #0
CODE, DATA = 0x40200000, 0x41000000
LOAD, STORE = 0xF9400043, 0xF9000043  # ldr/str x3, [x2]
LOAD_NEXT, STORE_NEXT = 0xF8440443, 0xF8040443  # ldr/str x3, [x2], #64
LOAD_PAIR, LOAD_VECTOR = 0xA9400C44, 0x3DC00040  # ldp x4, x3, [x2]; ldr q0, [x2]
LOAD_BYTE = 0x39400043  # ldrb w3, [x2]
ZERO_BLOCK = 0xD50B7422  # dc zva, x2
SMALL = CacheGeometry(l1_size=1024, l1_ways=2, l2_size=8192, l2_ways=4)
L1_LINES, L2_LINES = 16, 128


def move(register: int, value: int) -> list[int]:
    """Return the two instructions that put 32 bits into a register."""
    low, high = value & 0xFFFF, value >> 16
    return [0xD2800000 | low << 5 | register, 0xF2A00000 | high << 5 | register]


def loop(turns: int, *body: int, data: int = DATA) -> list[int]:
    """Return 4 + turns * (len(body) + 2) instructions; x2 points to the data."""
    back = (-(len(body) + 1) & 0x7FFFF) << 5
    return [*move(2, data), *move(1, turns), *body, 0xF1000421, 0x54000001 | back]


def window(*code: int) -> list[int]:
    return [BEGIN, *code, END]


@dataclass(frozen=True)
class Ran:
    code: int
    said: str
    log: Path

    @property
    def windows(self) -> list[dict[str, Any]]:
        assert self.code == 0, self.said
        return EventLog(self.log).read()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Ran]:
    """Return a function that runs machine code and returns what the meter wrote."""

    def run(
        *code: int, geometry: CacheGeometry = SMALL, plugin: str | None = None, cores: int = 1
    ) -> Ran:
        words = [*VECTORS_ON, *code, *POWER_OFF]
        program, log = tmp_path / "program.bin", tmp_path / "events.log"
        program.write_bytes(struct.pack(f"<{len(words)}I", *words))
        given = plugin or ",".join(geometry.arguments()).format(log=log)
        argv = [QEMU, "-nodefaults", "-display", "none", "-M", "virt", "-cpu", "cortex-a72"]
        argv += ["-smp", str(cores), "-m", "64", "-icount", "shift=1,sleep=on"]
        argv += ["-device", f"loader,file={program},addr={CODE:#x},cpu-num=0"]
        argv += ["-plugin", f"{build_plugin()},{given}"]
        done = subprocess.run(
            argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        return Ran(done.returncode, done.stderr, log)

    return run


def test_a_million_turns_count_to_the_last_one(run: Callable[..., Ran]) -> None:
    turns = 1_000_000
    loads, stores = run(*window(*loop(turns, LOAD)), *window(*loop(turns, STORE))).windows
    for window_, kind, other in ((loads, "load", "store"), (stores, "store", "load")):
        assert window_["fault"] is None
        # The opening instruction counts, the closing one does not.
        assert window_["instructions"] == 3 * turns + 4 + 1
        assert (window_[f"{kind}s"], window_[f"{kind}_bytes"]) == (turns, 8 * turns)
        assert (window_[f"{other}s"], window_[f"{other}_bytes"]) == (0, 0)


@pytest.mark.parametrize(
    ("instruction", "loads", "load_bytes", "stores", "store_bytes"),
    [
        (LOAD_BYTE, 1, 1, 0, 0),
        (LOAD_PAIR, 2, 16, 0, 0),
        (LOAD_VECTOR, 2, 16, 0, 0),
        (ZERO_BLOCK, 0, 0, 8, 64),
    ],
)
def test_accesses_count_by_words_of_eight_bytes(
    run: Callable[..., Ran],
    instruction: int,
    loads: int,
    load_bytes: int,
    stores: int,
    store_bytes: int,
) -> None:
    (seen,) = run(*window(*move(2, DATA), instruction)).windows
    assert seen["instructions"] == 4
    assert (seen["loads"], seen["load_bytes"]) == (loads, load_bytes)
    assert (seen["stores"], seen["store_bytes"]) == (stores, store_bytes)


def misses(seen: dict[str, Any]) -> tuple[int, int, int, int]:
    return tuple(  # type: ignore[return-value]
        seen[key] for key in ("l1_misses", "l1_writebacks", "l2_misses", "l2_writebacks")
    )


def test_a_walk_misses_what_does_not_fit(run: Callable[..., Ran]) -> None:
    fits, only_l2, neither = L1_LINES, L2_LINES, 2 * L2_LINES
    code: list[int] = []
    for lines in (fits, only_l2, neither):
        code += [CLEAR, *window(*loop(lines, LOAD_NEXT)), *window(*loop(lines, LOAD_NEXT))]
    seen = [misses(one) for one in run(*code).windows]
    assert seen[0:2] == [(fits, 0, fits, 0), (0, 0, 0, 0)]
    assert seen[2:4] == [(only_l2, 0, only_l2, 0), (only_l2, 0, 0, 0)]
    assert seen[4:6] == [(neither, 0, neither, 0), (neither, 0, neither, 0)]


def test_dirty_lines_are_written_back_once(run: Callable[..., Ran]) -> None:
    lines = 2 * L2_LINES
    walk = window(*loop(lines, STORE_NEXT))
    first, second, loads = (
        misses(one) for one in run(*walk, *walk, *window(*loop(lines, LOAD_NEXT))).windows
    )
    # The last lines are still in the caches, dirty: those in L1 lie in L2 as well, clean.
    assert first == (lines, lines - L1_LINES, lines, lines - L2_LINES)
    assert second == (lines, lines, lines, lines)
    # What the stores left is written back while the loads push it out, and no more.
    assert loads == (lines, L1_LINES, lines, L2_LINES)


def test_an_access_that_straddles_lines_uses_both(run: Callable[..., Ran]) -> None:
    (seen,) = run(*window(*move(2, DATA + 60), LOAD)).windows
    assert (seen["loads"], seen["l1_misses"]) == (1, 2)


def test_the_caches_see_windows_only_and_forget_when_told(run: Callable[..., Ran]) -> None:
    walk = window(*loop(4, LOAD_NEXT))
    outside = loop(4, LOAD_NEXT, data=DATA + 0x1000)
    elsewhere = window(*loop(4, LOAD_NEXT, data=DATA + 0x1000))
    seen = run(*walk, *outside, *walk, *elsewhere, CLEAR, *walk).windows
    assert [one["l1_misses"] for one in seen] == [4, 0, 4, 4]


def test_windows_that_are_not_closed_or_not_open_say_so(run: Callable[..., Ran]) -> None:
    nop = 0xD503201F
    seen = run(END, BEGIN, nop, BEGIN, nop, nop, END, END, BEGIN, LOAD, LOAD).windows
    assert [one["window"] for one in seen] == [1, 2, 3, 4, 5]
    assert [one["fault"] for one in seen] == ["not-open", "reopened", None, "not-open", "unclosed"]
    assert [one["instructions"] for one in seen[:3]] == [0, 2, 3]


def test_the_log_is_continued_and_tells_the_caches(run: Callable[..., Ran]) -> None:
    run(*window())
    twice = run(*window(), *window())
    lines = [json.loads(line) for line in twice.log.read_text().splitlines()]
    assert [line.get("window") for line in lines] == [None, 1, None, 1, 2]
    assert lines[0] == lines[2]
    assert {key: lines[0][key] for key in ("l1_size", "l2_ways", "line")} == {
        "l1_size": SMALL.l1_size,
        "l2_ways": SMALL.l2_ways,
        "line": SMALL.line,
    }


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("l1_size=1024", "log"),
        ("log=/nowhere/at/all", "/nowhere/at/all"),
        ("log=events.log,l3_size=1024", "l3_size"),
        ("log=events.log,l1_size=1k", "l1_size=1k"),
        ("log=events.log,l1_ways=3", "powers of two"),
        ("log=events.log,line=48", "powers of two"),
        ("log=events.log,l1_ways=0", "powers of two"),
    ],
)
def test_arguments_that_make_no_sense_end_the_emulator(
    run: Callable[..., Ran], plugin: str, said: str
) -> None:
    ran = run(plugin=plugin)
    assert ran.code != 0
    assert said in ran.said


def test_two_cores_are_refused(run: Callable[..., Ran]) -> None:
    ran = run(cores=2)
    assert ran.code != 0
    assert "one AArch64 core" in ran.said
