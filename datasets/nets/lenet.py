"""LeNet-300-100 and LeNet-5 as Han et al. 2015 prune them (LeCun et al. 1998, Caffe's form)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from flatsat.datasets.architectures.classic import (
    LENET5_CHANNELS,
    LENET5_HIDDEN,
    LENET300_HIDDEN,
    lenet5_features,
)
from flatsat.datasets.architectures.layer import Shape, scaled


class LeNet300(nn.Module):
    """Two hidden layers of 300 and 100 units: 266,610 parameters for 28 x 28 inputs."""

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        first, second = (scaled(units, width) for units in LENET300_HIDDEN)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(math.prod(shape), first)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(first, second)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(second, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        hidden = self.relu1(self.fc1(self.flatten(image)))
        logits: Tensor = self.fc3(self.relu2(self.fc2(hidden)))
        return logits


class LeNet5(nn.Module):
    """Caffe's LeNet-5 (20, 50, 500): 431,080 parameters for 28 x 28 inputs.

    As in Caffe no activation follows a convolution but its max pooling.
    """

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        first, second = (scaled(channels, width) for channels in LENET5_CHANNELS)
        hidden = scaled(LENET5_HIDDEN, width)
        self.conv1 = nn.Conv2d(shape[0], first, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(lenet5_features(shape, width), hidden)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.pool2(self.conv2(self.pool1(self.conv1(image))))
        logits: Tensor = self.fc2(self.relu1(self.fc1(self.flatten(features))))
        return logits


def lenet300(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return LeNet-300-100; `width` scales both hidden layers."""
    return LeNet300(shape, classes, width)


def lenet5(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return LeNet-5; `width` scales its channels and its hidden layer."""
    return LeNet5(shape, classes, width)
