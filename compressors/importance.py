"""How much a channel of a group weighs, and which channels stay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flatsat.compressors.channels import ChannelGroup, tensors_of


def l1(module: nn.Module, group: ChannelGroup, side: str = "out") -> Tensor:
    """Return the L1 norm of the weights at each channel of `group`, float64 (channels,).

    Args:
        module: the network.
        group: one of its channel groups.
        side: "out": weights that form the channel, summed over all coupled producers and depthwise
            filters (Li et al. 2017, section 3.1, sums one filter; its section 3.3 takes one layer
            of a residual sum, here all of them count). "in": weights of all consumers that read the
            channel (He et al. 2018, public code).
    """
    return _summed(module, group, side, torch.abs)


def l2(module: nn.Module, group: ChannelGroup, side: str = "out") -> Tensor:
    """Return the L2 norm of the weights at each channel of `group`; see `l1`."""
    return _summed(module, group, side, torch.square).sqrt()


def _summed(
    module: nn.Module, group: ChannelGroup, side: str, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    weighted = group.layers if side == "out" else group.consumers
    for slot in group.slots:
        if slot.side != side or slot.layer not in weighted:
            continue
        part = module.get_submodule(slot.layer)
        _, dim, length = tensors_of(part, side)[0]
        weight: Tensor = part.weight.detach().double()  # type: ignore[operator]
        sizes = measure(weight).movedim(dim, 0).flatten(1).sum(1)
        # On the input side of a grouped convolution the groups share one axis.
        index = torch.tensor(slot.index) % length
        total += sizes[index].sum(1)
    return total


def strongest(weight: Tensor, count: int) -> tuple[int, ...]:
    """Return the positions of the `count` largest values, sorted; ties keep the earlier one."""
    order = torch.sort(weight, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))
