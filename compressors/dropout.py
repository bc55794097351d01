"""Dropout of a network that lost connections, Han et al. 2015, section 3.2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from flatsat.compressors.layers import calls, weight_of

if TYPE_CHECKING:
    from flatsat.compressors.base import Network


def connections(network: Network, layer: str) -> int:
    """Return how many weights of a layer are there and not masked."""
    mask = network.masks.get(f"{layer}.weight")
    return weight_of(network.module, layer).numel() if mask is None else int(mask.sum())


def dropout_rates(module: nn.Module, input_shape: tuple[int, ...]) -> list[tuple[str, float, str]]:
    """Return (dropout, its rate, the weighted layer that it follows) in order of execution."""
    found: list[tuple[str, float, str]] = []
    before = ""
    for call in calls(module, input_shape, (_ConvNd, nn.Linear, _DropoutNd)):
        if not isinstance(call.module, _DropoutNd):
            before = call.name
        elif before:
            found.append((call.name, call.module.p, before))
    return found


def scale_dropout(
    network: Network, rates: Sequence[tuple[str, float, str]], start: Mapping[str, int]
) -> None:
    """Set each rate, in place, to its first one x sqrt(kept / connections) (equation 3).

    Args:
        network: as it stands now.
        rates: `dropout_rates` of the network before anything was pruned.
        start: connections by layer, before anything was pruned.
    """
    for name, rate, layer in rates:
        dropout = network.module.get_submodule(name)
        assert isinstance(dropout, _DropoutNd)
        dropout.p = rate * math.sqrt(connections(network, layer) / start[layer])
