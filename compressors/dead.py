"""Neurons that pruning cut off: no input or no output left."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from flatsat.compressors.channels import ChannelGroup, Slot, difference, tensors_of
from flatsat.compressors.layers import evaluating, is_depthwise
from flatsat.errors import RecipeError

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Cleared:
    """A network without dead neurons.

    Attributes:
        module: a deep copy; the dead neurons' weights and biases are zero.
        masks: with the dead neurons' weights and biases dropped.
        no_input, no_output: group -> how many neurons had none; those already zeroed count as the
            latter.
        left: group -> neurons without input whose constant value can't be moved into a bias.
        alive: group -> channels that are not dead.
    """

    module: nn.Module
    masks: Mapping[str, Tensor]
    no_input: Mapping[str, int]
    no_output: Mapping[str, int]
    left: Mapping[str, int]
    alive: Mapping[str, tuple[int, ...]]


def clear_dead(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    input_shape: tuple[int, ...],
    groups: Sequence[ChannelGroup],
) -> Cleared:
    """Zero what belongs to neurons without input or without output; the outputs stay the same.

    A neuron that nobody reads loses its incoming weights and its bias. A neuron without incoming
    weights gives a constant, its bias through what follows; its readers take weight x constant
    into their biases, and then nobody reads it. That is exact unless a reader has no bias, or pads
    its input with zeros so that the constant stops at the border: such a neuron is left alone
    (unless its constant is zero). One death can cause the next, so this repeats until none is left.

    Args:
        module: the network; stays as it is.
        masks: parameter name -> kept.
        input_shape: of one image.
        groups: of the network.

    Raises:
        RecipeError: the outputs did change (a network that computes in ways not foreseen here).
    """
    work = copy.deepcopy(module)
    fitted = {name: mask.clone() for name, mask in masks.items()}
    prunable = [group for group in groups if group.prunable]
    no_input: dict[str, int] = {}
    no_output: dict[str, int] = {}
    left: dict[str, int] = {}
    dead = {group.name: torch.zeros(group.channels, dtype=torch.bool) for group in prunable}
    changed = True
    while changed:
        changed = False
        constants = _reader_inputs(work, input_shape, prunable)
        for group in prunable:
            unread = ~_linked(work, group, "in") & ~dead[group.name]
            unfed = ~_linked(work, group, "out") & ~dead[group.name] & ~unread
            folded = torch.tensor(
                [bool(unfed[c]) and _fold(work, group, c, constants) for c in range(group.channels)]
            )
            left[group.name] = int((unfed & ~folded).sum())
            gone = unread | folded
            if not bool(gone.any()):
                continue
            _erase(work, fitted, group, gone)
            dead[group.name] |= gone
            no_output[group.name] = no_output.get(group.name, 0) + int(unread.sum())
            no_input[group.name] = no_input.get(group.name, 0) + int(folded.sum())
            changed = True
            # Folding read values of the network before this change: take them anew.
            break
    gap = difference(module, work, input_shape)
    if not gap <= _TOLERANCE:
        raise RecipeError(
            f"without dead neurons the outputs would differ by {gap:.1e}",
            hint='set remove_dead = "keep"',
        )
    alive = {name: tuple(torch.nonzero(~gone).flatten().tolist()) for name, gone in dead.items()}
    kept_left = {name: n for name, n in left.items() if n}
    return Cleared(work, fitted, no_input, no_output, kept_left, alive)


def _linked(module: nn.Module, group: ChannelGroup, side: str) -> Tensor:
    """Return bool (channels,): a non-zero weight on `side` ("out": that feeds the channel).

    A depthwise filter passes a channel on, so it feeds nothing itself.
    """
    linked = torch.zeros(group.channels, dtype=torch.bool)
    for slot in _weighted(group, side):
        part = module.get_submodule(slot.layer)
        if is_depthwise(part):
            continue
        name, dim, length = tensors_of(part, side)[0]
        used = getattr(part, name).detach().ne(0).movedim(dim, 0).flatten(1).any(1)
        linked |= used[torch.tensor(slot.index) % length].any(1)
    return linked


def _weighted(group: ChannelGroup, side: str) -> list[Slot]:
    layers = group.layers if side == "out" else group.consumers
    return [slot for slot in group.slots if slot.side == side and slot.layer in layers]


def _reader_inputs(
    module: nn.Module, input_shape: tuple[int, ...], groups: Sequence[ChannelGroup]
) -> dict[str, Tensor]:
    """Return what each consumer reads for one random image, float64 (features, positions)."""
    readers = {name for group in groups for name in group.consumers}
    double = copy.deepcopy(module).double()
    seen: dict[str, Tensor] = {}
    handles = []
    for name in readers:
        part = double.get_submodule(name)

        def hook(part: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            value = args[0][0]
            # Features are the last axis of a linear layer's input, the first of a map.
            value = value.movedim(-1, 0) if isinstance(part, nn.Linear) else value
            value = value.reshape(value.shape[0], -1)
            seen[name] = torch.cat([seen[name], value], 1) if name in seen else value

        handles.append(part.register_forward_pre_hook(hook))
    generator = torch.Generator().manual_seed(0)
    try:
        with evaluating(double):
            double(torch.randn(1, *input_shape, generator=generator, dtype=torch.float64))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _fold(
    module: nn.Module, group: ChannelGroup, channel: int, constants: Mapping[str, Tensor]
) -> bool:
    """Move the constant of a channel without input into its readers' biases; False: impossible."""
    moves: list[tuple[Tensor, Tensor]] = []
    for slot in _weighted(group, "in"):
        part = module.get_submodule(slot.layer)
        index = torch.tensor(slot.index[channel])
        values = constants[slot.layer][index]
        if not bool(values.any()):
            continue
        if bool((values != values[:, :1]).any()):
            return False
        if isinstance(part, _ConvTransposeNd):
            return False
        if isinstance(part, _ConvNd) and (part.groups > 1 or _pads(part)):
            return False
        bias = part.bias
        if not isinstance(bias, nn.Parameter):
            return False
        weight = part.weight
        assert isinstance(weight, Tensor)
        read = weight.detach().double()[:, index].flatten(2 if weight.ndim > 2 else 1)
        summed = read.sum(2) if weight.ndim > 2 else read
        moves.append((bias.data, summed @ values[:, 0]))
    for bias_values, amount in moves:
        bias_values += amount.to(bias_values.dtype)
    return True


def _pads(part: _ConvNd) -> bool:
    """Return whether zeros are padded on (reflections of a constant would be that constant)."""
    padded = part.padding != "valid" if isinstance(part.padding, str) else any(part.padding)
    return padded and part.padding_mode == "zeros"


def _erase(module: nn.Module, masks: dict[str, Tensor], group: ChannelGroup, gone: Tensor) -> None:
    """Zero every weight, bias, scale and shift of the channels, and drop them from the masks."""
    channels = torch.nonzero(gone).flatten().tolist()
    for slot in group.slots:
        part = module.get_submodule(slot.layer)
        positions = torch.tensor([p for channel in channels for p in slot.index[channel]])
        for tensor, dim, length in tensors_of(part, slot.side):
            values = getattr(part, tensor)
            if not isinstance(values, nn.Parameter):
                continue
            values.data.index_fill_(dim, positions % length, 0.0)
            name = f"{slot.layer}.{tensor}"
            mask = masks.setdefault(name, torch.ones(values.shape, dtype=torch.bool))
            mask.index_fill_(dim, positions % length, value=False)
