"""Channels that stand or fall together, and cutting them out of a network."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from flatsat.compressors.copying import copied
from flatsat.compressors.layers import LayerInfo, evaluating, is_depthwise
from flatsat.errors import RecipeError

_VERIFY_IMAGES = 2
_VERIFY_TOLERANCE = 1e-5
_NAMED = 8


@dataclass(frozen=True)
class Slot:
    """Where the channels of a group lie in one layer.

    Attributes:
        layer: the module's dotted name.
        side: "out" where the layer makes or carries the channels, "in" where it reads them.
        index: per channel of the group, its positions on that side: several for a linear layer
            behind a flattened map, or for a bundle that a grouped convolution needs.
    """

    layer: str
    side: str
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that several layers share, so that one choice decides for all of them.

    Attributes:
        name: of the first producer in the order of execution.
        layers: weighted layers that make the channels: every producer that a residual sum ties
            together, and depthwise convolutions that carry them.
        consumers: weighted layers that read the channels.
        channels: how many there are to choose from.
        bundle: real channels of the first producer that one of them stands for; more than 1 only
            beside grouped convolutions, where the same offset of each group stays or goes.
        slots: where they lie.
        prunable: whether some of them can go without changing what the others do.
        reason: why not, or "".
    """

    name: str
    layers: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    bundle: int
    slots: tuple[Slot, ...]
    prunable: bool
    reason: str = ""


@dataclass(frozen=True)
class Cut:
    """Which entries of one tensor stay: `kept` along `dim` of `layer`.`tensor`."""

    layer: str
    tensor: str
    dim: int
    kept: Tensor


def kept_count(group: ChannelGroup, ratio: float, round_to: int = 1) -> int:
    """Return how many channels of `group` a preserve ratio keeps: at least 1.

    `ratio` x channels is rounded up, then up to a multiple of `round_to` real channels, as far as
    there are so many (He et al. 2018, public code).

    Raises:
        RecipeError: the ratio is not in (0, 1], or `round_to` is below 1.
    """
    if not 0.0 < ratio <= 1.0:
        raise RecipeError(
            f"preserve ratio {ratio!r} of {group.name} is not above 0 and at most 1",
            hint="1.0 keeps every channel",
        )
    if round_to < 1:
        raise RecipeError(f"round_to is {round_to}", hint="1 or more channels")
    # The product's own rounding error must not add a channel: 0.7 * 10 is 7.000000000000001.
    count = max(1, math.ceil(ratio * group.channels - 1e-9))
    while count < group.channels and (count * group.bundle) % round_to:
        count += 1
    return count


def find(groups: Iterable[ChannelGroup], name: str) -> ChannelGroup:
    """Return the group called `name`.

    Raises:
        RecipeError: there is none; the hint is the nearest name.
    """
    by_name = {group.name: group for group in groups}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there are " + ", ".join(by_name)
    for group in by_name.values():
        if name in group.layers:
            hint = f"its channels go with those of {group.name!r}: name that"
    raise RecipeError(f"the network has no channel group {name!r}", hint=hint)


def checked_keep(
    groups: Sequence[ChannelGroup], keep: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Return `keep` sorted, for known prunable groups and sound indices only.

    Raises:
        RecipeError: an unknown group, one that can't be pruned, no channel left, an index out of
            range or given twice.
    """
    checked: dict[str, tuple[int, ...]] = {}
    for name, indices in keep.items():
        group = find(groups, name)
        kept = tuple(sorted(int(i) for i in indices))
        if kept == tuple(range(group.channels)):
            continue
        if not group.prunable:
            raise RecipeError(f"{name} can't be pruned: {group.reason}", hint="leave it out")
        if not kept:
            raise RecipeError(f"{name} would keep no channel", hint="keep at least one")
        if len(set(kept)) != len(kept) or kept[0] < 0 or kept[-1] >= group.channels:
            raise RecipeError(
                f"kept channels of {name} must be different numbers from 0 to {group.channels - 1}",
                hint=f"got {list(kept)[:8]}",
            )
        checked[name] = kept
    return checked


def cuts(
    module: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, tuple[int, ...]]
) -> tuple[Cut, ...]:
    """Return what stays of every tensor that `keep` (see `checked_keep`) touches."""
    removed: dict[tuple[str, str], set[int]] = {}
    by_name = {group.name: group for group in groups}
    for name, kept in keep.items():
        group = by_name[name] if name in by_name else find(groups, name)
        gone = sorted(set(range(group.channels)) - set(kept))
        for slot in group.slots:
            taken = removed.setdefault((slot.layer, slot.side), set())
            for channel in gone:
                taken.update(slot.index[channel])
    made: list[Cut] = []
    parts = dict(module.named_modules())
    # Layers of one group lose the same positions: their indices are made once.
    known: dict[tuple[int, frozenset[int]], Tensor] = {}
    for (layer, side), positions in removed.items():
        lost = frozenset(positions)
        for tensor, dim, length in tensors_of(parts[layer], side):
            if (length, lost) not in known:
                # Along the input axis of a grouped convolution each group holds the same offsets.
                gone_here = {position % length for position in lost}
                kept_here = [i for i in range(length) if i not in gone_here]
                known[length, lost] = torch.tensor(kept_here, dtype=torch.long)
            made.append(Cut(layer, tensor, dim, known[length, lost]))
    return tuple(made)


def cut_module(module: nn.Module, made: Sequence[Cut]) -> None:
    """Cut `module` in place."""
    parts = dict(module.named_modules())
    for cut in made:
        part = parts[cut.layer]
        old = getattr(part, cut.tensor)
        new = old.detach().index_select(cut.dim, cut.kept)
        if isinstance(old, nn.Parameter):
            setattr(part, cut.tensor, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            setattr(part, cut.tensor, new)
    for layer in dict.fromkeys(cut.layer for cut in made):
        _set_widths(parts[layer])


def cut_masks(masks: Mapping[str, Tensor], made: Sequence[Cut]) -> dict[str, Tensor]:
    """Return masks (parameter name -> bool) that fit the cut network."""
    fitted = dict(masks)
    for cut in made:
        name = f"{cut.layer}.{cut.tensor}"
        if name in fitted:
            fitted[name] = fitted[name].index_select(cut.dim, cut.kept)
    return fitted


def zero_channels(
    module: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, tuple[int, ...]]
) -> nn.Module:
    """Return a deep copy of `module` in which the channels that `keep` drops are zero.

    Their producers' weights and biases, and scale, shift and running mean of normalisation, are
    set to zero; consumers stay as they are, so the copy knows nothing of where they read.
    """
    zeroed = copied(module)
    with torch.no_grad():
        for name, kept in keep.items():
            group = find(groups, name)
            gone = sorted(set(range(group.channels)) - set(kept))
            for slot in group.slots:
                if slot.side != "out":
                    continue
                positions = torch.tensor([p for channel in gone for p in slot.index[channel]])
                part = zeroed.get_submodule(slot.layer)
                for tensor, dim, _ in tensors_of(part, "out"):
                    if tensor != "running_var":
                        getattr(part, tensor).index_fill_(dim, positions, 0.0)
    return zeroed


def difference(module: nn.Module, other: nn.Module, input_shape: tuple[int, ...]) -> float:
    """Return max|a - b| / max|a| of two networks' outputs on fixed random images, in float64.

    Raises:
        RecipeError: one of them can't run, or their outputs have different shapes.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_VERIFY_IMAGES, *input_shape, generator=generator, dtype=torch.float64)
    outputs = []
    for part in (module, other):
        double = copied(part).double()
        with evaluating(double):
            try:
                outputs.append(double(x))
            except Exception as fault:
                # A network's own code may raise anything.
                line = (str(fault).splitlines() or [type(fault).__name__])[0]
                raise RecipeError(f"the pruned network can't run: {line}") from fault
    a, b = outputs
    if a.shape != b.shape:
        raise RecipeError(f"pruning changed the output's shape from {list(a.shape)[1:]}")
    scale = float(a.abs().max())
    gap = float((a - b).abs().max())
    return gap / scale if scale > 0.0 else gap


def cut_verified(
    module: nn.Module,
    input_shape: tuple[int, ...],
    groups: Sequence[ChannelGroup],
    keep: Mapping[str, tuple[int, ...]],
) -> tuple[nn.Module, tuple[Cut, ...]]:
    """Return a smaller deep copy of `module`, checked against the channel-zeroed one, and its cuts.

    Raises:
        RecipeError: the smaller network can't run, or its outputs are not those of the original
            with the same channels zeroed, to 1e-5 relative.
    """
    named = ", ".join(list(keep)[:_NAMED])
    if len(keep) > _NAMED:
        named += f" and {len(keep) - _NAMED} more"
    made = cuts(module, groups, keep)
    pruned = copied(module)
    try:
        cut_module(pruned, made)
        gap = difference(zero_channels(module, groups, keep), pruned, input_shape)
    except (RuntimeError, IndexError, RecipeError) as fault:
        line = fault.message if isinstance(fault, RecipeError) else str(fault).splitlines()[0]
        raise RecipeError(
            f"channels of {named} can't be cut: {line}", hint="leave these channel groups out"
        ) from fault
    if not gap <= _VERIFY_TOLERANCE:
        raise RecipeError(
            f"without channels of {named} the outputs differ by {gap:.1e} from those "
            "with the channels zeroed",
            hint="leave these channel groups out",
        )
    return pruned, made


def shrunk(
    infos: Sequence[LayerInfo], groups: Sequence[ChannelGroup], counts: Mapping[str, int]
) -> list[LayerInfo]:
    """Return what `layers` would say of the network that keeps `counts` channels of each group.

    No network is built: a search asks this for every action. Non-zeros are taken as all
    parameters, and a group without a count keeps everything.
    """
    gone: dict[tuple[str, str], int] = {}
    for name, kept in counts.items():
        group = find(groups, name)
        for slot in group.slots:
            lost = (group.channels - kept) * len(slot.index[0])
            gone[slot.layer, slot.side] = gone.get((slot.layer, slot.side), 0) + lost
    return [
        _shrink(info, gone.get((info.name, "in"), 0), gone.get((info.name, "out"), 0))
        for info in infos
    ]


def tensors_of(part: nn.Module, side: str) -> list[tuple[str, int, int]]:
    """Return (tensor name, axis, length) of what channels on `side` occupy in a layer.

    Empty for a layer that has nothing to cut there, or of a kind that can't be cut (`cuttable`).
    """
    names: list[tuple[str, int]] = []
    if isinstance(part, nn.Linear):
        names = [("weight", 0), ("bias", 0)] if side == "out" else [("weight", 1)]
    elif isinstance(part, _ConvTransposeNd):
        names = [("weight", 1), ("bias", 0)] if side == "out" else [("weight", 0)]
    elif isinstance(part, _ConvNd):
        # A depthwise convolution has one axis for both sides.
        out = side == "out" or is_depthwise(part)
        names = [("weight", 0), ("bias", 0)] if out else [("weight", 1)]
    elif isinstance(part, _BatchNorm | _InstanceNorm):
        names = [("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0)]
    elif isinstance(part, nn.PReLU) and part.num_parameters > 1:
        names = [("weight", 0)]
    return [
        (name, dim, getattr(part, name).shape[dim])
        for name, dim in names
        if getattr(part, name) is not None
    ]


def width(module: nn.Module, slot: Slot) -> int:
    """Return how many channels the side of a layer has on which a slot lies.

    No limit is known of a layer that has nothing to cut there.
    """
    part = module.get_submodule(slot.layer)
    found = tensors_of(part, slot.side)
    if not found:
        return sys.maxsize
    each = found[0][2]
    if slot.side == "in" and isinstance(part, _ConvNd) and not isinstance(part, _ConvTransposeNd):
        # The groups of a grouped convolution share the axis of its inputs.
        return each if is_depthwise(part) else each * part.groups
    return each


def cuttable(part: nn.Module) -> bool:
    """Return whether channels can be cut out of this kind of layer."""
    if isinstance(part, _ConvTransposeNd):
        return part.groups == 1
    return isinstance(part, nn.Linear | _ConvNd | _BatchNorm | _InstanceNorm | nn.PReLU)


def _set_widths(part: nn.Module) -> None:
    """Make a layer's recorded widths those of its tensors."""
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, _ConvTransposeNd):
        part.in_channels, part.out_channels = part.weight.shape[:2]
    elif isinstance(part, _ConvNd):
        if is_depthwise(part):
            part.groups = part.in_channels = part.out_channels = part.weight.shape[0]
        else:
            part.out_channels = part.weight.shape[0]
            part.in_channels = part.weight.shape[1] * part.groups
    elif isinstance(part, _BatchNorm | _InstanceNorm):
        for tensor in (part.weight, part.running_mean):
            if tensor is not None:
                part.num_features = tensor.shape[0]
    elif isinstance(part, nn.PReLU):
        part.num_parameters = part.weight.shape[0]


def _shrink(info: LayerInfo, gone_in: int, gone_out: int) -> LayerInfo:
    if info.depthwise:
        gone_in = gone_out
    ins, outs = info.in_channels - gone_in, info.out_channels - gone_out
    groups = outs if info.depthwise else info.groups
    taps = math.prod(info.kernel)
    weights = info.in_channels * info.out_channels // info.groups * taps
    biases = info.params - weights
    new_weights = ins * outs // groups * taps
    params = new_weights + (biases // info.out_channels) * outs
    axis = len(info.out_shape) - 1 if info.kind == "fc" else 0
    out_shape = (*info.out_shape[:axis], outs, *info.out_shape[axis + 1 :])
    in_axis = len(info.in_shape) - 1 if info.kind == "fc" else 0
    in_shape = (*info.in_shape[:in_axis], ins, *info.in_shape[in_axis + 1 :])
    return replace(
        info,
        in_channels=ins,
        out_channels=outs,
        groups=groups,
        depthwise=groups > 1 and groups == ins == outs,
        params=params,
        nonzeros=params,
        macs=info.macs // weights * new_weights,
        in_shape=in_shape,
        out_shape=out_shape,
    )
