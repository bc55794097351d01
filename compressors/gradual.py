"""Gradual magnitude pruning, Zhu and Gupta 2017 ("To prune, or not to prune")."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from flatsat.compressors.layers import layers, untreated
from flatsat.compressors.ratios import NOT_NAMED, by_layer
from flatsat.compressors.selection import (
    largest_of_all,
    largest_of_each,
    magnitudes,
    require_some,
    thresholds,
)
from flatsat.compressors.train import TrainParams, retrain, steps_of
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flatsat.compressors.base import Network, StepContext, StepParams


class GradualParams(TrainParams):
    """The schedule by the paper's names, and the training that it runs in.

    Attributes:
        initial_sparsity: s_i, share of zeros at the first pruning.
        final_sparsity: s_f, at the last pruning: one number for all layers, or a table whose keys
            are "conv", "fc" or names of layers; a name beats a kind, and what the table doesn't
            name stays dense.
        begin, end: t_0 and t_0 + n dt, as shares of the training.
        frequency: dt, steps from one pruning to the next. The paper prunes each 100 to 1,000 of
            some hundred thousand steps; trainings here are shorter.
        scope: "layer": each layer has that sparsity, as in the paper; "global": all layers
            together, with one threshold.
        skip: layers, or "conv" or "fc", that stay dense.
        epochs: of the training; a fraction is allowed.
        lr, batch, weight_decay, schedule, shift: of the training, as in `fine-tune`.
    """

    initial_sparsity: float = Field(0.0, ge=0.0, lt=1.0)
    final_sparsity: float | dict[str, float]
    begin: float = Field(0.0, ge=0.0, lt=1.0)
    end: float = Field(0.75, gt=0.0, le=1.0)
    frequency: int = Field(10, ge=1)
    scope: Literal["layer", "global"] = "layer"
    skip: tuple[str, ...] = ()
    epochs: float = Field(4.0, gt=0.0, le=10_000.0)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        final = self.final_sparsity
        for name, share in final.items() if isinstance(final, dict) else [("all layers", final)]:
            if not self.initial_sparsity <= share < 1.0:
                raise ValueError(
                    f"the final sparsity {share} of {name} is not from initial_sparsity to below 1"
                )
        if self.scope == "global" and isinstance(final, dict):
            raise ValueError('scope = "global" takes one number as final_sparsity')
        if not self.begin < self.end:
            raise ValueError(f"begin, {self.begin}, is not before end, {self.end}")
        return self


@dataclass(frozen=True)
class Schedule:
    """When is pruned, in steps of the optimiser done, and how much.

    Attributes:
        begin, end: t_0 and t_0 + n dt.
        frequency: dt.
    """

    begin: int
    end: int
    frequency: int

    def due(self, step: int) -> bool:
        """Return whether to prune after so many steps; the end is always such a step."""
        if step == self.end:
            return True
        return self.begin <= step < self.end and (step - self.begin) % self.frequency == 0

    def sparsity(self, step: int, initial: float, final: float) -> float:
        """Return s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 (equation 1)."""
        if step >= self.end:
            return final
        left = 1.0 - (step - self.begin) / (self.end - self.begin)
        return final + (initial - final) * left**3


class GradualPrune:
    """Raise the sparsity during training, quickly at first, slowly in the end.

    Every dt steps from t_0 on, masks are set so that the smallest weights of a layer are zero up to
    the sparsity

        s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3,   t = t_0, t_0 + dt, ..., t_0 + n dt

    (section 3, equation 1). Between prunings, and from the last one to the end of the training,
    the masks are held: a masked weight is exactly zero after each step and doesn't come back.
    A layer of n weights loses exactly round(s_t n); with `scope = "global"`, n counts the weights
    of all layers that are pruned. Biases and normalisation are never pruned, and weights that an
    earlier step's mask dropped count among those that are gone.

    The first weights come from the network as it is; `begin` leaves training before the first
    pruning. Where dt doesn't divide the span, the last pruning comes after a shorter time, at
    `end`, so that the final sparsity is reached. In the paper a masked weight keeps its last value,
    untrained, and can come back when masks are set anew; here it is zero for good.
    """

    name: ClassVar[str] = "gradual-prune"
    Params: ClassVar[type[StepParams]] = GradualParams

    def __init__(self, params: GradualParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the trained network with its masks.

        Raises:
            RecipeError: a layer that the network doesn't have, one that would lose all its
                weights, or frozen weights.
            UsageError: the training diverged.
        """
        network.require_free(self.name)
        params = self._params
        infos = layers(network.module, network.input_shape)
        named = by_layer(self.name, infos, params.final_sparsity)
        skipped = by_layer(self.name, infos, dict.fromkeys(params.skip, 1.0))
        unfit = untreated(network.module, infos)
        wanted = {n: share for n, share in named.items() if n not in skipped and n not in unfit}
        if not wanted:
            raise RecipeError(
                f"{self.name} would prune no layer",
                hint=f"there are {', '.join(info.name for info in infos)}",
            )
        total = steps_of(params, ctx)
        end = max(1, round(params.end * total))
        schedule = Schedule(min(round(params.begin * total), end - 1), end, params.frequency)
        start = replace(network, module=copy.deepcopy(network.module))
        pruner = _Pruner(params, wanted, schedule, network.masks)
        pruner.check(start.module)
        pruner.prune(start.module)
        module, stats = retrain(start, ctx, params, purpose=self.name, after_step=pruner.after_step)
        entry = {
            "step": self.name,
            "params": params.model_dump(mode="json"),
            "layers": pruner.told(),
            "left": {
                info.name: "skip names it" if info.name in skipped else NOT_NAMED
                for info in infos
                if info.name not in wanted
            }
            | unfit,
            "schedule": {"begin": schedule.begin, "end": schedule.end, "steps": stats.steps},
            "rounds": pruner.rounds,
            "loss": stats.loss,
            "cost": {"train_steps": stats.steps, "forward_passes": 0},
        }
        return network.after(module, entry, masks={**network.masks, **pruner.masks})


class _Pruner:
    """Sets and holds the masks of a training, by the number of its steps."""

    def __init__(
        self,
        params: GradualParams,
        final: Mapping[str, float],
        schedule: Schedule,
        masks: Mapping[str, Tensor],
    ) -> None:
        self.rounds: list[dict[str, object]] = []
        self.masks: dict[str, Tensor] = {}
        self._params = params
        self._final = final
        self._schedule = schedule
        self._earlier = masks
        self._step = 0
        self._thresholds: dict[str, float] = {}

    def check(self, module: nn.Module) -> None:
        """Refuse, before any training, what would leave a layer without weights in the end."""
        if self._params.scope == "layer":
            for name, kept in largest_of_each(self._sizes(module), self._final).items():
                require_some(GradualPrune.name, name, kept)

    def after_step(self, module: nn.Module) -> None:
        """Hold the masks after one more step, and raise the sparsity where it is time."""
        self._step += 1
        self.prune(module)
        for name, mask in self.masks.items():
            module.get_parameter(name).data.masked_fill_(~mask, 0.0)

    def prune(self, module: nn.Module) -> None:
        """Set masks of the sparsity that the schedule has now, if it is time to prune."""
        if not self._schedule.due(self._step):
            return
        initial = self._params.initial_sparsity
        shares = {
            name: self._schedule.sparsity(self._step, initial, final)
            for name, final in self._final.items()
        }
        sizes = self._sizes(module)
        if self._params.scope == "global":
            kept = largest_of_all(sizes, next(iter(shares.values())))
        else:
            kept = largest_of_each(sizes, shares)
        self._thresholds = thresholds(sizes, kept, together=self._params.scope == "global")
        for name, mask in kept.items():
            self.masks[f"{name}.weight"] = require_some(GradualPrune.name, name, mask)
            module.get_parameter(f"{name}.weight").data.masked_fill_(~mask, 0.0)
        self.rounds.append(
            {
                "step": self._step,
                "sparsity": shares,
                "kept": {name: int(mask.sum()) for name, mask in kept.items()},
            }
        )

    def told(self) -> list[dict[str, object]]:
        """Return each layer's provenance."""
        found: list[dict[str, object]] = []
        for name in self._final:
            mask = self.masks[f"{name}.weight"]
            kept = int(mask.sum())
            found.append(
                {
                    "name": name,
                    "threshold": self._thresholds[name],
                    "kept": kept,
                    "weights": mask.numel(),
                    "sparsity": 1.0 - kept / mask.numel(),
                }
            )
        return found

    def _sizes(self, module: nn.Module) -> dict[str, Tensor]:
        masks = {**self._earlier, **self.masks}
        return magnitudes(GradualPrune.name, module, masks, self._final)
