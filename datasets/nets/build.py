"""The one place where a network's name becomes a module, with weights from a given generator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from flatsat.datasets.architectures import Shape, cost
from flatsat.datasets.nets.alexnet import alexnet, alexnet_grouped
from flatsat.datasets.nets.googlenet import googlenet
from flatsat.datasets.nets.inverted import efficientnet_lite0, mobilenet_v2
from flatsat.datasets.nets.lenet import lenet5, lenet300
from flatsat.datasets.nets.mobilenet import mobilenet_small, mobilenet_v1
from flatsat.datasets.nets.resnet import plain20, resnet20, resnet56
from flatsat.datasets.nets.resnet_large import resnet18, resnet50
from flatsat.datasets.nets.unet import unet, unet_classifier
from flatsat.datasets.nets.vgg import vgg16, vgg16_cifar

if TYPE_CHECKING:
    from collections.abc import Callable

_BUILDERS: dict[str, Callable[[Shape, int, float], nn.Module]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    "resnet20": resnet20,
    "mobilenet-small": mobilenet_small,
    "plain20": plain20,
    "resnet56": resnet56,
    "unet": unet,
    "unet-classifier": unet_classifier,
    "vgg16-cifar": vgg16_cifar,
    "alexnet": alexnet,
    "alexnet-grouped": alexnet_grouped,
    "vgg16": vgg16,
    "googlenet": googlenet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "efficientnet-lite0": efficientnet_lite0,
}
# Without batch norm, from so many convolutions on a signal must keep its size on the way.
_DEEP = 8


def build(
    network: str,
    *,
    classes: int,
    input_shape: Shape,
    width: float | None = 1.0,
    generator: torch.Generator,
) -> nn.Module:
    """Return a freshly initialised network in eval mode.

    It maps (n, c, h, w) to logits (n, classes); "unet" maps to (n, classes, h, w).

    Args:
        network: a name of `network_names()`.
        classes: outputs.
        input_shape: (c, h, w) of one image.
        width: multiplies every hidden channel and unit count (rounded, at least 1); inputs and
            classes stay. None means 1.
        generator: the only source of randomness; the global generator is not touched.

    Raises:
        UsageError: an unknown network, a width that is not positive, or too small an input.
    """
    module = on_meta(network, classes=classes, input_shape=input_shape, width=width)
    module = module.to_empty(device="cpu")
    _initialise(module, generator)
    return module


def on_meta(
    network: str, *, classes: int, input_shape: Shape, width: float | None = 1.0
) -> nn.Module:
    """Return a network in eval mode whose parameters have shapes but no memory.

    Args and errors are `build`'s. Nothing is drawn from torch's global generator.
    """
    width = 1.0 if width is None else width
    cost(network, classes=classes, input_shape=input_shape, width=width)  # Refuses bad arguments.
    with torch.device("meta"):
        return _BUILDERS[network](input_shape, classes, width).eval()


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights: uniform in shallow networks without batch norm, else as He et al. 2015.

    The uniform bound is 1 / sqrt(fan in), which is torch's default: without tails, weights that
    get no gradient (those of an image's empty border) stay small and are pruned first.
    """
    parts = list(module.modules())
    convolutions = sum(isinstance(part, nn.Conv2d) for part in parts)
    normed = convolutions >= _DEEP or any(isinstance(part, nn.BatchNorm2d) for part in parts)
    for part in parts:
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = _fan_in(part)
            if normed and isinstance(part, nn.Conv2d):
                part.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
            else:
                bound = 1.0 / math.sqrt(fan_in)
                part.weight.uniform_(-bound, bound, generator=generator)
            if part.bias is not None:
                bound = 1.0 / math.sqrt(fan_in)
                part.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()


def _fan_in(part: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> int:
    """Return how many products an output sums."""
    if isinstance(part, nn.ConvTranspose2d):
        # Its weight is (inputs, outputs / groups, ...); with a stride windows overlap less.
        windows = math.prod(part.kernel_size) / math.prod(part.stride)
        return max(1, round(part.in_channels // part.groups * windows))
    return int(part.weight[0].numel())
