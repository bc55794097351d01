"""ResNet-18 and ResNet-50 (He et al. 2016, table 1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flatsat.datasets.architectures.layer import Shape, scaled
from flatsat.datasets.architectures.residual import (
    BOTTLENECK_EXPANSION,
    RESNET18_BLOCKS,
    RESNET50_BLOCKS,
    RESNET_CHANNELS,
    RESNET_STEM,
)


def _shortcut(inputs: int, outputs: int, stride: int, *, changes: bool) -> nn.Module:
    """Return a 1 x 1 convolution where the shape changes, else nothing."""
    if not changes:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, inner: int, stride: int, *, changes: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.shortcut = _shortcut(inputs, inner, stride, changes=changes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, inner, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(inner + self.shortcut(x))
        return result


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut.

    The 3 x 3 convolution has the stride, as in most implementations ("v1.5", 4.09G MACs); the
    paper has it in the first 1 x 1 one (3.8G).
    """

    expansion = BOTTLENECK_EXPANSION

    def __init__(self, inputs: int, inner: int, stride: int, *, changes: bool) -> None:
        super().__init__()
        outputs = inner * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu3 = nn.ReLU()
        self.shortcut = _shortcut(inputs, outputs, stride, changes=changes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, 4 x inner, h / stride, w / stride)."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(inner)))))
        result: Tensor = self.relu3(inner + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """A stem that shrinks the image four times, four stages of blocks, the mean, one layer."""

    def __init__(
        self,
        shape: Shape,
        classes: int,
        width: float,
        block: type[BasicBlock | Bottleneck],
        counts: Sequence[int],
    ) -> None:
        super().__init__()
        inputs = scaled(RESNET_STEM, width)
        self.conv1 = nn.Conv2d(shape[0], inputs, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        for stage, (full, count) in enumerate(zip(RESNET_CHANNELS, counts, strict=True)):
            inner = scaled(full, width)
            outputs = inner * block.expansion
            for index in range(count):
                shrinks = stage > 0 and index == 0
                # The first stage's shape changes where a block's end is wider than the stem.
                changes = index == 0 and (stage > 0 or block.expansion != 1)
                blocks.append(block(inputs, inner, 2 if shrinks else 1, changes=changes))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.blocks(self.pool1(self.relu1(self.bn1(self.conv1(image)))))
        logits: Tensor = self.fc(self.flatten(self.pool(features)))
        return logits


def resnet18(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return ResNet-18: 11,689,512 parameters, 1.81G MACs for 3 x 224 x 224."""
    return ResNet(shape, classes, width, BasicBlock, RESNET18_BLOCKS)


def resnet50(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return ResNet-50: 25,557,032 parameters, 4.09G MACs for 3 x 224 x 224."""
    return ResNet(shape, classes, width, Bottleneck, RESNET50_BLOCKS)
