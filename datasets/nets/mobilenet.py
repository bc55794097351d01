"""Networks of depthwise-separable blocks: MobileNet V1 (Howard et al. 2017) and a small one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flatsat.datasets.architectures.layer import Shape, scaled
from flatsat.datasets.architectures.mobile import (
    MOBILENET_BLOCKS,
    MOBILENET_STEM,
    MOBILENET_V1_BLOCKS,
    MOBILENET_V1_STEM,
)


class SeparableBlock(nn.Module):
    """A 3 x 3 depthwise convolution, then a 1 x 1 one; batch norm and ReLU after each."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = self.relu1(self.bn1(self.depthwise(x)))
        result: Tensor = self.relu2(self.bn2(self.pointwise(inner)))
        return result


class MobileNet(nn.Module):
    """A stem of stride 2 and separable blocks (output channels, stride)."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        width: float,
        stem: int,
        counts: Sequence[tuple[int, int]],
    ) -> None:
        super().__init__()
        inputs = scaled(stem, width)
        self.conv1 = nn.Conv2d(shape[0], inputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        blocks: list[nn.Module] = []
        for full, stride in counts:
            outputs = scaled(full, width)
            blocks.append(SeparableBlock(inputs, outputs, stride))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.blocks(self.relu1(self.bn1(self.conv1(image))))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits


def mobilenet_small(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return the small network, 16 to 128 channels; `width` scales the stem and every block."""
    return MobileNet(shape, classes, width, MOBILENET_STEM, MOBILENET_BLOCKS)


def mobilenet_v1(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return MobileNet V1: 4,231,976 parameters, 569M MACs for 3 x 224 x 224.

    `width` is the paper's width multiplier; channels are rounded half up, not to multiples of 8.
    """
    return MobileNet(shape, classes, width, MOBILENET_V1_STEM, MOBILENET_V1_BLOCKS)
