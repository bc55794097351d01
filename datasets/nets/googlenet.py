"""GoogLeNet (Szegedy et al. 2015, table 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatsat.datasets.architectures.branched import GOOGLENET_MODULES, GOOGLENET_STEM
from flatsat.datasets.architectures.layer import Shape, scaled


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU())


class Inception(nn.Module):
    """Four branches, joined channel by channel: 1 x 1, 3 x 3, 5 x 5 and pooling.

    Args:
        inputs: channels.
        counts: channels of the 1 x 1; before the 3 x 3, of it; before the 5 x 5, of it; after the
            pooling.
    """

    def __init__(self, inputs: int, counts: Sequence[int]) -> None:
        super().__init__()
        one, before3, three, before5, five, after_pool = counts
        self.branch1 = _conv(inputs, one, 1)
        self.branch2 = nn.Sequential(_conv(inputs, before3, 1), _conv(before3, three, 3))
        self.branch3 = nn.Sequential(_conv(inputs, before5, 1), _conv(before5, five, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(inputs, after_pool, 1))
        self.outputs = one + three + five + after_pool

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w)."""
        parts = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        return torch.cat(parts, dim=1)


class GoogLeNet(nn.Module):
    """A stem of three convolutions and nine inception modules.

    Without the auxiliary classifiers, which serve training alone, and without local response
    normalisation, which has neither parameters nor MACs.
    """

    def __init__(self, shape: Shape, classes: int, width: float) -> None:
        super().__init__()
        first, second, third = (scaled(full, width) for full in GOOGLENET_STEM)
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], first, 7, 2, 3),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            _conv(first, second, 1),
            _conv(second, third, 3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        parts: list[nn.Module] = []
        inputs = third
        for counts in GOOGLENET_MODULES:
            if counts is None:
                parts.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            module = Inception(inputs, [scaled(full, width) for full in counts])
            parts.append(module)
            inputs = module.outputs
        self.inceptions = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes)."""
        features = self.flatten(self.pool(self.inceptions(self.stem(image))))
        logits: Tensor = self.fc(self.dropout(features))
        return logits


def googlenet(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return GoogLeNet: 6,998,552 parameters, 1.58G MACs for 3 x 224 x 224."""
    return GoogLeNet(shape, classes, width)
