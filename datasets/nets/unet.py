"""A small U-Net (Ronneberger et al. 2015): three levels, with batch norm and padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatsat.datasets.architectures.branched import UNET_CHANNELS
from flatsat.datasets.architectures.layer import Shape, scaled


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Two levels down and two up; transposed convolutions go up, skips are joined by channel.

    Padded convolutions keep the image's size, where the paper's shrink it.

    Args:
        shape: (c, h, w); h and w are multiples of 4.
        classes: output channels.
        width: scales all hidden channels.
        pooled: False: logits of each pixel; True: one row of logits an image, from the mean of the
            features over the image.
    """

    def __init__(self, shape: Shape, classes: int, width: float, *, pooled: bool) -> None:
        super().__init__()
        one, two, three = (scaled(full, width) for full in UNET_CHANNELS)
        self.down1 = _double(shape[0], one)
        self.pool1 = nn.MaxPool2d(2)
        self.down2 = _double(one, two)
        self.pool2 = nn.MaxPool2d(2)
        self.bottom = _double(two, three)
        self.up2 = nn.ConvTranspose2d(three, two, 2, 2)
        self.merge2 = _double(2 * two, two)
        self.up1 = nn.ConvTranspose2d(two, one, 2, 2)
        self.merge1 = _double(2 * one, one)
        self.head: nn.Module = nn.Conv2d(one, classes, 1)
        if pooled:
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(one, classes)
            )

    def forward(self, image: Tensor) -> Tensor:
        """Map (n, c, h, w) to logits (n, classes, h, w), or (n, classes) with a pooled head."""
        first = self.down1(image)
        second = self.down2(self.pool1(first))
        lowest = self.bottom(self.pool2(second))
        second = self.merge2(torch.cat([self.up2(lowest), second], dim=1))
        first = self.merge1(torch.cat([self.up1(second), first], dim=1))
        logits: Tensor = self.head(first)
        return logits


def unet(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return the U-Net that gives a map of logits for each class."""
    return UNet(shape, classes, width, pooled=False)


def unet_classifier(shape: Shape, classes: int, width: float) -> nn.Module:
    """Return the U-Net with a pooled head, for workloads with one label an image."""
    return UNet(shape, classes, width, pooled=True)
