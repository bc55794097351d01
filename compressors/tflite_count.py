"""Counts over a TFLite file: weights, non-zeros, multiply-accumulates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flatsat.compressors.tflite_file import Graph, Operator, Tensor, TfliteFile

_WEIGHT_TYPES = frozenset(
    {"float16", "float32", "float64", "bfloat16", "int8", "uint8", "int16", "int4", "uint4", "int2"}
)
# Their work can't be told from the shapes of their inputs and outputs alone.
_UNCOUNTED = ("LSTM", "RNN", "SVDF", "WHILE", "IF", "CALL", "STABLEHLO", "CUSTOM", "UNKNOWN")


def weights(file: TfliteFile) -> tuple[int, int]:
    """Return (elements, elements that differ from zero) of the weights.

    Weights are constants of at least one axis: of floating-point numbers, of integers up to 16
    bits, and of int32 or int64 with a quantisation (biases); other integers are shapes and axes.
    Zero is the real zero: the zero point where there is one. A buffer counts once.
    """
    count = nonzeros = 0
    seen: set[int] = set()
    for graph in file.graphs:
        for tensor in graph.tensors:
            data = file.values(tensor) if file.buffers else memoryview(b"")
            if not len(data) or not tensor.shape or tensor.buffer in seen:
                continue
            if tensor.dtype in _WEIGHT_TYPES or (
                tensor.dtype in ("int32", "int64") and tensor.scales
            ):
                seen.add(tensor.buffer)
                count += tensor.elements
                nonzeros += _nonzeros(tensor, data)
    return count, nonzeros


def _nonzeros(tensor: Tensor, data: memoryview) -> int:
    if tensor.sparse or tensor.dtype == "bfloat16":
        values = np.frombuffer(data, "uint8" if tensor.sparse else "uint16")
        return int(np.count_nonzero(values))
    if tensor.dtype in ("int4", "uint4", "int2"):
        bits = 2 if tensor.dtype == "int2" else 4
        packed = np.frombuffer(data, "uint8")
        parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        return int(np.count_nonzero(np.stack(parts, axis=1).reshape(-1)[: tensor.elements]))
    zeros = tensor.zero_points
    zero = zeros[0] if zeros and all(z == zeros[0] for z in zeros) else 0
    return int(np.count_nonzero(np.frombuffer(data, tensor.dtype) != zero))


def macs(graph: Graph) -> int | None:
    """Return the MACs of one inference, or None where an operator leaves them unknown.

    An open axis counts with the length that the file states for it, which is 1.
    """
    total = 0
    for operator in graph.operators:
        found = _operator_macs(operator, graph)
        if found is None:
            return None
        total += found
    return total


def _operator_macs(operator: Operator, graph: Graph) -> int | None:
    """Return one operator's MACs; 0 for those that don't multiply and add; None if unknown."""
    name = operator.name
    if any(word in name for word in _UNCOUNTED):
        return None

    def shape(indices: tuple[int, ...], place: int) -> tuple[int, ...] | None:
        if place >= len(indices) or indices[place] < 0:
            return None
        return graph.tensors[indices[place]].shape

    weight, out = shape(operator.inputs, 1), shape(operator.outputs, 0)
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_3D"):
        if not weight or out is None:
            return None
        # Filters: out, height, width, in | 1, height, width, out | out, in | d, h, w, in, out.
        depthwise = name == "DEPTHWISE_CONV_2D"
        terms = {"DEPTHWISE_CONV_2D": weight[1:-1], "CONV_3D": weight[:-1]}.get(name, weight[1:])
        return None if depthwise and len(weight) != 4 else math.prod(out) * math.prod(terms)
    if name == "TRANSPOSE_CONV":
        image = shape(operator.inputs, 2)
        # Each element of the input is multiplied by the kernel of every output channel.
        return None if not weight or image is None else math.prod(image) * math.prod(weight[:-1])
    if name == "BATCH_MATMUL":
        left = shape(operator.inputs, 0)
        if not left or out is None or len(out) < 2 or not out[-2]:
            return None
        # Whichever way the left matrix lies, it has rows times depth elements.
        return math.prod(out) * (math.prod(left[-2:]) // out[-2])
    return 0
