"""Counts of the event meter against programs whose counts are known, and from process to process.

Loops of machine code run on the emulated board, each in a window of its own, in fresh processes;
then inferences, whose instructions are also known from the virtual clock.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import models
import on_board
import results

from flatsat.canonical import sha256_file
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Measured
from flatsat.targets.events import GEOMETRIES, EventLog, build_plugin
from flatsat.targets.qemu import QemuBoard
from flatsat.targets.qemu_run import Plugin
from flatsat.targets.ssh import SshLink

if TYPE_CHECKING:
    from flatsat.targets.board import Session

BEGIN, END, CLEAR, RETURN = 0xD5032A1F, 0xD5032A3F, 0xD5032A5F, 0xD65F03C0
LOAD, STORE = 0xF9400002, 0xF9000002  # ldr/str x2, [x0]
LOAD_PAIR, LOAD_VECTOR = 0xA9400C02, 0x3DC00000  # ldp x2, x3, [x0]; ldr q0, [x0]
LOAD_NEXT, STORE_NEXT = 0xF8440402, 0xF8040402  # ldr/str x2, [x0], #64
GETPID = (0xD2801588, 0xD4000001)  # movz x8, #172; svc #0
MILLION = 1 << 20
CACHE = GEOMETRIES["cortex-a72"]
L1_LINES, L2_LINES = CACHE.l1_size // CACHE.line, CACHE.l2_size // CACHE.line

GUEST = """
import ctypes, mmap, struct
page = mmap.mmap(-1, 4096, prot=7)
data = ctypes.create_string_buffer(%d)
ctypes.memset(data, 1, len(data))
at = (ctypes.addressof(data) + 4095) & ~4095
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
for words in %r:
    page.seek(0)
    page.write(struct.pack("<%%dI" %% len(words), *words))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(start)(at)
"""


@dataclass(frozen=True)
class Program:
    """A loop and what it must count, beside its instructions.

    Attributes:
        name: for people.
        turns: of the loop, below 65536 or a multiple of it.
        body: instructions of one turn, beside two that count and jump.
        expected: counts.
        cold: with empty caches, not as the program before left them.
    """

    name: str
    turns: int
    body: tuple[int, ...]
    expected: dict[str, int]
    cold: bool = False

    @property
    def words(self) -> list[int]:
        """The machine code; of the window's own instructions only the opening one counts."""
        high, low = divmod(self.turns, 1 << 16)
        count = 0xD2A00001 | high << 5 if high else 0xD2800001 | low << 5
        back = 0x54000001 | (-(len(self.body) + 1) & 0x7FFFF) << 5
        clear = [CLEAR] if self.cold else []
        return [*clear, BEGIN, count, *self.body, 0xF1000421, back, END, RETURN]

    @property
    def counts(self) -> dict[str, int]:
        """What is expected."""
        return {"instructions": self.turns * (len(self.body) + 2) + 2, **self.expected}


PROGRAMS = (
    Program(
        "loads of 8 bytes",
        MILLION,
        (LOAD,),
        {"loads": MILLION, "load_bytes": 8 * MILLION, "stores": 0},
    ),
    Program(
        "stores of 8 bytes",
        MILLION,
        (STORE,),
        {"stores": MILLION, "store_bytes": 8 * MILLION, "loads": 0},
    ),
    Program("loads of a pair", MILLION, (LOAD_PAIR,), {"load_bytes": 16 * MILLION}),
    Program("loads of a vector", MILLION, (LOAD_VECTOR,), {"load_bytes": 16 * MILLION}),
    Program("calls of the kernel", 4096, GETPID, {"loads": 0, "stores": 0}),
    Program(
        "half of L1, cold",
        L1_LINES // 2,
        (LOAD_NEXT,),
        {"l1_misses": L1_LINES // 2, "l2_misses": L1_LINES // 2},
        cold=True,
    ),
    Program("half of L1, warm", L1_LINES // 2, (LOAD_NEXT,), {"l1_misses": 0, "l2_misses": 0}),
    Program(
        "half of L2, cold",
        L2_LINES // 2,
        (LOAD_NEXT,),
        {"l1_misses": L2_LINES // 2, "l2_misses": L2_LINES // 2},
        cold=True,
    ),
    Program(
        "half of L2, warm",
        L2_LINES // 2,
        (LOAD_NEXT,),
        {"l1_misses": L2_LINES // 2, "l2_misses": 0},
    ),
    Program(
        "stores over twice L2, cold",
        2 * L2_LINES,
        (STORE_NEXT,),
        {"l2_misses": 2 * L2_LINES, "l2_writebacks": L2_LINES},
        cold=True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    board = QemuBoard(meter="events")
    rows, data = [], {}
    on_board.say("loops")
    runs = asyncio.run(loops(board, arguments.repetitions))
    for program, windows in zip(PROGRAMS, zip(*runs, strict=True), strict=True):
        for quantity, expected in program.counts.items():
            counted = [int(window[quantity]) for window in windows]
            rows.append(row(program.name, quantity, expected, counted))
            data[f"{program.name}: {quantity}"] = counted
    with tempfile.TemporaryDirectory() as folder:
        for name, path in networks(Path(folder)).items():
            on_board.say(name)
            found = asyncio.run(inferences(board, path, arguments.repetitions))
            rows.append(row(name, "instructions", found.pop("clock")[0], found["instructions"]))
            rows += [row(name, quantity, None, values) for quantity, values in found.items()][1:]
            data.update({f"{name}: {quantity}": values for quantity, values in found.items()})
    results.write(
        "events",
        "Counts of the event meter against known programs",
        "Loops of machine code and inferences on the emulated board (Cortex-A72), each in a window "
        f"of its own, in {arguments.repetitions} fresh processes on one boot. The kernel's work is "
        "left out. Wanted: loops within 0.1 % of what is known, all within 0.1 % of each other.",
        ["program", "quantity", "known", "counted (median)", "off by", "(max - min) / median"],
        rows,
        notes=[
            "Of an inference is known what the virtual clock gives: its latency without the meter, "
            "over two nanoseconds an instruction. That includes reading the clock twice, and what "
            "the kernel does meanwhile; the cost of a window is taken off the meter's counts.",
            "Counts of inferences are the medians of "
            f"{VIRTUAL_PLAN.min_inferences} windows in each process.",
            f"Modelled caches: L1 of {CACHE.l1_size >> 10} KiB in {CACHE.l1_ways} ways, L2 of "
            f"{CACHE.l2_size >> 10} KiB in {CACHE.l2_ways}, lines of {CACHE.line} bytes.",
            "Energy is modelled from the counts (Horowitz, ISSCC 2014). It was not measured.",
        ],
        data=data,
    )


def row(name: str, quantity: str, known: float | None, counted: Sequence[float]) -> list[object]:
    middle = median(counted)
    spread = (max(counted) - min(counted)) / middle if middle else max(counted) - min(counted)
    off = "-" if known is None else f"{(middle - known) / known:+.4%}" if known else f"{middle:g}"
    told = "-" if known is None else f"{known:,.0f}"
    return [name, quantity, told, f"{middle:,.0f}", off, f"{spread:.4%}"]


async def loops(board: QemuBoard, repetitions: int) -> list[list[dict[str, Any]]]:
    """Return, for each repetition, the windows of all programs."""
    code = GUEST % (2 * CACHE.l2_size + 8192, [program.words for program in PROGRAMS])
    text = base64.b64encode(code.encode()).decode()
    machine = await board.start(plugin=Plugin(build_plugin(), CACHE.arguments()))
    try:
        image = machine.image
        link = SshLink(
            "127.0.0.1",
            machine.ssh_port,
            user="root",
            known_hosts=image.host_key,
            keys=(image.user_key,),
            python=image.python,
            store=image.store,
            agent=Path(),
        )
        command = f"{image.python} -c \"import base64; exec(base64.b64decode('{text}'))\""
        assert machine.events_log is not None
        log, found = EventLog(machine.events_log), []
        for _ in range(repetitions):
            said = await link.run_command(command, 300.0)
            if said.exit_status:
                raise SystemExit(f"the board's Python failed: {said}")
            found.append(log.read())
        return found
    finally:
        await machine.stop()


def networks(folder: Path) -> dict[str, Path]:
    return {
        "dense layers 784-300-100-10": models.mlp(folder / "mlp.onnx"),
        "two convolutions": models.convolutions(
            folder / "cnn.onnx", layers=2, channels=12, size=20
        ),
    }


async def inferences(board: QemuBoard, path: Path, repetitions: int) -> dict[str, list[float]]:
    """Return each process's median counts, and under "clock" what the virtual clock gives."""
    async with on_board.in_use(board) as session:
        # The first process after a start reads what the later ones find in memory.
        await on_board.latencies_ns(session, path, VIRTUAL_PLAN, "discarded")
        (values,) = await on_board.latencies_ns(session, path, VIRTUAL_PLAN, "clock")
        found: dict[str, list[float]] = {"clock": [median(values) / (1 << board.shift)]}
        await counts(session, path, "discarded-too")
        for number in range(repetitions):
            for quantity, value in (await counts(session, path, f"job-{number}")).items():
                found.setdefault(quantity, []).append(value)
    return found


async def counts(session: Session, path: Path, job_id: str) -> dict[str, float]:
    spec = JobSpec(JobKind.ENERGY, sha256_file(path), "onnx", "board", plan=VIRTUAL_PLAN)
    outcome = await session.run(job_id, replace(spec, plan=replace(spec.plan, deadline_s=600.0)))
    if not isinstance(outcome, Measured):
        raise SystemExit(f"{path.name} was not counted: {outcome}")
    wanted = ("instructions", "load_bytes", "store_bytes", "cache_misses", "dram_bytes")
    return {
        taken.quantity: float(median(taken.values))
        for taken in outcome.samples
        if taken.warm and taken.quantity in (*wanted, "energy_nj")
    }


if __name__ == "__main__":
    main()
