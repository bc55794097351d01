"""ONNX graph -> sparse program: each node becomes an operation, or part of the one before it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx

from flatsat.compressors.sparse_program import (
    Op,
    Program,
    Shape,
    Stored,
    reach,
    sides,
    store,
    stretched,
)
from flatsat.errors import RecipeError

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Choose: TypeAlias = Callable[[str, Array, int, int], str]
"""(kind, matrix, groups, places of the output) -> format of a layer's weights."""

_SAME = frozenset({"Identity", "Dropout"})
_OPEN = (-math.inf, math.inf)


@dataclass(frozen=True)
class _View:
    """A tensor of the graph: a value of the program, perhaps seen in another shape."""

    value: int
    shape: Shape


def program_of(model: Any, choose: Choose) -> Program:
    """Return an ONNX model of one input and one output as a program.

    Batch norms and per-channel scales are folded into the layer before them, or become a depthwise
    1 x 1 convolution; activations become bounds of the operation before them.

    Args:
        model: a `ModelProto` whose first axis counts images.
        choose: the format of each layer's weights.

    Raises:
        RecipeError: a node has no counterpart; the message names it.
    """
    return _Mapper(model, choose).program()


class _Mapper:
    def __init__(self, model: Any, choose: Choose) -> None:
        graph = model.graph
        self._graph = graph
        self._choose = choose
        self._constants: dict[str, Array] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        names = [value for value in graph.input if value.name not in self._constants]
        if len(names) != 1 or len(graph.output) != 1:
            raise RecipeError("sparse-c executes networks of one input and one output")
        self._source, self._target = names[0], graph.output[0]
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._readers[self._target.name] += 1
        self._inferred = _inferred(model)
        self._shapes: list[Shape] = []
        self._ops: list[Op] = []
        self._views: dict[str, _View] = {}
        # Equal weights of a module that is used twice are one object.
        self._stored: dict[tuple[str, str, int], Stored] = {}

    def program(self) -> Program:
        """Map every node."""
        dims = self._source.type.tensor_type.shape.dim
        shape = tuple(int(dim.dim_value) for dim in dims[1:])
        if len(shape) not in (1, 3) or not all(shape):
            raise RecipeError(f"sparse-c takes images or vectors of fixed size, not {shape}")
        self._views[self._source.name] = self._value(shape)
        for node in self._graph.node:
            self._node(node)
        found = self._views.get(self._target.name)
        if found is None or not self._ops:
            raise RecipeError(f"nothing that sparse-c executes gives {self._target.name!r}")
        if found.value == 0 or self._shapes[found.value] != found.shape:
            found = self._append("copy", found.shape, (found,))
        return Program(
            *(tuple(self._shapes), tuple(self._ops), 0, found.value),
            *(self._source.name, self._target.name),
        )

    def _value(self, shape: Shape) -> _View:
        self._shapes.append(shape)
        return _View(len(self._shapes) - 1, shape)

    def _append(self, kind: str, shape: Shape, taken: tuple[_View, ...], **more: Any) -> _View:
        view = self._value(shape)
        inputs = tuple(part.value for part in taken)
        self._ops.append(Op(kind, view.value, inputs, **more))
        return view

    # Nodes.

    def _node(self, node: Any) -> None:
        if node.op_type == "Constant" or all(name in self._constants for name in node.input):
            self._constant(node)
            return
        if not any(name in self._views for name in node.input):
            return  # It computes a shape: what it is for is known already.
        if node.op_type == "Shape":
            return
        handlers: Mapping[str, Callable[[Any, dict[str, Any]], _View]] = {
            "Conv": self._conv,
            "ConvTranspose": self._conv_transpose,
            "Resize": self._resize,
            "Upsample": self._resize,
            "Gemm": self._gemm,
            "MatMul": self._matmul,
            "Relu": self._relu,
            "Clip": self._clip,
            "MaxPool": self._pool,
            "AveragePool": self._pool,
            "GlobalAveragePool": self._global_pool,
            "ReduceMean": self._mean,
            "Add": self._add,
            "Sub": self._subtract,
            "Mul": self._scale,
            "Div": self._scale,
            "BatchNormalization": self._batch_norm,
            "Concat": self._concat,
            "Flatten": self._reshape,
            "Reshape": self._reshape,
            "Squeeze": self._reshape,
        }
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in _SAME:
            made = self._seen_as(node, self._view(node).shape)
        elif node.op_type in handlers and node.domain in ("", "ai.onnx"):
            made = handlers[node.op_type](node, attributes)
        else:
            raise _refusal(node, "sparse-c has no such operation")
        self._views[node.output[0]] = made

    def _constant(self, node: Any) -> None:
        """Keep a constant; one that is computed from others only matters as a shape."""
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                self._constants[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
        if node.op_type in _SAME:
            self._constants[node.output[0]] = self._constants[node.input[0]]

    def _view(self, node: Any, place: int = 0) -> _View:
        view = self._views.get(node.input[place])
        if view is None:
            raise _refusal(node, f"its input {node.input[place]!r} is no activation")
        return view

    def _shaped(self, node: Any, place: int = 0) -> _View:
        """Return an input as a value of its very shape, copied if another stands there."""
        view = self._view(node, place)
        if self._shapes[view.value] != view.shape:
            view = self._append("copy", view.shape, (view,))
            self._views[node.input[place]] = view
        return view

    def _number(self, node: Any, place: int, what: str) -> Array:
        name = node.input[place] if place < len(node.input) else ""
        if name not in self._constants:
            raise _refusal(node, f"its {what} is no constant")
        return self._constants[name].astype(np.float32)

    def _conv(self, node: Any, given: dict[str, Any]) -> _View:
        view = self._shaped(node)
        weight = self._number(node, 1, "weight")
        if weight.ndim != 4 or len(view.shape) != 3:
            raise _refusal(node, "only two-dimensional convolutions are executed")
        groups = int(given.get("group", 1))
        op = Op("conv", 0, (), **_window(node, given, weight.shape[2:], view.shape), groups=groups)
        bias = self._number(node, 2, "bias") if len(node.input) > 2 else None
        shape = (weight.shape[0], *_places(op, view.shape, ceil=False))
        matrix = weight.reshape(len(weight), -1)
        return self._weighted("conv", node.input[1], shape, view, matrix, bias, op)

    def _conv_transpose(self, node: Any, given: dict[str, Any]) -> _View:
        """Put zeros between the inputs and convolve with the kernel turned round."""
        view = self._shaped(node)
        weight = self._number(node, 1, "weight")
        if weight.ndim != 4 or len(view.shape) != 3 or "output_shape" in given:
            raise _refusal(node, "only two-dimensional windows with pads are executed")
        groups, kernel = int(given.get("group", 1)), weight.shape[2:]
        window = _window(node, given, kernel, view.shape)
        more = [int(n) for n in given.get("output_padding", (0, 0))]
        spans = [window["dilation"][i] * (kernel[i] - 1) for i in (0, 1)]
        before = tuple(spans[i] - window["before"][i] for i in (0, 1))
        behind = tuple(spans[i] - window["behind"][i] + more[i] for i in (0, 1))
        if min(*before, *behind) < 0:
            raise _refusal(node, "its padding cuts more than its kernel adds")
        wide = Op("stretch", 0, (), stride=window["stride"])
        places = tuple(stretched(wide, view.shape[i + 1], i) for i in (0, 1))
        view = self._append("stretch", (view.shape[0], *places), (view,), stride=wide.stride)
        # (inputs, outputs of a group, ...) -> (outputs, inputs of a group, ...).
        parts = weight[:, :, ::-1, ::-1].reshape(groups, -1, *weight.shape[1:])
        turned = parts.transpose(0, 2, 1, 3, 4).reshape(-1, weight.shape[0] // groups, *kernel)
        shapes = {"kernel": window["kernel"], "dilation": window["dilation"], "groups": groups}
        op = Op("conv", 0, (), **shapes, before=before, behind=behind)
        bias = self._number(node, 2, "bias") if len(node.input) > 2 else None
        shape = (len(turned), *_places(op, view.shape, ceil=False))
        matrix = turned.reshape(len(turned), -1)
        return self._weighted("conv", node.input[1], shape, view, matrix, bias, op)

    def _resize(self, node: Any, given: dict[str, Any]) -> _View:
        """Repeat rows and columns: nearest neighbours at a whole scale."""
        view = self._shaped(node)
        shape = self._inferred.get(node.output[0], ())
        plain = given.get("mode", b"nearest") == b"nearest" and (
            given.get("coordinate_transformation_mode", b"asymmetric") == b"asymmetric"
            and given.get("nearest_mode", b"floor") == b"floor"
        )
        if not plain or len(shape) != 4 or len(view.shape) != 3 or shape[1] != view.shape[0]:
            raise _refusal(node, "only rows and columns are repeated")
        factors = tuple(shape[i + 2] // view.shape[i + 1] for i in (0, 1))
        if any(factors[i] * view.shape[i + 1] != shape[i + 2] for i in (0, 1)):
            raise _refusal(node, f"it makes {shape[2:]} of {view.shape[1:]}")
        return self._append("stretch", shape[1:], (view,), stride=factors, repeat=True)

    def _weighted(
        self,
        kind: str,
        name: str,
        shape: Shape,
        view: _View,
        matrix: Array,
        bias: Array | None,
        window: Op | None = None,
    ) -> _View:
        made = self._append(kind, shape, (view,))
        base = Op(kind, 0, ()) if window is None else window
        op = replace(base, output=made.value, inputs=(view.value,))
        self._ops[-1] = self._with_weights(op, name, matrix, bias)
        return made

    def _with_weights(self, op: Op, name: str, matrix: Array, bias: Array | None) -> Op:
        places = math.prod(sides(self._shapes[op.output])[1:])
        format_ = self._choose(op.kind, matrix, op.groups, places)
        key = (name, format_, op.groups)
        if not name or key not in self._stored:
            self._stored[key] = store(matrix, format_, op.groups)
        flat = None if bias is None else np.ascontiguousarray(bias.reshape(-1), np.float32)
        return replace(op, weights=self._stored[key], bias=flat)

    def _gemm(self, node: Any, given: dict[str, Any]) -> _View:
        if given.get("transA", 0):
            raise _refusal(node, "its activations are transposed")
        matrix = self._number(node, 1, "weight") * np.float32(given.get("alpha", 1.0))
        matrix = matrix if given.get("transB", 0) else matrix.T
        bias = None
        if len(node.input) > 2:
            bias = self._number(node, 2, "bias") * np.float32(given.get("beta", 1.0))
            bias = np.broadcast_to(bias.reshape(-1), (len(matrix),))
        return self._dense(node, matrix, bias)

    def _matmul(self, node: Any, _given: dict[str, Any]) -> _View:
        matrix = self._number(node, 1, "second factor")
        if matrix.ndim != 2:
            raise _refusal(node, "its second factor is no matrix")
        return self._dense(node, matrix.T, None)

    def _dense(self, node: Any, matrix: Array, bias: Array | None) -> _View:
        view = self._view(node)
        if len(view.shape) != 1 or view.shape[0] != matrix.shape[1]:
            raise _refusal(node, f"it multiplies {view.shape} by {matrix.shape[::-1]}")
        return self._weighted("fc", node.input[1], (len(matrix),), view, matrix, bias)

    # What follows a layer.

    def _bounded(self, node: Any, low: float, high: float) -> _View:
        """Hold the outputs of the operation before between bounds, or copy them between bounds."""
        view = self._view(node)
        made = next((i for i, op in enumerate(self._ops) if op.output == view.value), None)
        if made is None or self._readers[node.input[0]] > 1:
            return self._append("copy", view.shape, (view,), low=low, high=high)
        op = self._ops[made]
        low, high = (min(max(bound, low), high) for bound in (op.low, op.high))
        self._ops[made] = replace(op, low=low, high=high)
        return view

    def _relu(self, node: Any, _given: dict[str, Any]) -> _View:
        return self._bounded(node, 0.0, math.inf)

    def _clip(self, node: Any, given: dict[str, Any]) -> _View:
        low, high = (
            float(self._number(node, place, name))
            if place < len(node.input) and node.input[place]
            else float(given.get(name, default))
            for place, name, default in ((1, "min", -math.inf), (2, "max", math.inf))
        )
        if not low <= high:
            raise _refusal(node, f"its bounds are {low} and {high}")
        return self._bounded(node, low, high)

    def _affine(self, node: Any, place: int, scale: Array, shift: Array) -> _View:
        """Return scale * x + shift, both (channels,)."""
        view = self._view(node, place)
        made = next((i for i, op in enumerate(self._ops) if op.output == view.value), None)
        alone = self._readers[node.input[place]] == 1 and view.shape == self._shapes[view.value]
        if made is not None and alone:
            op = self._ops[made]
            # Behind an activation it is a layer of its own.
            if op.weights is not None and (op.low, op.high) == _OPEN:
                matrix = op.weights.matrix * scale[:, None]
                bias = shift if op.bias is None else op.bias * scale + shift
                self._ops[made] = self._with_weights(op, "", matrix, bias)
                return view
        view = self._shaped(node, place)
        window = Op("conv", 0, (), groups=len(scale))
        return self._weighted("conv", "", view.shape, view, scale[:, None], shift, window)

    def _batch_norm(self, node: Any, given: dict[str, Any]) -> _View:
        scale, shift, mean, variance = (
            self._number(node, i, what).astype(np.float64)
            for i, what in enumerate(("", "scale", "shift", "mean", "variance"))
            if i
        )
        scale = scale / np.sqrt(variance + float(given.get("epsilon", 1e-5)))
        shift = shift - mean * scale
        return self._affine(node, 0, scale.astype(np.float32), shift.astype(np.float32))

    def _operand(self, node: Any) -> tuple[int, Array] | None:
        """Return the place of the activation and the other input's constant, one a channel."""
        place = 0 if node.input[0] in self._views else 1
        name = node.input[1 - place]
        if name not in self._constants:
            return None
        shape, value = self._view(node, place).shape, self._constants[name]
        if value.dtype.kind != "f":
            raise _refusal(node, "its constant is no floating-point number")
        # The batch axis stands before; numbers of one a channel have no other long axis.
        full = value.reshape((1,) * (1 + len(shape) - value.ndim) + value.shape)
        if full.ndim != 1 + len(shape) or full.size not in (1, full.shape[1]):
            raise _refusal(node, f"its constant of shape {value.shape} is not one a channel")
        return place, np.ascontiguousarray(
            np.broadcast_to(full.reshape(-1), (shape[0],)), np.float32
        )

    def _add(self, node: Any, _given: dict[str, Any]) -> _View:
        operand = self._operand(node)
        if operand is not None:
            return self._affine(node, operand[0], np.ones_like(operand[1]), operand[1])
        left, right = self._shaped(node, 0), self._shaped(node, 1)
        if left.shape != right.shape:
            raise _refusal(node, f"it adds {left.shape} and {right.shape}")
        return self._append("add", left.shape, (left, right))

    def _subtract(self, node: Any, _given: dict[str, Any]) -> _View:
        operand = self._operand(node)
        if operand is None or operand[0] != 0:
            raise _refusal(node, "only constants are subtracted")
        return self._affine(node, 0, np.ones_like(operand[1]), -operand[1])

    def _scale(self, node: Any, _given: dict[str, Any]) -> _View:
        operand = self._operand(node)
        if operand is None or (node.op_type == "Div" and operand[0] != 0):
            raise _refusal(node, "only constants are multiplied by")
        place, scale = operand
        scale = 1 / scale if node.op_type == "Div" else scale
        return self._affine(node, place, scale, np.zeros_like(scale))

    # Other operations.

    def _pool(self, node: Any, given: dict[str, Any]) -> _View:
        view = self._shaped(node)
        if len(node.output) > 1 or given.get("storage_order", 0):
            raise _refusal(node, "its indices are asked for")
        window = _window(node, given, given["kernel_shape"], view.shape)
        if window["dilation"] != (1, 1):
            raise _refusal(node, "its window is dilated")
        kind = "maxpool" if node.op_type == "MaxPool" else "avgpool"
        op = Op(kind, 0, (), **window, count_pad=bool(given.get("count_include_pad", 0)))
        shape = (view.shape[0], *_places(op, view.shape, ceil=bool(given.get("ceil_mode", 0))))
        made = self._append(kind, shape, (view,))
        self._ops[-1] = replace(op, output=made.value, inputs=(view.value,))
        return made

    def _global_pool(self, node: Any, _given: dict[str, Any]) -> _View:
        view = self._shaped(node)
        if len(view.shape) != 3:
            raise _refusal(node, f"it pools {view.shape}")
        whole = view.shape[1:]
        return self._append("avgpool", (view.shape[0], 1, 1), (view,), kernel=whole)

    def _mean(self, node: Any, given: dict[str, Any]) -> _View:
        axes = given.get("axes")
        if axes is None and len(node.input) > 1 and node.input[1] in self._constants:
            axes = self._constants[node.input[1]].tolist()
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            raise _refusal(node, "only means over height and width are taken")
        view = self._global_pool(node, given)
        return view if given.get("keepdims", 1) else replace(view, shape=view.shape[:1])

    def _concat(self, node: Any, given: dict[str, Any]) -> _View:
        views = tuple(self._shaped(node, i) for i in range(len(node.input)))
        ranks = {len(view.shape) for view in views}
        if int(given["axis"]) % (1 + max(ranks)) != 1 or len(ranks) > 1:
            raise _refusal(node, "only channels are joined")
        channels = sum(view.shape[0] for view in views)
        if len({view.shape[1:] for view in views}) > 1:
            raise _refusal(node, "its inputs differ in size")
        return self._append("concat", (channels, *views[0].shape[1:]), views)

    def _reshape(self, node: Any, given: dict[str, Any]) -> _View:
        view = self._view(node)
        total = math.prod(view.shape)
        shape = self._inferred.get(node.output[0])
        if node.op_type == "Flatten" and int(given.get("axis", 1)) == 1:
            shape = (1, total)
        wanted = self._constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None and wanted is not None and len(wanted) == 2:
            shape = (1, total)
        if shape is None or shape[0] != 1 or len(shape) not in (2, 4):
            raise _refusal(node, "it makes a tensor of no known shape")
        if math.prod(shape) != total:
            raise _refusal(node, "it mixes images of a batch")
        return self._seen_as(node, shape[1:])

    def _seen_as(self, node: Any, shape: Shape) -> _View:
        """Return a node's input in another shape; whoever reads the one reads the other."""
        self._readers[node.output[0]] += self._readers[node.input[0]] - 1
        return replace(self._view(node), shape=shape)


def _window(node: Any, given: dict[str, Any], kernel: Any, shape: Shape) -> dict[str, Any]:
    """Return a node's window; `shape` is of its input."""
    if len(kernel) != 2 or len(shape) != 3:
        raise _refusal(node, "only two-dimensional windows are executed")
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _refusal(node, "its padding is left to the runtime")
    pads = [int(n) for n in given.get("pads", (0, 0, 0, 0))]
    return {
        "kernel": (int(kernel[0]), int(kernel[1])),
        "stride": tuple(int(n) for n in given.get("strides", (1, 1))),
        "dilation": tuple(int(n) for n in given.get("dilations", (1, 1))),
        "before": (pads[0], pads[1]),
        "behind": (pads[2], pads[3]),
    }


def _places(op: Op, shape: Shape, *, ceil: bool) -> tuple[int, int]:
    """Return height and width of what a window makes of `shape`."""
    made = []
    for axis in (0, 1):
        padded = shape[axis + 1] + op.before[axis] + op.behind[axis]
        room, stride = padded - reach(op, axis), op.stride[axis]
        count = (-(-room // stride) if ceil else room // stride) + 1
        # A last window may not begin in the padding behind.
        if ceil and (count - 1) * stride >= shape[axis + 1] + op.before[axis]:
            count -= 1
        made.append(count)
    return made[0], made[1]


def _inferred(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes that ONNX infers for one image, by tensor name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {tensor.name for tensor in model.graph.initializer}
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in known and dims:
            dims[0].dim_value = 1
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        copy = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # inference is a help: what it doesn't tell is refused where it is needed
        return {}
    found = {}
    for value in (*copy.graph.value_info, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and all(dim.HasField("dim_value") and dim.dim_value > 0 for dim in dims):
            found[value.name] = tuple(int(dim.dim_value) for dim in dims)
    return found


def _refusal(node: Any, why: str) -> RecipeError:
    named = node.name or (node.output[0] if node.output else "?")
    return RecipeError(
        f"sparse-c can't execute {node.op_type} {named!r}: {why}",
        hint='lower this network to "onnx" or "tflite"',
    )
