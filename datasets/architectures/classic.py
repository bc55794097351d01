"""Networks of convolutions and dense layers in one row: LeNet, AlexNet, VGG-16."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from flatsat.datasets.architectures.layer import Layer, Shape, after, normed, pooled, scaled
from flatsat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

LENET300_HIDDEN = (300, 100)
LENET5_CHANNELS = (20, 50)
LENET5_HIDDEN = 500
# (channels, kernel, stride, padding, pooling follows) of each convolution.
ALEXNET_CONVS = (
    (64, 11, 4, 2, True),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)
ALEXNET_GROUPED_CHANNELS = (96, 256, 384, 384, 256)
ALEXNET_GROUPS = (1, 2, 1, 2, 2)
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
DENSE_HIDDEN = 4096  # Of AlexNet and VGG-16.
VGG16_CIFAR_HIDDEN = 512


def lenet300(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of LeNet-300-100."""
    units = [math.prod(shape), *(scaled(n, width) for n in LENET300_HIDDEN), classes]
    for inputs, outputs in pairwise(units):
        yield Layer(inputs, outputs)


def lenet5_features(shape: Shape, width: float) -> int:
    """Return the units that LeNet-5's second pooling hands to its dense layers."""
    sides = [after(after(side, 5) // 2, 5) // 2 for side in shape[1:]]
    if min(sides) < 1:
        raise UsageError(
            f"an input of {shape[1]} x {shape[2]} is too small for lenet5",
            hint="it needs 16 x 16 or more",
        )
    return scaled(LENET5_CHANNELS[1], width) * math.prod(sides)


def lenet5(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of LeNet-5."""
    first, second = (scaled(n, width) for n in LENET5_CHANNELS)
    hidden = scaled(LENET5_HIDDEN, width)
    after_first = [after(side, 5) for side in shape[1:]]
    after_second = [after(side // 2, 5) for side in after_first]
    yield Layer(shape[0], first, 5, math.prod(after_first))
    yield Layer(first, second, 5, math.prod(after_second))
    yield Layer(lenet5_features(shape, width), hidden)
    yield Layer(hidden, classes)


def alexnet_channels(width: float, *, grouped: bool) -> list[int]:
    """Return the channels of AlexNet's convolutions; even ones where they are in two groups."""
    if not grouped:
        return [scaled(conv[0], width) for conv in ALEXNET_CONVS]
    return [2 * scaled(count // 2, width) for count in ALEXNET_GROUPED_CHANNELS]


def alexnet_features(shape: Shape, width: float, *, grouped: bool) -> int:
    """Return the units that AlexNet's last pooling hands to its dense layers."""
    sides = list(shape[1:])
    for _, kernel, stride, padding, pools in ALEXNET_CONVS:
        sides = [after(side, kernel, stride, padding) for side in sides]
        if pools:
            sides = [after(side, 3, 2) for side in sides]
    return alexnet_channels(width, grouped=grouped)[-1] * math.prod(sides)


def _alexnet(shape: Shape, classes: int, width: float, *, grouped: bool) -> Iterator[Layer]:
    sides = list(shape[1:])
    inputs = shape[0]
    channels = alexnet_channels(width, grouped=grouped)
    for (_, kernel, stride, padding, pools), outputs, groups in zip(
        ALEXNET_CONVS, channels, ALEXNET_GROUPS, strict=True
    ):
        sides = [after(side, kernel, stride, padding) for side in sides]
        yield Layer(inputs, outputs, kernel, math.prod(sides), groups if grouped else 1)
        inputs = outputs
        if pools:
            sides = [after(side, 3, 2) for side in sides]
    hidden = scaled(DENSE_HIDDEN, width)
    yield Layer(alexnet_features(shape, width, grouped=grouped), hidden)
    yield Layer(hidden, hidden)
    yield Layer(hidden, classes)


def alexnet(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of AlexNet in one tower (Krizhevsky 2014)."""
    return _alexnet(shape, classes, width, grouped=False)


def alexnet_grouped(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of AlexNet in two towers (Krizhevsky et al. 2012)."""
    return _alexnet(shape, classes, width, grouped=True)


def vgg16_features(shape: Shape, width: float) -> int:
    """Return the units that VGG-16's last pooling hands to its dense layers."""
    sides = list(shape[1:])
    for _ in VGG16_STAGES:
        sides = [pooled(side) for side in sides]
    return scaled(VGG16_STAGES[-1][-1], width) * math.prod(sides)


def _vgg16_convs(shape: Shape, width: float, *, norm: bool) -> Iterator[Layer]:
    inputs, sides = shape[0], list(shape[1:])
    for stage in VGG16_STAGES:
        for count in stage:
            outputs = scaled(count, width)
            if norm:
                yield normed(inputs, outputs, 3, sides)
            else:
                yield Layer(inputs, outputs, 3, math.prod(sides))
            inputs = outputs
        sides = [pooled(side) for side in sides]


def vgg16(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of VGG-16 with its three dense layers."""
    yield from _vgg16_convs(shape, width, norm=False)
    hidden = scaled(DENSE_HIDDEN, width)
    yield Layer(vgg16_features(shape, width), hidden)
    yield Layer(hidden, hidden)
    yield Layer(hidden, classes)


def vgg16_cifar(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of VGG-16 with batch norm and two small dense layers."""
    yield from _vgg16_convs(shape, width, norm=True)
    hidden = scaled(VGG16_CIFAR_HIDDEN, width)
    yield Layer(scaled(VGG16_STAGES[-1][-1], width), hidden)
    yield Layer(hidden, classes)
