"""ONNX float -> ONNX int8 by onnxruntime's static quantisation in QDQ form."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_bytes
from flatsat.compressors.agreement import policy
from flatsat.compressors.base import StepContext, StepParams
from flatsat.compressors.candidate import goldens_path, put_goldens
from flatsat.compressors.int8_ranges import require_finite, require_room
from flatsat.compressors.onnx_model import normalise, opset, output_step, parse, run_host
from flatsat.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from flatsat.datasets.workload import Split

_BATCH = 32
_INT8_LEVELS = 127


class OnnxInt8:
    """Quantise weights and activations to 8 bits (full-integer operators where a runtime has them).

    Activations: x is stored as q = clip(round(x / s) + z, -128, 127), one scale s and zero point z
    a tensor, from the range that the calibrator finds on the calibration split. Weights: symmetric,
    one scale an output channel, s = max|w| / 127. Biases: int32 at scale s_x s_w. Calibrators:
    "minmax" takes the extremes; "entropy" the symmetric range whose quantised histogram has the
    least Kullback-Leibler divergence from the values'; "percentile" cuts the rarest values.

    The goldens are the outputs of the int8 file itself on the host: a board is to execute this
    file rightly, whatever the quantisation cost. Its agreement is judged by decision with the step
    of the output's quantiser as quantum; where the output has none, max|out| / 127.
    """

    name: ClassVar[str] = "int8"

    class Params(StepParams):
        """How to calibrate and what to quantise."""

        calibrator: Literal["minmax", "entropy", "percentile"] = Field(
            "minmax", description="how the range of an activation is found"
        )
        n: int = Field(256, ge=1, description="images of the calibration split")
        percentile: float = Field(
            99.99, gt=50, le=100, description='share of values inside the range, for "percentile"'
        )
        per_channel: bool = Field(True, description="one weight scale an output channel")
        activations: Literal["int8", "uint8"] = Field("int8", description="type of activations")
        reduce_range: bool = Field(
            False, description="7-bit weights, for x86 CPUs whose 16-bit sums saturate"
        )

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, artifact: Artifact, folder: Path, ctx: StepContext) -> Artifact:
        """Write `int8-<sha>.onnx` and its goldens beside the float file.

        Raises:
            RecipeError: the artifact is no float ONNX file with goldens, the calibration split has
                fewer images than asked for, or a layer's sums can leave int32.
            DataError: a calibration image holds NaN or infinity.
            ModelError: onnxruntime can't quantise the file or run the result.
        """
        if artifact.format != "onnx" or artifact.role != "float" or artifact.goldens is None:
            raise RecipeError(
                f"int8 quantises float ONNX files, not {artifact.role} {artifact.format}"
            )
        if self.params.n > len(ctx.calibration):
            raise RecipeError(
                f"int8 asks for {self.params.n} calibration images of {len(ctx.calibration)}",
                hint="lower int8.n",
            )
        require_finite(ctx.calibration.x[: self.params.n])
        (source,), (target,) = artifact.inputs, artifact.outputs
        data = self._quantise(folder / artifact.file, source.name, ctx.calibration)
        with np.load(goldens_path(folder, artifact.goldens), allow_pickle=False) as stored:
            inputs = {source.name: stored[f"in:{source.name}"]}
        model = parse(data, "the int8 file")
        require_room(model)
        outputs = run_host(data, inputs)
        sha256 = sha256_bytes(data)
        file = f"int8-{sha256[:12]}.onnx"
        quantum = output_step(model, target.name)
        if quantum is None:
            quantum = float(np.abs(outputs[target.name]).max()) / _INT8_LEVELS
        (folder / file).write_bytes(data)
        return Artifact(
            sha256=sha256,
            format="onnx",
            role="int8",
            size_bytes=len(data),
            file=file,
            opset=opset(model),
            ir=model.ir_version,
            layout=artifact.layout,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            lowered_from=artifact.sha256,
            goldens=put_goldens(folder, inputs, outputs),
            agreement=policy(quantum),
        )

    def _quantise(self, source: Path, input_name: str, calibration: Split) -> bytes:
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
        from onnxruntime.quantization.shape_inference import quant_pre_process

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }
        types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
        params = self.params
        with tempfile.TemporaryDirectory(prefix="flatsat-int8-") as temporary:
            prepared, written = Path(temporary, "prepared.onnx"), Path(temporary, "int8.onnx")
            ir = parse(source.read_bytes(), str(source)).ir_version
            try:
                with _quiet():
                    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
                    quantize_static(
                        str(prepared),
                        str(written),
                        _Reader(input_name, calibration.x[: params.n]),
                        quant_format=QuantFormat.QDQ,
                        # onnxruntime's own default is the order of a set, which no run repeats.
                        op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
                        per_channel=params.per_channel,
                        reduce_range=params.reduce_range,
                        activation_type=types[params.activations],
                        weight_type=QuantType.QInt8,
                        calibrate_method=methods[params.calibrator],
                        # One batch at a time: all activations of all images don't fit in memory.
                        extra_options={
                            "CalibStridedMinMax": 1,
                            "CalibPercentile": params.percentile,
                        },
                    )
            except Exception as error:  # onnxruntime's errors share no class
                text = " ".join(str(error).split())[:200]
                raise ModelError(f"onnxruntime can't quantise {source.name}: {text}") from error
            model = parse(written.read_bytes(), "the int8 file")
        model.ir_version = ir
        return normalise(model)


class _Reader:
    """Hands calibration images to onnxruntime in batches; a structural `CalibrationDataReader`."""

    def __init__(self, name: str, images: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        self._name = name
        starts = range(0, len(images), _BATCH)
        self._batches = [np.array(images[start : start + _BATCH]) for start in starts]
        self._left = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Hand out the batches of this range next."""
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]] | None:
        """Return the next batch by input name, or None at the end."""
        batch = next(self._left, None)
        return None if batch is None else {self._name: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's prints and log lines out of what the command line writes."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
