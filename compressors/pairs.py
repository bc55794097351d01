"""Pairs of layers between which positive factors pass, found by tracing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from flatsat.compressors.folding import Traced, trace

_MODULES = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Identity,
    _DropoutNd,
)
_POOLS = (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
    nn.ZeroPad2d,
)
_FUNCTIONS = {torch.relu, F.relu, F.dropout}
_POOL_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d}
_METHODS = {"relu", "relu_", "contiguous"}


@dataclass(frozen=True)
class Pair:
    """A layer, the one layer that reads it, and what is between: f(s x) = s f(x) for s > 0.

    Attributes:
        first, second: names of the layers.
        between: what the values pass, by name of the module or function.
    """

    first: str
    second: str
    between: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a network in the order of execution.

    Attributes:
        pairs: found.
        left: layer that is first in no pair -> why.
    """

    pairs: tuple[Pair, ...]
    left: Mapping[str, str]


def find_pairs(module: nn.Module) -> Pairs:
    """Return the pairs of `module`.

    Raises:
        RecipeError: torch.fx can't trace it.
    """
    traced = trace(module)
    parts = dict(module.named_modules())
    pairs: list[Pair] = []
    left: dict[str, str] = {}
    for node in traced.nodes:
        name = str(node.target)
        if node.op != "call_module" or not isinstance(parts[name], _ConvNd | nn.Linear):
            continue
        found = _follow(node, traced, parts)
        if isinstance(found, Pair) and (shared := traced.tied & {found.first, found.second}):
            found = f"{min(shared)} shares its weights with another layer"
        if isinstance(found, Pair):
            pairs.append(found)
        else:
            left[name] = found
    return Pairs(tuple(pairs), left)


def _follow(start: fx.Node, traced: Traced, parts: Mapping[str, nn.Module]) -> Pair | str:
    """Return the pair that a layer begins, or why there is none."""
    name = str(start.target)
    if traced.calls[name] > 1:
        return "it is called more than once"
    between: list[str] = []
    flat = isinstance(parts[name], nn.Linear)
    node = start
    while True:
        if len(node.users) != 1:
            return f"{len(node.users)} parts read {node.target if node is start else between[-1]}"
        node = next(iter(node.users))
        target = str(node.target)
        part = parts.get(target) if node.op == "call_module" else None
        if isinstance(part, _ConvNd | nn.Linear):
            if traced.calls[target] > 1:
                return f"{target}, which reads it, is called more than once"
            if isinstance(part, nn.Linear) != flat:
                return f"{target} reads it along another axis"
            return Pair(name, target, tuple(between))
        if node.op == "output":
            return "it gives the network's output"
        shown = target if node.op != "call_function" else _function_name(node)
        if not flat and _flattens(node, part):
            flat = True
        elif not (_passes(node, part) or (not flat and _pools(node, part))):
            return f"{shown} ({type(part).__name__ if part is not None else node.op}) follows it"
        between.append(shown)


def _passes(node: fx.Node, part: nn.Module | None) -> bool:
    """Return whether f(s x) = s f(x) holds channel by channel."""
    if node.op == "call_module":
        if isinstance(part, nn.LeakyReLU):
            return part.negative_slope >= 0
        return isinstance(part, _MODULES)
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.op == "call_method" and node.target in _METHODS


def _pools(node: fx.Node, part: nn.Module | None) -> bool:
    """Return whether f(s x) = s f(x) holds channel by channel of a map."""
    return isinstance(part, _POOLS) or (
        node.op == "call_function" and node.target in _POOL_FUNCTIONS
    )


def _flattens(node: fx.Node, part: nn.Module | None) -> bool:
    """Return whether a map (n, c, ...) becomes (n, features), channel by channel."""
    if isinstance(part, nn.Flatten):
        return (part.start_dim, part.end_dim) == (1, -1)
    if node.op in ("call_function", "call_method") and node.target in (torch.flatten, "flatten"):
        given = [*node.args[1:], *node.kwargs.values()]
        return given in ([1], [1, -1])
    return False


def _function_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
