"""Neuron pruning as a technique of its own: whole columns of dense layers go."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from flatsat.compressors.channels import ChannelGroup, find, kept_count
from flatsat.compressors.dropout import connections, dropout_rates, scale_dropout
from flatsat.compressors.graph import channel_groups, prune_network
from flatsat.compressors.importance import l2, strongest
from flatsat.compressors.layers import evaluating, layers, outside
from flatsat.compressors.ratios import check_ratios, chosen, kinds_of, left_alone
from flatsat.compressors.train import TrainParams, retrain
from flatsat.datasets.fit import as_tensor
from flatsat.errors import DataError

if TYPE_CHECKING:
    from flatsat.compressors.base import Network, StepContext, StepParams

_BATCH = 64


class NeuronParams(TrainParams):
    """Which share of the neurons goes, by which criterion, in how many rounds.

    Attributes:
        ratio: share removed, in [0, 1): one number for every dense layer whose neurons can go, or
            a table whose keys are "fc", "conv" (the maps of convolutions are then neurons too) or
            names of layers; a name beats a kind, and what the table doesn't name stays.
        criterion: a neuron's worth: "l2", the product of the L2 norms of its incoming and its
            outgoing weights, or "activation", the mean of |value| that its readers get for
            calibration images.
        rounds: remove and retrain so often.
        epochs: of each retraining; 0 for none.
        lr, batch, weight_decay, schedule, shift: of the retraining, as in `fine-tune`.
        n: calibration images, for "activation".
    """

    ratio: float | dict[str, float]
    criterion: Literal["l2", "activation"] = "l2"
    rounds: int = Field(1, ge=1, le=100)
    epochs: float = Field(2.0, ge=0.0, le=10_000.0)
    n: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        check_ratios(self.ratio)
        return self


class NeuronPrune:
    """Remove whole neurons of dense layers, the least worthy first, and retrain what stays.

    Han et al. 2015, section 3.5, removes neurons whose connections are all gone; here the neurons
    themselves are ranked. Neuron j of a layer with weights W, whose readers have weights V, is
    worth

        ||W_j,:||_2 x ||V_:,j||_2         (criterion "l2"; biases don't count)
        mean over images of |v_j|         (criterion "activation"; v is what the readers get)

    The first doesn't change when a factor moves from W_j to V_j, which leaves a ReLU network's
    outputs as they are. Layers tied by a sum share their neurons: norms are taken over all that
    make, and all that read, a neuron. Row j of W, its bias and column j of V are cut out, with
    what is coupled to them, so that the network gets smaller.

    Over R rounds the kept share falls geometrically: (1 - ratio)^(r/R) of the first width after
    round r, rounded up. Each round ranks anew and retrains the survivors from the values that they
    have. Dropout rates fall with the root of the connections kept (section 3.2, equation 3).
    """

    name: ClassVar[str] = "neuron-prune"
    Params: ClassVar[type[StepParams]] = NeuronParams

    def __init__(self, params: NeuronParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the smaller, retrained network.

        Raises:
            RecipeError: an unknown layer or kind, one whose neurons can't go, or frozen weights.
            DataError: there are no calibration images to rank by.
            UsageError: a retraining diverged.
        """
        network.require_free(self.name)
        params = self._params
        infos = layers(network.module, network.input_shape)
        kinds = kinds_of(infos)
        groups = channel_groups(network.module, network.input_shape)
        wanted = chosen(self.name, groups, kinds, params.ratio, numbered=("fc",))
        rates = dropout_rates(network.module, network.input_shape)
        start = {info.name: connections(network, info.name) for info in infos}
        current = network
        rounds: list[dict[str, object]] = []
        told: list[dict[str, object]] = []
        steps = passes = 0
        for number in range(1, params.rounds + 1) if wanted else ():
            if number > 1:
                groups = channel_groups(current.module, current.input_shape)
            scores, images = self._scores(current, [find(groups, g.name) for g, _ in wanted], ctx)
            passes += images
            keep = {
                group.name: strongest(
                    scores[group.name], kept_count(group, share ** (number / params.rounds))
                )
                for group, share in wanted
            }
            told = [_told(group, keep[group.name], scores[group.name]) for group, _ in wanted]
            current = prune_network(current, keep, {}, groups)
            scale_dropout(current, rates, start)
            entry: dict[str, object] = {"round": number, "layers": told}
            if params.epochs > 0:
                purpose = f"{self.name} {number}/{params.rounds}"
                module, stats = retrain(current, ctx, params, purpose=purpose)
                current = replace(current, module=module)
                steps += stats.steps
                entry["loss"] = stats.loss
            rounds.append(entry)
        maps = "its maps are no dense neurons: ratio.conv or its name prunes them"
        number_only = not isinstance(params.ratio, dict)
        reasons = {g.name: maps for g in groups if number_only and kinds[g.name] == "conv"}
        story = {
            "step": self.name,
            "params": params.model_dump(mode="json"),
            "layers": told,
            "rounds": rounds,
            "dropout": {name: current.module.get_submodule(name).p for name, _, _ in rates},
            "left": left_alone(groups, {group.name for group, _ in wanted}, reasons)
            | outside(network.module, infos),
            "cost": {"train_steps": steps, "forward_passes": passes},
        }
        if current is network:
            current = replace(network, module=copy.deepcopy(network.module))
        return network.after(current.module, story, masks=current.masks)

    def _scores(
        self, network: Network, groups: Sequence[ChannelGroup], ctx: StepContext
    ) -> tuple[dict[str, Tensor], int]:
        """Return each group's worth by channel, and the images that it took."""
        if self._params.criterion == "l2":
            module = network.module
            return {g.name: l2(module, g) * l2(module, g, "in") for g in groups}, 0
        images = ctx.calibration.x[: self._params.n]
        if len(images) == 0:
            raise DataError(
                f"{self.name} has no calibration images to rank by", hint='set criterion = "l2"'
            )
        return mean_activations(network.module, groups, as_tensor(images)), len(images)


def mean_activations(
    module: nn.Module, groups: Sequence[ChannelGroup], images: Tensor
) -> dict[str, Tensor]:
    """Return group -> mean |value| of each channel as its readers get it, float64 (channels,).

    The mean is over images, positions and readers.

    Args:
        module: the network, whose mode stays.
        groups: of it; each has readers.
        images: (n, *input_shape).
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def read(part: nn.Module, args: tuple[Tensor, ...], layer: str) -> None:
        # Features are the last axis of a linear layer's input, the second of a map.
        axis = -1 if isinstance(part, nn.Linear) else 1
        values = args[0].detach().movedim(axis, 0).flatten(1).abs()
        sums[layer] = sums.get(layer, 0.0) + values.sum(1, dtype=torch.float64)
        counts[layer] = counts.get(layer, 0) + values.shape[1]

    handles = [
        module.get_submodule(layer).register_forward_pre_hook(
            lambda part, args, layer=layer: read(part, args, layer)
        )
        for layer in {layer for group in groups for layer in group.consumers}
    ]
    try:
        with evaluating(module):
            for batch in torch.split(images, _BATCH):
                module(batch)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Tensor] = {}
    for group in groups:
        readers = [s for s in group.slots if s.side == "in" and s.layer in group.consumers]
        means = [(sums[s.layer] / counts[s.layer])[torch.tensor(s.index)].mean(1) for s in readers]
        found[group.name] = torch.stack(means).mean(0)
    return found


def _told(group: ChannelGroup, kept: Sequence[int], scores: Tensor) -> dict[str, object]:
    return {
        "name": group.name,
        "coupled": list(group.layers),
        "neurons": group.channels,
        "kept": len(kept),
        "least_kept": float(scores[list(kept)].min()),
    }
