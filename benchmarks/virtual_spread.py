"""How far ten fresh processes of one network lie apart while both of the host's cores are busy.

On the emulated board's virtual clock, on the same emulator's real clock, and on this machine
itself: within one boot, over restores of the saved state, and over cold boots, each of which saves
a state of its own. Spread is (largest - smallest) / median of the processes' medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import models
import on_board
import results

from flatsat.jobspec import VIRTUAL_PLAN, MeasurePlan
from flatsat.targets.host import HostBoard
from flatsat.targets.qemu import QemuBoard

if TYPE_CHECKING:
    from flatsat.targets.board import Board

WALL = MeasurePlan(processes=1, min_inferences=50, min_s=0.0, warmup="fixed", max_warmup=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--restores", type=int, default=5)
    parser.add_argument("--boots", type=int, default=3)
    parser.add_argument("--burners", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), arguments))


async def measure(folder: Path, arguments: argparse.Namespace) -> None:
    network = models.convolutions(folder / "cnn.onnx", layers=2, channels=12, size=20)
    board = QemuBoard()
    await board.prepare()
    medians: dict[str, list[float]] = {}
    with on_board.burners(arguments.burners):
        on_board.say("one boot, virtual clock")
        medians["virtual, one boot"] = await one_boot(board, network, arguments.repetitions)
        on_board.say("restores, virtual clock")
        medians["virtual, a restore each"] = [
            (await one_boot(board, network, 1))[0] for _ in range(arguments.restores)
        ]
        medians["virtual, a cold boot each"] = []
        for number in range(arguments.boots):
            on_board.say(f"cold boot {number + 1} of {arguments.boots}, virtual clock")
            with tempfile.TemporaryDirectory() as cache:
                fresh = QemuBoard(cache_dir=on_board.copy_of_image(Path(cache)))
                await fresh.prepare()
                medians["virtual, a cold boot each"] += await one_boot(fresh, network, 1)
        on_board.say("the emulator's real clock")
        wall = QemuBoard(clock="wall")
        await wall.prepare()
        medians["emulator's real clock"] = await one_boot(
            wall, network, arguments.repetitions, WALL
        )
        on_board.say("this machine")
        medians["this machine's clock"] = await one_boot(
            HostBoard(), network, arguments.repetitions, WALL
        )
    rows = []
    for name, values in medians.items():
        middle = median(values)
        spread = (max(values) - min(values)) / middle
        rows.append([name, len(values), f"{middle / 1e3:,.3f}", f"{spread:.4%}"])
    results.write(
        "virtual_spread",
        "Spread of one network over fresh processes while all cores are busy",
        f"Two 3x3 convolutions of 12 channels on 20 x 20; {arguments.burners} processes burn the "
        "host's cores all the while. Medians of 15 inferences on the virtual clock, of 50 on real "
        "ones. Wanted: at most 0.02 % on the virtual clock.",
        ["clock", "processes", "median (us of that clock)", "(max - min) / median"],
        rows,
        notes=[
            "Virtual time is counted instructions: two nanoseconds each. It is no board's latency.",
            "A cold boot saves a state of its own; the restores share one.",
        ],
        data=medians,
    )


async def one_boot(
    board: Board, network: Path, count: int, plan: MeasurePlan = VIRTUAL_PLAN
) -> list[float]:
    """Return the median latency (ns) of each of `count` fresh processes in one session."""
    plan = replace(plan, deadline_s=600.0)
    async with on_board.in_use(board) as session:
        # The first process after a start reads what the later ones find in memory.
        await on_board.latencies_ns(session, network, plan, "discarded")
        found = []
        for number in range(count):
            (values,) = await on_board.latencies_ns(session, network, plan, f"job-{number}")
            found.append(float(median(values)))
    return found


if __name__ == "__main__":
    main()
