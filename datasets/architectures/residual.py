"""Residual networks and the plain one that they were held against (He et al. 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsat.datasets.architectures.layer import Layer, Shape, after, normed, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESNET20_CHANNELS = (16, 32, 64)
RESNET20_BLOCKS = 3
RESNET56_BLOCKS = 9
RESNET_STEM = 64
RESNET_CHANNELS = (64, 128, 256, 512)
RESNET18_BLOCKS = (2, 2, 2, 2)
RESNET50_BLOCKS = (3, 4, 6, 3)
BOTTLENECK_EXPANSION = 4


def _small(
    shape: Shape, classes: int, width: float, blocks: int, *, shortcuts: bool
) -> Iterator[Layer]:
    channels = [scaled(n, width) for n in RESNET20_CHANNELS]
    sides = list(shape[1:])
    yield normed(shape[0], channels[0], 3, sides)
    inputs = channels[0]
    for stage, outputs in enumerate(channels):
        for block in range(blocks):
            shrinks = stage > 0 and block == 0
            if shrinks:
                sides = [after(side, 3, 2, 1) for side in sides]
            yield normed(inputs, outputs, 3, sides)
            yield normed(outputs, outputs, 3, sides)
            if shrinks and shortcuts:
                yield normed(inputs, outputs, 1, sides)
            inputs = outputs
    yield Layer(inputs, classes)


def resnet20(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of ResNet-20."""
    return _small(shape, classes, width, RESNET20_BLOCKS, shortcuts=True)


def resnet56(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of ResNet-56."""
    return _small(shape, classes, width, RESNET56_BLOCKS, shortcuts=True)


def plain20(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of the plain 20-layer network."""
    return _small(shape, classes, width, RESNET20_BLOCKS, shortcuts=False)


def _stem(shape: Shape, width: float) -> tuple[Layer, list[int]]:
    """Return the first convolution, and the sides after the pooling that follows it."""
    sides = [after(side, 7, 2, 3) for side in shape[1:]]
    layer = normed(shape[0], scaled(RESNET_STEM, width), 7, sides)
    return layer, [after(side, 3, 2, 1) for side in sides]


def _shrunk(sides: Sequence[int]) -> list[int]:
    return [after(side, 3, 2, 1) for side in sides]


def resnet18(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of ResNet-18."""
    stem, sides = _stem(shape, width)
    yield stem
    inputs = stem.outputs
    for stage, (count, blocks) in enumerate(zip(RESNET_CHANNELS, RESNET18_BLOCKS, strict=True)):
        outputs = scaled(count, width)
        for block in range(blocks):
            shrinks = stage > 0 and block == 0
            sides = _shrunk(sides) if shrinks else sides
            yield normed(inputs, outputs, 3, sides)
            yield normed(outputs, outputs, 3, sides)
            if shrinks:
                yield normed(inputs, outputs, 1, sides)
            inputs = outputs
    yield Layer(inputs, classes)


def resnet50(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of ResNet-50."""
    stem, sides = _stem(shape, width)
    yield stem
    inputs = stem.outputs
    for stage, (count, blocks) in enumerate(zip(RESNET_CHANNELS, RESNET50_BLOCKS, strict=True)):
        inner = scaled(count, width)
        outputs = BOTTLENECK_EXPANSION * inner
        for block in range(blocks):
            yield normed(inputs, inner, 1, sides)
            sides = _shrunk(sides) if stage > 0 and block == 0 else sides
            yield normed(inner, inner, 3, sides)
            yield normed(inner, outputs, 1, sides)
            if block == 0:
                yield normed(inputs, outputs, 1, sides)
            inputs = outputs
    yield Layer(inputs, classes)
