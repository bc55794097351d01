"""Magnitude pruning with retraining, Han et al. 2015."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.dead import Cleared, clear_dead
from flatsat.compressors.dropout import connections, dropout_rates, scale_dropout
from flatsat.compressors.graph import ChannelGroup, channel_groups, prune_network
from flatsat.compressors.layers import LayerInfo, layers, untreated, weight_of
from flatsat.compressors.ratios import NOT_NAMED, by_layer, kinds_of
from flatsat.compressors.selection import (
    largest_of_all,
    largest_of_each,
    magnitudes,
    require_some,
    thresholds,
)
from flatsat.compressors.train import TrainParams, retrain
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

PerLayer = dict[str, float]


class MagnitudeParams(StepParams):
    """What is pruned, in how many rounds, and how the survivors are retrained.

    Exactly one of `quality`, `sparsity` and `global_sparsity`. Tables have "conv", "fc" or a
    layer's name as keys; a name beats a kind, and layers without a value are not pruned.

    Attributes:
        quality: threshold = quality x standard deviation of the layer's weights.
        sparsity: share of the layer's weights that is zero in the end, in [0, 1); one number for
            all layers, or a table.
        global_sparsity: share of all weights together, smallest first whatever their layer; in a
            phase of one kind, of the weights of that kind.
        rounds: prune and retrain so often, within each phase.
        phases: kinds that are pruned, phase after phase: ["conv", "fc"] prunes and retrains the
            convolutions first; "both" takes all layers at once.
        freeze: in a phase of one kind, layers of the other kind keep their weights while it
            retrains (section 3.3).
        epochs: of each retraining; 0 for none.
        lr, batch, weight_decay: of the retraining.
        shift: its images are moved by up to so many pixels on both axes, anew in each step.
        remove_dead: neurons without input or output: "zero" their weights and biases, "remove"
            them so that layers shrink, or "keep" them. Their weights go beside those that the
            sparsity asks for.
    """

    quality: PerLayer | None = None
    sparsity: float | PerLayer | None = None
    global_sparsity: float | None = Field(None, ge=0.0, lt=1.0)
    rounds: int = Field(1, ge=1, le=100)
    phases: tuple[Literal["conv", "fc", "both"], ...] = Field(("both",), min_length=1)
    freeze: bool = True
    epochs: float = Field(2.0, ge=0.0, le=10_000.0)
    lr: float = Field(0.02, gt=0.0)
    batch: int = Field(64, ge=1)
    weight_decay: float = Field(5e-4, ge=0.0)
    shift: int = Field(default=0, ge=0, le=16)
    remove_dead: Literal["zero", "remove", "keep"] = "zero"

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if sum(v is not None for v in (self.quality, self.sparsity, self.global_sparsity)) != 1:
            raise ValueError("give exactly one of quality, sparsity and global_sparsity")
        for name, value in (self.quality or {}).items():
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"the quality {value} of {name} is not 0 or more")
        table = self.sparsity if isinstance(self.sparsity, dict) else {"sparsity": self.sparsity}
        for name, share in table.items():
            if share is not None and not 0.0 <= share < 1.0:
                raise ValueError(f"the sparsity {share} of {name} is not in [0, 1)")
        return self


@dataclass(frozen=True)
class _Pruned:
    """What one round did to one layer: its threshold, and its weights kept and all."""

    name: str
    threshold: float
    kept: int
    weights: int

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "threshold": self.threshold,
            "kept": self.kept,
            "weights": self.weights,
            "sparsity": 1.0 - self.kept / self.weights,
        }


class MagnitudePrune:
    """Han et al. 2015: learn which connections matter, prune the others, train the rest.

    A weight w of layer l stays if |w| >= t_l. With `quality` q, t_l = q x sigma_l, where sigma_l is
    the population standard deviation of the layer's weight tensor as it stands, pruned zeros
    included (section 3: "a quality parameter multiplied by the standard deviation of a layer's
    weights"). With `sparsity` s, exactly round(s' x n) of the layer's n weights go, smallest
    first; over R rounds the kept share falls geometrically, s' = 1 - (1 - s)^(r/R). Biases are
    never pruned.

    After each round the survivors are retrained from the values they have, with the mask held
    (`FineTune`). If the network has dropout, each rate is scaled, before retraining, by
    sqrt(kept / connections) of the layer that it follows (section 3.2, equation 3). Neurons
    without input or output go as section 3.5 says; the constant that a neuron without input still
    gives through its bias moves into the biases of its readers, so the outputs stay the same.
    """

    name: ClassVar[str] = "magnitude-prune"
    Params: ClassVar[type[StepParams]] = MagnitudeParams

    def __init__(self, params: MagnitudeParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the pruned and retrained network with its masks.

        Raises:
            RecipeError: a layer that the network doesn't have, a threshold that leaves a layer
                without weights, or frozen weights.
            UsageError: a retraining diverged.
        """
        network.require_free(self.name)
        params = self._params
        infos = layers(network.module, network.input_shape)
        kinds = kinds_of(infos)
        wanted, left = self._wanted(infos, kinds, untreated(network.module, infos))
        groups, untraced = self._groups(network)
        current = replace(network, module=copy.deepcopy(network.module))
        start = {info.name: connections(network, info.name) for info in infos}
        rates = dropout_rates(current.module, network.input_shape)
        rounds: list[dict[str, object]] = []
        steps = 0
        cleared: Cleared | None = None
        final: dict[str, _Pruned] = {}
        for phase in params.phases:
            values = {n: v for n, v in wanted.items() if phase in ("both", kinds[n])}
            for number in range(1, params.rounds + 1):
                pruned, masks = self._prune(current, values, number)
                final.update({layer.name: layer for layer in pruned})
                current = replace(current, masks=masks)
                if groups:
                    cleared = clear_dead(current.module, current.masks, network.input_shape, groups)
                    current = replace(current, module=cleared.module, masks=cleared.masks)
                scale_dropout(current, rates, start)
                told: dict[str, object] = {
                    "phase": phase,
                    "round": number,
                    "layers": [layer.to_json() for layer in pruned],
                }
                if params.epochs > 0:
                    module, stats = self._retrain(current, ctx, phase, kinds, len(rounds))
                    current = replace(current, module=module)
                    steps += stats
                rounds.append(told)
        entry: dict[str, object] = {
            "step": self.name,
            "params": params.model_dump(mode="json"),
            "layers": [
                replace(final[info.name], kept=connections(current, info.name)).to_json()
                for info in infos
                if info.name in final
            ],
            "left": left,
            "rounds": rounds,
            "dropout": {name: current.module.get_submodule(name).p for name, _, _ in rates},
            "cost": {"train_steps": steps, "forward_passes": 0},
        }
        if untraced:
            entry["dead_left"] = untraced
        if cleared is not None:
            entry["dead"] = _dead(cleared, groups)
            if params.remove_dead == "remove":
                keep = {name: kept or (0,) for name, kept in cleared.alive.items()}
                return prune_network(replace(current, history=network.history), keep, entry, groups)
        return network.after(current.module, entry, masks=current.masks)

    def _groups(self, network: Network) -> tuple[list[ChannelGroup], str]:
        """Return the groups of neurons that may die, or why they can't be known.

        Raises:
            RecipeError: dead neurons are to be removed, and the channels can't be traced.
        """
        if self._params.remove_dead == "keep":
            return [], ""
        try:
            return channel_groups(network.module, network.input_shape), ""
        except RecipeError as error:
            if self._params.remove_dead == "remove":
                raise
            return [], error.message

    def _wanted(
        self, infos: Sequence[LayerInfo], kinds: Mapping[str, str], unfit: Mapping[str, str]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Return layer -> its quality or sparsity, and layer -> why it stays as it is."""
        params = self._params
        table: float | PerLayer = params.global_sparsity or 0.0
        if params.quality is not None:
            table = params.quality
        elif params.sparsity is not None:
            table = params.sparsity
        named = by_layer(self.name, infos, table)
        phases = set(params.phases)
        wanted = {n: v for n, v in named.items() if n not in unfit and phases & {"both", kinds[n]}}
        if not wanted:
            raise RecipeError(
                f"{self.name} would prune no layer",
                hint=f"its phases are {', '.join(params.phases)}; the network's layers are "
                + ", ".join(f"{name} ({kind})" for name, kind in kinds.items()),
            )
        why = {n: "no phase is for its kind" if n in named else NOT_NAMED for n in kinds}
        left = {name: reason for name, reason in why.items() if name not in wanted}
        return wanted, left | dict(unfit)

    def _prune(
        self, network: Network, wanted: Mapping[str, float], number: int
    ) -> tuple[list[_Pruned], dict[str, Tensor]]:
        """Prune one round in place; return what it did and all masks."""
        masks = dict(network.masks)
        told: list[_Pruned] = []
        for name, (kept, reached) in self._chosen(network, wanted, number).items():
            masks[f"{name}.weight"] = require_some(self.name, name, kept)
            network.module.get_parameter(f"{name}.weight").data.masked_fill_(~kept, 0.0)
            told.append(_Pruned(name, reached, int(kept.sum()), kept.numel()))
        return told, masks

    def _chosen(
        self, network: Network, wanted: Mapping[str, float], number: int
    ) -> dict[str, tuple[Tensor, float]]:
        """Return, by layer, which weights stay and the threshold that they reach."""
        params = self._params
        sizes = magnitudes(self.name, network.module, network.masks, wanted)
        if params.quality is not None:
            cuts = {
                name: quality * float(weight_of(network.module, name).double().std(correction=0))
                for name, quality in wanted.items()
            }
            return {n: ((sizes[n] >= cut) & (sizes[n] >= 0.0), cut) for n, cut in cuts.items()}
        shares = {n: _share(value, number, params.rounds) for n, value in wanted.items()}
        if params.global_sparsity is not None:
            kept = largest_of_all(sizes, next(iter(shares.values()), 0.0))
        else:
            kept = largest_of_each(sizes, shares)
        reached = thresholds(sizes, kept, together=params.global_sparsity is not None)
        return {name: (kept[name], reached[name]) for name in kept}

    def _retrain(
        self,
        network: Network,
        ctx: StepContext,
        phase: str,
        kinds: Mapping[str, str],
        number: int,
    ) -> tuple[nn.Module, int]:
        params = self._params
        still = [n for n, kind in kinds.items() if params.freeze and phase not in ("both", kind)]
        module, stats = retrain(
            network,
            ctx,
            TrainParams(
                epochs=params.epochs,
                lr=params.lr,
                batch=params.batch,
                weight_decay=params.weight_decay,
                shift=params.shift,
            ),
            purpose=f"{self.name} {number + 1}/{len(params.phases) * params.rounds}",
            still=still,
        )
        return module, stats.steps


def _share(value: float, number: int, rounds: int) -> float:
    """Return the share pruned after round `number`: the kept share falls geometrically."""
    return value if number == rounds else 1.0 - (1.0 - value) ** (number / rounds)


def _dead(cleared: Cleared, groups: Sequence[ChannelGroup]) -> list[dict[str, object]]:
    """Return, for each layer that lost neurons, how many stay, since all rounds."""
    return [
        {
            "name": group.name,
            "channels": group.channels,
            "alive": len(cleared.alive[group.name]),
            "left": cleared.left.get(group.name, 0),
        }
        for group in groups
        if group.name in cleared.alive and len(cleared.alive[group.name]) < group.channels
    ]
