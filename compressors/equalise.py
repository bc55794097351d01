"""Cross-layer equalisation, Nagel et al. 2019, section 4.1."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from flatsat.compressors.base import StepParams
from flatsat.compressors.channels import difference
from flatsat.compressors.folding import fold_batch_norms
from flatsat.compressors.graph import layers
from flatsat.compressors.pairs import Pair, find_pairs
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.base import Network, StepContext

_TOLERANCE = 1e-4


class Equalise:
    """Rescale channels between pairs of layers, so that one range a layer suits all its channels.

    For a pair W1, b1 -> f -> W2 with f(s x) = s f(x) for s > 0, and any s_i > 0,

        W1' = S^-1 W1,  b1' = S^-1 b1,  W2' = W2 S

    is the same function up to rounding. With r1_i = max|W1| over output channel i of the first
    layer and r2_i = max|W2| over input channel i of the second,

        s_i = sqrt(r1_i r2_i) / r2_i

    makes both sqrt(r1_i r2_i) (eq. 7 to 11). Pairs share layers, so this is repeated over all pairs
    until no factor is further than `tolerance` from 1. Depthwise convolutions are layers of such a
    chain like others.

    Pairs are found by torch.fx: between the layers there may be ReLU, leaky ReLU, pooling, dropout,
    flattening or nothing, nothing else may read the values between, and each part is called once.
    Batch norms are folded into the layers before them first, which leaves a network that trains
    without them. Other layers keep their outputs' scales, and the history says why, by name.
    ReLU6 is no such f: `relu6 = "replace"` puts ReLU in its place (section 5.1.1), which changes
    the function where values exceed 6. Channels that are zero on one side stay as they are. High
    biases are not absorbed (section 4.1.3).
    """

    name: ClassVar[str] = "equalise"

    class Params(StepParams):
        """When to stop, and what to do about ReLU6."""

        iterations: int = Field(100, ge=1, description="passes over all pairs at most")
        tolerance: float = Field(1e-3, gt=0.0, description="largest |ln s| that counts as equal")
        relu6: Literal["leave", "replace"] = Field(
            "leave", description='"replace" puts ReLU in the place of ReLU6'
        )

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:  # noqa: ARG002
        """Return the equalised network.

        Raises:
            RecipeError: the weights may no longer change or are not finite, torch.fx can't trace
                the network, or the outputs changed all the same.
        """
        network.require_free(self.name)
        folded = fold_batch_norms(network.module, network.masks)
        module = folded.module
        replaced = _without_relu6(module) if self.params.relu6 == "replace" else []
        found = find_pairs(module)
        names = [info.name for info in layers(module, network.input_shape)]
        before = [_ranges(module, pair) for pair in found.pairs]
        for pair, (first, second) in zip(found.pairs, before, strict=True):
            if not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
                raise RecipeError(f"{self.name}: weights of {pair.first!r} are not finite")
        original = copy.deepcopy(module)
        rounds, largest = self._repeat(module, found.pairs)
        gap = difference(original, module, network.input_shape)
        if not gap <= _TOLERANCE:
            raise RecipeError(f"{self.name} would change the network's outputs by {gap:.1e}")
        told = []
        for pair, (first, _) in zip(found.pairs, before, strict=True):
            after = _ranges(module, pair)
            told.append(
                {
                    "name": pair.first,
                    "reader": pair.second,
                    "between": list(pair.between),
                    "spread_before": _spread(first),
                    "spread_after": _spread(after[0]),
                    "unequal": int((after[0] <= 0).logical_or(after[1] <= 0).sum()),
                }
            )
        entry = {
            "step": self.name,
            "params": self.params.model_dump(mode="json"),
            "layers": told,
            "left": [
                {"name": name, "reason": found.left[name]} for name in names if name in found.left
            ],
            "folded": dict(folded.layers),
            "not_folded": dict(folded.left),
            "relu6_replaced": replaced,
            "rounds": rounds,
            "largest_factor": math.exp(largest),
            "cost": {"train_steps": 0, "forward_passes": 0},
        }
        return network.after(module, entry, masks=folded.masks)

    def _repeat(self, module: nn.Module, pairs: tuple[Pair, ...]) -> tuple[int, float]:
        """Equalise in place; return the passes made and the last one's largest |ln s|."""
        largest = 0.0
        for done in range(1, self.params.iterations + 1):
            largest = max((_equalise(module, pair) for pair in pairs), default=0.0)
            if largest <= self.params.tolerance:
                return done, largest
        return self.params.iterations, largest


@dataclass(frozen=True)
class _Sides:
    """One layer's weights as (channels, others), a view to read and to scale."""

    weight: Tensor
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def ranges(self) -> Tensor:
        rest = tuple(i for i in range(len(self.shape)) if i not in self.axes)
        return self.weight.reshape(self.shape).abs().amax(rest).reshape(-1).double()

    def scale(self, factor: Tensor) -> None:
        shape = [n if i in self.axes else 1 for i, n in enumerate(self.shape)]
        scaled = self.weight.reshape(self.shape).double() * factor.reshape(shape)
        self.weight.copy_(scaled.reshape(self.weight.shape))


def _outputs(layer: nn.Module) -> _Sides:
    """Return the weights by output channel."""
    weight = _weight(layer)
    if isinstance(layer, _ConvTransposeNd):
        # (inputs, outputs / groups, ...): a group's outputs are made of its own inputs.
        g = layer.groups
        return _Sides(weight, (g, layer.in_channels // g, layer.out_channels // g, -1), (0, 2))
    return _Sides(weight, (len(weight), -1), (0,))


def _inputs(layer: nn.Module, channels: int) -> _Sides:
    """Return the weights by input channel; behind a flattened map one has several features."""
    weight = _weight(layer)
    if isinstance(layer, nn.Linear):
        return _Sides(weight, (len(weight), channels, -1), (1,))
    assert isinstance(layer, _ConvNd)
    if isinstance(layer, _ConvTransposeNd):
        return _Sides(weight, (len(weight), -1), (0,))
    g = layer.groups
    return _Sides(weight, (g, layer.out_channels // g, layer.in_channels // g, -1), (0, 2))


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight.detach()


def _ranges(module: nn.Module, pair: Pair) -> tuple[Tensor, Tensor]:
    """Return r1 and r2 of a pair, float64 (channels,)."""
    first = _outputs(module.get_submodule(pair.first)).ranges()
    return first, _inputs(module.get_submodule(pair.second), len(first)).ranges()


def _equalise(module: nn.Module, pair: Pair) -> float:
    """Give a pair equal ranges in place; return the largest |ln s|."""
    first, second = module.get_submodule(pair.first), module.get_submodule(pair.second)
    left, right = _ranges(module, pair)
    usable = (left > 0) & (right > 0)
    factor = torch.where(usable, (left / right.where(usable, torch.ones_like(right))).sqrt(), 1.0)
    factor = factor.where(usable, torch.ones_like(factor))
    _outputs(first).scale(1.0 / factor)
    _inputs(second, len(left)).scale(factor)
    if isinstance(first.bias, nn.Parameter):
        first.bias.data.copy_(first.bias.data.double() / factor)
    return float(factor.log().abs().max())


def _spread(ranges: Tensor) -> float:
    """Return the largest range over the smallest that isn't zero."""
    some = ranges[ranges > 0]
    return float(some.max() / some.min()) if len(some) else 1.0


def _without_relu6(module: nn.Module) -> list[str]:
    """Put ReLU in the place of every ReLU6 module; return their names."""
    found = [name for name, part in module.named_modules() if isinstance(part, nn.ReLU6) and name]
    for name in found:
        module.set_submodule(name, nn.ReLU().eval())
    return found
