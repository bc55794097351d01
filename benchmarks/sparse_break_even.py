"""From which density down is it worth leaving zeros out? Runtime sparse-c over 1 to 100 %.

One layer a file: fc and convolutions of the reference networks' shapes, unstructured zeros drawn at
each density, and zeros in columns of four rows for block4x1. Each file is measured as an ordinary
job, a fresh process each, in interleaved rounds on board `host` (wall) and once on the emulated
board (virtual clock, where repeats agree). Beside it stand sparse-c's own dense form and the same
layer in onnxruntime, whose time doesn't depend on the zeros. A program that is cut short goes on
where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import on_board
import results
from onnx import TensorProto, helper, numpy_helper

from flatsat.cache import default_cache_dir
from flatsat.canonical import sha256_file
from flatsat.compressors.sparse_program import Op, Program, occupied, store, to_bytes
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Measured
from flatsat.runtimes import default_provider
from flatsat.targets.boards import builtin_boards, make_board
from flatsat.targets.native_sites import sparse_library

if TYPE_CHECKING:
    from flatsat.targets.board import Session

    Array = np.ndarray[Any, np.dtype[Any]]

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
FORMS = ("csr", "block4x1", "blocks")
"""Zeros anywhere as csr and as block4x1; zeros in columns of four rows as block4x1."""


@dataclass(frozen=True)
class Layer:
    """A layer to measure.

    Attributes:
        name: as the table says it.
        taken: (channels, height, width), or (units,).
        rows: output channels or units.
        kernel, padding, groups: of a convolution; 0 for fc.
    """

    name: str
    taken: tuple[int, ...]
    rows: int
    kernel: int = 0
    padding: int = 0

    @property
    def columns(self) -> int:
        """Weights of one output."""
        return self.taken[0] * max(1, self.kernel) ** 2


LAYERS = (
    Layer("fc 784 -> 300", (784,), 300),
    Layer("fc 4096 -> 1024", (4096,), 1024),
    Layer("conv 5x5, 20 -> 50, 12x12", (20, 12, 12), 50, 5),
    Layer("conv 3x3, 64 -> 64, 14x14", (64, 14, 14), 64, 3, 1),
    Layer("conv 1x1, 128 -> 128, 14x14", (128, 14, 14), 128, 1),
)


def weights(layer: Layer, density: float, form: str) -> Array:
    """Return (rows, columns) float32 with so many weights that are not zero."""
    rng = np.random.default_rng(round(1e4 * density))
    full = rng.standard_normal((layer.rows, layer.columns)).astype(np.float32)
    if form == "blocks":
        quads = -(-layer.rows // 4)
        kept = np.repeat(rng.random((quads, layer.columns)) < density, 4, axis=0)[: layer.rows]
    else:
        kept = rng.random(full.shape) < density
    return np.asarray(full * kept, np.float32)


def program(layer: Layer, matrix: Array, format_: str) -> bytes:
    """Return a file of sparse-c with this one layer."""
    bias = np.zeros(layer.rows, np.float32)
    stored = store(matrix, format_)
    if not layer.kernel:
        op = Op("fc", 1, (0,), weights=stored, bias=bias)
        shapes: tuple[tuple[int, ...], ...] = (layer.taken, (layer.rows,))
    else:
        pads = (layer.padding, layer.padding)
        sides = (layer.kernel, layer.kernel)
        op = Op("conv", 1, (0,), kernel=sides, before=pads, behind=pads, weights=stored, bias=bias)
        places = (side + 2 * layer.padding - layer.kernel + 1 for side in layer.taken[1:])
        shapes = (layer.taken, (layer.rows, *places))
    return to_bytes(Program(shapes, (op,), 0, 1, "image", "logits"))


def onnx_file(layer: Layer, matrix: Array) -> bytes:
    """Return an ONNX file with this one layer."""
    if layer.kernel:
        weight = matrix.reshape(layer.rows, layer.taken[0], layer.kernel, layer.kernel)
        pads = [layer.padding] * 4
        node = helper.make_node("Conv", ["image", "w", "b"], ["logits"], pads=pads)
    else:
        weight = matrix
        node = helper.make_node("Gemm", ["image", "w", "b"], ["logits"], transB=1)
    axes = ["batch", *([None] * len(layer.taken))]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *layer.taken])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, axes)],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.zeros(layer.rows, np.float32), "b"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(made.SerializeToString())


def cases(densities: tuple[float, ...]) -> Iterator[tuple[Layer, str, float, str]]:
    """Yield layer, form, density and runtime of each file."""
    for layer in LAYERS:
        yield layer, "dense", 1.0, "onnxruntime"
        yield layer, "dense", densities[0], "onnxruntime"
        yield layer, "dense", 1.0, "sparse-c"
        for density in densities:
            for form in FORMS:
                yield layer, form, density, "sparse-c"


async def measure(
    session: Session, path: Path, runtime: str, format_: str, plan: MeasurePlan, job: str
) -> tuple[float, int]:
    """Return the median latency in ns, and how many processes were runnable before."""
    sha256 = sha256_file(path)
    await session.put(sha256, path)
    provider = default_provider(runtime)
    spec = JobSpec(
        *(JobKind.LATENCY, sha256, format_, "board"), runtime=runtime, provider=provider, plan=plan
    )
    outcome = await session.run(job, spec)
    if not isinstance(outcome, Measured):
        raise SystemExit(f"{path.name} was not measured: {outcome}")
    counted = [s for s in outcome.samples if s.quantity == "latency_ns" and s.warm]
    environment: Any = outcome.evidence["environment"]
    runnable = int((environment["before"] or {}).get("runnable") or 0)
    return float(median(value for samples in counted for value in samples.values)), runnable


async def curve(board: str, rounds: int, plan: MeasurePlan, kept: results.Checkpoint) -> Any:
    """Measure every case on a board.

    Returns:
        (layer, form, density, runtime) -> [ns, runnable processes] of each round.
    """
    kind, settings = builtin_boards()[board]
    # What was measured with other code is measured anew.
    code = sha256_file(sparse_library())
    found: dict[tuple[str, str, float, str], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with on_board.in_use(make_board(board, kind, settings)) as session:
            for number in range(rounds):
                for layer, form, density, runtime in cases(DENSITIES):
                    name = (layer.name, form, density, runtime)
                    key = {"board": board, "round": number, "case": list(name), "code": code}
                    latency = kept.get(key)
                    if latency is None:
                        matrix = weights(layer, density, form)
                        sparse = runtime == "sparse-c"
                        format_ = "block4x1" if form == "blocks" else form
                        data = (
                            program(layer, matrix, format_) if sparse else onnx_file(layer, matrix)
                        )
                        path = Path(folder, "layer.model")
                        path.write_bytes(data)
                        latency = list(
                            await measure(
                                *(session, path, runtime, "sparse-c" if sparse else "onnx", plan),
                                f"{number}-{name}",
                            )
                        )
                        kept.put(key, latency)
                        on_board.say(f"{board} round {number}: {name}: {latency[0] / 1e3:.1f} us")
                    assert isinstance(latency, list)
                    found.setdefault(name, []).append(latency)
    return found


def crossing(points: list[tuple[float, float]], against: float) -> str:
    """Return the density from which down the latencies lie below `against`."""
    below = [density for density, latency in points if latency <= against]
    if not below:
        return "never"
    if len(below) == len(points):
        return "always"
    low = max(below)
    (d0, t0), (d1, t1) = next((a, b) for a, b in pairwise(points) if a[0] == low)
    return f"{100 * (d0 + (d1 - d0) * (against - t0) / (t1 - t0)):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", nargs="*", default=["host", "qemu-arm64"])
    parser.add_argument("--rounds", type=int, default=5, help="on the host")
    parser.add_argument("--min-s", type=float, default=0.05, help="counted in each process")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    kept = results.Checkpoint(default_cache_dir() / "benchmarks" / "sparse_break_even.json")
    rows: list[list[object]] = []
    notes: list[str] = []
    data: dict[str, Any] = {}
    for board in arguments.boards:
        wall = board == "host"
        plan = MeasurePlan(processes=1, min_s=arguments.min_s) if wall else VIRTUAL_PLAN
        rounds = arguments.rounds if wall else 1
        found = asyncio.run(curve(board, rounds, plan, kept))
        us = {name: median(ns for ns, _ in values) / 1e3 for name, values in found.items()}
        if wall:
            busy = [n > (os.cpu_count() or 1) for values in found.values() for _, n in values]
            notes.append(
                f"{sum(busy) / len(busy):.0%} of the host's jobs began with more processes"
                " runnable than there are cores."
            )
        for layer in LAYERS:
            own, ort = us[layer.name, "dense", 1.0, "sparse-c"], 0.0
            ort = us[layer.name, "dense", 1.0, "onnxruntime"]
            zeros = us[layer.name, "dense", DENSITIES[0], "onnxruntime"]
            for form in FORMS:
                points = [(d, us[layer.name, form, d, "sparse-c"]) for d in DENSITIES]
                rows.append(
                    [
                        *(board, layer.name, form, f"{ort:.1f}", f"{own:.1f}"),
                        *(f"{latency:.1f}" for _, latency in points),
                        crossing(points, own),
                        crossing(points, ort),
                    ]
                )
            change = f"{100 * (zeros / ort - 1):+.1f} %"
            notes.append(
                f"{board}, {layer.name}: in onnxruntime {1 - DENSITIES[0]:.0%} zeros change the"
                f" latency by {change}; at 10 % density block4x1 stores"
                f" {_block_share(layer, 0.1):.0%} of the columns of four."
            )
        data[board] = [[*name, values] for name, values in found.items()]
    results.write(
        "sparse_break_even",
        "Runtime sparse-c: latency over density, and where zeros begin to pay",
        f"Median latency in us of one layer, batch 1, one thread. host: wall clock, median of"
        f" {arguments.rounds} interleaved rounds of fresh processes with {arguments.min_s:g} s"
        " counted in each; qemu-arm64: virtual clock (2 ns an instruction, cortex-a72). Forms: csr"
        " and block4x1 hold zeros that lie anywhere; blocks holds zeros that lie in columns of four"
        " rows, as block4x1. The break-even density is the one from which down the form is faster.",
        (
            *("board", "layer", "form", "onnxruntime, us", "own dense, us"),
            *(f"{100 * d:g} %" for d in DENSITIES),
            "break-even with own dense",
            "break-even with onnxruntime",
        ),
        rows,
        notes=notes,
        data=data,
    )


def _block_share(layer: Layer, density: float) -> float:
    matrix = weights(layer, density, "csr")
    return occupied(matrix) / (-(-layer.rows // 4) * layer.columns)


if __name__ == "__main__":
    main()
