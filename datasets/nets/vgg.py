"""VGG-16 (Simonyan and Zisserman 2015, configuration D) with two kinds of head."""

from __future__ import annotations

from torch import Tensor, nn

from flatsat.datasets.architectures.classic import (
    DENSE_HIDDEN,
    VGG16_CIFAR_HIDDEN,
    VGG16_STAGES,
    vgg16_features,
)
from flatsat.datasets.architectures.layer import Shape, scaled


def _features(channels: int, width: float, *, norm: bool) -> nn.Sequential:
    """Return thirteen 3 x 3 convolutions in five stages, each ended by max pooling."""
    parts: list[nn.Module] = []
    for stage in VGG16_STAGES:
        for count in stage:
            outputs = scaled(count, width)
            parts.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not norm))
            if norm:
                parts.append(nn.BatchNorm2d(outputs))
            parts.append(nn.ReLU())
            channels = outputs
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts)


class VGG16(nn.Module):
    """The ImageNet network: 138,357,544 parameters, 15.47G MACs for 3 x 224 x 224."""

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        hidden = scaled(DENSE_HIDDEN, width)
        self.features = _features(shape[0], width, norm=False)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(vgg16_features(shape, width), hidden)
        self.relu1 = nn.ReLU()
        self.dropout1 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(hidden, hidden)
        self.relu2 = nn.ReLU()
        self.dropout2 = nn.Dropout(0.5)
        self.fc3 = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        hidden = self.dropout1(self.relu1(self.fc1(self.flatten(self.features(image)))))
        logits: Tensor = self.fc3(self.dropout2(self.relu2(self.fc2(hidden))))
        return logits


class VGG16Cifar(nn.Module):
    """VGG-16 for small images, as Li et al. 2017 prune it: batch norm and a hidden layer of 512.

    313M MACs for 3 x 32 x 32 as there. The batch norm that they have after the first dense layer
    is left out. Where more than one position is left after the last pooling the mean is taken.
    """

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        hidden = scaled(VGG16_CIFAR_HIDDEN, width)
        self.features = _features(shape[0], width, norm=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(scaled(VGG16_STAGES[-1][-1], width), hidden)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.flatten(self.pool(self.features(image)))
        logits: Tensor = self.fc2(self.relu1(self.fc1(features)))
        return logits


def vgg16(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return VGG-16; `width` scales its channels and both hidden layers."""
    return VGG16(shape, classes, width)


def vgg16_cifar(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return VGG-16 for images of 32 x 32 and more; `width` scales channels and hidden layer."""
    return VGG16Cifar(shape, classes, width)
