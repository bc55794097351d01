"""Quantised operators at their edges: wide sums, saturating pairs, inputs without a range."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_bytes
from flatsat.compressors.base import Network
from flatsat.compressors.candidate import put_goldens
from flatsat.compressors.int8_ranges import INT32_MAX, accumulators, require_room
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import parse, run_host
from flatsat.compressors.tflite_lower import TfliteInt8
from flatsat.datasets.splits import Split
from flatsat.errors import DataError, ModelError, RecipeError
from flatsat.tensors import TensorSpec

WIDEST = INT32_MAX // (255 * 127)
"""So many products of the largest codes fit into int32."""


def dense(weights: np.ndarray, *, zero: np.generic, step: float, out_zero: int = 0) -> Any:
    """Return QDQ `y = x W` with input and weight scale 1 and the output in steps of `step`."""
    constants = {
        "one": np.float32(1.0),
        "zero": np.asarray(zero),
        "weights": weights,
        "weights_zero": np.int8(0),
        "step": np.float32(step),
        "out_zero": np.int8(out_zero),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "weights_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["sums"], name="/fc/MatMul"),
        helper.make_node("QuantizeLinear", ["sums", "step", "out_zero"], ["sq"]),
        helper.make_node("DequantizeLinear", ["sq", "step", "out_zero"], ["y"]),
    ]
    if np.asarray(zero).dtype == np.uint8:
        # onnxruntime's integer operators take outputs of the input's type.
        constants["out_zero"] = np.uint8(out_zero + 128)
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(weights)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def output(model: Any, x: np.ndarray) -> np.ndarray:
    return run_host(model.SerializeToString(), {"x": x.astype(np.float32)})["y"]


# -- the int32 accumulator


@pytest.mark.parametrize("inputs", [WIDEST, WIDEST + 1])
def test_onnxruntime_wraps_around_where_the_bound_says_so(inputs: int) -> None:
    weights = np.full((inputs, 4), 127, np.int8)
    model = dense(weights, zero=np.uint8(0), step=2e7)
    (sums,) = accumulators(model)
    assert (sums.layer, sums.least, sums.most) == ("/fc/MatMul", 0, inputs * 255 * 127)
    assert sums.fits == (inputs == WIDEST)
    found = output(model, np.full((2, inputs), 255))
    exact = inputs * 255 * 127
    wrapped = (exact + 2**31) % 2**32 - 2**31
    assert np.allclose(found, np.round(wrapped / 2e7) * 2e7)
    assert (found > 0).all() == sums.fits
    if sums.fits:
        require_room(model)
    else:
        with pytest.raises(RecipeError, match=r"'/fc/MatMul' can come to 2,147,514,120, beyond"):
            require_room(model)


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.lists(st.integers(-127, 127), min_size=2 * n, max_size=2 * n)
    ),
    st.integers(-128, 127),
)
def test_the_bound_is_reached_and_never_passed(weights: list[int], zero: int) -> None:
    matrix = np.array(weights, np.int8).reshape(-1, 2)
    (sums,) = accumulators(dense(matrix, zero=np.int8(zero), step=1.0))
    wide = matrix.astype(np.int64)
    codes = np.array([-128, 127]) - zero
    most = np.where(wide > 0, wide * codes[1], wide * codes[0]).sum(axis=0).max()
    least = np.where(wide > 0, wide * codes[0], wide * codes[1]).sum(axis=0).min()
    assert (sums.least, sums.most) == (least, most)


def wide_artifact(folder: Path, inputs: int) -> Artifact:
    """A float ONNX file of one dense layer, too wide for int32 if all its inputs are large."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"], name="/wide/MatMul")],
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.full((inputs, 2), 0.01, np.float32), "w")],
    )
    data = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    (folder / "wide.onnx").write_bytes(data)
    x = np.random.default_rng(0).random((4, inputs), np.float32)
    return Artifact(
        sha256=sha256_bytes(data),
        format="onnx",
        role="float",
        size_bytes=len(data),
        file="wide.onnx",
        opset=17,
        ir=8,
        layout="",
        inputs=(TensorSpec("image", "float32", ("batch", inputs)),),
        outputs=(TensorSpec("logits", "float32", ("batch", 2)),),
        goldens=put_goldens(folder, {"image": x}, run_host(data, {"image": x})),
    )


@pytest.mark.parametrize("inputs", [WIDEST // 2, WIDEST + 500])
def test_int8_refuses_a_layer_whose_sums_can_wrap_around(
    tmp_path: Path, blobs: Any, inputs: int
) -> None:
    source = wide_artifact(tmp_path, inputs)
    rng = np.random.default_rng(1)
    images = Split("calibration", rng.random((8, inputs), np.float32), np.zeros(8, np.int64))
    ctx = replace(blobs((inputs,), n=8), calibration=images)
    int8 = OnnxInt8(OnnxInt8.Params(n=8))
    if inputs < WIDEST:
        made = int8.apply(source, tmp_path, ctx)
        (sums,) = accumulators(parse((tmp_path / made.file).read_bytes(), made.file))
        assert sums.fits
        return
    with pytest.raises(RecipeError, match="/wide/MatMul") as caught:
        int8.apply(source, tmp_path, ctx)
    assert "fewer inputs" in caught.value.hint


def test_common_layers_are_far_from_the_edge(tmp_path: Path, blobs: Any) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)
    )
    ctx = blobs((1, 8, 8))
    source = OnnxLower(OnnxLower.Params(goldens=16)).lower(
        Network(module, (1, 8, 8)), tmp_path, ctx
    )
    made = OnnxInt8(OnnxInt8.Params(n=64)).apply(source, tmp_path, ctx)
    found = accumulators(parse((tmp_path / made.file).read_bytes(), made.file))
    assert [sums.layer for sums in found] == ["/0/Conv", "/3/Gemm"]
    assert all(-INT32_MAX / 1000 < sums.least < sums.most < INT32_MAX / 1000 for sums in found)


# -- pairs of products in 16 bits, on x86 without VNNI


def saturating_host() -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in flags


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([64, 127]), st.booleans())
def test_sums_are_exact_with_reduced_range_and_else_where_pairs_do_not_saturate(
    seed: int, largest: int, unsigned: bool
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(-largest, largest + 1, (64, 16)).astype(np.int8)
    zero = np.uint8(0) if unsigned else np.int8(0)
    limits = np.iinfo(zero.dtype)
    x = rng.integers(int(limits.min), int(limits.max) + 1, (3, 64))
    exact = x @ weights.astype(np.int64)
    step = float(2 ** int(np.ceil(np.log2(max(np.abs(exact).max(), 1) / 120))))
    found = output(dense(weights, zero=zero, step=step), x)
    if largest == 64 or not saturating_host():
        # 255 x 64 + 255 x 64 = 32,640 fits into 16 bits.
        assert np.array_equal(found, np.round(exact / step) * step)
    else:
        assert np.abs(found).max() <= 127 * step


_ON_X86 = """
import sys
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 1
for path, value in zip(sys.argv[1::2], sys.argv[2::2]):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.full((4, 64), float(value), np.float32)
    print(float(session.run(None, {"x": x})[0][0, 0]))
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None,
    reason="needs qemu-x86_64, to be a CPU without VNNI",
)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_without_vnni_pairs_saturate_unless_the_range_is_reduced(tmp_path: Path, kind: str) -> None:
    zero = np.zeros((), kind)[()]
    top = int(np.iinfo(kind).max)
    orders, expected = [], []
    step = 1.0 * 2**14
    for largest in (64, 127):
        path = tmp_path / f"{largest}.onnx"
        model = dense(np.full((64, 16), largest, np.int8), zero=zero, step=step)
        path.write_bytes(model.SerializeToString())
        orders += [str(path), str(top)]
        # The kernel adds 128 to signed codes, and takes it off the sum again.
        shift = 0 if kind == "uint8" else 128
        pair = min(2 * (top + shift) * largest, 2**15 - 1)
        sums = 32 * pair - 64 * shift * largest
        expected.append((64 * top * largest, sums))
    command = [
        *("qemu-x86_64", "-cpu", "Haswell-v4", sys.executable),
        *("-c", _ON_X86, *orders),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ran.returncode:
        pytest.skip(f"onnxruntime does not run there: {ran.stderr.strip()[-200:]}")
    found = [float(line) for line in ran.stdout.split()]
    for value, (_, sums) in zip(found, expected, strict=True):
        assert value == np.clip(np.round(sums / step), -128, 127) * step
    assert expected[0][0] == expected[0][1]
    assert expected[1][0] > expected[1][1]


# -- inputs that nobody calibrated


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(np.uint8, 0), (np.uint8, 100), (np.int8, 0), (np.int8, -100)]),
    st.lists(
        st.floats(width=32, allow_nan=False) | st.sampled_from([np.inf, -np.inf, 3e38]),
        min_size=4,
        max_size=4,
    ),
)
def test_inputs_out_of_range_are_clamped_to_it(kind: Any, values: list[float]) -> None:
    dtype, zero = kind
    limits = np.iinfo(dtype)
    low, high = int(limits.min) - zero, int(limits.max) - zero
    model = dense(np.eye(4, dtype=np.int8), zero=dtype(zero), step=2.0)
    x = np.array([values], np.float32)
    assert np.array_equal(output(model, x), output(model, np.clip(x, low, high)))


def test_a_nan_is_taken_for_some_number_of_the_range() -> None:
    # Integers have no NaN to hand on; on x86 and ARM it comes out as the lowest code.
    model = dense(np.eye(4, dtype=np.int8), zero=np.int8(-28), step=2.0)
    found = output(model, np.array([[np.nan, 1.0, 2.0, 4.0]]))
    assert np.isfinite(found).all()
    assert np.array_equal(found[0, 1:], np.round(np.array([1.0, 2.0, 4.0]) / 2) * 2)


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
def test_an_image_that_is_not_finite_is_named_before_calibration(
    tmp_path: Path, blobs: Any, value: float, what: str
) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    ctx = blobs((1, 4, 4))
    source = OnnxLower(OnnxLower.Params(goldens=16)).lower(
        Network(module, (1, 4, 4)), tmp_path, ctx
    )
    images = ctx.calibration.x.copy()
    images[7, 0, 2, 2] = value
    damaged = replace(ctx, calibration=Split("calibration", images, ctx.calibration.y))
    with pytest.raises(DataError, match=f"image 7 of the calibration split holds {what}"):
        OnnxInt8(OnnxInt8.Params(n=64)).apply(source, tmp_path, damaged)
    OnnxInt8(OnnxInt8.Params(n=7)).apply(source, tmp_path, damaged)
    tflite = replace(source, format="tflite")
    with pytest.raises(DataError, match=what):
        TfliteInt8(TfliteInt8.Params(n=64)).apply(tflite, tmp_path, damaged)


def test_a_parameter_that_is_not_finite_is_named(tmp_path: Path, blobs: Any) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        module[3].weight[1, 2] = float("nan")
    with pytest.raises(ModelError, match=r"the parameter 3\.weight holds NaN or infinity"):
        OnnxLower(OnnxLower.Params(goldens=16)).lower(
            Network(module, (1, 4, 4)), tmp_path, blobs((1, 4, 4))
        )


@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "percentile"])
def test_whatever_the_calibrator_outputs_stay_in_the_range_of_the_last_quantiser(
    tmp_path: Path, blobs: Any, calibrator: str
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    ctx = blobs((1, 4, 4))
    source = OnnxLower(OnnxLower.Params(goldens=16)).lower(
        Network(module, (1, 4, 4)), tmp_path, ctx
    )
    params = OnnxInt8.Params.model_validate({"calibrator": calibrator, "n": 64})
    made = OnnxInt8(params).apply(source, tmp_path, ctx)
    data = (tmp_path / made.file).read_bytes()
    assert made.agreement is not None
    quantum = made.agreement.quantum
    assert quantum is not None
    wild = np.array([1e30, -1e30, np.inf, 0.0] * 4, np.float32).reshape(1, 1, 4, 4)
    found = run_host(data, {"image": np.concatenate([wild, -wild, 1e6 * ctx.validation.x[:20]])})
    codes = found["logits"] / quantum
    assert np.abs(codes - np.round(codes)).max() < 1e-2
    assert codes.max() - codes.min() <= 255.5
    onnx.checker.check_model(onnx.load_model_from_string(data))
