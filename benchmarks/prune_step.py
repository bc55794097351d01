"""One step of a search, pruned and evaluated, by FlatSat and by torch-pruning: the ratio of times.

A step takes a policy (a preserve ratio of each group of coupled channels), keeps the channels of
largest L1 norm, cuts the others out of a copy of the trained network, and looks at the validation
images. Both libraries get the same policies, choose the same channels (checked, outputs and all)
and evaluate by the same function. Arms are interleaved policy by policy, in an order that is drawn.

FlatSat traces a network once and prunes it as often as a search likes; torch-pruning's pruners
change the network that they traced, so that its documented way traces a copy for each candidate.
Beside that stands what it could do at best: graph and order of channels kept, the same network
pruned again and again, its tensors put back by hand.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import results
import torch
import torch_pruning as tp
from torch import nn
from torch.nn.utils import prune as torch_prune

from flatsat.cache import default_cache_dir
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.filters import L1FilterPrune
from flatsat.compressors.graph import channel_groups, count, prune_channels
from flatsat.compressors.magnitude import MagnitudePrune
from flatsat.compressors.reconstruct import ChannelPruner
from flatsat.datasets.fit import evaluate, predict
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import parse_ref

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flatsat.compressors.channels import ChannelGroup

    Policy = Mapping[str, float]
    Arm = Callable[[Policy], nn.Module]

FRESH, KEPT = "torch-pruning, traced for each step", "torch-pruning, graph kept"
CUT, LEAST, CHECKED = "FlatSat, cut", "FlatSat, cut and least squares", "FlatSat, cut and verified"
RECIPE, MASKED = "FlatSat, recipe step", "FlatSat, channels masked"
MINE_ZEROS, TORCH_ZEROS = "FlatSat, 90 % zeros", "torch.nn.utils.prune, 90 % zeros"
PAIRS = (
    (CUT, FRESH),
    (CUT, KEPT),
    (LEAST, FRESH),
    (LEAST, KEPT),
    (CHECKED, FRESH),
    (RECIPE, FRESH),
    (MASKED, FRESH),
    (MINE_ZEROS, TORCH_ZEROS),
)
WHAT = {
    FRESH: "copy, trace, choose, cut",
    KEPT: "cut, and put the tensors back",
    CUT: "groups traced once; copy, cut",
    LEAST: "the same, and new weights for what reads the cut channels",
    CHECKED: "the same as cut, and outputs checked against the network with channels zeroed",
    RECIPE: "`l1-filter-prune` as a recipe runs it: trace, choose, cut, verify everything",
    MASKED: "`ChannelPruner.masked`: dense shape, channels zeroed",
    MINE_ZEROS: "`magnitude-prune`, no retraining: single weights, one threshold for all layers",
    TORCH_ZEROS: "`global_unstructured` by L1 on a copy",
}
LOWER = 0.2
REPLICATES = 10_000


@dataclass(frozen=True)
class Round:
    """Seconds of one round by arm: pruning alone, and with the evaluation."""

    prune_s: dict[str, float]
    step_s: dict[str, float]
    runnable: int


class ProducersL1(tp.importance.MagnitudeImportance):  # type: ignore[misc]
    """L1 norms of all layers that make a channel: FlatSat's choice.

    torch-pruning's own would also read the consumers' weights: this does less.
    """

    def __init__(self) -> None:
        super().__init__(
            p=1,
            group_reduction="sum",
            normalizer=None,
            target_types=[nn.modules.conv._ConvNd, nn.Linear],
        )

    def __call__(self, group: Any) -> torch.Tensor:
        """Return the norms of a group's channels."""
        outs = (tp.prune_conv_out_channels, tp.prune_linear_out_channels)
        found: torch.Tensor = super().__call__([i for i in group if i.dep.pruning_fn in outs])
        return found


class KeptGraph:
    """torch-pruning on one network that is pruned again and again.

    Not a documented use: graph, groups and the order of their channels are found once, and the
    tensors and widths of the layers are put back before each step.
    """

    def __init__(self, module: nn.Module, shape: tuple[int, ...], names: Mapping[str, int]) -> None:
        self._module = copy.deepcopy(module)
        self._graph = tp.DependencyGraph().build_dependency(
            self._module, example_inputs=torch.zeros(1, *shape), verbose=False
        )
        by_part = {part: name for name, part in self._module.named_modules()}
        importance = ProducersL1()
        self._roots: dict[str, tuple[nn.Module, Any, list[int]]] = {}
        for group in self._graph.get_all_groups():
            root = group[0].dep
            made = {by_part.get(item.dep.target.module, "") for item in group}
            name = next((n for n in names if n in made and by_part[root.target.module] == n), None)
            if name is None:
                name = next((n for n in names if n in made and self._produces(group, n)), None)
            if name is not None:
                order = torch.sort(importance(group), stable=True, descending=True).indices.tolist()
                self._roots[name] = (root.target.module, root.handler, order)
        self._saved = [
            (part, dict(part._parameters), dict(part._buffers), self._widths(part))
            for part in self._module.modules()
        ]

    def _produces(self, group: Any, name: str) -> bool:
        part = self._module.get_submodule(name)
        return any(
            item.dep.target.module is part
            and self._graph.is_out_channel_pruning_fn(item.dep.handler)
            for item in group
        )

    @staticmethod
    def _widths(part: nn.Module) -> dict[str, object]:
        return {name: value for name, value in part.__dict__.items() if isinstance(value, int)}

    def __call__(self, counts: Mapping[str, int]) -> nn.Module:
        """Return the network with so many channels of each group; it is the same object always."""
        for part, parameters, buffers, widths in self._saved:
            part._parameters.update(parameters)
            part._buffers.update(buffers)
            part.__dict__.update(widths)
        for name, kept in counts.items():
            part, function, order = self._roots[name]
            self._graph.get_pruning_group(part, function, sorted(order[kept:])).prune(
                record_history=False
            )
        return self._module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--workloads", nargs="*", default=["mnist-mini/lenet5", "mnist-mini/resnet20"]
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--policies", type=int, default=8, help="in each round")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--busy", action="store_true", help="take a busy machine; says so")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    given = parser.parse_args()
    if given.out:
        results.RESULTS = given.out
    warnings.filterwarnings("ignore", module="torch_pruning")
    torch.set_num_threads(given.threads)
    rows: list[tuple[object, ...]] = []
    notes, data, refused = [], [], 0
    for ref in given.workloads:
        bench = Bench(ref)
        bench.check(bench.policies(given.policies, 0))
        rounds: list[Round] = []
        while len(rounds) < given.rounds:
            one = bench.round(bench.policies(given.policies, 1 + len(rounds) + refused))
            if one.runnable > (os.cpu_count() or 1) and not given.busy:
                refused += 1
                if refused > max(3, given.rounds):
                    sys.exit(f"{one.runnable} processes runnable: no verdict")
                continue
            rounds.append(one)
            print(ref, len(rounds), file=sys.stderr, flush=True)
        rows += table_rows(ref, rounds, given.policies)
        notes.append(bench.told())
        data.append({"workload": ref, "rounds": [vars(one) for one in rounds]})
    if given.busy:
        notes.append("MADE ON A BUSY MACHINE (--busy): these figures are no evidence.")
    write(rows, notes, data, given, refused)


class Bench:
    """One network, and every way to make a candidate of it."""

    def __init__(self, ref: str) -> None:
        task, network = parse_ref(ref)
        self.ref = ref
        splits = task.splits()
        self.shape = tuple(int(n) for n in splits.train.x.shape[1:])
        cache = default_cache_dir()
        self.module = reference(task, network, seed=0, cache_dir=cache).module.eval()
        self.dense = Network(self.module, self.shape)
        self.context = StepContext.of(task, network, seed=0, cache_dir=cache)
        self.split = splits.validation
        begun = time.perf_counter()
        self.groups = channel_groups(self.module, self.shape)
        self.trace_s = time.perf_counter() - begun
        self.free: dict[str, ChannelGroup] = {g.name: g for g in self.groups if g.prunable}
        begun = time.perf_counter()
        self._squares = ChannelPruner(self.dense, splits.calibration.x, self.groups)
        self.set_up_s = time.perf_counter() - begun
        self._plain = ChannelPruner(
            self.dense, splits.calibration.x, self.groups, reconstruct=False
        )
        self._kept = KeptGraph(
            self.module, self.shape, {n: g.channels for n, g in self.free.items()}
        )
        self.arms: dict[str, Arm] = {
            FRESH: self._fresh,
            KEPT: lambda policy: self._kept(self._counts(policy)),
            CUT: self._plain.prune,
            LEAST: self._squares.prune,
            CHECKED: lambda policy: prune_channels(
                self.module, self.shape, self._plain.kept(policy), self.groups
            ),
            RECIPE: lambda policy: (
                L1FilterPrune(L1FilterPrune.Params(keep=dict(policy)))
                .apply(self.dense, self.context)
                .module
            ),
            MASKED: self._plain.masked,
            MINE_ZEROS: lambda _: (
                MagnitudePrune(
                    MagnitudePrune.Params(global_sparsity=0.9, epochs=0, remove_dead="keep")
                )
                .apply(self.dense, self.context)
                .module
            ),
            TORCH_ZEROS: lambda _: self._torch_zeros(),
        }

    def policies(self, number: int, seed: int) -> list[Policy]:
        """Draw policies as a search without knowledge would."""
        rng = np.random.default_rng([seed, 17])
        return [
            {
                name: int(rng.integers(int(np.ceil(LOWER * g.channels)), g.channels)) / g.channels
                for name, g in self.free.items()
            }
            for _ in range(number)
        ]

    def _counts(self, policy: Policy) -> dict[str, int]:
        return {name: round(ratio * self.free[name].channels) for name, ratio in policy.items()}

    def _fresh(self, policy: Policy) -> nn.Module:
        module = copy.deepcopy(self.module)
        # Half a channel more, so that its rounding down gives the count that is meant.
        ratios = {
            module.get_submodule(name): 1.0 - (kept + 0.5) / self.free[name].channels
            for name, kept in self._counts(policy).items()
        }
        still = [
            module.get_submodule(layer)
            for group in self.groups
            if not group.prunable
            for layer in group.layers
        ]
        tp.pruner.MagnitudePruner(
            module,
            torch.zeros(1, *self.shape),
            importance=ProducersL1(),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=still,
        ).step()
        return module

    def _torch_zeros(self) -> nn.Module:
        module = copy.deepcopy(self.module)
        parts = [(p, "weight") for p in module.modules() if isinstance(p, nn.Conv2d | nn.Linear)]
        torch_prune.global_unstructured(
            parts, pruning_method=torch_prune.L1Unstructured, amount=0.9
        )
        for part, name in parts:
            torch_prune.remove(part, name)
        return module

    def check(self, policies: list[Policy]) -> None:
        """See that arms that should give the same network do; it warms everything up, too."""
        images = self.split.x[:64]
        for policy in policies:
            made = {name: copy.deepcopy(arm(policy)) for name, arm in self.arms.items()}
            wanted = predict(made[CUT], images)
            for name in (FRESH, KEPT, CHECKED, RECIPE, MASKED):
                gap = np.abs(predict(made[name], images) - wanted).max() / np.abs(wanted).max()
                if not gap < 1e-4:
                    sys.exit(
                        f"{self.ref}: {name} gives another network: outputs differ by {gap:.1e}"
                    )
            sizes = {n: count(made[n], self.shape)[0] for n in (FRESH, KEPT, CUT, CHECKED, RECIPE)}
            if len(set(sizes.values())) > 1:
                sys.exit(f"{self.ref}: networks of unequal size: {sizes}")
            zeros = [count(made[name], self.shape)[1] for name in (MINE_ZEROS, TORCH_ZEROS)]
            if abs(zeros[0] - zeros[1]) > 2:
                sys.exit(f"{self.ref}: {zeros} non-zeros")
            for module in made.values():
                evaluate(module, self.split)

    def round(self, policies: list[Policy]) -> Round:
        """Time every arm on every policy."""
        draw = np.random.default_rng(len(policies))
        pruning: defaultdict[str, float] = defaultdict(float)
        stepping: defaultdict[str, float] = defaultdict(float)
        runnable = []
        for policy in policies:
            for name in draw.permutation(list(self.arms)):
                arm = self.arms[name]
                begun = time.perf_counter()
                module = arm(policy)
                made = time.perf_counter()
                evaluate(module, self.split)
                done = time.perf_counter()
                pruning[name] += made - begun
                stepping[name] += done - begun
            seen = Path("/proc/loadavg").read_text().split()[3].partition("/")[0]
            runnable.append(int(seen))
        return Round(dict(pruning), dict(stepping), int(np.median(runnable)))

    def told(self) -> str:
        """Return what was done once, before the first step."""
        return (
            f"{self.ref}: {len(self.split)} validation images, {len(self.free)} groups of channels;"
            f" before the first step FlatSat traced and tried them in {self.trace_s:.2f} s, and"
            f" summed the Gram matrices in {self.set_up_s:.2f} s (warm-up of torch included)."
        )


def table_rows(ref: str, rounds: list[Round], policies: int) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for mine, theirs in PAIRS:
        prune_ms = {
            arm: 1e3 * float(np.mean([one.prune_s[arm] for one in rounds])) / policies
            for arm in (mine, theirs)
        }
        step_ms = {
            arm: 1e3 * float(np.mean([one.step_s[arm] for one in rounds])) / policies
            for arm in (mine, theirs)
        }
        rows.append(
            (
                ref,
                mine,
                theirs,
                f"{prune_ms[mine]:.2f}",
                f"{prune_ms[theirs]:.2f}",
                f"{step_ms[mine]:.1f}",
                f"{step_ms[theirs]:.1f}",
                ratio([one.prune_s for one in rounds], mine, theirs),
                ratio([one.step_s for one in rounds], mine, theirs),
            )
        )
    return rows


def ratio(rounds: list[dict[str, float]], mine: str, theirs: str) -> str:
    """Return the geometric mean of the rounds' ratios with its 95 % bootstrap interval."""
    logs = np.log([one[mine] / one[theirs] for one in rounds])
    drawn = np.random.default_rng(0).integers(0, len(logs), (REPLICATES, len(logs)))
    low, high = np.exp(np.quantile(logs[drawn].mean(axis=1), (0.025, 0.975)))
    return f"{np.exp(logs.mean()):.3f} ({low:.3f} to {high:.3f})"


def write(
    rows: list[tuple[object, ...]],
    notes: list[str],
    data: list[Any],
    given: argparse.Namespace,
    refused: int,
) -> None:
    results.write(
        "prune_step",
        "One prune-evaluate step beside torch-pruning's",
        f"{given.rounds} rounds of {given.policies} drawn policies, arms interleaved in one"
        f" process, {given.threads} torch threads. Ratios are FlatSat's time over the other's:"
        " geometric mean of the rounds with a 95 % bootstrap interval. Wanted: at most 1.0.",
        (
            "network",
            "FlatSat",
            "against",
            "prune, ms",
            "the other's",
            "prune and evaluate, ms",
            "the other's",
            "ratio, prune alone",
            "ratio, prune and evaluate",
        ),
        rows,
        notes=[
            *notes,
            f"torch-pruning {version('torch-pruning')}. {refused} rounds were refused because more"
            " processes were runnable than there are cores.",
            "Evaluation is `flatsat.datasets.fit.evaluate` on the validation images in all arms.",
            *(f"{name}: {text}." for name, text in WHAT.items()),
            "The search's inner loop is `cut and least squares`; a new pruner solves each layer and"
            " count of channels once, and keeps the solution. torch-pruning has no such"
            " reconstruction: those rows compare more work with less.",
            "`recipe step` and `cut and verified` do more than torch-pruning: they compare outputs"
            " with those of the network with channels zeroed.",
        ],
        data=data,
    )


if __name__ == "__main__":
    main()
