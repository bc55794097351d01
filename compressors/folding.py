"""Batch norms folded into the layers before them, found by tracing."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from flatsat.errors import RecipeError


@dataclass(frozen=True)
class Folded:
    """A network whose batch norms are part of the layers before them.

    Attributes:
        module: a deep copy; a folded batch norm is an identity, its layer has a bias.
        masks: fitted: those of folded batch norms are gone.
        layers: batch norm -> the layer that took it.
        left: batch norm -> why it stays.
    """

    module: nn.Module
    masks: Mapping[str, Tensor]
    layers: Mapping[str, str]
    left: Mapping[str, str]


@dataclass(frozen=True)
class Traced:
    """How a module's parts call each other.

    Attributes:
        nodes: of the graph, in the order of execution.
        calls: submodule -> how often it is called.
        tied: submodules that hold a parameter which another one holds too.
    """

    nodes: tuple[fx.Node, ...]
    calls: Mapping[str, int]
    tied: frozenset[str]


def trace(module: nn.Module) -> Traced:
    """Return the graph of `module` as torch.fx sees it.

    Raises:
        RecipeError: torch.fx can't trace it.
    """
    try:
        graph = fx.Tracer().trace(module)
    except Exception as fault:
        # A tracer that walks foreign code may raise anything.
        line = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise RecipeError(f"torch.fx can't trace the network: {line}") from fault
    nodes = tuple(graph.nodes)
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    holders: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        for value in part.parameters(recurse=False):
            holders.setdefault(id(value), []).append(name)
    tied = frozenset(n for names in holders.values() if len(names) > 1 for n in names)
    return Traced(nodes, calls, tied)


def fold_batch_norms(module: nn.Module, masks: Mapping[str, Tensor]) -> Folded:
    """Return a deep copy of `module` (in eval mode) with its batch norms folded.

    w' = w gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var + eps) + beta: the outputs stay
    the same up to rounding. A batch norm stays where no single layer feeds it alone.

    Raises:
        RecipeError: torch.fx can't trace the module.
    """
    work = copy.deepcopy(module)
    fitted = dict(masks)
    layers, left = _found(work)
    for norm, layer in layers.items():
        _fuse(work, layer, norm)
        _fit_masks(fitted, work, layer, norm)
    return Folded(work, fitted, layers, left)


def foldable(module: nn.Module) -> dict[str, str]:
    """Return batch norm -> the layer that it could be folded into.

    Raises:
        RecipeError: torch.fx can't trace the module.
    """
    return _found(module)[0]


def _found(module: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Return batch norm -> layer, and batch norm -> why it stays."""
    traced = trace(module)
    parts = dict(module.named_modules())
    layers: dict[str, str] = {}
    left: dict[str, str] = {}
    for node in traced.nodes:
        name = str(node.target)
        if node.op != "call_module" or not isinstance(parts.get(name), _BatchNorm):
            continue
        if reason := _unfit(node, traced, parts):
            left[name] = reason
        else:
            layers[name] = str(node.all_input_nodes[0].target)
    return layers, left


def _unfit(node: fx.Node, traced: Traced, parts: Mapping[str, nn.Module]) -> str:
    """Return why a batch norm can't be folded, or ""."""
    norm = parts[str(node.target)]
    assert isinstance(norm, _BatchNorm)
    source = node.all_input_nodes[0]
    layer = parts.get(str(source.target)) if source.op == "call_module" else None
    if not isinstance(layer, _ConvNd | nn.Linear):
        return "no convolution or linear layer is before it"
    if len(source.users) > 1:
        return f"{source.target} is read elsewhere too"
    if traced.calls[str(node.target)] > 1 or traced.calls[str(source.target)] > 1:
        return "it or its layer is called twice"
    if str(source.target) in traced.tied:
        return f"{source.target} shares its weights with another layer"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no statistics"
    if isinstance(layer, _ConvTransposeNd) and layer.groups > 1:
        return "its layer is a grouped transposed convolution"
    if isinstance(layer, nn.Linear) and norm.num_features != layer.out_features:
        return "it normalises another axis than its layer's outputs"
    return ""


def _fuse(work: nn.Module, layer: str, norm: str) -> None:
    old, batch_norm = work.get_submodule(layer), work.get_submodule(norm)
    assert isinstance(batch_norm, _BatchNorm)
    learned = next(old.parameters()).requires_grad
    fused: nn.Module
    if isinstance(old, nn.Linear):
        fused = fuse_linear_bn_eval(old, batch_norm)
    else:
        assert isinstance(old, _ConvNd)
        fused = fuse_conv_bn_eval(old, batch_norm, transpose=isinstance(old, _ConvTransposeNd))
    for parameter in fused.parameters():
        parameter.requires_grad_(learned)
        parameter.data = parameter.data.contiguous()
    work.set_submodule(layer, fused)
    work.set_submodule(norm, nn.Identity().eval())


def _fit_masks(masks: dict[str, Tensor], work: nn.Module, layer: str, norm: str) -> None:
    """Drop the masks of a folded batch norm; a dead channel's bias stays held at zero."""
    dead = [masks.pop(f"{norm}.{kind}", None) for kind in ("weight", "bias")]
    masks.pop(f"{layer}.bias", None)
    bias = work.get_submodule(layer).bias
    assert isinstance(bias, Tensor)
    if dead[1] is not None:
        masks[f"{layer}.bias"] = dead[1] | (bias.detach() != 0)
    weight = work.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter)
    if (kept := masks.get(f"{layer}.weight")) is not None:
        # A negative factor leaves negative zeros.
        weight.data.masked_fill_(~kept, 0.0)
