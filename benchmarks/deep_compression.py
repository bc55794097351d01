"""Rows 1 and 7: both LeNets pruned, shared and coded as in Deep Compression, and further.

Beside the paper's own recipe: quantisation for rate and nncodec on the very same pruned weights,
and pruning and quantisation for rate in turns. All choices are made on the validation images; the
test images judge them, once.

Resumable: finished cells are kept in lab/benchmarks and not computed again.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import tempfile
import time
from collections.abc import Callable
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
from flatsat.compressors.rate_quant import RateQuantise
from flatsat.compressors.sharing import ShareWeights
from flatsat.compressors.tensor_ranges import tensor_ranges
from flatsat.compressors.train import FineTune
from flatsat.datasets.fit import evaluate, predict
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import workload
from flatsat.errors import FlatSatError
from flatsat.reports.stats import is_non_inferior, normal_quantile, paired_difference

MARGIN = 0.005
SHIFT = 1
Chosen = tuple[Network, int, float]


@dataclass(frozen=True)
class Plan:
    """How one network is pruned to about the paper's 12 times fewer weights.

    Attributes:
        sparsity: parameters of magnitude-prune.
        training: of it; `rounds` times `epochs` in all.
        bits: of the paper's code, by kind of layer.
        turns: rounds and training of rate-quantise where it goes further.
    """

    sparsity: dict[str, Any]
    training: dict[str, Any]
    bits: dict[str, int]
    turns: dict[str, Any]


PLANS = {
    "lenet300": Plan(
        {"sparsity": {"fc1": 0.935, "fc2": 0.87, "fc3": 0.5}},
        {"rounds": 8, "epochs": 15.0, "lr": 0.15},
        {"fc": 5},
        {"rounds": 6, "epochs": 18.0, "lr": 0.1},
    ),
    "lenet5": Plan(
        {"global_sparsity": 0.918},
        {"rounds": 6, "epochs": 4.0, "lr": 0.1},
        {"conv": 8, "fc": 5},
        {"rounds": 6, "epochs": 4.0, "lr": 0.05},
    ),
}
PRICES = tuple(3e-5 * 10 ** (-k / 8) for k in range(25))
TURN_PRICES = tuple(2e-5 * 10 ** (-k / 4) for k in range(9))
QPS = range(-40, -7)
VERSION = 4


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
    shares = []
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
        shares += against_nncodec(network, cells)
        data.append({"network": network, "cells": cells})
    images = len(workload(given.workload).splits().open_test())
    results.write(
        f"deep_compression_{given.workload}",
        f"Deep Compression of both LeNets on {given.workload}",
        "Mean and standard deviation over seeds. Sizes are of whole files: the coded file holds "
        "the network's graph, biases and hash, too; nncodec's stream holds tensors only. `Times "
        "smaller` is against 4 bytes a parameter. Accuracy on "
        f"{images:,} test images; its difference to the dense network, in points, with the 95 % "
        "interval over images of the mean over seeds. No loss: the interval's lower end is above "
        f"-{100 * MARGIN:g} points (non-inferiority), for the mean and, in brackets, for how many "
        "of the seeds alone.",
        (
            "network",
            "method",
            "weights, times fewer",
            "bytes",
            "times smaller",
            "test accuracy, %",
            "against dense",
            "no loss",
            "compression, CPU s",
        ),
        rows,
        notes=(
            f"Moved images: each training image is moved by up to {SHIFT} pixel on both axes. It "
            "gives the dense network more accuracy, too: see its row.",
            "paper: about 12 times fewer weights, codes of 8 and 5 bits for conv and fc, Huffman. "
            "Han et al. report 40x and 39x on MNIST without loss.",
            "rate-quantise and nncodec (2.1.3, dependent quantisation) on the very same weights, "
            "those of `paper, moved images: pruned`, nothing trained afterwards: the highest price "
            f"and the coarsest QP that lose at most {given.loss:g} points against the dense "
            "network on the validation images.",
            "further: rate-quantise in turns with training from the same weights on; by the same "
            "rule, and by one that asks for no loss on the validation images.",
            *shares,
            f"Epochs are {given.epochs:g} times those of the program's plans.",
        ),
        data=data,
    )


def table_rows(network: str, cells: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    rows = []
    for method in dict.fromkeys(name for one in cells for name in one):
        found = [one[method] for one in cells if method in one]
        full = found[0]["dense_bytes"]
        size = np.array([one["bytes"] for one in found], float)
        accuracy = 100 * np.array([one["accuracy"] for one in found])
        change, low, high = together(found)
        fine = sum(one["within_margin"] for one in found)
        rows.append(
            (
                network,
                method + ("" if len(found) == len(cells) else f" ({len(found)} seeds only)"),
                f"{np.mean([one['fewer'] for one in found]):.1f}",
                f"{size.mean():,.0f} ± {_spread(size):,.0f}",
                f"{np.mean(full / size):.1f}",
                f"{accuracy.mean():.2f} ± {_spread(accuracy):.2f}",
                f"{100 * change:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
                f"{'yes' if low > -MARGIN else 'not shown'} ({fine} of {len(found)})",
                f"{np.mean([one['seconds'] for one in found]):.0f}",
            )
        )
    return rows


def together(found: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Return the mean change of accuracy over seeds and its 95 % interval over images."""
    gains = np.zeros(found[0]["images"])
    for one in found:
        gains[one["gained"]] += 1 / len(found)
        gains[one["lost"]] -= 1 / len(found)
    half = normal_quantile(0.975) * gains.std(ddof=1) / len(gains) ** 0.5
    return float(gains.mean()), float(gains.mean() - half), float(gains.mean() + half)


def against_nncodec(network: str, cells: list[dict[str, Any]]) -> list[str]:
    """Return in words how many bytes rate-quantise takes of nncodec's on the same weights."""
    pairs = [
        one[SAME]["bytes"] / one[THEIRS]["bytes"] for one in cells if SAME in one and THEIRS in one
    ]
    if not pairs:
        return []
    shown = ", ".join(f"{share:.2f}" for share in pairs)
    return [f"{network}: bytes of rate-quantise against nncodec on the same weights: {shown}."]


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


SAME = "rate-quantise on the same weights"
THEIRS = "nncodec on the same weights"


def cell(name: str, network: str, seed: int, arguments: Arguments) -> dict[str, Any]:
    """Return every method's figures for one seed."""
    task = workload(name)
    splits = task.splits()
    context = StepContext.of(task, network, seed=seed, cache_dir=default_cache_dir())
    shape = tuple(int(n) for n in splits.train.x.shape[1:])
    dense = Network(
        reference(task, network, seed=seed, cache_dir=default_cache_dir()).module, shape
    )
    valid = predict(dense.module, splits.validation.x).argmax(axis=1) == splits.validation.y
    least = float(valid.mean()) - arguments.loss / 100 - 1e-9

    def enough(made: Network) -> bool:
        return evaluate(made.module, splits.validation) >= least

    def lossless(made: Network) -> bool:
        mine = predict(made.module, splits.validation.x).argmax(axis=1) == splits.validation.y
        return is_non_inferior(paired_difference(valid, mine), MARGIN)

    plan = PLANS[network]
    training = {**plan.training, "epochs": plan.training["epochs"] * arguments.epochs}
    turns = {**plan.turns, "epochs": plan.turns["epochs"] * arguments.epochs, "shift": SHIFT}
    tried: dict[float, Network | None] = {}

    def at(price: float) -> Network | None:
        if price not in tried:
            tried[price] = _rate(base, context, price, turns)
        return tried[price]

    chosen: dict[str, Chosen] = {"dense": (dense, 0, 0.0)}
    clock = _Clock()
    longer = FineTune.Params(
        epochs=training["epochs"] * training["rounds"], lr=training["lr"] / 3, shift=SHIFT
    )
    chosen["dense, moved images"] = (FineTune(longer).apply(dense, context), 0, clock())
    base = dense
    for moved in (False, True):
        clock = _Clock()
        shift = SHIFT if moved else 0
        params = MagnitudeParams(**plan.sparsity, **training, shift=shift)
        base = MagnitudePrune(params).apply(dense, context)
        label = "paper, moved images" if moved else "paper"
        chosen[f"{label}: pruned"] = (base, _size(base, context, "context"), clock())
        share = ShareWeights.Params(bits=plan.bits, epochs=3.0 * arguments.epochs, shift=shift)
        paper = ShareWeights(share).apply(base, context)
        spent = clock()
        chosen[f"{label}: pruned, shared, Huffman"] = (
            paper,
            _size(paper, context, "huffman"),
            spent,
        )
        chosen[f"{label}: the same, contexts"] = (paper, _size(paper, context, "context"), spent)
    pruned_s = chosen["paper, moved images: pruned"][2]
    clock = _Clock()
    same = _first(PRICES, lambda price: _rate(base, context, price, {}), enough)
    if same is not None:
        chosen[SAME] = (same, _size(same, context, "context"), pruned_s + clock())
    if arguments.nncodec is not None:
        clock = _Clock()
        theirs = _nncodec(arguments.nncodec, base, enough)
        if theirs is not None:
            chosen[THEIRS] = (*theirs, pruned_s + clock())
    clock = _Clock()
    for label, rule in (("further", enough), ("further, no loss on validation", lossless)):
        further = _first(TURN_PRICES, at, rule)
        if further is not None:
            chosen[label] = (further, _size(further, context, "context"), pruned_s + clock())
    # The test images are opened once, when every choice is made.
    test = splits.open_test()
    right = predict(dense.module, test.x).argmax(axis=1) == test.y
    params_all = count(dense.module, shape)[0]
    told: dict[str, Any] = {}
    for method, (made, size, used) in chosen.items():
        mine = predict(made.module, test.x).argmax(axis=1) == test.y
        change = paired_difference(right, mine)
        told[method] = {
            "bytes": size or 4 * params_all,
            "dense_bytes": 4 * params_all,
            "fewer": params_all / count(made.module, shape)[1],
            "accuracy": float(mine.mean()),
            "validation": evaluate(made.module, splits.validation),
            "images": len(mine),
            "gained": np.flatnonzero(mine & ~right).tolist(),
            "lost": np.flatnonzero(right & ~mine).tolist(),
            "change": [change.value, change.low, change.high],
            "within_margin": is_non_inferior(change, MARGIN),
            "seconds": used,
        }
        if made.history and "price" in made.history[-1]:
            told[method]["price"] = made.history[-1]["price"]
    return told


class _Clock:
    """Processor seconds since it was made."""

    def __init__(self) -> None:
        self._begun = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self._begun


def _rate(
    base: Network, context: StepContext, price: float, turns: dict[str, Any]
) -> Network | None:
    """Return the network quantised at a price, None where that leaves a layer empty."""
    try:
        return RateQuantise(RateQuantise.Params(price=price, **turns)).apply(base, context)
    except FlatSatError:
        return None


def _first(
    prices: tuple[float, ...],
    make: Callable[[float], Network | None],
    rule: Callable[[Network], bool],
) -> Network | None:
    """Return what the highest price gives that the rule allows."""
    for price in prices:
        made = make(price)
        if made is not None and rule(made):
            return made
    return None


def _size(network: Network, context: StepContext, coder: str) -> int:
    """Return the bytes of the network's coded ONNX file."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = OnnxLower(OnnxLower.Params(goldens=8)).lower(network, Path(folder), context)
        data = (Path(folder) / artifact.file).read_bytes()
    codec: Any = ContextCodec() if coder == "context" else HuffmanCodec()
    return len(codec.encode(data, tensor_ranges(data, "onnx"), "onnx"))


def _nncodec(
    python: Path, network: Network, rule: Callable[[Network], bool]
) -> tuple[Network, int] | None:
    """Return the network of nncodec's coarsest QP that the rule allows, and its bytes."""
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
        with np.load(target, allow_pickle=False) as stored:
            for qp in reversed(QPS):
                module = copy.deepcopy(network.module)
                with torch.no_grad():
                    for name, parameter in module.named_parameters():
                        parameter.copy_(torch.from_numpy(stored[f"{qp}:{name}"]))
                made = Network(module, network.input_shape)
                if rule(made):
                    return made, int(stored[f"bytes:{qp}"])
    return None


if __name__ == "__main__":
    main()
