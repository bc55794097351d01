"""The one place where a network's name becomes a module, with weights from a given generator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from flatsat.datasets.architectures import Shape, cost
from flatsat.datasets.nets.lenet import lenet5, lenet300
from flatsat.datasets.nets.mobilenet import mobilenet_small
from flatsat.datasets.nets.resnet import resnet20

if TYPE_CHECKING:
    from collections.abc import Callable

_BUILDERS: dict[str, Callable[[Shape, int, float], nn.Module]] = {
    "lenet300": lenet300,
    "lenet5": lenet5,
    "resnet20": resnet20,
    "mobilenet-small": mobilenet_small,
}


def build(
    network: str,
    *,
    classes: int,
    input_shape: Shape,
    width: float | None = 1.0,
    generator: torch.Generator,
) -> nn.Module:
    """Return a freshly initialised network in eval mode; it maps (n, c, h, w) to (n, classes).

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
    width = 1.0 if width is None else width
    cost(network, classes=classes, input_shape=input_shape, width=width)  # Refuses bad arguments.
    # On the meta device a layer's constructor draws nothing from torch's global generator.
    with torch.device("meta"):
        module = _BUILDERS[network](input_shape, classes, width)
    module = module.to_empty(device="cpu")
    _initialise(module, generator)
    return module.eval()


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights: uniform for networks without batch norm, He et al. 2015 for those with it.

    The uniform bound is 1 / sqrt(fan in), which is torch's default: without tails, weights that
    get no gradient (those of an image's empty border) stay small and are pruned first.
    """
    normed = any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
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
