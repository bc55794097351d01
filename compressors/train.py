"""Training a network further with its pruned weights held at exactly zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.datasets.fit import FitStats, Schedule, fit
from flatsat.errors import RecipeError
from flatsat.seeds import integer_seed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


_NONE: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({})


class TrainParams(StepParams):
    """How weights are trained: SGD with momentum 0.9 on the workload's training split.

    Attributes:
        epochs: passes over the split; a fraction is allowed.
        lr: peak learning rate.
        batch: images a step.
        weight_decay: L2 term of weights; biases and batch norm have none.
        schedule: of the learning rate: "one-cycle", "cosine" or "constant".
        shift: images are moved by up to so many pixels on both axes, anew in each step.
    """

    epochs: float = Field(2.0, gt=0.0, le=10_000.0)
    lr: float = Field(0.02, gt=0.0)
    batch: int = Field(64, ge=1)
    weight_decay: float = Field(5e-4, ge=0.0)
    schedule: Schedule = "one-cycle"
    shift: int = Field(default=0, ge=0, le=16)


class FineTune:
    """Train the network further by cross-entropy.

    Weights under a mask stay exactly zero: their gradients are zeroed, so that the optimiser's
    momentum never moves them, and they are set to zero again after each step. Weights that
    survived go on from their values; nothing is initialised again (Han et al. 2015, section 3.2).
    Equal seeds give equal weights on one machine with one number of threads.
    """

    name: ClassVar[str] = "fine-tune"
    Params: ClassVar[type[StepParams]] = TrainParams

    def __init__(self, params: TrainParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the trained network.

        Raises:
            RecipeError: its weights are frozen.
            UsageError: the training diverged.
        """
        network.require_free(self.name)
        module, stats = retrain(network, ctx, self._params, purpose=self.name)
        entry = {
            "step": self.name,
            "params": self._params.model_dump(mode="json"),
            "layers": [],
            "loss": stats.loss,
            "cost": {"train_steps": stats.steps, "forward_passes": 0},
        }
        return network.after(module, entry)


def retrain(
    network: Network,
    ctx: StepContext,
    params: TrainParams,
    *,
    purpose: str,
    still: Collection[str] = (),
    gradients: Mapping[str, Callable[[Tensor], Tensor]] = _NONE,
    after_step: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, FitStats]:
    """Return a trained deep copy of the network's module, masks held, and what it cost.

    Args:
        network: its masks say which weights stay zero.
        ctx: gives the training split, the seed and where progress goes.
        params: how to train.
        purpose: names the random stream and the task that progress is told.
        still: names of layers whose parameters don't change.
        gradients: parameter name -> what makes of its gradient the one that is used.
        after_step: called with the module after every step, masks held, without gradients.

    Raises:
        RecipeError: a mask fits no parameter.
        UsageError: the training diverged.
    """
    module = copy.deepcopy(network.module)
    learned = {name: p.requires_grad for name, p in module.named_parameters()}
    for layer in still:
        module.get_submodule(layer).requires_grad_(False)
    enforce = hold(module, network.masks)
    enforce(module)

    def stepped(trained: nn.Module) -> None:
        enforce(trained)
        if after_step is not None:
            after_step(trained)

    parameters = dict(module.named_parameters())
    handles = [
        parameters[name].register_hook(change)  # type: ignore[no-untyped-call]
        for name, change in gradients.items()
        if parameters[name].requires_grad
    ]
    handles += _mask_gradients(module, network.masks)
    try:
        stats = fit(
            module,
            ctx.train,
            epochs=params.epochs,
            lr=params.lr,
            batch=params.batch,
            weight_decay=params.weight_decay,
            schedule=params.schedule,
            shift=params.shift,
            seed=integer_seed(ctx.seed, f"compressors.{purpose}/{len(network.history)}"),
            after_step=stepped,
            progress=ctx.progress,
            task=purpose,
        )
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(learned[name])
    return module, stats


def steps_of(params: TrainParams, ctx: StepContext) -> int:
    """Return how many optimiser steps `retrain` makes (see `flatsat.datasets.fit.fit`)."""
    images = len(ctx.train)
    return max(1, round(params.epochs * (images // max(1, min(params.batch, images)))))


def hold(module: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """Return a function that sets the masked weights of `module` to exactly zero.

    Raises:
        RecipeError: a mask fits no parameter.
    """
    parameters = dict(module.named_parameters())
    dropped: list[tuple[Tensor, Tensor]] = []
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise RecipeError(
                f"the mask of {name!r} fits no parameter of the network",
                hint="a step that changes a layer's shape must fit its mask as well",
            )
        dropped.append((parameters[name], ~mask))

    def enforce(_module: nn.Module) -> None:
        # Another layout in memory gives a parameter other data.
        for parameter, gone in dropped:
            parameter.data.masked_fill_(gone, 0.0)

    return enforce


def _mask_gradients(module: nn.Module, masks: Mapping[str, Tensor]) -> list[RemovableHandle]:
    parameters = dict(module.named_parameters())
    return [
        parameters[name].register_hook(partial(_masked, gone=~mask))  # type: ignore[no-untyped-call]
        for name, mask in masks.items()
        if parameters[name].requires_grad
    ]


def _masked(gradient: Tensor, *, gone: Tensor) -> Tensor:
    return gradient.masked_fill(gone, 0.0)
