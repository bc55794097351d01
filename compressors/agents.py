"""Pruning agents, Huang et al. 2018: one learns for each layer which filters can go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flatsat.compressors.agent_policy import Learning, Lesson, learn, reward
from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.channels import (
    cut_masks,
    cut_module,
    cut_verified,
    cuts,
    find,
    tensors_of,
)
from flatsat.compressors.graph import ChannelGroup, channel_groups
from flatsat.compressors.layers import layers, outside
from flatsat.compressors.ratios import kinds_of, left_alone
from flatsat.compressors.train import TrainParams, retrain
from flatsat.datasets.fit import evaluate
from flatsat.errors import DataError, RecipeError
from flatsat.progress import NoProgress
from flatsat.seeds import integer_seed

if TYPE_CHECKING:
    from flatsat.datasets.splits import Split

_MEAN = 5
"""Iterations whose mean reward stands for where an agent began and ended."""
_ROUNDING = 1e-9


class AgentParams(StepParams):
    """How much accuracy may go, how agents learn, and how the network is retrained.

    Attributes:
        b: drop of validation accuracy that is allowed, in points, all layers together.
        samples: M, actions sampled for one gradient.
        iterations: gradient steps of an agent at most; it ends early when it is sure.
        agent_lr: learning rate of the agent's Adam.
        hidden: units of the agent's hidden layer.
        tune_epochs: training of the pruned network before each trial is judged; 0 for none.
        images: validation images that judge a trial, the first of the split; the bound is held on
            all of them.
        epochs: of the retraining after each layer.
        lr, batch, weight_decay: of trials and of the retraining.
        retries: how often a layer that broke the bound gets half of its dropped filters back.
        kinds: layers that get an agent: the paper's are "conv".
    """

    b: float = Field(1.0, gt=0.0, le=100.0)
    samples: int = Field(5, ge=1, le=1000)
    iterations: int = Field(80, ge=1, le=100_000)
    agent_lr: float = Field(0.2, gt=0.0)
    hidden: int = Field(64, ge=1)
    tune_epochs: float = Field(0.1, ge=0.0, le=1000.0)
    images: int = Field(500, ge=1)
    epochs: float = Field(4.0, gt=0.0, le=10_000.0)
    lr: float = Field(0.02, gt=0.0)
    batch: int = Field(64, ge=1)
    weight_decay: float = Field(5e-4, ge=0.0)
    retries: int = Field(2, ge=0, le=20)
    kinds: tuple[Literal["conv", "fc"], ...] = Field(("conv",), min_length=1)


@dataclass
class _Judge:
    """Accuracy in points on validation images, and what the step has cost so far.

    Attributes:
        whole: the validation split, on which the bound is held.
        some: its first images, which judge trials.
        p_ref, p_ref_some: accuracy of the network that came in.
    """

    whole: Split
    some: Split
    p_ref: float = 0.0
    p_ref_some: float = 0.0
    train_steps: int = 0
    forward_passes: int = 0

    def accuracy(self, network: Network, split: Split) -> float:
        self.forward_passes += len(split)
        return 100 * evaluate(network.module, split)


class AgentPrune:
    """Huang et al. 2018: agents that learn by trial which filters of each layer can go.

    Layer by layer, in the order of execution, an agent maps the layer's filters to probabilities
    of keeping each. It samples actions A; each is cut out of the network, trained for
    `tune_epochs`, and judged by

        R(A) = psi x phi,  psi = (b - (p_ref - p)) / b,  phi = log(N / C(A)),

    where p_ref is the accuracy of the network that came in, p of the trial, both in points on the
    validation split, N the layer's filters and C(A) those kept. The agent learns by REINFORCE with
    a baseline (`learn`). Then the filters with a probability of at most 1/2 are really removed,
    with everything that is coupled to them, and the network is retrained before the next layer.

    The bound holds for the result: if after the retraining the accuracy on the whole validation
    split is more than b below p_ref, half of the dropped filters come back, the most probable
    first, and the retraining starts again; after `retries` of that the layer stays whole. Each
    layer's `outcome` says which: "pruned", "weakened", "undone", or "whole" where the agent itself
    dropped none.

    Departures: layers that share channels (residual sums, depthwise convolutions) share an agent,
    which sees the filters of all of them; psi is capped to [-1, 1]; trials are trained for a
    fraction of an epoch, from the weights that the network has.
    """

    name: ClassVar[str] = "agent-prune"
    Params: ClassVar[type[StepParams]] = AgentParams

    def __init__(self, params: AgentParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the smaller, retrained network.

        Raises:
            RecipeError: no layer can be pruned, or the weights are frozen.
            DataError: there are no validation images.
            UsageError: a training diverged.
        """
        network.require_free(self.name)
        if len(ctx.validation) == 0:
            raise DataError(f"{self.name} judges by validation images, and there are none")
        groups = channel_groups(network.module, network.input_shape)
        infos = layers(network.module, network.input_shape)
        kinds = kinds_of(infos)
        asked = [group for group in groups if kinds[group.name] in self._params.kinds]
        wanted = [group.name for group in asked if group.prunable]
        unasked = f"agents are asked for {_words(self._params.kinds)}"
        reasons = {group.name: unasked for group in groups if group not in asked}
        left = left_alone(groups, wanted, reasons) | outside(network.module, infos)
        if not wanted:
            raise RecipeError(
                f"{self.name}: no {_words(self._params.kinds)} layer of the network can be pruned",
                hint="; ".join(f"{name}: {why}" for name, why in left.items()),
            )
        judge = _Judge(ctx.validation, ctx.validation.first(self._params.images))
        judge.p_ref = judge.accuracy(network, judge.whole)
        judge.p_ref_some = judge.p_ref
        if len(judge.some) < len(judge.whole):
            judge.p_ref_some = judge.accuracy(network, judge.some)
        current = network
        told: list[dict[str, object]] = []
        for number, name in enumerate(wanted, 1):
            task = f"{self.name} {name} ({number} of {len(wanted)})"
            group = find(groups, name)
            if not group.prunable:
                left[name] = group.reason
                continue
            current, entry = self._layer(current, ctx, groups, group, judge, task)
            if entry["kept"] != entry["total"]:
                # Positions in layers that are shared have moved.
                groups = channel_groups(current.module, current.input_shape)
            told.append(entry)
            ctx.progress.log(f"{task}: {entry['outcome']}, {entry['kept']} of {entry['total']}")
        entry = {
            "step": self.name,
            "params": self._params.model_dump(mode="json"),
            "layers": told,
            "left": left,
            "p_ref": judge.p_ref / 100,
            "accuracy": judge.accuracy(current, judge.whole) / 100,
            "cost": {"train_steps": judge.train_steps, "forward_passes": judge.forward_passes},
        }
        module = current.module if current is not network else copy.deepcopy(network.module)
        return network.after(module, entry, masks=current.masks)

    def _layer(
        self,
        network: Network,
        ctx: StepContext,
        groups: Sequence[ChannelGroup],
        group: ChannelGroup,
        judge: _Judge,
        task: str,
    ) -> tuple[Network, dict[str, object]]:
        """Prune one group; return the network with it, and what the history tells."""
        total = group.channels
        lesson = self._lesson(network, ctx, groups, group, judge, task)
        order = torch.sort(lesson.keep, descending=True, stable=True).indices.tolist()
        count = max(1, int((lesson.keep > 0.5).sum()))
        entry: dict[str, object] = {
            "name": group.name,
            "coupled": list(group.layers),
            "kept": total,
            "total": total,
            "chosen": count,
            "outcome": "whole",
            "trials": lesson.trials,
            "iterations": len(lesson.rewards),
            "first_reward": fmean(lesson.rewards[:_MEAN]),
            "last_reward": fmean(lesson.rewards[-_MEAN:]),
        }
        for attempt in range(self._params.retries + 1):
            if count == total:
                break
            smaller = _cut(network, groups, group, tuple(sorted(order[:count])), verified=True)
            trained = self._trained(smaller, ctx, self._params.epochs, judge, task)
            accuracy = judge.accuracy(trained, judge.whole)
            if judge.p_ref - accuracy <= self._params.b + _ROUNDING:
                outcome = "weakened" if attempt else "pruned"
                entry |= {"kept": count, "outcome": outcome, "accuracy": accuracy / 100}
                return trained, entry
            entry["outcome"] = "undone"
            count += max(1, (total - count) // 2)
        return network, entry

    def _lesson(
        self,
        network: Network,
        ctx: StepContext,
        groups: Sequence[ChannelGroup],
        group: ChannelGroup,
        judge: _Judge,
        task: str,
    ) -> Lesson:
        """Let the group's agent learn."""
        params = self._params
        quiet = replace(ctx, progress=NoProgress())

        def try_out(keep: Tensor) -> float:
            kept = tuple(torch.nonzero(keep).flatten().tolist())
            trial = _cut(network, groups, group, kept)
            if params.tune_epochs > 0:
                trial = self._trained(trial, quiet, params.tune_epochs, judge, task)
            p = judge.accuracy(trial, judge.some)
            return reward(params.b, judge.p_ref_some, p, len(kept), group.channels)

        def tell(number: int, mean: float, kept: float) -> None:
            note = f"reward {mean:.3f}, keeps {kept:.1f} of {group.channels}"
            ctx.progress.update(task, number, params.iterations, note)

        purpose = f"compressors.{self.name}/{group.name}/{len(network.history)}"
        lesson = learn(
            _filters(network, group),
            try_out,
            Learning(params.samples, params.iterations, params.agent_lr, params.hidden),
            torch.Generator().manual_seed(integer_seed(ctx.seed, purpose)),
            tell,
        )
        ctx.progress.update(task, params.iterations, params.iterations)
        return lesson

    def _trained(
        self,
        network: Network,
        ctx: StepContext,
        epochs: float,
        judge: _Judge,
        task: str,
    ) -> Network:
        params = self._params
        module, stats = retrain(
            network,
            ctx,
            TrainParams(
                epochs=epochs, lr=params.lr, batch=params.batch, weight_decay=params.weight_decay
            ),
            purpose=f"{task}: retrain",
        )
        judge.train_steps += stats.steps
        return replace(network, module=module)


def _cut(
    network: Network,
    groups: Sequence[ChannelGroup],
    group: ChannelGroup,
    kept: tuple[int, ...],
    *,
    verified: bool = False,
) -> Network:
    """Return the network with `kept` channels of the group alone.

    Trials are not verified: `channel_groups` has tried every group.
    """
    keep = {group.name: kept}
    if verified:
        module, made = cut_verified(network.module, network.input_shape, groups, keep)
    else:
        made = cuts(network.module, groups, keep)
        module = copy.deepcopy(network.module)
        cut_module(module, made)
    return replace(network, module=module, masks=cut_masks(network.masks, made))


def _filters(network: Network, group: ChannelGroup) -> Tensor:
    """Return the weights that form each channel, (channels, weights), of all coupled layers."""
    parts = []
    for slot in group.slots:
        if slot.side != "out" or slot.layer not in group.layers:
            continue
        part = network.module.get_submodule(slot.layer)
        _, dim, _ = tensors_of(part, "out")[0]
        weight = part.get_parameter("weight").detach().movedim(dim, 0).flatten(1)
        parts.append(weight[torch.tensor(slot.index)].flatten(1))
    return torch.cat(parts, 1)


def _words(kinds: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(kinds))
