"""ONNX models of a wanted latency: plain chains with random weights, one input, batch 1."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def mlp(path: Path, widths: tuple[int, ...] = (784, 300, 100, 10), seed: int = 0) -> Path:
    """Write a chain of dense layers with ReLU between them."""
    draw = np.random.default_rng(seed)
    nodes, weights, name = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(widths)):
        weight = draw.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(rows)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"m{index}"]))
        name = f"m{index}"
        if index < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{index}"]))
            name = f"r{index}"
    return _save(path, nodes, weights, [1, widths[0]], name, [1, widths[-1]])


def convolutions(path: Path, *, layers: int, channels: int, size: int, seed: int = 0) -> Path:
    """Write a chain of 3x3 convolutions with ReLU; `size` pixels a side throughout."""
    draw = np.random.default_rng(seed)
    nodes, weights, name, fan_in = [], [], "x", 3
    for index in range(layers):
        weight = draw.standard_normal((channels, fan_in, 3, 3)) / np.sqrt(9 * fan_in)
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        name, fan_in = f"r{index}", channels
    shape = [1, channels, size, size]
    return _save(path, nodes, weights, [1, 3, size, size], name, shape)


def separable(path: Path, *, layers: int, channels: int, size: int, seed: int = 0) -> Path:
    """Write a chain of depthwise 3x3 and pointwise convolutions with ReLU; one size throughout."""
    draw = np.random.default_rng(seed)
    nodes, weights, name, fan_in = [], [], "x", 3
    for index in range(layers):
        depth = draw.standard_normal((fan_in, 1, 3, 3)) / 3
        point = draw.standard_normal((channels, fan_in, 1, 1)) / np.sqrt(fan_in)
        weights.append(numpy_helper.from_array(depth.astype(np.float32), f"d{index}"))
        weights.append(numpy_helper.from_array(point.astype(np.float32), f"p{index}"))
        nodes += [
            helper.make_node(
                "Conv", [name, f"d{index}"], [f"a{index}"], pads=[1] * 4, group=fan_in
            ),
            helper.make_node("Relu", [f"a{index}"], [f"b{index}"]),
            helper.make_node("Conv", [f"b{index}", f"p{index}"], [f"c{index}"]),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        name, fan_in = f"r{index}", channels
    shape = [1, channels, size, size]
    return _save(path, nodes, weights, [1, 3, size, size], name, shape)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape_in: list[int],
    output: str,
    shape_out: list[int],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape_out)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


SIZES = {
    "20 us": lambda path: mlp(path),
    "1 ms": lambda path: convolutions(path, layers=6, channels=32, size=28),
    "20 ms": lambda path: convolutions(path, layers=9, channels=64, size=56),
}
"""Latency that a model is meant to have on one thread of a common x86 core -> its maker."""
