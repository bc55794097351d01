"""ResNet-20 and -56 and Plain-20 for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn

from flatsat.datasets.architectures.layer import Shape, scaled
from flatsat.datasets.architectures.residual import (
    RESNET20_BLOCKS,
    RESNET20_CHANNELS,
    RESNET56_BLOCKS,
)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut.

    Where the shape changes the shortcut is a 1 x 1 convolution (the paper's option B), which
    pruning can cut; the paper's CIFAR networks pad with zeros there (option A).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(inner + self.shortcut(x))
        return result


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions without a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        result: Tensor = self.relu2(self.bn2(self.conv2(inner)))
        return result


class SmallResNet(nn.Module):
    """Three stages of `count` blocks each, with 16, 32 and 64 channels."""

    def __init__(
        self, shape: Shape, classes: int, width: float, block: type[nn.Module], count: int
    ) -> None:
        super().__init__()
        channels = [scaled(full, width) for full in RESNET20_CHANNELS]
        self.conv1 = nn.Conv2d(shape[0], channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu1 = nn.ReLU()
        blocks: list[nn.Module] = []
        inputs = channels[0]
        for stage, outputs in enumerate(channels):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(inputs, outputs, stride))
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


def resnet20(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return ResNet-20; `width` scales the channels of every stage."""
    return SmallResNet(shape, classes, width, Block, RESNET20_BLOCKS)


def resnet56(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return ResNet-56; `width` scales the channels of every stage."""
    return SmallResNet(shape, classes, width, Block, RESNET56_BLOCKS)


def plain20(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return the plain network that ResNet-20 was held against: the same without shortcuts."""
    return SmallResNet(shape, classes, width, PlainBlock, RESNET20_BLOCKS)
