"""The reference networks as arithmetic: channels, parameters and MACs, without torch.

`nets/` builds the modules from the same numbers. One MAC is one multiplication with its addition;
biases, batch norm, pooling and activations count none, as in the papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING

from flatsat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LENET300_HIDDEN = (300, 100)
LENET5_CHANNELS = (20, 50)
LENET5_HIDDEN = 500
RESNET20_CHANNELS = (16, 32, 64)
RESNET20_BLOCKS = 3
MOBILENET_STEM = 16
# (output channels, stride) of each depthwise-separable block.
MOBILENET_BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
        inputs, outputs: channels or units.
        kernel: side of a square kernel; 1 for a dense layer.
        positions: output positions (height x width); 1 for a dense layer.
        groups: of a convolution.
        bias: has one.
        norm: is followed by batch norm (two learned numbers a channel).
    """

    inputs: int
    outputs: int
    kernel: int = 1
    positions: int = 1
    groups: int = 1
    bias: bool = True
    norm: bool = False

    @property
    def weights(self) -> int:
        """Weights without bias and norm."""
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.weights * self.positions

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        return self.weights + self.outputs * (self.bias + 2 * self.norm)


@dataclass(frozen=True)
class Cost:
    """What a network holds and does for one image.

    Attributes:
        parameters: learned numbers: weights, biases, batch norm.
        weights: of convolutions and dense layers alone.
        macs: multiply-accumulates.
    """

    parameters: int
    weights: int
    macs: int


def network_names() -> tuple[str, ...]:
    """Return the names that `cost` and `nets.build` take."""
    return tuple(_LAYERS)


def require_network(name: str) -> str:
    """Return `name` if it is a reference network.

    Raises:
        UsageError: it is none; the message names the nearest one.
    """
    if name not in _LAYERS:
        near = get_close_matches(name, _LAYERS, 1, 0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_LAYERS)}"
        raise UsageError(f"unknown network {name!r}", hint=hint)
    return name


def scaled(count: int, width: float) -> int:
    """Return `count` channels times `width`, rounded half up, at least 1.

    Raises:
        UsageError: `width` is not a positive finite number.
    """
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"width is {width}", hint="give a number above 0, such as 0.5")
    return max(1, math.floor(count * width + 0.5))


def cost(network: str, *, classes: int, input_shape: Shape, width: float = 1.0) -> Cost:
    """Return what `nets.build` with the same arguments makes.

    Raises:
        UsageError: an unknown network, a width that is not positive, or too small an input.
    """
    layers = list(_LAYERS[require_network(network)](input_shape, classes, width))
    return Cost(
        parameters=sum(layer.parameters for layer in layers),
        weights=sum(layer.weights for layer in layers),
        macs=sum(layer.macs for layer in layers),
    )


def width_for_macs(network: str, macs: float, *, classes: int, input_shape: Shape) -> float:
    """Return the width whose network comes nearest to `macs` from below (or equals it).

    MACs never fall as the width grows, so bisection finds the step. Of all widths that make this
    very network the one with the fewest decimals is returned: 1.0 for the full network's MACs.
    Where even the narrowest network (one channel everywhere) has more MACs than asked, a width
    of that one is returned.

    Raises:
        UsageError: an unknown network, or `macs` is not positive.
    """
    if not (math.isfinite(macs) and macs > 0):
        raise UsageError(f"macs is {macs}", hint="give a number above 0")

    def at(width: float) -> int:
        return cost(network, classes=classes, input_shape=input_shape, width=width).macs

    low = 1e-4  # Every layer has one channel here.
    if at(low) >= macs:
        return low
    high = 1.0
    while at(high) <= macs:
        high *= 2
    upper = _step(low, high, lambda width: at(width) > macs)
    best = at(upper - _STEP)
    lower = _step(low, upper, lambda width: at(width) >= best)
    rounded = (math.ceil(lower * 10**digits) / 10**digits for digits in range(7))
    return next((width for width in rounded if at(width) == best), lower)


_STEP = 1e-7


def _step(low: float, high: float, beyond: Callable[[float], bool]) -> float:
    """Return the width, to `_STEP`, at which `beyond` turns true between `low` and `high`."""
    while high - low > _STEP / 4:
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return high


def _after(side: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    length = (side + 2 * padding - kernel) // stride + 1
    if length < 1:
        raise UsageError(
            f"an input of side {side} is too small for a kernel of side {kernel}",
            hint="choose a network for smaller images",
        )
    return length


def _lenet300(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    units = [math.prod(shape), *(scaled(n, width) for n in LENET300_HIDDEN), classes]
    for inputs, outputs in pairwise(units):
        yield Layer(inputs, outputs)


def lenet5_features(shape: Shape, width: float) -> int:
    """Return the units that LeNet-5's second pooling hands to its dense layers."""
    sides = [_after(_after(side, 5) // 2, 5) // 2 for side in shape[1:]]
    if min(sides) < 1:
        raise UsageError(
            f"an input of {shape[1]} x {shape[2]} is too small for lenet5",
            hint="it needs 16 x 16 or more",
        )
    return scaled(LENET5_CHANNELS[1], width) * math.prod(sides)


def _lenet5(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    first, second = (scaled(n, width) for n in LENET5_CHANNELS)
    hidden = scaled(LENET5_HIDDEN, width)
    after_first = [_after(side, 5) for side in shape[1:]]
    after_second = [_after(side // 2, 5) for side in after_first]
    yield Layer(shape[0], first, 5, math.prod(after_first))
    yield Layer(first, second, 5, math.prod(after_second))
    yield Layer(lenet5_features(shape, width), hidden)
    yield Layer(hidden, classes)


def _resnet20(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    channels = [scaled(n, width) for n in RESNET20_CHANNELS]
    sides = list(shape[1:])
    yield Layer(shape[0], channels[0], 3, math.prod(sides), bias=False, norm=True)
    inputs = channels[0]
    for stage, outputs in enumerate(channels):
        for block in range(RESNET20_BLOCKS):
            shrinks = stage > 0 and block == 0
            if shrinks:
                sides = [_after(side, 3, 2, 1) for side in sides]
            positions = math.prod(sides)
            yield Layer(inputs, outputs, 3, positions, bias=False, norm=True)
            yield Layer(outputs, outputs, 3, positions, bias=False, norm=True)
            if shrinks:
                yield Layer(inputs, outputs, 1, positions, bias=False, norm=True)
            inputs = outputs
    yield Layer(inputs, classes)


def _mobilenet(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    inputs = scaled(MOBILENET_STEM, width)
    sides = [_after(side, 3, 2, 1) for side in shape[1:]]
    yield Layer(shape[0], inputs, 3, math.prod(sides), bias=False, norm=True)
    for full, stride in MOBILENET_BLOCKS:
        outputs = scaled(full, width)
        sides = [_after(side, 3, stride, 1) for side in sides]
        positions = math.prod(sides)
        yield Layer(inputs, inputs, 3, positions, groups=inputs, bias=False, norm=True)
        yield Layer(inputs, outputs, 1, positions, bias=False, norm=True)
        inputs = outputs
    yield Layer(inputs, classes)


_LAYERS: dict[str, Callable[[Shape, int, float], Iterator[Layer]]] = {
    "lenet300": _lenet300,
    "lenet5": _lenet5,
    "resnet20": _resnet20,
    "mobilenet-small": _mobilenet,
}
