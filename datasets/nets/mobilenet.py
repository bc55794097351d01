"""A small network of depthwise-separable blocks (MobileNet V1, Howard et al. 2017, section 3)."""

from __future__ import annotations

from torch import Tensor, nn

from flatsat.datasets.architectures import MOBILENET_BLOCKS, MOBILENET_STEM, Shape, scaled


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


class MobileNetSmall(nn.Module):
    """A stem of stride 2 and five separable blocks, 16 to 128 channels."""

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        inputs = scaled(MOBILENET_STEM, width)
        self.conv1 = nn.Conv2d(shape[0], inputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        blocks: list[nn.Module] = []
        for full, stride in MOBILENET_BLOCKS:
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
    """Return the network; `width` scales the stem and every block."""
    return MobileNetSmall(shape, classes, width)
