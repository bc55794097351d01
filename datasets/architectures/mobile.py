"""Networks of depthwise convolutions: MobileNet V1 and V2, EfficientNet-Lite0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsat.datasets.architectures.layer import Layer, Shape, after, normed, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOBILENET_STEM = 16
# (output channels, stride) of each depthwise-separable block.
MOBILENET_BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))
MOBILENET_V1_STEM = 32
MOBILENET_V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# (expansion, output channels, blocks, stride of the first, kernel) of each stage.
Stages = tuple[tuple[int, int, int, int, int], ...]
MOBILENET_V2_STEM = 32
MOBILENET_V2_HEAD = 1280
MOBILENET_V2_STAGES: Stages = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)
EFFICIENTNET_LITE0_STAGES: Stages = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def _separable(
    shape: Shape, classes: int, width: float, stem: int, blocks: Sequence[tuple[int, int]]
) -> Iterator[Layer]:
    inputs = scaled(stem, width)
    sides = [after(side, 3, 2, 1) for side in shape[1:]]
    yield normed(shape[0], inputs, 3, sides)
    for full, stride in blocks:
        outputs = scaled(full, width)
        sides = [after(side, 3, stride, 1) for side in sides]
        yield normed(inputs, inputs, 3, sides, groups=inputs)
        yield normed(inputs, outputs, 1, sides)
        inputs = outputs
    yield Layer(inputs, classes)


def mobilenet_small(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of the small network in MobileNet's style."""
    return _separable(shape, classes, width, MOBILENET_STEM, MOBILENET_BLOCKS)


def mobilenet_v1(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of MobileNet V1."""
    return _separable(shape, classes, width, MOBILENET_V1_STEM, MOBILENET_V1_BLOCKS)


def _inverted(shape: Shape, classes: int, width: float, stages: Stages) -> Iterator[Layer]:
    """Yield a stem, stages of inverted residual blocks and a head.

    The padding of EfficientNet-Lite0 (TensorFlow's "same") leaves the same sides as MobileNet V2's.
    """
    inputs = scaled(MOBILENET_V2_STEM, width)
    sides = [-(-side // 2) for side in shape[1:]]
    yield normed(shape[0], inputs, 3, sides)
    for expansion, full, blocks, first_stride, kernel in stages:
        outputs = scaled(full, width)
        for block in range(blocks):
            inner = inputs * expansion
            if expansion != 1:
                yield normed(inputs, inner, 1, sides)
            if block == 0 and first_stride == 2:
                sides = [-(-side // 2) for side in sides]
            yield normed(inner, inner, kernel, sides, groups=inner)
            yield normed(inner, outputs, 1, sides)
            inputs = outputs
    head = scaled(MOBILENET_V2_HEAD, width)
    yield normed(inputs, head, 1, sides)
    yield Layer(head, classes)


def mobilenet_v2(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of MobileNet V2."""
    return _inverted(shape, classes, width, MOBILENET_V2_STAGES)


def efficientnet_lite0(shape: Shape, classes: int, width: float) -> Iterator[Layer]:
    """Yield the layers of EfficientNet-Lite0."""
    return _inverted(shape, classes, width, EFFICIENTNET_LITE0_STAGES)
