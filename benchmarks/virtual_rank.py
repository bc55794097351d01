"""Whether virtual latency orders networks as wall latency on this machine does.

Spearman's rank correlation over networks of different shapes, float alone, int8 alone, and both
together, where a count of instructions and a real processor part ways: wide multiplications of
int8 are cheap on one and counted like any other instruction on the other.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import models
import numpy as np
import on_board
import onnx
import results
from scipy import stats

from flatsat.jobspec import VIRTUAL_PLAN, MeasurePlan
from flatsat.reports.ranks import spearman
from flatsat.reports.stats import mean_log_ratio
from flatsat.targets.host import HostBoard
from flatsat.targets.qemu import QemuBoard

if TYPE_CHECKING:
    from flatsat.reports.interval import Interval

WALL = MeasurePlan(processes=1, min_inferences=50, min_s=0.1, max_warmup=100, isolation="fork")
VIRTUAL = replace(VIRTUAL_PLAN, isolation="fork")
CALIBRATION = 16
NEAR = 1.5
"""Networks whose latencies differ by less than this factor are hard to tell apart."""


@dataclass(frozen=True)
class Pair:
    """One file on both clocks.

    Attributes:
        name: of the network.
        family: networks of one make that differ in width.
        role: "float" or "int8".
        virtual_ns: median on the emulated board's virtual clock.
        wall_ns: medians of this machine's processes, by rounds.
    """

    name: str
    family: str
    role: str
    virtual_ns: float
    wall_ns: tuple[float, ...]

    @property
    def wall_ns_median(self) -> float:
        """Over the rounds."""
        return float(median(self.wall_ns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", default="cortex-a72", help="of the emulated board")
    parser.add_argument("--rounds", type=int, default=4, help="processes of each file here")
    parser.add_argument("--every", type=int, default=1, help="take every n-th network only")
    parser.add_argument("--no-int8", action="store_true", help="float files alone")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    with tempfile.TemporaryDirectory() as folder:
        on_board.say("making the networks")
        files = networks(Path(folder), int8=not arguments.no_int8)
        chosen = sorted({name for name, *_ in files})[:: arguments.every]
        files = [one for one in files if one[0] in chosen]
        pairs = asyncio.run(measure(files, arguments))
    write(pairs, arguments)


# The networks.


def networks(folder: Path, *, int8: bool) -> list[tuple[str, str, str, Path]]:
    """Return name, family, role and file of each network."""
    made = []
    for width in (64, 128, 192, 256, 384, 512, 768, 1024):
        shape = (784, width, width // 2, 10)
        made.append((f"dense {width}", "dense", models.mlp(folder / f"dense-{width}.onnx", shape)))
    for channels in (8, 12, 16, 20, 24, 28, 32, 40):
        path = folder / f"conv-{channels}.onnx"
        models.convolutions(path, layers=4, channels=channels, size=20)
        made.append((f"4 convolutions, {channels} channels", "convolutions", path))
    for layers, channels, size in ((2, 16, 32), (3, 32, 14), (6, 16, 14), (8, 24, 10), (2, 48, 12)):
        path = folder / f"shape-{layers}-{channels}-{size}.onnx"
        models.convolutions(path, layers=layers, channels=channels, size=size)
        name = f"{layers} convolutions, {channels} channels, {size} x {size}"
        made.append((name, "shapes", path))
    for channels in (16, 32, 48, 64, 96):
        path = models.separable(
            folder / f"separable-{channels}.onnx", layers=4, channels=channels, size=16
        )
        made.append((f"4 separable, {channels} channels", "separable", path))
    files = []
    for name, family, path in made:
        files.append((name, family, "float", path))
        if int8:
            files.append((name, family, "int8", quantised(path)))
    return files


def quantised(path: Path) -> Path:
    """Write the full-integer form of a file, calibrated on random inputs; return its path."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    (source,) = onnx.load(path).graph.input
    shape = [axis.dim_value for axis in source.type.tensor_type.shape.dim]
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((CALIBRATION, *shape)).astype(np.float32)

    class Reader:
        left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.left, None)
            return None if found is None else {source.name: found}

    # It recommends what makes no difference to chains without batch normalisation.
    logging.getLogger().setLevel(logging.ERROR)
    target = path.with_name(f"int8-{path.name}")
    quantize_static(
        path,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return target


# Measuring.


async def measure(
    files: Sequence[tuple[str, str, str, Path]], arguments: argparse.Namespace
) -> list[Pair]:
    """Measure each file on both clocks; here in rounds, each in an order that is drawn."""
    board = QemuBoard(cpu=arguments.cpu)
    await board.prepare()
    draw = np.random.default_rng(0)
    wall: list[list[float]] = [[] for _ in files]
    async with on_board.in_use(HostBoard()) as session:
        for number in range(arguments.rounds):
            on_board.say(f"this machine, round {number + 1} of {arguments.rounds}")
            for index in map(int, draw.permutation(len(files))):
                (values,) = await on_board.latencies_ns(
                    session, files[index][3], WALL, f"{number}-{index}"
                )
                wall[index].append(float(median(values)))
    virtual: list[float] = []
    async with on_board.in_use(board) as session:
        for index, (name, _, role, path) in enumerate(files):
            on_board.say(f"virtual clock, {index + 1} of {len(files)}: {name}, {role}")
            (values,) = await on_board.latencies_ns(session, path, VIRTUAL, f"job-{index}")
            virtual.append(float(median(values)))
    return [
        Pair(name, family, role, virtual[index], tuple(wall[index]))
        for index, (name, family, role, _) in enumerate(files)
    ]


# The table.


def write(pairs: Sequence[Pair], arguments: argparse.Namespace) -> None:
    groups = {"float": [pair for pair in pairs if pair.role == "float"]}
    for family in dict.fromkeys(pair.family for pair in groups["float"]):
        groups[f"float, {family}"] = [pair for pair in groups["float"] if pair.family == family]
    groups["int8"] = [pair for pair in pairs if pair.role == "int8"]
    groups["float and int8 together"] = list(pairs)
    if not groups["int8"]:
        del groups["int8"], groups["float and int8 together"]
    rows, data = [], {}
    for name, group in groups.items():
        x = [pair.virtual_ns for pair in group]
        y = [pair.wall_ns_median for pair in group]
        found = spearman(x, y)
        wrong, near = swapped(group), swapped(group, NEAR)
        rows.append(
            [
                name,
                len(group),
                f"{min(y) / 1e3:.1f} to {max(y) / 1e3:.1f}",
                text(found),
                f"{wrong[0]} of {wrong[1]}",
                f"{near[0]} of {near[1]}",
                f"{rounds_agree(group):.3f}" if rounds_agree(group) is not None else "",
            ]
        )
        data[name] = None if found is None else vars(found)
    results.write(
        "virtual_rank",
        "Rank correlation of virtual latency with this machine's wall latency",
        f"Networks of different shapes on the emulated {arguments.cpu} (instructions counted, two "
        f"nanoseconds each) and on this machine (median of {arguments.rounds} processes' medians, "
        "interleaved). Spearman's coefficient with a 95 % interval.",
        [
            "files",
            "n",
            "wall latency, us",
            "Spearman (95 %)",
            "pairs in the other order",
            f"of those within {NEAR:g} times on the wall clock",
            "Spearman of halves of the rounds here",
        ],
        rows,
        notes=[
            *where_it_breaks(pairs),
            "Virtual latency has no caches, no pipeline, no frequency; a wide multiplication counts"
            " what a move counts. It tells that code does more or less work, not how fast a board "
            "does it.",
            "A wide range of sizes makes a high coefficient; within a family, and among pairs that "
            "lie near each other, is the harder question. The last column is what this machine "
            "agrees with itself, even rounds against odd ones.",
            "Processes are copies of one that has the runtime imported, on both.",
            "This machine is no ARM board: its onnxruntime has other kernels, with wider vectors.",
        ],
        data={"correlations": data, "pairs": [vars(pair) for pair in pairs]},
    )


def text(found: Interval | None) -> str:
    if found is None:
        return "too few"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def swapped(group: Sequence[Pair], within: float = math.inf) -> tuple[int, int]:
    """Return how many pairs of files the two clocks order differently, and of how many.

    Args:
        group: the files.
        within: only pairs whose wall latencies differ by less than this factor.
    """
    wrong = count = 0
    for index, one in enumerate(group):
        for other in group[index + 1 :]:
            ratio = one.wall_ns_median / other.wall_ns_median
            if max(ratio, 1 / ratio) < within:
                count += 1
                wrong += (ratio > 1) != (one.virtual_ns > other.virtual_ns)
    return wrong, count


def rounds_agree(group: Sequence[Pair]) -> float | None:
    """Return the rank correlation of this machine's even rounds with its odd ones."""
    if len(group) < 4 or len(group[0].wall_ns) < 2:
        return None
    even, odd = ([float(median(p.wall_ns[start::2])) for p in group] for start in (0, 1))
    found = spearman(even, odd)
    return None if found is None else found.value


def where_it_breaks(pairs: Sequence[Pair]) -> list[str]:
    """Say what int8 is worth on either clock, and which files lie furthest from their rank."""
    notes = []
    by_name: dict[str, dict[str, Pair]] = {}
    for pair in pairs:
        by_name.setdefault(pair.name, {})[pair.role] = pair
    for family in dict.fromkeys(pair.family for pair in pairs):
        both = [
            found
            for found in by_name.values()
            if len(found) == 2 and found["float"].family == family
        ]
        if not both:
            continue
        told = []
        for clock in ("virtual_ns", "wall_ns_median"):
            ratio = mean_log_ratio(
                [getattr(found["float"], clock) for found in both],
                [getattr(found["int8"], clock) for found in both],
            )
            assert ratio is not None
            told.append(f"{ratio.value:.2f}")
        notes.append(
            f"int8 speed-up over float, {family} (geometric mean): {told[0]} on the virtual clock, "
            f"{told[1]} here."
        )
    virtual = stats.rankdata([pair.virtual_ns for pair in pairs])
    wall = stats.rankdata([pair.wall_ns_median for pair in pairs])
    worst = np.argsort(-np.abs(virtual - wall))[:5]
    told = [
        f"{pairs[i].name} {pairs[i].role} ({virtual[i]:.0f} and {wall[i]:.0f})"
        for i in map(int, worst)
        if virtual[i] != wall[i]
    ]
    if told:
        notes.append(
            f"Furthest from their rank, of {len(pairs)} (virtual and wall): {'; '.join(told)}."
        )
    return notes


if __name__ == "__main__":
    main()
