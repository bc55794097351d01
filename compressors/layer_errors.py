"""Which layer an error comes from: what two runs of a network give, layer by layer.

Outputs between layers are put into one extra output of the ONNX file, so that any board that runs
the file tells them all. In a quantised file that is each activation's codes, behind its
QuantizeLinear node: most operators are fused there as they are without.

The measure is the signal-to-quantisation-noise ratio, 10 log10(sum x^2 / sum (x - y)^2) in dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from flatsat.compressors.onnx_model import parse, run_host
from flatsat.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
JUMP_DB = 10.0
"""So much below its inputs' ratio a layer's error is a jump: ten times the noise."""
AUDIBLE_DB = 20.0
"""Above this ratio (noise 1 % of the signal) an error is none, wherever it comes from."""
BEST_DB = 60.0
"""Of equal outputs, and of those that are nearer than 8 bits can tell."""
LAYERS_OUTPUT = "flatsat_layers"
_MOST_VALUES = 1 << 24
"""Between all layers of all images, in each of two files: 64 MiB as floats."""
_GIVEN = "_flatsat_given"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Probe:
    """One tensor between layers.

    Attributes:
        layer: name of the node that gives it.
        tensor: its name in the float graph.
        source: what of the graph is read: the tensor, or its codes.
        scale, zero_point: of the codes; 1 and 0 for a tensor of floats.
        inputs: positions of the probes that the layer's own inputs come from.
    """

    layer: str
    tensor: str
    source: str
    scale: float
    zero_point: int
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class LayerError:
    """How far one layer's output is from the reference's.

    Attributes:
        layer: its name.
        sqnr_db: at most 60; -60 at least, also where an output is not finite.
        fall_db: how much less than at its worst input.
    """

    layer: str
    sqnr_db: float
    fall_db: float


def probes(data: bytes) -> tuple[Probe, ...]:
    """Return the tensors that a file tells of itself, in the order of execution.

    Raises:
        ModelError: the bytes are no ONNX file.
    """
    return _probes(parse(data, "the model"))


def exposed(data: bytes) -> tuple[bytes, tuple[Probe, ...]]:
    """Return the file with one output only, float (n, values): all its probes side by side.

    Raises:
        ModelError: the bytes are no ONNX file, or it has nothing to tell.
    """
    model = parse(data, "the model")
    found = _probes(model)
    if not found:
        raise ModelError("the model has no layer to look into")
    return _exposed(model, [probe.source for probe in found]), found


def layer_outputs(
    data: bytes, inputs: Mapping[str, Array], only: Sequence[Probe] | None = None
) -> dict[str, Array]:
    """Return each probe's tensor by name, (n, values) floats, from a run on the host.

    Args:
        data: the ONNX file.
        inputs: by name.
        only: probes whose tensors this file is asked for under their float names; None: its own.

    Raises:
        ModelError: onnxruntime refuses the file.
    """
    model = parse(data, "the model")
    if only is None:
        only = _probes(model)
        names = {probe.source: probe for probe in only}
    else:
        names = _under_float_names(model, only)
    given = {value.name for value in model.graph.input}
    out = {}
    whole = run_host(_many_outputs(model, list(names)), inputs)
    for name, probe in names.items():
        told = whole[name + _GIVEN if name in given else name]
        out[probe.tensor] = _floats(told.reshape(len(told), -1), probe)
    return out


def compare_files(
    reference: bytes, data: bytes, inputs: Mapping[str, Array]
) -> tuple[LayerError, ...]:
    """Return each layer's error of a quantised file against the float file that it was made from.

    All that lies between layers is held at once: of a large network fewer images are taken.

    Args:
        reference: the float ONNX file.
        data: the quantised one.
        inputs: by name, the same for both; the first axis counts images.

    Raises:
        ModelError: onnxruntime refuses one of them.
    """
    found = probes(data)
    given = layer_outputs(data, _first(inputs, 1))
    count = min(len(values) for values in inputs.values())
    most = max(1, _MOST_VALUES // max(1, sum(values.size for values in given.values())))
    if min(count, most) > 1:
        inputs = _first(inputs, min(count, most))
        given = layer_outputs(data, inputs)
    else:
        inputs = _first(inputs, 1)
    return layer_errors(found, layer_outputs(reference, inputs, found), given)


def _first(inputs: Mapping[str, Array], count: int) -> dict[str, Array]:
    return {name: values[:count] for name, values in inputs.items()}


def split(told: Array, found: Sequence[Probe], like: Mapping[str, Array]) -> dict[str, Array]:
    """Return what an exposed file gave, apart again by tensor.

    Args:
        told: (n, values), of the one output.
        found: its probes.
        like: each tensor from another run, for the widths.
    """
    widths = [like[probe.tensor].shape[1] for probe in found]
    pieces = np.split(told, np.cumsum(widths)[:-1], axis=1)
    return {probe.tensor: _floats(p, probe) for p, probe in zip(pieces, found, strict=True)}


def layer_errors(
    found: Sequence[Probe], reference: Mapping[str, Array], outputs: Mapping[str, Array]
) -> tuple[LayerError, ...]:
    """Return each layer's error in the order of execution; tensors that one run lacks are left out.

    A layer's noise is partly that of its inputs: `fall_db` tells what it adds.
    """
    ratios: dict[int, float] = {}
    told = []
    for position, probe in enumerate(found):
        if probe.tensor not in reference or probe.tensor not in outputs:
            continue
        ratio = sqnr_db(reference[probe.tensor], outputs[probe.tensor])
        before = [ratios[index] for index in probe.inputs if index in ratios]
        ratios[position] = ratio
        if probe.layer:
            told.append(LayerError(probe.layer, ratio, min(before, default=BEST_DB) - ratio))
    return tuple(told)


def sqnr_db(reference: Array, output: Array) -> float:
    """Return 10 log10(sum x^2 / sum (x - y)^2), within [-60, 60]; -60 where y is not finite."""
    wide = reference.astype(np.float64)
    noise = float(((wide - output) ** 2).sum())
    signal = float((wide**2).sum())
    if noise == 0.0:
        return BEST_DB
    if not math.isfinite(noise) or signal == 0.0:
        return -BEST_DB
    return min(max(10.0 * math.log10(signal / noise), -BEST_DB), BEST_DB)


def culprit(errors: Sequence[LayerError]) -> LayerError | None:
    """Return the first layer whose error jumps, or None where no layer's does.

    It jumps where the ratio falls by 10 dB or more below the worst input's, to under 20 dB.
    """
    jumps = (e for e in errors if e.fall_db >= JUMP_DB and e.sqnr_db < AUDIBLE_DB)
    return next(jumps, None)


def worst(errors: Sequence[LayerError]) -> LayerError | None:
    """Return the layer that adds the most noise, the first of equals."""
    return max(errors, key=lambda error: error.fall_db, default=None)


def _probes(model: Any) -> tuple[Probe, ...]:
    graph = model.graph
    constants = {t.name: t for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    quantised = any(
        node.op_type == "QuantizeLinear" and node.input[0] not in constants for node in graph.node
    )
    found: list[Probe] = []
    reached: dict[str, frozenset[int]] = {}
    for node in graph.node:
        before = frozenset().union(*(reached.get(name, frozenset()) for name in node.input))
        probe = None
        if quantised and node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            scale, zero = (_scalar(constants.get(name)) for name in node.input[1:3])
            tensor = node.input[0]
            maker = makers.get(tensor)
            layer = "" if maker is None else maker.name or maker.output[0]
            if scale is not None:
                probe = Probe(
                    layer, tensor, node.output[0], scale, int(zero or 0), tuple(sorted(before))
                )
        elif not quantised and node.op_type in _WEIGHTED:
            name = node.output[0]
            probe = Probe(node.name or name, name, name, 1.0, 0, tuple(sorted(before)))
        if probe is not None:
            before = frozenset({len(found)})
            found.append(probe)
        reached.update(dict.fromkeys(node.output, before))
    return tuple(found)


def _under_float_names(model: Any, found: Sequence[Probe]) -> dict[str, Probe]:
    """Return the probes that a float file has, by the names of its own tensors.

    A quantiser renames the tensors that are the network's outputs: those are found by their node.
    """
    there = {name for node in model.graph.node for name in node.output}
    there |= {value.name for value in model.graph.input}
    by_node = {node.name: node.output[0] for node in model.graph.node if node.name}
    names = {}
    for probe in found:
        name = probe.tensor if probe.tensor in there else by_node.get(probe.layer)
        if name is not None:
            names[name] = replace(probe, source=name, scale=1.0, zero_point=0)
    return names


def _scalar(tensor: Any) -> float | None:
    if tensor is None:
        return None
    values = onnx.numpy_helper.to_array(tensor)
    return float(values.reshape(-1)[0]) if values.size == 1 else None


def _floats(codes: Array, probe: Probe) -> Array:
    wide = codes.astype(np.float32)
    wide -= np.float32(probe.zero_point)
    wide *= np.float32(probe.scale)
    return wide


def _many_outputs(model: Any, names: Sequence[str]) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    inputs = {value.name for value in model.graph.input}
    for name in names:
        if name in inputs:
            # An input can't be an output by the same name: it goes through a node.
            copy.graph.node.append(onnx.helper.make_node("Identity", [name], [name + _GIVEN]))
        copy.graph.output.append(
            onnx.ValueInfoProto(name=name + _GIVEN if name in inputs else name)
        )
    return bytes(copy.SerializeToString())


def _exposed(model: Any, names: Sequence[str]) -> bytes:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    rows = []
    for number, name in enumerate(names):
        cast, row = f"{LAYERS_OUTPUT}_cast{number}", f"{LAYERS_OUTPUT}_row{number}"
        copy.graph.node.append(
            onnx.helper.make_node("Cast", [name], [cast], to=onnx.TensorProto.FLOAT)
        )
        copy.graph.node.append(onnx.helper.make_node("Flatten", [cast], [row], axis=1))
        rows.append(row)
    copy.graph.node.append(onnx.helper.make_node("Concat", rows, [LAYERS_OUTPUT], axis=1))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    first: int | str = batch.dim_value if batch.HasField("dim_value") else batch.dim_param
    copy.graph.output.append(
        onnx.helper.make_tensor_value_info(
            LAYERS_OUTPUT, onnx.TensorProto.FLOAT, [first or "batch", "values"]
        )
    )
    return bytes(copy.SerializeToString(deterministic=True))
