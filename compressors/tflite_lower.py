"""Network -> TensorFlow Lite, in floats and in 8-bit integers, through LiteRT's own converter."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_bytes
from flatsat.compressors.agreement import disagreement, policy
from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.candidate import goldens_path, put_goldens
from flatsat.compressors.converter import convert, quantise
from flatsat.compressors.int8_ranges import require_finite
from flatsat.compressors.onnx_lower import GOLDENS, golden_inputs
from flatsat.compressors.tflite_model import inspect, run_host
from flatsat.compressors.tflite_write import normalise
from flatsat.datasets.fit import predict
from flatsat.errors import ModelError, RecipeError
from flatsat.layouts import NHWC, for_model

if TYPE_CHECKING:
    from flatsat.tensors import TensorSpec


class TfliteLower:
    """Write the network as a TFLite file of batch 1 that takes images as (1, height, width, c).

    The network is exported by `torch.export` and converted by litert-torch in an environment of
    its own. Its first operation puts the channels where PyTorch has them; the converter moves that
    into the layers. The file holds no class names or source paths, and equal networks give equal
    bytes in any process. Before it counts, LiteRT runs it here against PyTorch on the golden
    inputs, under the agreement policy of `OnnxLower`.
    """

    name: ClassVar[str] = "tflite"

    class Params(StepParams):
        """How to write the file."""

        goldens: int = Field(GOLDENS, ge=1, description="golden inputs and outputs to keep")

    def __init__(self, params: Params) -> None:
        self.params = params

    def lower(self, network: Network, folder: Path, ctx: StepContext) -> Artifact:
        """Write `float-<sha>.tflite` and its goldens.

        Raises:
            RecipeError: the network can't be exported or converted.
            ModelError: LiteRT refuses the file, or disagrees with PyTorch.
            InfrastructureError: the converter can't be had.
        """
        data = export(network, ctx)
        images = golden_inputs(ctx, self.params.goldens)
        expected = predict(network.module, images)
        agreement = policy(network.quantum)
        info = inspect(data, "the TFLite file")
        (source,), (target,) = info.inputs, info.outputs
        inputs = for_model(images, source, NHWC)
        if fault := disagreement(run_host(data, inputs), expected, agreement):
            raise ModelError(f"the TFLite file disagrees with PyTorch: {fault}")
        return _written(
            folder,
            data,
            "float",
            (source, target),
            put_goldens(folder, {source.name: inputs}, {target.name: expected}),
            agreement=agreement,
        )


class TfliteInt8:
    """Quantise weights, activations, inputs and outputs to 8-bit integers.

    Activations: int8 with one scale and zero point a tensor, from the range that the calibrator
    finds on the calibration split. Weights: symmetric, one scale an output channel. Biases: int32.
    Done by litert-quantizer on the float file.

    The goldens are the int8 file's own inputs and outputs, integers as they are; boards are held
    to them by decision with a quantum of 1.
    """

    name: ClassVar[str] = "tflite-int8"

    class Params(StepParams):
        """How to calibrate."""

        calibrator: Literal["minmax", "moving-average"] = Field(
            "minmax", description="how the range of an activation is found"
        )
        n: int = Field(256, ge=1, description="images of the calibration split")
        per_channel: bool = Field(True, description="one weight scale an output channel")

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, artifact: Artifact, folder: Path, ctx: StepContext) -> Artifact:
        """Write `int8-<sha>.tflite` and its goldens beside the float file.

        Raises:
            RecipeError: the artifact is no float TFLite file with goldens, the calibration split
                has fewer images than asked for, or the quantiser doesn't know an operator or
                leaves it in floating point.
            DataError: a calibration image holds NaN or infinity.
            ModelError: LiteRT can't run the result.
            InfrastructureError: the converter can't be had.
        """
        if artifact.format != "tflite" or artifact.role != "float" or artifact.goldens is None:
            raise RecipeError(
                f"tflite-int8 quantises float TFLite files, not {artifact.role} {artifact.format}"
            )
        if self.params.n > len(ctx.calibration):
            raise RecipeError(
                f"int8 asks for {self.params.n} calibration images of {len(ctx.calibration)}",
                hint="lower int8.n",
            )
        require_finite(ctx.calibration.x[: self.params.n])
        data = quantise(
            (folder / artifact.file).read_bytes(),
            for_model(ctx.calibration.x[: self.params.n], artifact.inputs[0], NHWC),
            calibrator=self.params.calibrator,
            per_channel=self.params.per_channel,
            cache_dir=ctx.cache_dir,
            progress=ctx.progress,
        )
        (taken,), (given,) = artifact.inputs, artifact.outputs
        data = normalise(data, [taken.name], [given.name])
        info = inspect(data, "the int8 TFLite file")
        (source,), (target,) = info.inputs, info.outputs
        if info.floats:
            between = {"QUANTIZE", "DEQUANTIZE"}
            told = sorted({*info.floats} - between) or info.floats
            raise RecipeError(
                f"litert-quantizer leaves {', '.join(told)} in floating point",
                hint="lower this network to float, or to int8 through ONNX",
            )
        with np.load(goldens_path(folder, artifact.goldens), allow_pickle=False) as stored:
            count = len(stored[f"in:{artifact.inputs[0].name}"])
        inputs = for_model(golden_inputs(ctx, count), source, NHWC)
        outputs = run_host(data, inputs)
        return _written(
            folder,
            data,
            "int8",
            (source, target),
            put_goldens(folder, {source.name: inputs}, {target.name: outputs}),
            agreement=policy(1.0),
            lowered_from=artifact.sha256,
        )


def _written(
    folder: Path,
    data: bytes,
    role: str,
    ends: tuple[TensorSpec, TensorSpec],
    goldens: str,
    **more: Any,
) -> Artifact:
    sha256 = sha256_bytes(data)
    file = f"{role}-{sha256[:12]}.tflite"
    (folder / file).write_bytes(data)
    return Artifact(
        sha256=sha256,
        format="tflite",
        role=role,
        size_bytes=len(data),
        file=file,
        opset=None,
        ir=None,
        layout=NHWC,
        inputs=(ends[0],),
        outputs=(ends[1],),
        goldens=goldens,
        **more,
    )


class _ChannelsLast(nn.Module):
    """Takes images as (1, height, width, channels)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> Any:
        """Return the network's output."""
        return self.inner(image.permute(0, 3, 1, 2))


def export(network: Network, ctx: StepContext) -> bytes:
    """Return the network as the bytes of a float TFLite file.

    Raises:
        RecipeError: PyTorch can't export it, or the converter can't take it.
        InfrastructureError: the converter can't be had.
    """
    channels, *sides = network.input_shape
    module = copy.deepcopy(network.module).eval()
    example = torch.zeros(1, *network.input_shape)
    if len(sides) == 2:
        module = _ChannelsLast(module).eval()
        example = torch.zeros(1, *sides, channels)
    with tempfile.TemporaryDirectory(prefix="flatsat-tflite-") as folder:
        program = Path(folder, "network.pt2")
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.export.save(torch.export.export(module, (example,)), program)
        except Exception as error:  # the exporter's errors share no class
            text = " ".join(str(error).split())[:200]
            raise RecipeError(f"PyTorch can't export this network: {text}") from error
        data = convert(program, cache_dir=ctx.cache_dir, progress=ctx.progress)
    return normalise(data, [ctx.workload.input.name], [ctx.workload.output.name])


def accuracy(data: bytes, source: TensorSpec, images: np.ndarray[Any, Any], labels: Any) -> float:
    """Return a file's accuracy on images (n, c, h, w), executed by LiteRT here."""
    found = run_host(data, for_model(images, source, NHWC))
    return float(np.mean(found.reshape(len(found), -1).argmax(axis=1) == labels))
