"""Network -> ONNX: deterministic bytes, checked against PyTorch before they count."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import onnx
import torch
from pydantic import Field

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_bytes
from flatsat.compressors.agreement import disagreement, policy
from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.candidate import put_goldens
from flatsat.compressors.onnx_model import normalise, parse, run_host
from flatsat.datasets.fit import predict
from flatsat.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from flatsat.tensors import TensorSpec

GOLDENS = 256

_LOGGER = logging.getLogger("torch.onnx")


class OnnxLower:
    """Write the network as an ONNX file with an open batch axis.

    The file holds no source paths, and equal networks give equal bytes in any process. Before it
    counts, onnxruntime runs it on the host against PyTorch on the golden inputs: images of the
    validation split (and of the calibration split, should those not suffice). The agreement policy
    is max|d| <= 1e-4 max|ref| for a float network, and p99 of |d| <= 2 quanta of the output with
    the same class for 99 % of the images where activations are quantised, since a value that lies
    on the edge between two levels may fall to either side.
    """

    name: ClassVar[str] = "onnx"

    class Params(StepParams):
        """How to write the file."""

        opset: int = Field(
            17, ge=13, le=20, description="ONNX operator set; 17 (with IR 8) suits older boards"
        )
        goldens: int = Field(GOLDENS, ge=1, description="golden inputs and outputs to keep")

    def __init__(self, params: Params) -> None:
        self.params = params

    def lower(self, network: Network, folder: Path, ctx: StepContext) -> Artifact:
        """Write `float-<sha>.onnx` and its goldens.

        Raises:
            RecipeError: PyTorch can't export the network.
            ModelError: onnxruntime refuses the file, or disagrees with PyTorch; a parameter
                that is not finite is named.
        """
        source, target = ctx.workload.input, ctx.workload.output
        data = export(network, source, target, self.params.opset)
        inputs = golden_inputs(ctx, self.params.goldens)
        expected = predict(network.module, inputs)
        agreement = policy(network.quantum)
        found = run_host(data, {source.name: inputs})[target.name]
        if fault := disagreement(found, expected, agreement):
            if damaged := _not_finite(network):
                raise ModelError(f"the parameter {damaged} holds NaN or infinity")
            raise ModelError(f"the ONNX file disagrees with PyTorch: {fault}")
        sha256 = sha256_bytes(data)
        file = f"float-{sha256[:12]}.onnx"
        (folder / file).write_bytes(data)
        model = parse(data, file)
        return Artifact(
            sha256=sha256,
            format="onnx",
            role="float",
            size_bytes=len(data),
            file=file,
            opset=self.params.opset,
            ir=model.ir_version,
            layout="NCHW" if len(source.shape) == 4 else "",
            inputs=(source,),
            outputs=(target,),
            goldens=put_goldens(folder, {source.name: inputs}, {target.name: expected}),
            agreement=agreement,
        )


def _not_finite(network: Network) -> str:
    """Return the first parameter or buffer that holds NaN or infinity, or ""."""
    held = (*network.module.named_parameters(), *network.module.named_buffers())
    return next((name for name, values in held if not bool(values.isfinite().all())), "")


def export(network: Network, source: TensorSpec, target: TensorSpec, opset: int) -> bytes:
    """Return the network as the bytes of an ONNX file, equal for equal networks.

    Args:
        network: to write; its module is left as it was.
        source: name and open batch axis of the input.
        target: likewise of the output.
        opset: of the standard operators; the IR version is the lowest that carries it.

    Raises:
        RecipeError: PyTorch can't export the network.
    """
    batch = str(source.shape[0])
    out = io.BytesIO()
    module = copy.deepcopy(network.module).eval()
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                module,
                (torch.zeros(1, *network.input_shape),),
                cast("str", out),  # a stream will do, the annotation says otherwise
                dynamo=False,
                opset_version=opset,
                input_names=[source.name],
                output_names=[target.name],
                dynamic_axes={source.name: {0: batch}, target.name: {0: batch}},
            )
    except Exception as error:  # the exporter's errors share no class
        text = " ".join(str(error).split())[:200]
        raise RecipeError(f"PyTorch can't write this network as ONNX: {text}") from error
    model = parse(out.getvalue(), "PyTorch's export")
    model.ir_version = onnx.helper.find_min_ir_version_for(
        [onnx.helper.make_opsetid("", opset)], ignore_unknown=True
    )
    return normalise(model)


def golden_inputs(ctx: StepContext, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the first `count` images of the validation, then of the calibration split.

    The splits are shuffled, so that the first images are a fair sample; every candidate of a
    workload has the same golden inputs.
    """
    images = ctx.validation.x[:count]
    if len(images) < count:
        images = np.concatenate([images, ctx.calibration.x[: count - len(images)]])
    return np.array(images, dtype=np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: what it warns of is checked by running the file."""
    level = _LOGGER.level
    _LOGGER.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _LOGGER.setLevel(level)
