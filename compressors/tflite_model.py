"""TensorFlow Lite files: what they say of themselves, read without running them; and runs here.

Reading is pure Python over the file's flatbuffer and holds every length against the file's size:
a damaged file is an error, never a crash. Only files that FlatSat made are run in this process, by
LiteRT; others run on boards, in processes of their own.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatsat.errors import ModelError
from flatsat.tensors import TensorSpec

IDENTIFIER = b"TFL3"
_HINT = "check the file, or export it anew"
_DTYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
    12: "uint64",
    15: "uint32",
    16: "uint16",
}
_CONV_2D, _DEPTHWISE, _FULLY_CONNECTED = 3, 4, 9


@dataclass(frozen=True)
class TfliteInfo:
    """What is known of a TFLite file without running it.

    Attributes:
        inputs, outputs: of the first subgraph, in its order; an axis that may be resized is
            called NAME_axisI. A name that is empty or given twice becomes "input:I", "output:I".
        nodes: operators of the first subgraph.
        params: elements of constant tensors of more than one element, shapes left out.
        nonzeros: how many of them differ from zero.
        macs: of convolutions and dense layers in one inference; None where a shape is unknown.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    params: int
    nonzeros: int
    macs: int | None


def is_tflite(data: bytes) -> bool:
    """Return whether a file's first bytes call it a TFLite model."""
    return data[4:8] == IDENTIFIER


def inspect(data: bytes, where: str) -> TfliteInfo:
    """Read a file's signature and count its weights.

    Args:
        data: of the file.
        where: its name, for errors.

    Raises:
        ModelError: it is no TFLite file, or a damaged one.
    """
    if not is_tflite(data):
        raise ModelError(f"{where} is no TensorFlow Lite file", hint=_HINT)
    try:
        return _Reader(data).info()
    except ModelError as error:
        raise ModelError(f"{where}: {error.message}", hint=error.hint) from None
    except Exception as error:  # a damaged flatbuffer fails in any way that offsets can
        text = " ".join(str(error).split())[:120]
        raise ModelError(
            f"{where} is damaged: {type(error).__name__} {text}".rstrip(), hint=_HINT
        ) from error


class _Reader:
    """One pass over a model's flatbuffer."""

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._data = data
        self._model = schema.Model.GetRootAs(bytearray(data), 0)
        if not self._bounded(self._model.SubgraphsLength()) >= 1:
            raise ModelError("it holds no graph", hint=_HINT)
        self._graph = self._model.Subgraphs(0)
        self._tensors = self._bounded(self._graph.TensorsLength())

    def _bounded(self, length: int) -> int:
        """Return a length that the file can hold."""
        if not 0 <= length <= len(self._data):
            raise ModelError("it is damaged: a length beyond the file", hint=_HINT)
        return length

    def info(self) -> TfliteInfo:
        graph = self._graph
        operators = self._bounded(graph.OperatorsLength())
        buffers = self._bounded(self._model.BuffersLength())
        params = nonzeros = 0
        for index in range(self._tensors):
            tensor = graph.Tensors(index)
            if not 0 < tensor.Buffer() < buffers:
                continue
            raw = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
            dtype = _DTYPES.get(tensor.Type())
            if isinstance(raw, int) or dtype is None or raw.size <= np.dtype(dtype).itemsize:
                continue
            if dtype in ("int32", "int64") and _scaling_length(tensor) == 0:
                continue  # A shape, or an axis: no weight.
            values = np.frombuffer(raw.tobytes(), dtype=np.dtype(dtype).newbyteorder("<"))
            params += values.size
            nonzeros += int(np.count_nonzero(values))
        inputs = [graph.Inputs(i) for i in range(self._bounded(graph.InputsLength()))]
        outputs = [graph.Outputs(i) for i in range(self._bounded(graph.OutputsLength()))]
        return TfliteInfo(
            inputs=self._specs(inputs, "input"),
            outputs=self._specs(outputs, "output"),
            nodes=operators,
            params=params,
            nonzeros=nonzeros,
            macs=self._macs(operators),
        )

    def _tensor(self, index: int) -> Any:
        if not 0 <= index < self._tensors:
            raise ModelError("it is damaged: a tensor that there is not", hint=_HINT)
        return self._graph.Tensors(index)

    def _specs(self, indices: list[int], what: str) -> tuple[TensorSpec, ...]:
        tensors = [self._tensor(index) for index in indices]
        names = [(tensor.Name() or b"").decode("utf-8", "replace") for tensor in tensors]
        specs = []
        for position, (tensor, name) in enumerate(zip(tensors, names, strict=True)):
            if not name or names.count(name) > 1:
                name = f"{what}:{position}"
            dtype = _DTYPES.get(tensor.Type())
            if dtype is None:
                raise ModelError(
                    f"{what} {name!r} has an element type that FlatSat does not know",
                    hint="its type number is " + str(tensor.Type()),
                )
            specs.append(TensorSpec(name, dtype, self._shape(tensor, name), *_scaling(tensor)))
        return tuple(specs)

    def _shape(self, tensor: Any, name: str) -> tuple[int | str, ...]:
        shape = [int(tensor.Shape(i)) for i in range(self._bounded(tensor.ShapeLength()))]
        length = self._bounded(tensor.ShapeSignatureLength())
        signature = [int(tensor.ShapeSignature(i)) for i in range(length)] or shape
        return tuple(
            f"{name}_axis{i}" if open_ < 0 else size
            for i, (size, open_) in enumerate(zip(shape, signature, strict=True))
        )

    def _macs(self, operators: int) -> int | None:
        codes = self._bounded(self._model.OperatorCodesLength())
        total = 0
        for index in range(operators):
            operator = self._graph.Operators(index)
            if not 0 <= operator.OpcodeIndex() < codes:
                raise ModelError("it is damaged: an operator that there is not", hint=_HINT)
            code = self._model.OperatorCodes(operator.OpcodeIndex())
            kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            if kind not in (_CONV_2D, _DEPTHWISE, _FULLY_CONNECTED):
                continue
            weights = self._dims(operator.Inputs(1))
            written = self._dims(operator.Outputs(0))
            if not weights or not written or min(*weights, *written) <= 0:
                return None
            outputs = int(np.prod(written, dtype=np.int64))
            each = int(np.prod(weights[1:], dtype=np.int64))
            if kind == _DEPTHWISE:
                each = int(np.prod(weights[1:3], dtype=np.int64))
            total += outputs * each
        return total

    def _dims(self, index: int) -> list[int]:
        tensor = self._tensor(index)
        return [int(tensor.Shape(i)) for i in range(self._bounded(tensor.ShapeLength()))]


def _scaling_length(tensor: Any) -> int:
    told = tensor.Quantization()
    return 0 if told is None else int(told.ScaleLength())


def _scaling(tensor: Any) -> tuple[float | None, int | None]:
    """Return scale and zero point of a tensor that is quantised as a whole."""
    told = tensor.Quantization()
    if told is None or told.ScaleLength() != 1 or tensor.Type() in (0, 1, 10):
        return None, None
    zero = int(told.ZeroPoint(0)) if told.ZeroPointLength() == 1 else 0
    return float(told.Scale(0)), zero


def run_host(data: bytes, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run a file that FlatSat made, here, by LiteRT with one thread.

    Args:
        data: of a file with one input of batch 1 and one output.
        values: (n, ...) as the file takes them.

    Returns:
        (n, ...) as the file gives them.

    Raises:
        ModelError: LiteRT refuses the file.
    """
    with _quiet():
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=data, num_threads=1)
            interpreter.allocate_tensors()
            (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
            rows = []
            for index in range(len(values)):
                interpreter.set_tensor(source["index"], values[index : index + 1])
                interpreter.invoke()
                rows.append(interpreter.get_tensor(target["index"]))
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise ModelError(f"LiteRT can't run this file: {text}") from error
    return np.concatenate(rows)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the native library prints off the terminal."""
    with tempfile.TemporaryFile() as sink, contextlib.redirect_stdout(io.StringIO()):
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def read(path: Path) -> bytes:
    """Return a model file's bytes.

    Raises:
        ModelError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
