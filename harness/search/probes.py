"""Single layers as ONNX models, to be measured on a board by ordinary latency jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

    from flatsat.harness.search.domain import CostLayer

OPSET = 17
IR = 8


@dataclass(frozen=True)
class Probe:
    """One layer of given sizes; equal probes are one model.

    Attributes:
        kind: "conv", "depthwise", "deconv", "dense" or "empty" (hands its input on).
        inputs, outputs: features.
        kernel, stride, in_size, out_size: as in `CostLayer`.
        groups: of a convolution that is not depthwise.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    in_size: tuple[int, ...] = ()
    out_size: tuple[int, ...] = ()
    groups: int = 1

    @property
    def family(self) -> Probe:
        """The probe without its features: layers of one family share a grid."""
        return replace(self, inputs=0, outputs=0)

    @property
    def name(self) -> str:
        """For people, such as "conv-5x5-on-12x12-20-to-50"."""
        size = "x".join(map(str, self.in_size)) or "1"
        kernel = "x".join(map(str, self.kernel))
        stride = "" if max(self.stride) == 1 else "-s" + "x".join(map(str, self.stride))
        groups = "" if self.groups == 1 else f"-g{self.groups}"
        return f"{self.kind}-{kernel}{stride}{groups}-on-{size}-{self.inputs}-to-{self.outputs}"


def probe_of(layer: CostLayer, inputs: int, outputs: int) -> Probe:
    """Return the probe of a layer with so many features."""
    depthwise = layer.depthwise
    return Probe(
        kind=layer.kind,
        inputs=outputs if depthwise else inputs,
        outputs=outputs,
        kernel=layer.kernel,
        stride=layer.stride,
        in_size=layer.in_size,
        out_size=layer.out_size,
        groups=1 if depthwise else layer.groups,
    )


def model_bytes(probe: Probe) -> bytes:
    """Return the probe as an ONNX file with a batch of 1; the same probe gives the same bytes.

    Weights are drawn from a normal distribution of variance 1 / fan-in, so that no denormal number
    slows the layer; a convolution or dense layer ends in ReLU, which runtimes fuse.
    """
    import onnx
    from onnx import TensorProto, helper

    nodes, weights, shapes = _nodes(probe)
    source, target = shapes
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, source)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, target)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _nodes(
    probe: Probe,
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], tuple[Sequence[int], Sequence[int]]]:
    from onnx import helper

    source = (1, probe.inputs, *probe.in_size)
    target = (1, probe.outputs, *probe.out_size)
    if probe.kind == "empty":
        return [helper.make_node("Identity", ["x"], ["y"])], [], (source, source)
    relu = helper.make_node("Relu", ["z"], ["y"])
    if probe.kind == "dense":
        weights = _drawn((probe.outputs, probe.inputs), probe.inputs)
        node = helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)
    else:
        groups = probe.outputs if probe.kind == "depthwise" else probe.groups
        sides = (probe.inputs, probe.outputs)
        shape = sides if probe.kind == "deconv" else sides[::-1]
        shape = (shape[0], shape[1] // groups)
        fan_in = probe.inputs // groups * int(np.prod(probe.kernel))
        weights = _drawn((*shape, *probe.kernel), fan_in)
        node = helper.make_node(
            "ConvTranspose" if probe.kind == "deconv" else "Conv",
            ["x", "w", "b"],
            ["z"],
            kernel_shape=list(probe.kernel),
            strides=list(probe.stride),
            group=groups,
            pads=_pads(probe),
        )
    return [node, relu], [_tensor("w", weights), _tensor("b", _bias(probe))], (source, target)


def _pads(probe: Probe) -> list[int]:
    """Return the padding that leads from the map that is read to the one that is written."""
    begins, ends = [], []
    for kernel, stride, read, written in zip(
        probe.kernel, probe.stride, probe.in_size, probe.out_size, strict=True
    ):
        if probe.kind == "deconv":
            total = (read - 1) * stride + kernel - written
        else:
            total = (written - 1) * stride + kernel - read
        total = max(0, total)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return [*begins, *ends]


def _drawn(shape: tuple[int, ...], fan_in: int) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(0))
    return np.asarray(draw.standard_normal(shape) / np.sqrt(fan_in), dtype=np.float32)


def _bias(probe: Probe) -> np.ndarray:
    return np.full(probe.outputs, 0.1, dtype=np.float32)


def _tensor(name: str, values: np.ndarray) -> onnx.TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(values, name)
