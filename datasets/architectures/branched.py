"""Networks whose branches are joined channel by channel: GoogLeNet and a small U-Net."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flatsat.datasets.architectures.layer import (
    Layer,
    Shape,
    after,
    normed,
    pooled,
    pooled_up,
    scaled,
)
from flatsat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Channels of the stem's three convolutions (7 x 7, 1 x 1, 3 x 3).
GOOGLENET_STEM = (64, 64, 192)
# Of each inception module: 1 x 1; before the 3 x 3, 3 x 3; before the 5 x 5, 5 x 5; after pooling.
# None stands for pooling between modules.
GOOGLENET_MODULES = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
UNET_CHANNELS = (16, 32, 64)


def googlenet(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of GoogLeNet without its auxiliary classifiers."""
    first, second, third = (scaled(n, width) for n in GOOGLENET_STEM)
    sides = [after(side, 7, 2, 3) for side in shape[1:]]
    yield Layer(shape[0], first, 7, math.prod(sides))
    sides = [pooled_up(side) for side in sides]
    yield Layer(first, second, 1, math.prod(sides))
    yield Layer(second, third, 3, math.prod(sides))
    sides = [pooled_up(side) for side in sides]
    inputs = third
    for module in GOOGLENET_MODULES:
        if module is None:
            sides = [pooled_up(side) for side in sides]
            continue
        one, before3, three, before5, five, after_pool = (scaled(n, width) for n in module)
        positions = math.prod(sides)
        yield Layer(inputs, one, 1, positions)
        yield Layer(inputs, before3, 1, positions)
        yield Layer(before3, three, 3, positions)
        yield Layer(inputs, before5, 1, positions)
        yield Layer(before5, five, 5, positions)
        yield Layer(inputs, after_pool, 1, positions)
        inputs = one + three + five + after_pool
    yield Layer(inputs, classes)


def unet_body(shape: Shape, width: float) -> Iterator[Layer]:
    """Yield the layers of the small U-Net up to its last features.

    Raises:
        UsageError: a side can't be halved twice and doubled again.
    """
    for side in shape[1:]:
        if side % 2 ** (len(UNET_CHANNELS) - 1):
            raise UsageError(
                f"an input of {shape[1]} x {shape[2]} doesn't suit a U-Net of three levels",
                hint="give height and width that are multiples of 4",
            )
    channels = [scaled(n, width) for n in UNET_CHANNELS]
    inputs, sides = shape[0], list(shape[1:])
    for level, outputs in enumerate(channels):
        if level > 0:
            sides = [pooled(side) for side in sides]
        yield normed(inputs, outputs, 3, sides)
        yield normed(outputs, outputs, 3, sides)
        inputs = outputs
    for outputs in reversed(channels[:-1]):
        yield Layer(inputs, outputs, 2, math.prod(sides))
        sides = [2 * side for side in sides]
        yield normed(2 * outputs, outputs, 3, sides)
        yield normed(outputs, outputs, 3, sides)
        inputs = outputs


def unet(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of the small U-Net that gives a map of logits for each pixel."""
    yield from unet_body(shape, width)
    yield Layer(scaled(UNET_CHANNELS[0], width), classes, 1, math.prod(shape[1:]))


def unet_classifier(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of the small U-Net with a pooled head for one label an image."""
    yield from unet_body(shape, width)
    yield Layer(scaled(UNET_CHANNELS[0], width), classes)
