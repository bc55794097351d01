"""What an ONNX file says of itself: signature, versions, parameters and MACs; and one host run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from flatsat.compressors.onnx_count import macs, nodes, tensors, weights
from flatsat.errors import ModelError
from flatsat.tensors import DTYPE_BYTES, TensorSpec

if TYPE_CHECKING:
    import numpy as np

# protobuf can't hold more in one message.
MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class ModelInfo:
    """What is known of an ONNX file without running it.

    Attributes:
        inputs, outputs: in the order of the file; initializers that older files list among the
            inputs are left out. An open axis without a name is called NAME_axisI; an output whose
            rank is unknown gets one open axis, NAME_axes.
        opset: of the standard operators.
        ir: version of the file format.
        nodes: how many operators the graph has.
        params: elements of the weights, see `onnx_count.weights`.
        nonzeros: how many of them differ from zero.
        macs: multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul (and their integer
            forms) in one inference, where an open first axis of an input counts as 1; None where a
            shape or an operator leaves them unknown.
        valid: ONNX's own checker accepts the file; a runtime may still refuse it.
        problem: what the checker says otherwise, or "".
        external: files beside it that hold its weights, relative to its folder.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir: int
    nodes: int
    params: int
    nonzeros: int
    macs: int | None
    valid: bool
    problem: str
    external: tuple[str, ...] = ()


def inspect(path: Path) -> ModelInfo:
    """Read an ONNX file's signature, versions and size.

    Raises:
        ModelError: there is no such file, it is empty, larger than protobuf allows, corrupt or no
            ONNX model, weights that it keeps in other files are missing, or an input or output is
            no tensor of a known element type.
    """
    model = load(path)
    external = _external_files(model, path)
    try:
        _load_external(model, path, external)
        inferred = _infer_shapes(model)
        params, nonzeros = weights(model)
        valid, problem = _check(model)
        initializers = {tensor.name for tensor in model.graph.initializer}
        return ModelInfo(
            inputs=tuple(
                _spec(value, path, "input")
                for value in model.graph.input
                if value.name not in initializers
            ),
            outputs=tuple(
                _spec(_more_shape(value, inferred), path, "output") for value in model.graph.output
            ),
            opset=opset(model),
            ir=model.ir_version,
            nodes=len(model.graph.node),
            params=params,
            nonzeros=nonzeros,
            macs=macs(inferred),
            valid=valid,
            problem=problem,
            external=external,
        )
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise ModelError(f"{path}: corrupt ONNX model: {_one_line(error)}") from error


def load(path: Path) -> Any:
    """Return an ONNX file as a `ModelProto`; weights in other files stay there.

    Raises:
        ModelError: as `inspect`, without the checks of external files and of types.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ModelError(f"{path} is a folder, no ONNX file")
        if size == 0:
            raise ModelError(f"{path}: the file is empty")
        if size > MAX_BYTES:
            raise ModelError(
                f"{path}: {size} bytes are more than one ONNX file can hold",
                hint="keep the weights in external data beside it",
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror}") from error
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Any:
    """Return bytes as a `ModelProto`; `where` stands before the message of an error.

    Raises:
        ModelError: the bytes are no ONNX model.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, which has no typed home, and its kin
        raise ModelError(f"{where}: corrupt, or no ONNX file: {_one_line(error)}") from error
    if not model.HasField("graph") or not model.opset_import or model.ir_version < 1:
        raise ModelError(f"{where}: no ONNX file: it has no graph with an opset")
    if not model.graph.output:
        raise ModelError(f"{where}: the ONNX graph has no output")
    return model


def opset(model: Any) -> int:
    """Return the version of the standard operators that a model imports, or 0."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def normalise(model: Any) -> bytes:
    """Return a model's bytes without what tells where and how it was made.

    Documentation strings, metadata (source paths, stack traces) and operator domains that no node
    uses are removed in place; the bytes are equal for equal models.
    """
    used = {node.domain for node in nodes(model.graph)} | {""}
    kept = [(o.domain, o.version) for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    for domain, version in sorted(kept):
        model.opset_import.append(onnx.helper.make_opsetid(domain, version))
    for item in _documented(model):
        for name in ("doc_string", "metadata_props"):
            if name in item.DESCRIPTOR.fields_by_name:
                item.ClearField(name)
    return bytes(model.SerializeToString(deterministic=True))


def embedded(path: Path) -> bytes:
    """Return a model as one file: its own bytes, or with its external weights put inside.

    Raises:
        ModelError: as `inspect`; or the whole is larger than one file can be.
    """
    model = load(path)
    external = _external_files(model, path)
    if not external:
        return path.read_bytes()
    total = sum((path.parent / name).stat().st_size for name in external)
    if total + path.stat().st_size > MAX_BYTES:
        raise ModelError(f"{path}: with its {len(external)} weight files it exceeds 2 GiB")
    _load_external(model, path, external)
    return bytes(model.SerializeToString(deterministic=True))


def run_host(model: Path | bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a model once on this machine, on one thread, and return its outputs by name.

    Raises:
        ModelError: onnxruntime refuses the model or the inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    where = "the model" if isinstance(model, bytes) else str(model)
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise ModelError(f"onnxruntime can't run {where}: {_one_line(error)}") from error


def output_step(model: Any, output: str) -> float | None:
    """Return the largest step of the quantiser that gives `output`, or None without one."""
    steps = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if output in node.output and node.op_type == "DequantizeLinear":
            scale = steps.get(node.input[1])
            return None if scale is None else float(scale.max())
    return None


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split())[:300]


def _documented(model: Any) -> Iterator[Any]:
    yield model
    yield model.graph
    yield from nodes(model.graph)
    yield from tensors(model.graph)
    for group in (model.graph.input, model.graph.output, model.graph.value_info):
        yield from group


def _external_files(model: Any, path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for tensor in tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        place = Path(location)
        # The name comes from the file: it may not lead out of the model's folder.
        if not location or place.is_absolute() or ".." in place.parts:
            raise ModelError(f"{path}: weights of {tensor.name!r} are said to be in {location!r}")
        if not (path.parent / place).is_file():
            raise ModelError(
                f"{path}: its weights should be in {location!r} beside it, which is missing",
                hint="copy that file into the model's folder",
            )
        if location not in names:
            names.append(location)
    return tuple(names)


def _load_external(model: Any, path: Path, external: Sequence[str]) -> None:
    if external:
        try:
            onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        except Exception as error:  # the checker's own class, OSError or ValueError
            raise ModelError(
                f"{path}: its external weights can't be read: {_one_line(error)}"
            ) from error


def _check(model: Any) -> tuple[bool, str]:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        return False, _one_line(error)
    return True, ""


def _infer_shapes(model: Any) -> Any:
    """Return a copy with inferred shapes, an open first axis of each input set to 1."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    initializers = {tensor.name for tensor in model.graph.initializer}
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in initializers and dims and dims[0].dim_value <= 0:
            dims[0].dim_value = 1
    # Shapes that the file states for an open batch would contradict it.
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # inference is a help: without it MACs stay unknown
        return copy


def _more_shape(value: Any, inferred: Any) -> Any:
    """Return an output's entry, with the inferred type and shape where the file states none."""
    stated = value.type.tensor_type
    if value.type.HasField("tensor_type") and stated.elem_type and stated.HasField("shape"):
        return value
    for other in inferred.graph.output:
        if other.name == value.name and other.type.HasField("tensor_type"):
            return other
    return value


def _spec(value: Any, path: Path, what: str) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "of no known type"
        raise ModelError(f"{path}: {what} {value.name!r} is {kind}, only tensors can be measured")
    tensor = value.type.tensor_type
    dtype = _dtype_name(tensor.elem_type)
    if dtype not in DTYPE_BYTES:
        raise ModelError(
            f"{path}: {what} {value.name!r} has elements of type {dtype}",
            hint="known are " + ", ".join(DTYPE_BYTES),
        )
    if not tensor.HasField("shape"):
        if what == "input":
            raise ModelError(f"{path}: input {value.name!r} states no shape")
        return TensorSpec(value.name, dtype, (f"{value.name}_axes",))
    shape: list[int | str] = []
    for position, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            shape.append(int(dim.dim_value))
        else:
            shape.append(dim.dim_param or f"{value.name}_axis{position}")
    return TensorSpec(value.name, dtype, tuple(shape))


def _dtype_name(elem_type: int) -> str:
    if elem_type == TensorProto.STRING:
        return "string"
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, ValueError, TypeError):
        return f"number {elem_type}"
