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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from flatsat.datasets.splits import Split

MARGIN = 0.005
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
PRICES = tuple(3e-5 * 10 ** (-k / 8) for k in range(33))
TURN_PRICES = tuple(2e-5 * 10 ** (-k / 4) for k in range(9))
QPS = range(-40, -7)
VERSION = 5
PARTS = ("papers", "pairs", "further")
"""The paper's recipe; rate-quantise and nncodec on the same weights; both in turns."""


@dataclass(frozen=True)
class Arguments:
    """How cells are made."""

    epochs: float
    lr: float
    loss: float
    shift: int
    kept: float
    nncodec: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--networks", nargs="+", default=["lenet300", "lenet5"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=1.0, help="times those of the plan")
    parser.add_argument("--lr", type=float, default=1.0, help="times those of the plan")
    parser.add_argument("--loss", type=float, default=0.3, help="points on validation")
    parser.add_argument("--shift", type=int, default=1, help="pixels; 0 leaves images in place")
    parser.add_argument(
        "--kept",
        type=float,
        default=1.0,
        help="share of weights kept where quantisation for rate begins, times the plan's",
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--nncodec", type=Path, help="Python that has nncodec")
    given = parser.parse_args()
    torch.set_num_threads(1)
    arguments = Arguments(
        given.epochs, given.lr, given.loss, given.shift, given.kept, given.nncodec
    )
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
                "lr": given.lr,
                "loss": given.loss,
                "nncodec": given.nncodec is not None,
                "shift": given.shift,
                "kept": given.kept,
                "version": VERSION,
            }
            bench: Bench | None = None
            cell: dict[str, Any] = {}
            for part in given.parts:
                value = checkpoint.get(key | {"part": part})
                if value is None:
                    bench = bench or Bench(given.workload, network, seed, arguments)
                    value = bench.judged(getattr(bench, part)())
                    checkpoint.put(key | {"part": part}, value)
                assert isinstance(value, dict)
                cell |= value
                print(network, seed, {k: v["bytes"] for k, v in value.items()}, flush=True)
            cells.append(cell)
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
            f"Moved images: each training image is moved by up to {given.shift} pixel on both "
            "axes. The dense network gets them, too: see its row."
            if given.shift
            else "Trained longer: for as many epochs as pruning retrains.",
            "paper: about 12 times fewer weights, codes of 8 and 5 bits for conv and fc, Huffman. "
            "Han et al. report 40x and 39x on MNIST without loss.",
            "rate-quantise and nncodec (2.1.3, dependent quantisation) on the very same weights, "
            f"pruned as the paper's recipe {'with moved images ' if given.shift else ''}does but "
            f"with {given.kept:g} times its weights left, nothing trained afterwards: the highest "
            f"price and the coarsest QP that lose at most {given.loss:g} points against the dense "
            "network on the validation images; beside them the highest price that is there as "
            "accurate as nncodec's choice.",
            "further: rate-quantise in turns with training from the same weights on; by the same "
            "rule, and by one that asks for no loss on the validation images.",
            *shares,
            f"Epochs are {given.epochs:g} times and learning rates {given.lr:g} times those of "
            "the program's plans.",
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
    equal = [
        one[EQUAL]["bytes"] / one[THEIRS]["bytes"]
        for one in cells
        if EQUAL in one and THEIRS in one
    ]
    shown, as_good = (", ".join(f"{share:.2f}" for share in found) for found in (pairs, equal))
    return [
        f"{network}: bytes of rate-quantise against nncodec on the same weights, seed by seed: "
        f"{shown} by the same rule; {as_good} at no less accuracy on validation."
    ]


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


SAME = "rate-quantise on the same weights"
THEIRS = "nncodec on the same weights"
EQUAL = "rate-quantise, as accurate on validation as nncodec"


class Bench:
    """One network of one seed, and how it is compressed and judged."""

    def __init__(self, name: str, network: str, seed: int, arguments: Arguments) -> None:
        task = workload(name)
        self.plan = PLANS[network]
        self.arguments = arguments
        self.splits = task.splits()
        self.ctx = StepContext.of(task, network, seed=seed, cache_dir=default_cache_dir())
        trained = reference(task, network, seed=seed, cache_dir=default_cache_dir())
        self.dense = Network(trained.module, task.image_shape)
        self.valid = self._right(self.dense, self.splits.validation)
        self.training = {
            **self.plan.training,
            "epochs": self.plan.training["epochs"] * arguments.epochs,
            "lr": self.plan.training["lr"] * arguments.lr,
        }
        self._pruned: dict[tuple[int, float], tuple[Network, float]] = {}

    def papers(self) -> dict[str, Chosen]:
        """Return the dense network and the paper's recipe, with and without moved images."""
        chosen: dict[str, Chosen] = {"dense": (self.dense, 0, 0.0)}
        clock = _Clock()
        longer = FineTune.Params(
            epochs=self.training["epochs"] * self.training["rounds"],
            lr=self.training["lr"] / 3,
            shift=self.arguments.shift,
        )
        how = "moved images" if self.arguments.shift else "trained longer"
        chosen[f"dense, {how}"] = (FineTune(longer).apply(self.dense, self.ctx), 0, clock())
        labels = {0: "paper"}
        if self.arguments.shift:
            labels[self.arguments.shift] = f"paper, {how}"
        for shift, label in labels.items():
            base, spent = self.pruned(shift, 1.0)
            clock = _Clock()
            share = ShareWeights.Params(
                bits=self.plan.bits, epochs=3.0 * self.arguments.epochs, shift=shift
            )
            paper = ShareWeights(share).apply(base, self.ctx)
            seconds = spent + clock()
            huffman, context = (self.size(paper, coder) for coder in ("huffman", "context"))
            chosen[f"{label}: pruned"] = (base, self.size(base), spent)
            chosen[f"{label}: pruned, shared, Huffman"] = (paper, huffman, seconds)
            chosen[f"{label}: the same, contexts"] = (paper, context, seconds)
        return chosen

    def pairs(self) -> dict[str, Chosen]:
        """Return what rate-quantise and nncodec make of the same pruned weights."""
        base, spent = self.pruned(self.arguments.shift, self.arguments.kept)
        chosen: dict[str, Chosen] = {}
        clock = _Clock()
        made = {price: self._rate(base, price, {}) for price in PRICES}
        same = _first(made, self._enough)
        if same is not None:
            chosen[SAME] = (same, self.size(same), spent + clock())
        if self.arguments.nncodec is None:
            return chosen
        clock = _Clock()
        theirs = _nncodec(self.arguments.nncodec, base, self._enough)
        if theirs is not None:
            chosen[THEIRS] = (*theirs, spent + clock())
            least = evaluate(theirs[0].module, self.splits.validation)
            equal = _first(made, lambda one: evaluate(one.module, self.splits.validation) >= least)
            if equal is not None:
                chosen[EQUAL] = (equal, self.size(equal), spent + clock())
        return chosen

    def further(self) -> dict[str, Chosen]:
        """Return what pruning and quantising for rate in turns makes of them."""
        base, spent = self.pruned(self.arguments.shift, self.arguments.kept)
        turns = {
            **self.plan.turns,
            "epochs": self.plan.turns["epochs"] * self.arguments.epochs,
            "lr": self.plan.turns["lr"] * self.arguments.lr,
            "shift": self.arguments.shift,
        }
        chosen: dict[str, Chosen] = {}
        clock = _Clock()
        rules = {"further": self._enough, "further, no loss on validation": self._lossless}
        for price in TURN_PRICES:
            made = self._rate(base, price, turns)
            for label, rule in rules.items():
                if made is not None and label not in chosen and rule(made):
                    chosen[label] = (made, self.size(made), spent + clock())
            if len(chosen) == len(rules):
                break
        return chosen

    def pruned(self, shift: int, kept: float) -> tuple[Network, float]:
        """Return the network of about 12 / kept times fewer weights, and CPU seconds."""
        if (shift, kept) not in self._pruned:
            clock = _Clock()
            sparsity = {name: _scaled(value, kept) for name, value in self.plan.sparsity.items()}
            params = MagnitudeParams(**sparsity, **self.training, shift=shift)
            made = MagnitudePrune(params).apply(self.dense, self.ctx)
            self._pruned[shift, kept] = made, clock()
        return self._pruned[shift, kept]

    def size(self, network: Network, coder: str = "context") -> int:
        """Return the bytes of the network's coded ONNX file."""
        with tempfile.TemporaryDirectory() as folder:
            lower = OnnxLower(OnnxLower.Params(goldens=8))
            artifact = lower.lower(network, Path(folder), self.ctx)
            data = (Path(folder) / artifact.file).read_bytes()
        codec: Any = ContextCodec() if coder == "context" else HuffmanCodec()
        return len(codec.encode(data, tensor_ranges(data, "onnx"), "onnx"))

    def judged(self, chosen: dict[str, Chosen]) -> dict[str, Any]:
        """Return every network's figures on the test images, when every choice is made."""
        test = self.splits.open_test()
        right = self._right(self.dense, test)
        shape = self.dense.input_shape
        params = count(self.dense.module, shape)[0]
        told: dict[str, Any] = {}
        for method, (made, size, used) in chosen.items():
            mine = self._right(made, test)
            change = paired_difference(right, mine)
            told[method] = {
                "bytes": size or 4 * params,
                "dense_bytes": 4 * params,
                "fewer": params / count(made.module, shape)[1],
                "accuracy": float(mine.mean()),
                "validation": evaluate(made.module, self.splits.validation),
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

    def _rate(self, base: Network, price: float, turns: dict[str, Any]) -> Network | None:
        """Return the network quantised at a price, None where that leaves a layer empty."""
        try:
            return RateQuantise(RateQuantise.Params(price=price, **turns)).apply(base, self.ctx)
        except FlatSatError:
            return None

    def _enough(self, made: Network) -> bool:
        least = float(self.valid.mean()) - self.arguments.loss / 100 - 1e-9
        return evaluate(made.module, self.splits.validation) >= least

    def _lossless(self, made: Network) -> bool:
        mine = self._right(made, self.splits.validation)
        return is_non_inferior(paired_difference(self.valid, mine), MARGIN)

    def _right(self, made: Network, split: Split) -> np.ndarray:
        right: np.ndarray = predict(made.module, split.x).argmax(axis=1) == split.y
        return right


class _Clock:
    """Processor seconds since it was made."""

    def __init__(self) -> None:
        self._begun = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self._begun


def _scaled(sparsity: Any, kept: float) -> Any:
    """Return a sparsity, or a table of them, with `kept` times as many weights left."""
    if isinstance(sparsity, dict):
        return {name: _scaled(value, kept) for name, value in sparsity.items()}
    return max(0.0, 1 - kept * (1 - sparsity))


def _first(made: Mapping[float, Network | None], rule: Callable[[Network], bool]) -> Network | None:
    """Return the first network that the rule allows."""
    return next((one for one in made.values() if one is not None and rule(one)), None)


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
