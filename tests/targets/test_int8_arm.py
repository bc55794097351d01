"""One int8 file on this machine and on the emulated ARM board: the same integers, or nearly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from flatsat.compressors.agreement import disagreement
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.layer_errors import (
    BEST_DB,
    culprit,
    exposed,
    layer_errors,
    layer_outputs,
    split,
)
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import run_host
from flatsat.datasets.nets import build
from flatsat.datasets.splits import Split
from flatsat.datasets.workload import workload
from flatsat.jobspec import JobKind
from flatsat.outcome import Measured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
WIDEST = (2**31 - 1) // (255 * 127)


@dataclass
class Arm:
    """The board as a function: a model's first output for some images."""

    session: Any
    files: Any
    make_latency: Any
    count: int = 0

    async def outputs(self, data: bytes, x: np.ndarray, name: str = "image") -> np.ndarray:
        self.count += 1
        artifact = self.files.keep(f"model-{self.count}.onnx", data)
        dataset = self.files.arrays(f"images-{self.count}", {f"in:{name}": x})
        spec = self.make_latency(
            artifact, kind=JobKind.ACCURACY, dataset=dataset, batch=len(x), board="qemu-arm64"
        )
        for sha256 in spec.blobs:
            await self.session.put(sha256, self.files.paths[sha256])
        outcome = await self.session.run(f"arm-{self.count}", spec)
        assert isinstance(outcome, Measured), outcome
        assert outcome.logits is not None
        logits = outcome.logits
        return np.frombuffer(logits.data, logits.dtype).reshape(logits.shape)


@pytest.fixture
async def arm(booted_board: Any, files: Any, make_latency: Any) -> AsyncIterator[Arm]:
    with booted_board.lease() as lease:
        session = await booted_board.board.open(lease)
        try:
            yield Arm(session, files, make_latency)
        finally:
            await session.close()


def context(folder: Path) -> StepContext:
    def images(name: str, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        return Split(name, rng.random((64, 1, 28, 28), np.float32), rng.integers(0, 10, 64))

    return StepContext(
        workload=workload("mnist-mini"),
        network="",
        train=images("train", 0),
        calibration=images("calibration", 1),
        validation=images("validation", 2),
        seed=0,
        cache_dir=folder,
    )


def dense(weights: np.ndarray, zero: np.generic, step: float) -> bytes:
    """QDQ `y = x W`: scales of 1, and outputs in steps of `step`."""
    constants = {
        "one": np.float32(1.0),
        "zero": np.asarray(zero),
        "weights": weights,
        "weights_zero": np.int8(0),
        "step": np.float32(step),
        "out_zero": np.uint8(128) if np.asarray(zero).dtype == np.uint8 else np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "weights_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "step", "out_zero"], ["sq"]),
        helper.make_node("DequantizeLinear", ["sq", "step", "out_zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


async def test_networks_agree_and_so_do_a_deep_ones_layers(arm: Arm, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    x = ctx.validation.x[:16]
    for name, options in (
        ("lenet5", {}),
        ("resnet20", {"activations": "uint8"}),
        ("mobilenet-small", {"per_channel": False, "reduce_range": True}),
    ):
        generator = torch.Generator().manual_seed(1)
        module = build(name, classes=10, input_shape=(1, 28, 28), width=0.5, generator=generator)
        source = OnnxLower(OnnxLower.Params(goldens=16)).lower(
            Network(module, (1, 28, 28)), tmp_path, ctx
        )
        params = OnnxInt8.Params.model_validate({"n": 64, **options})
        made = OnnxInt8(params).apply(source, tmp_path, ctx)
        data = (tmp_path / made.file).read_bytes()
        assert made.agreement is not None
        here, there = run_host(data, {"image": x})["logits"], await arm.outputs(data, x)
        # Untrained networks' largest logits lie close together: their places are not compared.
        loose = replace(made.agreement, top1=0.0)
        assert not disagreement(there, here, loose), name
        if name != "resnet20":
            continue
        whole, probes = exposed(data)
        between = layer_outputs(data, {"image": x})
        told = split(await arm.outputs(whole, x), probes, between)
        errors = layer_errors(probes, between, told)
        assert culprit(errors) is None, name
        assert errors[0].sqnr_db == BEST_DB


async def test_pairs_of_products_do_not_saturate_and_wide_sums_wrap_around(arm: Arm) -> None:
    for zero in (np.uint8(0), np.int8(0)):
        top = int(np.iinfo(zero.dtype).max)
        x = np.full((4, 64), top, np.float32)
        data = dense(np.full((64, 16), 127, np.int8), zero, 2.0**14)
        found = await arm.outputs(data, x, "x")
        assert np.array_equal(found, np.round(64 * top * 127 / 2**14 + 0 * found) * 2**14)
    for inputs in (WIDEST, WIDEST + 1):
        x = np.full((1, inputs), 255, np.float32)
        data = dense(np.full((inputs, 4), 127, np.int8), np.uint8(0), 2e7)
        found = await arm.outputs(data, x, "x")
        assert (found > 0).all() == (inputs == WIDEST)


async def test_inputs_out_of_range_are_clamped_alike_and_a_nan_to_the_lowest_code(arm: Arm) -> None:
    data = dense(np.eye(4, dtype=np.int8), np.int8(-28), 2.0)
    x = np.array([[np.inf, -np.inf, 3e38, -1e9], [99.0, -101.0, 156.0, 155.0]], np.float32)
    found = await arm.outputs(data, x, "x")
    assert np.array_equal(found, run_host(data, {"x": x})["y"])
    assert np.array_equal(found[0], np.array([156, -100, 156, -100]).clip(-256, 254))
    nan = np.array([[np.nan, 1.0, 2.0, 4.0]], np.float32)
    told, here = await arm.outputs(data, nan, "x"), run_host(data, {"x": nan})["y"]
    assert np.array_equal(told, here)
    assert told[0, 0] == -100
