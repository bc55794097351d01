"""Which channels of a network hang together, found by tracing: the one file that knows how.

Tracing and the propagation of channel indices are torch-pruning's. It does not notice every
network that it gets wrong (grouped convolutions, splits), so each group is tried here: halves of
its channels are cut out of a copy, which must give the outputs of the original with those
channels zeroed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch_pruning as tp
from torch import nn
from torch.nn.modules.conv import _ConvNd

from flatsat.compressors.channels import (
    ChannelGroup,
    Slot,
    checked_keep,
    cut_masks,
    cut_verified,
    cuttable,
    width,
)
from flatsat.compressors.layers import LayerInfo, count, is_depthwise, layers
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.base import Network

__all__ = [
    "ChannelGroup",
    "LayerInfo",
    "channel_groups",
    "count",
    "layers",
    "prune_channels",
    "prune_network",
]


def channel_groups(module: nn.Module, input_shape: tuple[int, ...]) -> list[ChannelGroup]:
    """Return the groups of coupled channels, in the order of execution of their producers.

    Each weighted layer's outputs belong to exactly one group. A group that can't be pruned
    (it gives the network's output, cutting it changes what remains, or no gradient of the output
    reaches it) says why in `reason`.

    Raises:
        RecipeError: the network can't be traced.
    """
    infos = layers(module, input_shape)
    order = {info.name: i for i, info in enumerate(infos)}
    found = sorted(_traced(module, input_shape, infos), key=lambda group: order[group.name])
    hopeful = [group for group in found if group.prunable]
    if _fault(module, input_shape, hopeful):
        # Some group is wrong: try each on its own, then all the good ones together.
        found = [_tried(module, input_shape, group) if group.prunable else group for group in found]
        fault = _fault(module, input_shape, [group for group in found if group.prunable])
        if fault:
            found = [
                replace(group, prunable=False, reason=fault) if group.prunable else group
                for group in found
            ]
    return found


def prune_channels(
    module: nn.Module,
    input_shape: tuple[int, ...],
    keep: Mapping[str, Sequence[int]],
    groups: Sequence[ChannelGroup] | None = None,
) -> nn.Module:
    """Return a smaller deep copy that keeps, of each group in `keep`, the channels listed.

    The copy's outputs are checked against those of the original with the channels zeroed, to
    1e-5 relative on random images. `groups` saves tracing the network again.

    Raises:
        RecipeError: an unknown or unprunable group, unsound indices, or the check failed.
    """
    groups = channel_groups(module, input_shape) if groups is None else groups
    pruned, _ = cut_verified(module, input_shape, groups, checked_keep(groups, keep))
    return pruned


def prune_network(
    network: Network,
    keep: Mapping[str, Sequence[int]],
    entry: Mapping[str, object],
    groups: Sequence[ChannelGroup] | None = None,
) -> Network:
    """Return `network` without the channels that `keep` drops, its masks cut to fit.

    Raises:
        RecipeError: as `prune_channels`.
    """
    shape = network.input_shape
    groups = channel_groups(network.module, shape) if groups is None else groups
    pruned, made = cut_verified(network.module, shape, groups, checked_keep(groups, keep))
    return network.after(pruned, entry, masks=cut_masks(network.masks, made))


def _traced(
    module: nn.Module, input_shape: tuple[int, ...], infos: Sequence[LayerInfo]
) -> list[ChannelGroup]:
    """Return the groups as torch-pruning sees them, bundled for grouped convolutions."""
    order = {info.name: i for i, info in enumerate(infos)}
    traced = copy.deepcopy(module).requires_grad_(True)
    graph = tp.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            x = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0))
            graph.build_dependency(traced, example_inputs=x, verbose=False)
            raw = list(graph.get_all_groups())
    except Exception as fault:
        # A tracer that walks foreign code may raise anything.
        line = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise RecipeError(f"the network's channels can't be traced: {line}") from fault
    found = [_group(graph, group, traced, order) for group in raw]
    seen = {layer for group in found for layer in group.layers}
    if infos and not seen:
        raise RecipeError(
            f"the network's channels can't be traced: {infos[0].name} has no gradient to the output"
        )
    return found + [
        ChannelGroup(
            name=info.name,
            layers=(info.name,),
            consumers=(),
            channels=info.out_channels,
            bundle=1,
            slots=(),
            prunable=False,
            reason="no gradient of the output reaches it",
        )
        for info in infos
        if info.name not in seen
    ]


def _group(
    graph: tp.DependencyGraph, raw: tp.Group, traced: nn.Module, order: Mapping[str, int]
) -> ChannelGroup:
    """Return one of torch-pruning's groups as a value."""
    names = {part: name for name, part in traced.named_modules()}
    channels = int(graph.get_out_channels(raw[0].dep.target.module))
    positions: dict[tuple[str, str], list[list[int]]] = {}
    reasons: list[str] = []
    for item in raw:
        part = item.dep.target.module
        if isinstance(part, nn.Parameter):
            reasons.append("it meets a parameter that belongs to no layer")
        elif item.dep.target.type == tp.ops.OPTYPE.OUTPUT:
            reasons.append("it gives the network's output")
        elif part in names:
            if not cuttable(part) and list(part.parameters()):
                reasons.append(f"{names[part]} ({type(part).__name__}) can't be cut by channel")
            carries = graph.is_out_channel_pruning_fn(item.dep.handler) or is_depthwise(part)
            key = (names[part], "out" if carries else "in")
            where = positions.setdefault(key, [[] for _ in range(channels)])
            for position, channel in zip(item.idxs, item.root_idxs, strict=True):
                where[channel].append(int(position))
    bundles = _bundles(positions, traced, channels)
    slots = tuple(
        Slot(layer, side, tuple(tuple(sorted({p for c in b for p in where[c]})) for b in bundles))
        for (layer, side), where in positions.items()
    )
    producers = sorted(
        {s.layer for s in slots if s.side == "out"} & order.keys(), key=order.__getitem__
    )
    consumers = sorted(
        {s.layer for s in slots if s.side == "in"} & order.keys(), key=order.__getitem__
    )
    if len({len(bundle) for bundle in bundles}) != 1:
        reasons.append("a grouped convolution reads it unevenly")
    if len(bundles) == 1:
        reasons.append("its channels can only go together")
    reasons += [
        f"its channels can't be followed into {slot.layer}"
        for slot in slots
        if max((p for index in slot.index for p in index), default=0) >= width(traced, slot)
    ]
    reasons += [
        f"its channels fill unequal parts of {slot.layer}"
        for slot in slots
        if len({len(index) for index in slot.index}) != 1
    ]
    if not consumers:
        reasons.append("it gives the network's output: no layer reads it")
    made_here = [p for p in producers if not is_depthwise(traced.get_submodule(p))]
    return ChannelGroup(
        name=(made_here or producers)[0],
        layers=tuple(producers),
        consumers=tuple(consumers),
        channels=len(bundles),
        bundle=len(bundles[0]),
        slots=slots,
        prunable=not reasons,
        reason=reasons[0] if reasons else "",
    )


def _bundles(
    positions: Mapping[tuple[str, str], list[list[int]]], traced: nn.Module, channels: int
) -> list[list[int]]:
    """Return channels that must go together, in the order of their first.

    A grouped convolution keeps equal widths in its groups, so channels at the same offset of each
    group are one bundle, on its input side as on its output side.
    """
    parent = list(range(channels))

    def root(channel: int) -> int:
        while parent[channel] != channel:
            channel = parent[channel]
        return channel

    for (layer, side), where in positions.items():
        part = traced.get_submodule(layer)
        if not isinstance(part, _ConvNd) or part.groups == 1 or is_depthwise(part):
            continue
        each = (part.out_channels if side == "out" else part.in_channels) // part.groups
        first: dict[int, int] = {}
        for channel, held in enumerate(where):
            for position in held:
                a, b = root(channel), root(first.setdefault(position % each, channel))
                parent[max(a, b)] = min(a, b)
    bundles: dict[int, list[int]] = {}
    for channel in range(channels):
        bundles.setdefault(root(channel), []).append(channel)
    return list(bundles.values())


def _fault(module: nn.Module, input_shape: tuple[int, ...], groups: Sequence[ChannelGroup]) -> str:
    """Cut a random half of every group, then the other halves; return what went wrong, or ""."""
    generator = torch.Generator().manual_seed(0)
    halves: tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]] = ({}, {})
    for group in groups:
        mixed = torch.randperm(group.channels, generator=generator).tolist()
        middle = group.channels // 2
        halves[0][group.name] = tuple(sorted(mixed[:middle]))
        halves[1][group.name] = tuple(sorted(mixed[middle:]))
    for keep in halves:
        try:
            cut_verified(module, input_shape, groups, keep)
        except RecipeError as fault:
            return fault.message
    return ""


def _tried(module: nn.Module, input_shape: tuple[int, ...], group: ChannelGroup) -> ChannelGroup:
    """Return `group` as it is when it can be cut alone, else unprunable with the reason."""
    fault = _fault(module, input_shape, [group])
    return replace(group, prunable=not fault, reason=fault)
