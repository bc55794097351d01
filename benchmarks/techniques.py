"""The technique x architecture table: every technique on four networks, over three seeds.

Each technique has the same settings on every architecture, so that a row tells how well it
generalises; nothing is tuned by network but the budget of training. Resumable: finished cells are
kept in lab/benchmarks and not computed again; `--finished` writes the table of those.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch

from flatsat.cache import default_cache_dir
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.codec import ContextCodec
from flatsat.compressors.filters import L1FilterParams, L1FilterPrune
from flatsat.compressors.graph import channel_groups, count, layers
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import run_host
from flatsat.compressors.registry import step_class
from flatsat.compressors.tensor_ranges import tensor_ranges
from flatsat.datasets.reference import reference
from flatsat.datasets.splits import Split, Splits
from flatsat.datasets.workload import Workload, workload
from flatsat.errors import FlatSatError, RecipeError

NETWORKS = ("resnet20", "mobilenet-small", "lenet300", "lenet5")
SPARSITY = 0.8  # of weights
CUT = 0.3  # share of channels
MEAN = "equalise, share-weights, mean gradients"
BOUND = 2.0  # drop that agents may cause, points
_VALIDATION = 1_000
_BATCH = 500
Step = tuple[str, dict[str, Any]]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What training may cost.

    Attributes:
        images: of the training split, the first so many; None for all.
        epochs: of the dense network and of the narrow one; None as the workload trains them.
        tune: epochs of training after (or while) compressing, in all.
        lr: peak learning rate of that.
    """

    images: int | None
    epochs: int | None
    tune: float
    lr: float = 0.02


BUDGETS: Mapping[str, Mapping[str, Budget]] = {
    "fashion": {
        "resnet20": Budget(6_000, 6, 2.0),
        "mobilenet-small": Budget(None, 5, 2.0),
        "lenet300": Budget(None, None, 2.0),
        "lenet5": Budget(None, None, 2.0),
    },
    "mnist-mini": {
        "resnet20": Budget(None, None, 2.0),
        "mobilenet-small": Budget(None, None, 4.0),
        "lenet300": Budget(None, None, 4.0),
        "lenet5": Budget(None, None, 4.0),
    },
}


class Trimmed(Workload):
    """A workload of which only the first training images count."""

    def splits(self, cache_dir: Path | None = None) -> Splits:
        """Return the splits with fewer images to train on and to choose by; the test stays."""
        whole = super().splits(cache_dir)
        images = BUDGETS[self.name][self.training[0][0]].images
        train = whole.train if images is None else whole.train.first(images)
        validation = whole.validation.first(_VALIDATION)
        return Splits(train, whole.calibration, validation, whole.open_test)


def trimmed(task: Workload, network: str) -> Workload:
    """Return the workload as the budget of one network has it."""
    budget = BUDGETS[task.name][network]
    if budget.images is None and budget.epochs is None:
        return task
    settings = task.settings(network)
    if budget.epochs is not None:
        settings = replace(settings, epochs=budget.epochs)
    values = {name: getattr(task, name) for name in task.__dataclass_fields__}
    return Trimmed(**(values | {"training": ((network, settings),)}))


class Bench:
    """One network of one seed, dense, and what was made of it so far in this process."""

    def __init__(self, task: Workload, network: str, seed: int) -> None:
        self.budget = BUDGETS[task.name][network]
        self.task = trimmed(task, network)
        self.name = network
        splits = self.task.splits()
        self.test = splits.open_test()
        self.ctx = StepContext.of(self.task, network, seed=seed, cache_dir=default_cache_dir())
        self.reference = reference(self.task, network, seed=seed, cache_dir=default_cache_dir())
        self.dense = Network(self.reference.module, self.task.image_shape)
        self._made: dict[str, tuple[Network, float]] = {}

    def made(self, steps: list[Step]) -> tuple[Network, float]:
        """Return the network after the steps, and their CPU seconds."""
        if not steps:
            return self.dense, 0.0
        key = repr(steps)
        if key not in self._made:
            before, used_s = self.made(steps[:-1])
            name, params = steps[-1]
            cls = step_class(name, "transform")
            started = time.process_time()
            after = cls(cls.Params.model_validate(params)).apply(before, self.ctx)
            self._made[key] = after, used_s + time.process_time() - started
        return self._made[key]

    def cell(self, steps: list[Step]) -> Cell:
        """Return the figures of one technique."""
        network, used_s = self.made(steps)
        if not steps:
            used_s = self.reference.cpu_s
        elif steps[0][0] == "narrow":
            width = float(str(network.history[-1]["width"]))
            used_s = reference(
                self.task, self.name, seed=self.ctx.seed, width=width, cache_dir=self.ctx.cache_dir
            ).cpu_s
        with tempfile.TemporaryDirectory() as folder:
            artifact = OnnxLower(OnnxLower.Params(goldens=8)).lower(network, Path(folder), self.ctx)
            data = (Path(folder) / artifact.file).read_bytes()
        coded = ContextCodec().encode(data, tensor_ranges(data, "onnx"), "onnx")
        params, nonzeros, macs = count(network.module, network.input_shape)
        return {
            "accuracy": accuracy(data, artifact.inputs[0].name, self.test),
            "params": params,
            "nonzeros": nonzeros,
            "macs": macs,
            "coded_bytes": len(coded),
            "cpu_s": used_s,
        }


def accuracy(data: bytes, name: str, split: Split) -> float:
    """Return the accuracy of an ONNX file's bytes on a split."""
    right = 0
    for start in range(0, len(split), _BATCH):
        part = slice(start, start + _BATCH)
        (logits,) = run_host(data, {name: np.array(split.x[part])}).values()
        right += int((logits.argmax(axis=1) == split.y[part]).sum())
    return right / len(split)


def _narrow(bench: Bench) -> list[Step]:
    filters = L1FilterPrune(L1FilterParams(ratio=CUT)).apply(bench.dense, bench.ctx)
    return [("narrow", {"macs": count(filters.module, filters.input_shape)[2]})]


def _magnitude(bench: Bench) -> list[Step]:
    tune, lr = bench.budget.tune, bench.budget.lr
    params = {"global_sparsity": SPARSITY, "rounds": 2, "epochs": tune / 2, "lr": lr}
    return [("magnitude-prune", params)]


def _gradual(bench: Bench) -> list[Step]:
    tune, lr = bench.budget.tune, bench.budget.lr
    params = {"final_sparsity": SPARSITY, "scope": "global", "epochs": tune, "lr": lr}
    return [("gradual-prune", params)]


def _neurons(bench: Bench) -> list[Step]:
    found = layers(bench.dense.module, bench.dense.input_shape)
    if sum(info.kind == "fc" for info in found) < 2:
        raise RecipeError("no hidden dense layer")
    params = {"ratio": {"fc": CUT}, "epochs": bench.budget.tune, "lr": bench.budget.lr}
    return [("neuron-prune", params)]


def _agents(bench: Bench) -> list[Step]:
    params = {"samples": 4, "iterations": 10, "tune_epochs": 0.05, "images": 300, "retries": 1}
    params |= {"b": BOUND, "epochs": bench.budget.tune / 4, "lr": bench.budget.lr}
    return [("agent-prune", params)]


def _tuned(bench: Bench) -> Step:
    return "fine-tune", {"epochs": bench.budget.tune, "lr": bench.budget.lr}


def _filters(bench: Bench) -> list[Step]:
    return [("l1-filter-prune", {"ratio": CUT}), _tuned(bench)]


def _channels(bench: Bench) -> list[Step]:
    groups = channel_groups(bench.dense.module, bench.dense.input_shape)
    keep = {group.name: 1.0 - CUT for group in groups if group.prunable}
    return [("channel-prune", {"keep": keep})]


def _linear(bits: int) -> Callable[[Bench], list[Step]]:
    return lambda _: [("linear-quantise", {"bits": bits})]


def _mended(_: Bench) -> list[Step]:
    return [("equalise", {}), ("linear-quantise", {"bits": 4}), ("bias-correct", {})]


def _aware(bench: Bench) -> list[Step]:
    params = {"bits": 4, "activations": None, "epochs": bench.budget.tune}
    return [("quantise-aware-train", params)]


def _share(bench: Bench, **more: Any) -> list[Step]:
    found = layers(bench.dense.module, bench.dense.input_shape)
    kinds = {"conv" if "conv" in info.kind else "fc" for info in found}
    bits = {kind: bits for kind, bits in (("conv", 6), ("fc", 5)) if kind in kinds}
    params = {"bits": bits, "epochs": bench.budget.tune / 2, **more}
    return [("equalise", {}), ("share-weights", params)]


TECHNIQUES: Mapping[str, Callable[[Bench], list[Step]]] = {
    "dense": lambda _: [],
    "narrow from scratch, equal MACs": _narrow,
    "magnitude-prune": _magnitude,
    "gradual-prune": _gradual,
    "l1-filter-prune, fine-tune": _filters,
    "channel-prune": _channels,
    "channel-prune, fine-tune": lambda bench: [*_channels(bench), _tuned(bench)],
    "neuron-prune": _neurons,
    "agent-prune": _agents,
    "linear-quantise, 8 bits": _linear(8),
    "linear-quantise, 4 bits": _linear(4),
    "equalise, linear-quantise, bias-correct, 4 bits": _mended,
    "quantise-aware-train, 4 bits a channel": _aware,
    "equalise, share-weights": _share,
    MEAN: lambda bench: _share(bench, gradient="mean", lr=0.005),
    "magnitude-prune, equalise, share-weights, code": lambda bench: [
        *_magnitude(bench),
        *_share(bench),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="fashion", choices=list(BUDGETS))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--without", nargs="+", default=[], choices=list(TECHNIQUES))
    parser.add_argument("--finished", action="store_true", help="compute nothing more")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = workload(arguments.workload)
    checkpoint = results.Checkpoint(Path(f"lab/benchmarks/techniques_{task.name}.json"))
    table: dict[str, dict[str, list[Cell]]] = {network: {} for network in arguments.networks}
    for network in arguments.networks:
        for seed in range(arguments.seeds):
            bench: Bench | None = None
            for technique in TECHNIQUES:
                key = {"network": network, "seed": seed, "technique": technique}
                key |= {"budget": repr(BUDGETS[task.name][network]), "cut": [SPARSITY, CUT]}
                value = checkpoint.get(key)
                left_out = arguments.finished or technique in arguments.without
                if value is None and not left_out:
                    bench = bench or Bench(task, network, seed)
                    value = made(bench, technique)
                    checkpoint.put(key, value)
                    print(network, seed, technique, value, flush=True)
                if value is not None:
                    assert isinstance(value, dict)
                    told = {"seed": seed, **value}
                    table.setdefault(network, {}).setdefault(technique, []).append(told)
    write(task, table, arguments.seeds)


def made(bench: Bench, technique: str) -> Cell:
    """Return a technique's figures, or why there are none."""
    try:
        return bench.cell(TECHNIQUES[technique](bench))
    except FlatSatError as error:
        return {"refused": error.message}


def write(task: Workload, table: dict[str, dict[str, list[Cell]]], seeds: int) -> None:
    """Write the table of what is finished."""
    rows: list[tuple[object, ...]] = []
    for network, found in table.items():
        dense = found.get("dense", [])
        for technique, cells in found.items():
            rows.append((network, technique, *row(cells, dense, seeds)))
    images = len(task.splits().open_test())
    notes = [_budget(task, network) for network in table]
    notes += _notes(task, table)
    results.write(
        f"techniques_{task.name}",
        f"Techniques by architecture on {task.name}",
        "The same settings of each technique on every architecture: how well does it generalise? "
        f"Accuracy of the ONNX file on the {images:,} test images in %, mean ± standard deviation "
        f"over {seeds} seeds, and in brackets the mean difference to the dense network of the same "
        "seed in points.\n\n"
        + "\n".join(matrix(table, seeds))
        + "\n\nThe same cells in full. `weights` are those that are not zero; MACs are what a "
        "dense runtime does; coded bytes are of the ONNX file coded with adaptive contexts, graph "
        "and biases included; `times smaller` is 4 bytes for each parameter of the dense network "
        "against them. CPU seconds are those of compressing, one thread; for the dense and the "
        "narrow network those of training from scratch.",
        (
            "network",
            "technique",
            "test accuracy, %",
            "against dense, points",
            "weights",
            "MACs",
            "coded bytes",
            "times smaller",
            "CPU s",
        ),
        rows,
        notes=notes,
        data=table,
    )


def matrix(table: dict[str, dict[str, list[Cell]]], seeds: int) -> list[str]:
    """Return the lines of the table of techniques by architecture."""
    lines = ["| technique | " + " | ".join(table) + " |", "|" + " --- |" * (len(table) + 1)]
    for technique in TECHNIQUES:
        cells = []
        for found in table.values():
            mine = found.get(technique, [])
            told = row(mine, found.get("dense", []), seeds)
            change = f" ({told[1]})" if told[1] and technique != "dense" else ""
            cells.append(f"{told[0]}{change}")
        lines.append(f"| {technique} | " + " | ".join(cells) + " |")
    return lines


def row(cells: list[Cell], dense: list[Cell], seeds: int) -> tuple[str, ...]:
    """Return accuracy, its difference, weights, MACs, bytes, ratio and cost in words."""
    if not cells:
        return ("not run", "", "", "", "", "", "")
    refused = [cell["refused"] for cell in cells if "refused" in cell]
    if refused:
        return (f"none: {refused[0]}", "", "", "", "", "", "")
    accuracies = 100 * np.array([cell["accuracy"] for cell in cells])
    told = f"{accuracies.mean():.2f}"
    if len(cells) > 1:
        told += f" ± {accuracies.std(ddof=1):.2f}"
    if len(cells) < seeds:
        told += f" ({len(cells)} of {seeds} seeds)"
    by_seed = {cell["seed"]: cell for cell in dense}
    pairs = [(cell, by_seed[cell["seed"]]) for cell in cells if cell["seed"] in by_seed]
    change = 100 * np.mean([a["accuracy"] - b["accuracy"] for a, b in pairs])
    smaller = np.mean([4 * b["params"] / a["coded_bytes"] for a, b in pairs])
    size = np.mean([cell["coded_bytes"] for cell in cells])
    return (
        told,
        f"{round(change, 2) + 0.0:+.2f}",
        f"{np.mean([cell['nonzeros'] for cell in cells]):,.0f}",
        f"{np.mean([cell['macs'] for cell in cells]):,.0f}",
        f"{size:,.0f}",
        f"{smaller:.1f}",
        f"{np.mean([cell['cpu_s'] for cell in cells]):.0f}",
    )


def _budget(task: Workload, network: str) -> str:
    budget = BUDGETS[task.name][network]
    settings = trimmed(task, network).settings(network)
    images = min(budget.images or dict(task.sizes)["train"], dict(task.sizes)["train"])
    return (
        f"{network}: {images:,} training images, {settings.epochs} epochs from scratch, "
        f"{budget.tune:g} epochs of training with each technique that trains "
        f"(share-weights {budget.tune / 2:g})."
    )


def _notes(task: Workload, table: dict[str, dict[str, list[Cell]]]) -> list[str]:
    notes = [
        f"Settings: magnitude pruning of {SPARSITY:.0%} of all weights in two rounds; {CUT:.0%} of "
        "the channels of every group that can be pruned; the narrow network has at most as many "
        "MACs as l1-filter-prune leaves; codebooks of 6 bits for convolutions, 5 for dense layers.",
        "Lowering folds a batch norm into the weights before it: one range a layer then becomes as "
        "many as it has channels, and its codes no longer stand on 2^b values. Equalise folds "
        "first, so that the coded file stays small; levels a channel can't have that.",
        "Shared values are trained by summed gradients, as in the paper, at learning rate 5e-4, "
        "where a training can end at chance, or by mean gradients at 5e-3.",
    ]
    if any("agent-prune" in found for found in table.values()):
        notes.append(
            f"Agents: drop bound of {BOUND:g} points on validation; a layer's agent learns from 10 "
            "times 4 samples, each trained for 1/20 epoch: far fewer than the paper's."
        )
    else:
        notes.append("agent-prune: left out of this run for its cost.")
    notes.append(
        "Techniques that train go on from the dense network, so they have had its epochs and their "
        "own; the narrow network has had as many epochs as the dense one."
    )
    short = [n for n in table if BUDGETS[task.name][n].images or BUDGETS[task.name][n].epochs]
    if short:
        notes.append(
            f"{', '.join(short)}: trained for less than the workload's own settings, to keep this "
            "program's run short; absolute accuracies are below what full training gives."
        )
    return notes


if __name__ == "__main__":
    main()
