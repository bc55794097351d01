"""onnxruntime's static quantisation as a pass: types, ranges, goldens, policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from flatsat.compressors.agreement import disagreement, top1_agreement
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.candidate import goldens_path
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import inspect, run_host
from flatsat.datasets.nets import build
from flatsat.datasets.workload import Split, workload
from flatsat.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from flatsat.artifact import Artifact


def context(tmp_path: Path) -> StepContext:
    def split(name: str, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        return Split(name, rng.random((80, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 80))

    return StepContext(
        workload=workload("mnist-mini"),
        network="",
        train=split("train", 0),
        calibration=split("calibration", 1),
        validation=split("validation", 2),
        seed=0,
        cache_dir=tmp_path,
    )


@pytest.fixture
def lowered(tmp_path: Path) -> tuple[Artifact, StepContext]:
    ctx = context(tmp_path)
    generator = torch.Generator().manual_seed(1)
    module = build("lenet5", classes=10, input_shape=(1, 28, 28), width=0.5, generator=generator)
    made = OnnxLower(OnnxLower.Params(goldens=64)).lower(
        Network(module, (1, 28, 28)), tmp_path, ctx
    )
    return made, ctx


def stored_types(path: Path) -> dict[str, set[int]]:
    model = onnx.load_model(path)
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kinds: dict[str, set[int]] = {"scale_axes": set(), "weights": set(), "zeros": set()}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            kinds["weights"].add(tensors[node.input[0]])
            scale = next(t for t in model.graph.initializer if t.name == node.input[1])
            kinds["scale_axes"].add(len(scale.dims))
        if node.op_type == "QuantizeLinear":
            kinds["zeros"].add(tensors[node.input[2]])
    return kinds


@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "percentile"])
def test_int8_file_and_its_goldens(
    tmp_path: Path, lowered: tuple[Artifact, StepContext], calibrator: str
) -> None:
    source, ctx = lowered
    made = OnnxInt8(OnnxInt8.Params.model_validate({"calibrator": calibrator, "n": 70})).apply(
        source, tmp_path, ctx
    )
    path = tmp_path / made.file
    info = inspect(path)
    assert (made.role, made.lowered_from, info.opset, info.ir) == ("int8", source.sha256, 17, 8)
    assert info.inputs == source.inputs
    assert info.valid
    assert made.size_bytes < 0.35 * source.size_bytes
    kinds = stored_types(path)
    assert kinds["weights"] == {TensorProto.INT8, TensorProto.INT32}
    assert kinds["zeros"] == {TensorProto.INT8}
    assert kinds["scale_axes"] == {1}  # One scale an output channel.
    assert made.goldens is not None
    assert source.goldens is not None
    with np.load(goldens_path(tmp_path, made.goldens)) as goldens:
        x, expected = goldens["in:image"], goldens["out:logits"]
    assert np.array_equal(run_host(path, {"image": x})["logits"], expected)
    with np.load(goldens_path(tmp_path, source.goldens)) as goldens:
        assert np.array_equal(goldens["in:image"], x)
        exact = goldens["out:logits"]
    # Logits of an untrained network lie close together: only the outputs' scale is compared.
    assert np.abs(expected - exact).max() < 0.2 * np.abs(exact).max()


def test_quantum_is_the_step_of_the_outputs_quantiser(
    tmp_path: Path, lowered: tuple[Artifact, StepContext]
) -> None:
    source, ctx = lowered
    made = OnnxInt8(OnnxInt8.Params(n=64)).apply(source, tmp_path, ctx)
    assert made.agreement is not None
    assert (made.agreement.kind, made.agreement.p99_quanta, made.agreement.top1) == (
        "decision",
        2.0,
        0.99,
    )
    quantum = made.agreement.quantum
    assert quantum is not None
    assert made.goldens is not None
    with np.load(goldens_path(tmp_path, made.goldens)) as goldens:
        outputs = goldens["out:logits"].astype(np.float64)
    assert np.allclose(outputs / quantum, np.round(outputs / quantum), atol=1e-3)
    assert len(np.unique(outputs)) > 10
    assert not disagreement(outputs + 1.9 * quantum, outputs, made.agreement)
    assert disagreement(outputs + 2.1 * quantum, outputs, made.agreement)
    assert top1_agreement(outputs, outputs) == 1.0


def test_options_reach_the_file(tmp_path: Path, lowered: tuple[Artifact, StepContext]) -> None:
    source, ctx = lowered
    params = OnnxInt8.Params(n=32, per_channel=False, activations="uint8", reduce_range=True)
    made = OnnxInt8(params).apply(source, tmp_path, ctx)
    path = tmp_path / made.file
    kinds = stored_types(path)
    assert kinds["zeros"] == {TensorProto.UINT8}
    # One weight scale a layer: a scalar, or one element for the biases.
    assert 0 in kinds["scale_axes"]
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in onnx.load_model(path).graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64


def test_percentile_cuts_the_range(tmp_path: Path, lowered: tuple[Artifact, StepContext]) -> None:
    source, ctx = lowered
    quanta = []
    for percentile in (60.0, 100.0):
        params = OnnxInt8.Params(n=64, calibrator="percentile", percentile=percentile)
        made = OnnxInt8(params).apply(source, tmp_path, ctx)
        assert made.agreement is not None
        assert made.agreement.quantum is not None
        quanta.append(made.agreement.quantum)
    assert quanta[0] < 0.8 * quanta[1]


def test_calibration_never_sees_validation(
    tmp_path: Path, lowered: tuple[Artifact, StepContext]
) -> None:
    source, ctx = lowered
    loud = replace(ctx, validation=Split("validation", ctx.validation.x * 100, ctx.validation.y))
    first = OnnxInt8(OnnxInt8.Params(n=64)).apply(source, tmp_path, ctx)
    second = OnnxInt8(OnnxInt8.Params(n=64)).apply(source, tmp_path, loud)
    assert first.sha256 == second.sha256
    third = OnnxInt8(OnnxInt8.Params(n=64)).apply(
        source, tmp_path, replace(ctx, calibration=loud.validation)
    )
    assert third.sha256 != first.sha256


def test_too_few_calibration_images_are_refused(
    tmp_path: Path, lowered: tuple[Artifact, StepContext]
) -> None:
    source, ctx = lowered
    with pytest.raises(RecipeError, match=r"asks for 81 calibration images of 80"):
        OnnxInt8(OnnxInt8.Params(n=81)).apply(source, tmp_path, ctx)


def test_int8_of_int8_is_refused(tmp_path: Path, lowered: tuple[Artifact, StepContext]) -> None:
    source, ctx = lowered
    made = OnnxInt8(OnnxInt8.Params(n=32)).apply(source, tmp_path, ctx)
    with pytest.raises(RecipeError, match="not int8 onnx"):
        OnnxInt8(OnnxInt8.Params(n=32)).apply(made, tmp_path, ctx)


def test_damaged_float_file_is_refused_in_one_line(
    tmp_path: Path, lowered: tuple[Artifact, StepContext]
) -> None:
    source, ctx = lowered
    (tmp_path / source.file).write_bytes(b"rubbish")
    with pytest.raises(ModelError) as caught:
        OnnxInt8(OnnxInt8.Params(n=32)).apply(source, tmp_path, ctx)
    assert "\n" not in str(caught.value)
