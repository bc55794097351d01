"""Quantisation-aware training, Jacob et al. 2018, section 3."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flatsat.compressors.folding import fold_batch_norms
from flatsat.compressors.grids import Grid, nudged, quantise_on
from flatsat.compressors.layers import layers, untreated
from flatsat.compressors.linear_quant import (
    FakeQuantise,
    Quantised,
    check_layers,
    layer_entry,
    place_quantisers,
)
from flatsat.compressors.train import TrainParams, retrain, steps_of
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.base import Network, StepContext

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class QuantiseAwareTrain:
    """Train with the rounding of weights and activations in the forward pass.

    Weights: each step computes loss and gradients with w' = q(w) on the levels of `grid`, and moves
    the float weights w behind them by that gradient: the derivative of q is taken as 1
    (straight-through estimator). Ranges follow from the current w, so that no weight is clipped.
    In the end the weights are w', at most 2^b values a layer (or output channel).

    Activations: the input of every weighted layer and the network's output are rounded to
    2^`activations` levels, 0 among them. Their ranges [a, b] are exponential moving averages of
    each batch's minimum and maximum with smoothing `ema`; for the first `delay` of the steps ranges
    are only observed (section 3.1). Values outside are clipped and pass no gradient. The ranges
    stand in the history.

    Batch norm stays in float behind the quantised weights by default. Folding it afterwards, as
    lowerings do, multiplies each output channel's weights by one number, and both symmetric and
    affine levels with one range a channel are kept by that: such training is that of the folded
    weights (section 3.2) without its second convolution. With one range a layer it is not:
    `batch_norm = "fold"` folds it with its statistics before the training, which then has none.

    On 8 bits, symmetric levels by channel are those of pass `int8` on ONNX files, which keeps them
    as they are. That pass finds ranges of activations by its own calibrator; with
    `simulate = false` the network's own file is free of rounding and suits it.
    For small coded files take `per = "layer"`, and `batch_norm = "fold"` or step equalise before:
    levels of their own for each channel, or a batch norm that the export folds into the weights
    afterwards, leave a tensor more values than a table of levels pays for.

    Departures: biases stay float32 (int32 in int8 files); sums and concatenations are rounded where
    the next weighted layer reads them; fewer than 8 bits are storage only.
    """

    name: ClassVar[str] = "quantise-aware-train"

    class Params(TrainParams):
        """How many levels, over what they range, and how to train.

        Attributes:
            bits: a weight.
            bits_by_layer: other numbers of bits, by layer name.
            skip: layers left in float32, inputs and weights.
            per: one range a layer, or one an output channel.
            grid: "symmetric": multiples of max|w| / (2^(b-1) - 1); "affine": from minimum to
                maximum with 0 as a level; "minmax": as linear-quantise. One bit leaves sign x
                mean|w| on the first two.
            activations: bits an activation; None leaves them in float32.
            ema: smoothing of activation ranges.
            delay: share of the steps before activations are rounded.
            batch_norm: "keep" it in float, or "fold" it into the layers first.
            simulate: whether the network goes on to round its activations.
        """

        bits: int = Field(8, ge=1, le=8)
        bits_by_layer: dict[str, int] = Field(default_factory=dict)
        skip: tuple[str, ...] = ()
        per: Literal["layer", "channel"] = "channel"
        grid: Grid = "symmetric"
        activations: int | None = Field(8, ge=1, le=8)
        ema: float = Field(0.99, ge=0.0, lt=1.0)
        delay: float = Field(0.1, ge=0.0, lt=1.0)
        batch_norm: Literal["keep", "fold"] = "keep"
        simulate: bool = True
        lr: float = Field(5e-3, gt=0.0)

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the trained network on its levels; its weights are frozen from here on.

        Raises:
            RecipeError: a layer that is named doesn't exist, a number of bits is not from 1 to 8,
                a weight is not finite, or the weights may no longer change.
            UsageError: the training diverged.
        """
        network.require_free(self.name)
        infos = layers(network.module, network.input_shape)
        names = [info.name for info in infos]
        check_layers(self.name, names, self.params.bits_by_layer, self.params.skip)
        unfit = untreated(network.module, infos)
        folded: Mapping[str, str] = {}
        left = dict.fromkeys(self.params.skip, "skip names it") | unfit
        start = network
        if self.params.batch_norm == "fold":
            made = fold_batch_norms(network.module, network.masks)
            start = replace(network, module=made.module, masks=made.masks)
            folded, left = made.layers, left | dict(made.left)
        chosen = [name for name in names if name not in self.params.skip]
        module, trained = self._trained(start, chosen, unfit, ctx)
        quantum, ranges = self._finish(module, trained)
        entry = {
            "step": self.name,
            "params": self.params.model_dump(mode="json"),
            "layers": trained.layers,
            "left": left,
            "folded": dict(folded),
            "activations": ranges,
            "loss": trained.loss,
            "cost": {"train_steps": trained.steps, "forward_passes": 0},
            "output_step": quantum,
            "storage_only": any(self._bits(name) < 8 for name in chosen),
        }
        frozen = f"{self.name} put the weights on levels that further changes would leave"
        made_network = network.after(module, entry, masks=start.masks)
        return replace(made_network, frozen=frozen, quantum=quantum)

    def _bits(self, name: str) -> int:
        return self.params.bits_by_layer.get(name, self.params.bits)

    def _trained(
        self, start: Network, chosen: Sequence[str], unfit: Collection[str], ctx: StepContext
    ) -> tuple[nn.Module, _Trained]:
        """Return a copy of the start's module with trained weights on levels, and the rest.

        Inputs of the `chosen` layers are rounded, and the weights of those not in `unfit`.
        """
        params = self.params
        observed = copy.deepcopy(start.module)
        bits = {name: self._bits(name) for name in chosen if name not in unfit}
        weights = _Weights(observed, bits, params, start.masks)
        weights.place(observed)
        if params.activations is not None:
            delay = round(params.delay * steps_of(params, ctx))
            kinds = [_Observer(params.activations, params.ema, delay) for _ in (*chosen, "")]
            place_quantisers(observed, dict(zip(chosen, kinds, strict=False)), kinds[-1])
        trained, stats = retrain(
            replace(start, module=observed),
            ctx,
            params,
            purpose=self.name,
            after_step=weights.after_step,
        )
        module = copy.deepcopy(start.module)
        state = trained.state_dict()
        module.load_state_dict({name: state[name] for name in module.state_dict()})
        ranges: dict[str, tuple[float, float]] = {}
        if params.activations is not None:
            quantisers = {n: trained.get_submodule(n).input_quantiser for n in chosen}
            for name, part in {**quantisers, "": trained.output_quantiser}.items():
                assert isinstance(part, _Observer)
                if part.seen:
                    ranges[name] = part.range()
        return module, _Trained(weights.told(), ranges, stats.loss, stats.steps)

    def _finish(
        self, module: nn.Module, trained: _Trained
    ) -> tuple[float | None, dict[str, list[float]]]:
        """Let the network round its activations if asked; return the output's step, the ranges."""
        bits = self.params.activations
        ranges = {name: list(found) for name, found in trained.ranges.items()}
        if bits is None or not self.params.simulate:
            return None, ranges
        made = {name: FakeQuantise(*found, bits) for name, found in trained.ranges.items()}
        output = made.pop("")
        place_quantisers(module, made, output)
        return (float(output.step) if output.levels else None), ranges


@dataclass(frozen=True)
class _Trained:
    layers: list[dict[str, object]]
    ranges: Mapping[str, tuple[float, float]]
    loss: float
    steps: int


class _Weights:
    """The float weights behind those on levels, which the module holds.

    An optimiser's step moves the module's weights from their levels; the float weights take the
    same move, and the module gets their levels again.
    """

    def __init__(
        self,
        module: nn.Module,
        bits: Mapping[str, int],
        params: QuantiseAwareTrain.Params,
        masks: Mapping[str, Tensor],
    ) -> None:
        self._bits = bits
        self._params = params
        self._kept = {name: masks.get(f"{name}.weight") for name in bits}
        self._float = {name: _weight(module, name).detach().clone() for name in bits}
        self._placed: dict[str, Quantised] = {}

    def place(self, module: nn.Module) -> None:
        """Give the module the levels of the float weights."""
        for name, bits in self._bits.items():
            layer = module.get_submodule(name)
            axis = None
            if self._params.per == "channel":
                axis = 1 if isinstance(layer, _TRANSPOSED) else 0
            values, kept = self._float[name], self._kept[name]
            try:
                placed = quantise_on(self._params.grid, values, bits, axis, kept)
            except RecipeError as error:
                message = f"{QuantiseAwareTrain.name}: layer {name!r}: {error.message}"
                raise RecipeError(message) from None
            self._placed[name] = placed
            with torch.no_grad():
                _weight(module, name).copy_(placed.values)

    def after_step(self, module: nn.Module) -> None:
        """Take an optimiser's move over to the float weights."""
        for name, placed in self._placed.items():
            self._float[name] += _weight(module, name).detach() - placed.values
        self.place(module)

    def told(self) -> list[dict[str, object]]:
        """Return each layer's provenance."""
        return [
            layer_entry(name, bits, self._float[name], self._placed[name], self._kept[name])
            for name, bits in self._bits.items()
        ]


class _Observer(nn.Module):
    """Follow the range of what passes, and round it after a delay."""

    low: Tensor
    high: Tensor

    def __init__(self, bits: int, ema: float, delay: int) -> None:
        super().__init__()
        self._bits, self._ema, self._delay = bits, ema, delay
        self.seen = 0
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def range(self) -> tuple[float, float]:
        """Return the range with 0 among its levels."""
        return nudged(float(self.low), float(self.high), self._bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, rounded once the delay is over; the gradient passes inside the range."""
        if self.training:
            low, high = torch.aminmax(x.detach())
            weight = 1.0 if self.seen == 0 else 1.0 - self._ema
            self.low.lerp_(low, weight)
            self.high.lerp_(high, weight)
            self.seen += 1
            if self.seen <= self._delay:
                return x
        first, last = self.range()
        if last <= first:
            return x
        step = (last - first) / (2**self._bits - 1)
        clipped = x.clamp(first, last)
        rounded = first + step * torch.round((clipped - first) / step)
        passed: Tensor = clipped + (rounded - clipped).detach()
        return passed


def _weight(module: nn.Module, name: str) -> nn.Parameter:
    weight = module.get_submodule(name).weight
    assert isinstance(weight, nn.Parameter)
    return weight
