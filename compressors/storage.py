"""How many bytes a network's parameters take under each way to store them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_FLOAT_BYTES = 4


def bytes_by_coding(
    module: nn.Module, history: Sequence[Mapping[str, object]] = ()
) -> dict[str, int]:
    """Return bytes by name of the coding; headers and names of tensors are not counted.

    - "dense_fp32": 4 bytes a parameter.
    - "bitmap_fp32": for each tensor one bit an element that tells whether it is zero and 4 bytes
      for each other element, or the dense form where that is smaller.
    - "linear": only after min/max quantisation: for each quantised tensor ceil(n b / 8) bytes of
      codes, its ranges, and where a mask holds zeros one bit an element; the other tensors as in
      "bitmap_fp32".

    Args:
        module: whose parameters are stored.
        history: of its Network; entries whose "layers" tell "bits" and "range_bytes" describe
            quantised tensors.
    """
    quantised = _quantised(history)
    dense = bitmap = linear = 0
    for name, parameter in module.named_parameters():
        count = parameter.numel()
        nonzeros = int(parameter.count_nonzero())
        sparse = min(_FLOAT_BYTES * count, _bits(count) + _FLOAT_BYTES * nonzeros)
        dense += _FLOAT_BYTES * count
        bitmap += sparse
        layer = quantised.get(name)
        if layer is None:
            linear += sparse
            continue
        codes = _bits(int(layer["stored"]) * int(layer["bits"]))
        linear += codes + int(layer["range_bytes"]) + (_bits(count) if layer["zeros_apart"] else 0)
    sizes = {"dense_fp32": dense, "bitmap_fp32": bitmap}
    return sizes | {"linear": linear} if quantised else sizes


def _bits(count: int) -> int:
    """Return the bytes that hold `count` bits."""
    return (count + 7) // 8


def _quantised(history: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, Any]]:
    """Return the last entry about each quantised tensor, by parameter name."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in history:
        layers = entry.get("layers", ())
        assert isinstance(layers, Sequence)
        for layer in layers:
            if isinstance(layer, Mapping) and "range_bytes" in layer:
                found[str(layer["parameter"])] = layer
    return found
