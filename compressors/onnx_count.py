"""Counts over an ONNX graph: weights, non-zeros, multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

_CONV = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
_MATMUL = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
# Their work can't be told from the shapes of their inputs and outputs alone.
_UNCOUNTED = frozenset({"LSTM", "GRU", "RNN", "Einsum", "If", "Loop", "Scan", "Attention"})
_RANGES = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
}
_WEIGHT_TYPES = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.BFLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
    }
)


def nodes(graph: Any) -> Iterator[Any]:
    """Yield every node of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes(attribute.g)
            for inner in attribute.graphs:
                yield from nodes(inner)


def tensors(graph: Any) -> Iterator[Any]:
    """Yield initializers and constants of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from tensors(attribute.g)


def weights(model: Any) -> tuple[int, int]:
    """Return (elements, elements that differ from zero) of the weights.

    Weights are initializers and constants of float, int8, uint8 or int32 elements with at least
    one axis, but for scales and zero points of quantisers.
    """
    import numpy as np

    ranges = {
        node.input[i]
        for node in nodes(model.graph)
        for i in _RANGES.get(node.op_type, ())
        if i < len(node.input)
    }
    count = nonzeros = 0
    for tensor in tensors(model.graph):
        if tensor.dims and tensor.data_type in _WEIGHT_TYPES and tensor.name not in ranges:
            count += math.prod(tensor.dims)
            nonzeros += int(np.count_nonzero(onnx.numpy_helper.to_array(tensor)))
    return count, nonzeros


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape that is known to the last axis."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    shapes[node.output[0]] = tuple(attribute.t.dims)
    for group in (model.graph.input, model.graph.output, model.graph.value_info):
        for value in group:
            tensor = value.type.tensor_type
            dims = tensor.shape.dim
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dims):
                shapes.setdefault(value.name, tuple(d.dim_value for d in dims))
    return shapes


def macs(model: Any) -> int | None:
    """Return the MACs of one inference, or None where a shape or an operator leaves them unknown.

    Args:
        model: a `ModelProto` with inferred shapes.
    """
    if model.functions:
        return None
    shapes = _shapes(model)
    total = 0
    for node in model.graph.node:
        if node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx"):
            return None
        macs = _node_macs(node, shapes)
        if macs is None:
            return None
        total += macs
    return total


def _node_macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return one node's MACs; 0 for operators that don't multiply and add; None if unknown."""
    if node.op_type in _CONV:
        weight = shapes.get(node.input[_CONV[node.op_type]])
        # A transposed convolution applies its kernel once for every input element.
        place = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
        elements = shapes.get(place)
        if weight is None or elements is None:
            return None
        return math.prod(elements) * math.prod(weight[1:])
    if node.op_type in _MATMUL:
        left, out = shapes.get(node.input[0]), shapes.get(node.output[0])
        return None if left is None or out is None or not left else math.prod(out) * left[-1]
    if node.op_type == "Gemm":
        left, out = shapes.get(node.input[0]), shapes.get(node.output[0])
        if left is None or out is None or len(left) != 2:
            return None
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(out) * left[0 if transposed else 1]
    return 0
