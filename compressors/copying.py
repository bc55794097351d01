"""Copying a network sooner than `copy.deepcopy` does: a search makes one for each candidate."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = frozenset((bool, int, float, str, bytes, type(None), type, FunctionType, torch.dtype))


class _OddModule(Exception):  # noqa: N818
    """It holds what only `copy.deepcopy` knows to treat."""


def copied(module: nn.Module) -> nn.Module:
    """Return what `copy.deepcopy` would, several times sooner for ordinary modules.

    Modules that hold more than tensors, modules and plain values, or that say themselves how they
    are copied, are left to `copy.deepcopy`; then the whole network is.
    """
    try:
        return _module(module, {})
    except _OddModule:
        return copy.deepcopy(module)


def _module(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    if id(module) in known:
        found: nn.Module = known[id(module)]
        return found
    kind = type(module)
    if any(hasattr(kind, name) for name in ("__deepcopy__", "__slots__")):
        raise _OddModule
    # PyTorch's own layers only complete there what older versions have saved.
    if kind.__reduce_ex__ is not object.__reduce_ex__ or not _torchs(kind.__setstate__):
        raise _OddModule
    made: nn.Module = kind.__new__(kind)
    known[id(module)] = made
    state = made.__dict__
    for name, value in module.__dict__.items():
        if name == "_modules":
            state[name] = {
                key: None if part is None else _module(part, known) for key, part in value.items()
            }
        elif name in ("_parameters", "_buffers"):
            state[name] = {key: _tensor(part, known) for key, part in value.items()}
        else:
            state[name] = _value(value)
    return made


def _torchs(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith("torch.nn.modules.")


def _tensor(tensor: Tensor | None, known: dict[int, Any]) -> Any:
    if tensor is None:
        return None
    if id(tensor) not in known:
        if vars(tensor):
            raise _OddModule
        if type(tensor) is nn.Parameter:
            new: Tensor = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
        elif type(tensor) is Tensor and not tensor.requires_grad:
            new = tensor.clone()
        else:
            raise _OddModule
        known[id(tensor)] = new
    return known[id(tensor)]


def _value(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (dict, OrderedDict, list, set, tuple) and not value:
        return kind()
    if kind in (list, tuple, set) and all(type(one) in _PLAIN for one in value):
        return kind(value)
    raise _OddModule
