"""Rows 1 and 7: both LeNets pruned, shared and coded as in Deep Compression, and further.

For each network, data set and seed: the sparsest network and the fewest bits that cost at most
`--loss` points on the validation images; the test images judge the choice, once. Beside it the
paper's own recipe (about 12 times fewer weights), and nncodec on the very same pruned weights.

Resumable: finished cells are kept in lab/benchmarks and not computed again.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from flatsat.cache import default_cache_dir
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.codec import ContextCodec, HuffmanCodec
from flatsat.compressors.graph import count
from flatsat.compressors.magnitude import MagnitudeParams, MagnitudePrune
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.sharing import ShareWeights
from flatsat.compressors.tensor_ranges import tensor_ranges
from flatsat.datasets.fit import evaluate, predict
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import workload
from flatsat.reports.stats import is_non_inferior, paired_difference


@dataclass(frozen=True)
class Plan:
    """How one network is pruned, from the paper's 12 times fewer weights on.

    Attributes:
        levels: parameters of magnitude-prune; the first gives about the paper's ratio.
        training: what they share.
        bits: of the paper's code, by kind of layer.
    """

    levels: tuple[dict[str, Any], ...]
    training: dict[str, Any]
    bits: dict[str, int]


PLANS = {
    "lenet300": Plan(
        tuple(
            {"sparsity": {"fc1": first, "fc2": second, "fc3": third}}
            for first, second, third in (
                (0.935, 0.87, 0.5),
                (0.96, 0.9, 0.5),
                (0.975, 0.93, 0.6),
                (0.985, 0.95, 0.6),
            )
        ),
        {"rounds": 8, "epochs": 15.0, "lr": 0.15},
        {"fc": 5},
    ),
    "lenet5": Plan(
        tuple({"global_sparsity": level} for level in (0.918, 0.95, 0.97, 0.98, 0.985, 0.99)),
        {"rounds": 6, "epochs": 4.0, "lr": 0.1},
        {"conv": 8, "fc": 5},
    ),
}
BITS = ({"conv": 5, "fc": 4}, {"conv": 4, "fc": 3}, {"conv": 3, "fc": 2})
QPS = range(-40, -7, 2)
VERSION = 3


@dataclass(frozen=True)
class Arguments:
    """How cells are made."""

    epochs: float
    loss: float
    nncodec: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--networks", nargs="+", default=["lenet300", "lenet5"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0, help="times those of the plan")
    parser.add_argument("--loss", type=float, default=0.3, help="points on validation")
    parser.add_argument("--nncodec", type=Path, help="Python that has nncodec")
    given = parser.parse_args()
    torch.set_num_threads(1)
    arguments = Arguments(given.epochs, given.loss, given.nncodec)
    checkpoint = results.Checkpoint(Path("lab/benchmarks/deep_compression.json"))
    rows: list[tuple[object, ...]] = []
    data = []
    for network in given.networks:
        cells = []
        for seed in range(given.seeds):
            key = {
                "workload": given.workload,
                "network": network,
                "seed": seed,
                "epochs": given.epochs,
                "loss": given.loss,
                "nncodec": given.nncodec is not None,
                "version": VERSION,
            }
            value = checkpoint.get(key)
            if value is None:
                value = cell(given.workload, network, seed, arguments)
                checkpoint.put(key, value)
            assert isinstance(value, dict)
            cells.append(value)
            print(network, seed, {k: v.get("bytes") for k, v in value.items()}, flush=True)
        rows += table_rows(network, cells)
        data.append({"network": network, "cells": cells})
    images = len(workload(given.workload).splits().open_test())
    results.write(
        f"deep_compression_{given.workload}",
        f"Deep Compression of both LeNets on {given.workload}",
        "Mean and standard deviation over seeds. Sizes are of whole files: the coded file holds "
        "the network's graph, biases and hash, too; nncodec's stream holds tensors only. `times "
        "smaller` is against 4 bytes a parameter. Accuracy on "
        f"{images:,} test images, the difference to the dense network with its worst 95 % bound "
        "over the seeds.",
        (
            "network",
            "method",
            "weights, times fewer",
            "bytes",
            "times smaller",
            "test accuracy, %",
            "against dense, points (worst bound)",
            "compression, CPU s",
        ),
        rows,
        notes=(
            "paper: about 12 times fewer weights, codes of 8 and 5 bits for conv and fc, Huffman. "
            "Han et al. report 40x and 39x on MNIST without loss.",
            f"further: the smallest of all sparsities x {len(BITS)} code lengths that lost at most "
            f"{given.loss:g} points on the validation images; biases of 8 bits; context coder.",
            "nncodec: 2.1.3 on the pruned weights that `further` began with, dependent "
            "quantisation, the coarsest QP by the same rule.",
            "Rounds, epochs and sparsities are in the program.",
        ),
        data=data,
    )


def table_rows(network: str, cells: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    rows = []
    for method in cells[0]:
        found = [one[method] for one in cells if one[method]]
        if not found:
            continue
        full = found[0]["dense_bytes"]
        size = np.array([one["bytes"] for one in found], float)
        accuracy = 100 * np.array([one["accuracy"] for one in found])
        change = 100 * np.mean([one["change"][0] for one in found])
        worst = 100 * min(one["change"][1] for one in found)
        rows.append(
            (
                network,
                method,
                f"{np.mean([one['fewer'] for one in found]):.1f}",
                f"{size.mean():,.0f} ± {_spread(size):,.0f}",
                f"{np.mean(full / size):.1f}",
                f"{accuracy.mean():.2f} ± {_spread(accuracy):.2f}",
                f"{change:+.2f} ({worst:+.2f})",
                f"{np.mean([one['seconds'] for one in found]):.0f}",
            )
        )
    return rows


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def cell(name: str, network: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Return every method's figures for one seed."""
    task = workload(name)
    splits = task.splits()
    context = StepContext(
        workload=task,
        network=network,
        train=splits.train,
        calibration=splits.calibration,
        validation=splits.validation,
        seed=seed,
        cache_dir=default_cache_dir(),
    )
    shape = tuple(int(n) for n in splits.train.x.shape[1:])
    dense = Network(
        reference(task, network, seed=seed, cache_dir=default_cache_dir()).module, shape
    )
    least = evaluate(dense.module, splits.validation) - arguments.loss / 100 - 1e-9

    plan = PLANS[network]

    def prune(level: dict[str, Any]) -> Network:
        training = {**plan.training, "epochs": plan.training["epochs"] * arguments.epochs}
        return MagnitudePrune(MagnitudeParams(**level, **training)).apply(dense, context)

    def share(pruned: Network, bits: dict[str, int], biases: int | None) -> Network:
        known = {"conv": 8} | bits if network != "lenet300" else {"fc": bits["fc"]}
        params = ShareWeights.Params(bits=known, biases=biases, epochs=3.0)
        return ShareWeights(params).apply(pruned, context)

    started = time.process_time()
    chosen: dict[str, tuple[Network, int, float]] = {"dense": (dense, 0, 0.0)}
    base = prune(plan.levels[0])
    pruned_s = time.process_time() - started
    chosen["paper: pruned"] = (base, _size(base, context, "context"), pruned_s)
    paper = share(base, plan.bits, None)
    seconds = time.process_time() - started
    chosen["paper: pruned, shared, Huffman"] = (paper, _size(paper, context, "huffman"), seconds)
    chosen["paper: the same, contexts"] = (paper, _size(paper, context, "context"), seconds)
    best: tuple[Network, int, float] | None = None
    begun, sparsity = base, plan.levels[0]
    for level in plan.levels:
        pruned = base if level is plan.levels[0] else prune(level)
        for code in BITS:
            made = share(pruned, code, 8)
            if evaluate(made.module, splits.validation) < least:
                continue
            size = _size(made, context, "context")
            if best is None or size < best[1]:
                best = (made, size, time.process_time() - started)
                begun, sparsity = pruned, level
    if best is not None:
        chosen["further"] = best
    if arguments.nncodec is not None:
        started = time.process_time()
        theirs = _nncodec(arguments.nncodec, begun, splits.validation, least)
        if theirs is not None:
            chosen["nncodec"] = (*theirs, time.process_time() - started)
    # The test images are opened once, when every choice is made.
    test = splits.open_test()
    told: dict[str, Any] = {}
    params = count(dense.module, shape)[0]
    right = predict(dense.module, test.x).argmax(axis=1) == test.y
    for method, (made, size, used) in chosen.items():
        mine = predict(made.module, test.x).argmax(axis=1) == test.y
        change = paired_difference(right, mine)
        told[method] = {
            "bytes": size or 4 * params,
            "dense_bytes": 4 * params,
            "fewer": params / count(made.module, shape)[1],
            "accuracy": float(mine.mean()),
            "change": [change.value, change.low, change.high],
            "within_margin": is_non_inferior(change, 0.005),
            "seconds": used,
        }
    if "further" in told:
        told["further"]["level"] = sparsity
    return told


def _size(network: Network, context: StepContext, coder: str) -> int:
    """Return the bytes of the network's coded ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = OnnxLower(OnnxLower.Params(goldens=8)).lower(network, Path(folder), context)
        data = (Path(folder) / artifact.file).read_bytes()
    codec: Any = ContextCodec() if coder == "context" else HuffmanCodec()
    return len(codec.encode(data, tensor_ranges(data, "onnx"), "onnx"))


def _nncodec(
    python: Path, network: Network, validation: Any, least: float
) -> tuple[Network, int] | None:
    """Return the coarsest network of nncodec's that validation allows, and its bytes."""
    program = Path(__file__).with_name("nncodec_sizes.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **{k: v.detach().numpy() for k, v in network.module.named_parameters()})
        subprocess.run(
            [python, program, source, target, *map(str, QPS)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        best: tuple[Network, int] | None = None
        with np.load(target, allow_pickle=False) as stored:
            for qp in QPS:
                module = copy.deepcopy(network.module)
                with torch.no_grad():
                    for name, parameter in module.named_parameters():
                        parameter.copy_(torch.from_numpy(stored[f"{qp}:{name}"]))
                size = int(stored[f"bytes:{qp}"])
                fits = evaluate(module, validation) >= least
                if fits and (best is None or size < best[1]):
                    best = (Network(module, network.input_shape), size)
    return best


if __name__ == "__main__":
    main()
