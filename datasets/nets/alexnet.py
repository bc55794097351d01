"""AlexNet in one tower (Krizhevsky 2014) and in two (Krizhevsky et al. 2012)."""

from __future__ import annotations

from torch import Tensor, nn

from flatsat.datasets.architectures.classic import (
    ALEXNET_CONVS,
    ALEXNET_GROUPS,
    DENSE_HIDDEN,
    alexnet_channels,
    alexnet_features,
)
from flatsat.datasets.architectures.layer import Shape, scaled


class AlexNet(nn.Module):
    """Five convolutions and three dense layers.

    Local response normalisation, which the paper of 2012 has after the first two convolutions, is
    left out: later implementations do without it, and it has neither parameters nor MACs.
    """

    def __init__(self, shape: Shape, classes: int, width: float, *, grouped: bool) -> None:
        super().__init__()
        channels = alexnet_channels(width, grouped=grouped)
        parts: list[nn.Module] = []
        inputs = shape[0]
        for (_, kernel, stride, padding, pools), outputs, groups in zip(
            ALEXNET_CONVS, channels, ALEXNET_GROUPS, strict=True
        ):
            parts.append(
                nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups if grouped else 1)
            )
            parts.append(nn.ReLU())
            if pools:
                parts.append(nn.MaxPool2d(3, 2))
            inputs = outputs
        self.features = nn.Sequential(*parts)
        hidden = scaled(DENSE_HIDDEN, width)
        self.flatten = nn.Flatten()
        self.dropout1 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(alexnet_features(shape, width, grouped=grouped), hidden)
        self.relu1 = nn.ReLU()
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(hidden, hidden)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.flatten(self.features(image))
        hidden = self.relu1(self.fc1(self.dropout1(features)))
        logits: Tensor = self.fc3(self.relu2(self.fc2(self.dropout2(hidden))))
        return logits


def alexnet(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return the one-tower variant: 61,100,840 parameters, 714M MACs for 3 x 224 x 224."""
    return AlexNet(shape, classes, width, grouped=False)


def alexnet_grouped(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return the original, whose convolutions 2, 4 and 5 have two groups.

    60,965,224 parameters, 724M MACs for 3 x 224 x 224: the AlexNet of Deep Compression. Channels
    are scaled to even numbers.
    """
    return AlexNet(shape, classes, width, grouped=True)
