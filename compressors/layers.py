"""What a network's weighted layers are, and exact counts of parameters, non-zeros and MACs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class LayerInfo:
    """One convolution or linear layer, as it is used for one image.

    Attributes:
        name: the module's dotted name.
        kind: "conv", "deconv" (transposed) or "fc".
        in_channels, out_channels: features for "fc".
        kernel, stride: one entry a spatial axis; (1,) for "fc".
        groups: of a convolution, else 1.
        params: weights and biases.
        nonzeros: of them, how many differ from zero.
        macs: multiply-adds an image: each product of a weight with a value counts one; biases,
            normalisation and activations count none, padding counts like any value.
        in_shape, out_shape: of one image, without the batch axis.
        depthwise: one filter a channel.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    params: int
    nonzeros: int
    macs: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    depthwise: bool


@dataclass(frozen=True)
class Call:
    """One call of a submodule during a forward pass: shapes without the batch axis."""

    name: str
    module: nn.Module
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` in eval mode without gradients, and each part back as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def calls(
    module: nn.Module, input_shape: tuple[int, ...], kinds: tuple[type[nn.Module], ...]
) -> list[Call]:
    """Return the calls of submodules of `kinds` in the order of execution, for one image.

    A module that is called twice stands in the list twice.
    """
    seen: list[Call] = []
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, kinds):

            def hook(part: nn.Module, args: tuple[Any, ...], out: Any, name: str = name) -> None:
                seen.append(Call(name, part, tuple(args[0].shape[1:]), tuple(out.shape[1:])))

            handles.append(part.register_forward_hook(hook))
    try:
        with evaluating(module):
            module(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def layers(module: nn.Module, input_shape: tuple[int, ...]) -> list[LayerInfo]:
    """Return the convolutions and linear layers of `module` in the order of execution.

    A layer that is called several times stands at its first call, with the MACs of all calls.
    Layers that the forward pass never calls, and products that are no module, don't appear.
    """
    found: dict[str, LayerInfo] = {}
    for call in calls(module, input_shape, (_ConvNd, nn.Linear)):
        info = _info(call)
        if info.name in found:
            info = replace(found[info.name], macs=found[info.name].macs + info.macs)
        found[info.name] = info
    return list(found.values())


def untreated(module: nn.Module, infos: Sequence[LayerInfo]) -> dict[str, str]:
    """Return what holds weights that a step over single layers leaves alone: name -> reason.

    Layers of `infos` that share their weights with an earlier one (a step treats them there), and
    what is `outside`.

    Args:
        module: the network.
        infos: its `layers`.
    """
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for info in infos:
        owner = first.setdefault(id(module.get_submodule(info.name).weight), info.name)
        if owner != info.name:
            found[info.name] = f"its weights are those of {owner}"
    return found | outside(module, infos)


def outside(module: nn.Module, infos: Sequence[LayerInfo]) -> dict[str, str]:
    """Return what holds weights (parameters of several axes) but is no layer: name -> reason.

    Modules of other kinds, layers that are never called, and parameters of the network itself.
    """
    found: dict[str, str] = {}
    called = {info.name for info in infos}
    for name, part in module.named_modules():
        wide = [key for key, value in part.named_parameters(recurse=False) if value.ndim > 1]
        if name in called or not wide:
            continue
        reason = "its weights are in no convolution or linear layer"
        if isinstance(part, _ConvNd | nn.Linear):
            reason = "the network doesn't call it"
        found |= dict.fromkeys([name] if name else wide, reason)
    return found


def count(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (parameters, non-zero parameters, MACs an image) of the whole network.

    Parameters are those of every layer, normalisation included; a shared one counts once.
    """
    params = list(module.parameters())
    return (
        sum(p.numel() for p in params),
        sum(int(torch.count_nonzero(p)) for p in params),
        sum(info.macs for info in layers(module, input_shape)),
    )


def is_depthwise(module: nn.Module) -> bool:
    """Return whether `module` is a convolution with one filter a channel."""
    return (
        isinstance(module, _ConvNd)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def weight_of(module: nn.Module, layer: str) -> Tensor:
    """Return the weight tensor of the layer called `layer`, detached."""
    weight = module.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _info(call: Call) -> LayerInfo:
    part = call.module
    own = list(part.parameters(recurse=False))
    params = sum(p.numel() for p in own)
    nonzeros = sum(int(torch.count_nonzero(p)) for p in own)
    if isinstance(part, nn.Linear):
        return LayerInfo(
            name=call.name,
            kind="fc",
            in_channels=part.in_features,
            out_channels=part.out_features,
            kernel=(1,),
            stride=(1,),
            groups=1,
            params=params,
            nonzeros=nonzeros,
            macs=part.in_features * math.prod(call.out_shape),
            in_shape=call.in_shape,
            out_shape=call.out_shape,
            depthwise=False,
        )
    assert isinstance(part, _ConvNd)
    transposed = isinstance(part, _ConvTransposeNd)
    # A transposed convolution spreads each input value over `kernel` outputs of its group.
    positions = math.prod((call.in_shape if transposed else call.out_shape)[1:])
    weights = part.in_channels * part.out_channels // part.groups * math.prod(part.kernel_size)
    return LayerInfo(
        name=call.name,
        kind="deconv" if transposed else "conv",
        in_channels=part.in_channels,
        out_channels=part.out_channels,
        kernel=tuple(part.kernel_size),
        stride=tuple(part.stride),
        groups=part.groups,
        params=params,
        nonzeros=nonzeros,
        macs=weights * positions,
        in_shape=call.in_shape,
        out_shape=call.out_shape,
        depthwise=is_depthwise(part),
    )
