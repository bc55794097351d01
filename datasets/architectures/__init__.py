"""The reference networks as arithmetic: channels, parameters and MACs, without torch.

`nets/` builds the modules from the same numbers. One MAC is one multiplication with its addition;
biases, batch norm, pooling and activations count none, as in the papers.

layer       one layer's parameters, weights and MACs
classic     LeNet-300-100, LeNet-5, AlexNet, VGG-16
residual    ResNet-20, -56, -18, -50, Plain-20
mobile      MobileNet V1 and V2, EfficientNet-Lite0
branched    GoogLeNet, a small U-Net
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from flatsat.datasets.architectures import branched, classic, mobile, residual
from flatsat.datasets.architectures.layer import Layer, Shape, scaled
from flatsat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "Cost",
    "Layer",
    "Shape",
    "cost",
    "layers",
    "nearest",
    "network_names",
    "require_network",
    "scaled",
    "usual",
    "width_for_macs",
]


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


@dataclass(frozen=True)
class Usual:
    """The task that a network's paper has: what one image is, and how many classes there are."""

    input_shape: Shape
    classes: int


def usual(name: str) -> Usual:
    """Return the image and the classes that the paper's counts are for.

    Raises:
        UsageError: no such network; the message names the nearest one.
    """
    name = require_network(name)
    if name in ("lenet300", "lenet5"):
        return Usual((1, 28, 28), 10)
    if name in _SMALL_IMAGES:
        return Usual((3, 32, 32), 10)
    return Usual((3, 224, 224), 1000)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return which of `names` is most like `name` (the first of equals), None if none is."""
    likeness = {known: SequenceMatcher(a=known, b=name).ratio() for known in names}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return None if best is None or likeness[best] < 0.3 else best


def require_network(name: str) -> str:
    """Return `name` if it is a reference network.

    Raises:
        UsageError: it is none; the message names the nearest one.
    """
    if name not in _LAYERS:
        near = nearest(name, _LAYERS)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(_LAYERS)}"
        raise UsageError(f"unknown network {name!r}", hint=hint)
    return name


def layers(
    network: str, *, classes: int, input_shape: Shape, width: float = 1.0
) -> tuple[Layer, ...]:
    """Return the layers with weights of what `nets.build` with the same arguments makes.

    Raises:
        UsageError: an unknown network, a width that is not positive, or too small an input.
    """
    return tuple(_LAYERS[require_network(network)](input_shape, classes, width))


def cost(network: str, *, classes: int, input_shape: Shape, width: float = 1.0) -> Cost:
    """Return what `nets.build` with the same arguments makes.

    Raises:
        UsageError: an unknown network, a width that is not positive, or too small an input.
    """
    found = layers(network, classes=classes, input_shape=input_shape, width=width)
    return Cost(
        parameters=sum(layer.parameters for layer in found),
        weights=sum(layer.weights for layer in found),
        macs=sum(layer.macs for layer in found),
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


_SMALL_IMAGES = frozenset(
    {
        "resnet20",
        "resnet56",
        "plain20",
        "mobilenet-small",
        "vgg16-cifar",
        "unet",
        "unet-classifier",
    }
)
_LAYERS: dict[str, Callable[[Shape, int, float], Iterator[Layer]]] = {
    "lenet300": classic.lenet300,
    "lenet5": classic.lenet5,
    "resnet20": residual.resnet20,
    "mobilenet-small": mobile.mobilenet_small,
    "plain20": residual.plain20,
    "resnet56": residual.resnet56,
    "unet": branched.unet,
    "unet-classifier": branched.unet_classifier,
    "vgg16-cifar": classic.vgg16_cifar,
    "alexnet": classic.alexnet,
    "alexnet-grouped": classic.alexnet_grouped,
    "vgg16": classic.vgg16,
    "googlenet": branched.googlenet,
    "resnet18": residual.resnet18,
    "resnet50": residual.resnet50,
    "mobilenet-v1": mobile.mobilenet_v1,
    "mobilenet-v2": mobile.mobilenet_v2,
    "efficientnet-lite0": mobile.efficientnet_lite0,
}
