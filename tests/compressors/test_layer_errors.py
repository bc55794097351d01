"""The layer that an error comes from: found by what it adds to that of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from flatsat.compressors.base import Network
from flatsat.compressors.layer_errors import (
    BEST_DB,
    LAYERS_OUTPUT,
    LayerError,
    Probe,
    compare_files,
    culprit,
    exposed,
    layer_errors,
    layer_outputs,
    probes,
    split,
    sqnr_db,
    worst,
)
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import run_host
from flatsat.datasets.nets import build
from flatsat.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

NETWORKS = ("lenet5", "resnet20", "mobilenet-small")


@pytest.fixture(params=NETWORKS)
def files(request: Any, tmp_path: Path, blobs: Any) -> tuple[bytes, bytes, np.ndarray]:
    """A float file, its int8 file and images."""
    generator = torch.Generator().manual_seed(1)
    module = build(
        request.param, classes=4, input_shape=(1, 28, 28), width=0.5, generator=generator
    )
    ctx = blobs((1, 28, 28))
    source = OnnxLower(OnnxLower.Params(goldens=16)).lower(
        Network(module, (1, 28, 28)), tmp_path, ctx
    )
    made = OnnxInt8(OnnxInt8.Params(n=64)).apply(source, tmp_path, ctx)
    read = [(tmp_path / artifact.file).read_bytes() for artifact in (source, made)]
    return read[0], read[1], ctx.validation.x[:8]


def weighted(data: bytes) -> list[str]:
    graph = onnx.load_model_from_string(data).graph
    return [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")]


def damaged(data: bytes, layer: str) -> bytes:
    """The file with this layer's weights in another order."""
    model = onnx.load_model_from_string(data)
    makers = {name: node for node in model.graph.node for name in node.output}
    node = next(node for node in model.graph.node if node.name == layer)
    name = makers[node.input[1]].input[0]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weights = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(-weights[::-1].copy(), name))
    return bytes(model.SerializeToString())


def test_a_sound_int8_file_has_no_culprit(files: tuple[bytes, bytes, np.ndarray]) -> None:
    source, made, x = files
    errors = compare_files(source, made, {"image": x})
    assert set(weighted(made)) <= {error.layer for error in errors}
    assert min(error.sqnr_db for error in errors) > 15
    assert culprit(errors) is None
    assert worst(errors) in errors


def test_a_damaged_layer_is_named_wherever_it_is(files: tuple[bytes, bytes, np.ndarray]) -> None:
    source, made, x = files
    layers = weighted(made)
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        found = culprit(compare_files(source, damaged(made, layer), {"image": x}))
        assert found is not None
        assert found.layer == layer


def test_what_a_file_tells_in_one_output_is_what_it_tells_in_many(
    files: tuple[bytes, bytes, np.ndarray],
) -> None:
    source, made, x = files
    for data in (source, made):
        whole, found = exposed(data)
        onnx.checker.check_model(onnx.load_model_from_string(whole))
        apart = layer_outputs(data, {"image": x})
        again = split(run_host(whole, {"image": x})[LAYERS_OUTPUT], found, apart)
        assert list(again) == [probe.tensor for probe in found]
        # A float file may be fused in another way; integers come out the same.
        tolerance = 0.0 if data is made else 1e-5
        for tensor, values in again.items():
            assert np.allclose(values, apart[tensor], rtol=tolerance, atol=tolerance), tensor


def test_looking_into_a_file_leaves_its_answers_within_some_steps(
    files: tuple[bytes, bytes, np.ndarray],
) -> None:
    _, made, x = files
    last = probes(made)[-1]
    told = layer_outputs(made, {"image": x})[last.tensor]
    # Some operators are not fused any more, and round once more.
    assert np.abs(told - run_host(made, {"image": x})["logits"]).max() < 2.5 * last.scale


def test_a_file_without_layers_is_refused() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
        [],
    )
    data = onnx.helper.make_model(graph).SerializeToString()
    with pytest.raises(ModelError, match="no layer to look into"):
        exposed(data)


@given(st.integers(1, 200), st.floats(-50, 50), st.integers(0, 1000))
def test_the_ratio_is_that_of_the_powers(n: int, ratio_db: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal, noise = rng.normal(size=n), rng.normal(size=n)
    noise *= np.sqrt((signal**2).sum() / (noise**2).sum()) * 10 ** (-ratio_db / 20)
    assert sqnr_db(signal, signal + noise) == pytest.approx(ratio_db, abs=1e-6)
    # Neither the unit nor the number of images matters.
    assert sqnr_db(3 * signal, 3 * (signal + noise)) == pytest.approx(ratio_db, abs=1e-6)


def test_edges_of_the_ratio() -> None:
    ones = np.ones(3)
    assert sqnr_db(ones, ones) == BEST_DB
    assert sqnr_db(ones, ones * np.nan) == -BEST_DB
    assert sqnr_db(ones, ones * np.inf) == -BEST_DB
    assert sqnr_db(0 * ones, ones) == -BEST_DB
    assert sqnr_db(0 * ones, 0 * ones) == BEST_DB


def test_noise_that_a_layer_was_given_is_not_its_own() -> None:
    found = tuple(
        Probe(layer, layer, layer, 1.0, 0, inputs)
        for layer, inputs in (("a", ()), ("b", (0,)), ("c", (1,)), ("d", (0, 2)))
    )
    clean = {name: np.array([[10.0, -10.0]]) for name in "abcd"}
    noisy = clean | {name: np.array([[10.0, -2.0]]) for name in "bcd"}
    errors = layer_errors(found, clean, noisy)
    assert [round(error.fall_db, 1) for error in errors] == [0.0, 55.1, 0.0, 0.0]
    first = culprit(errors)
    assert first is not None
    assert first.layer == "b"
    # Noise that nobody would hear is no jump, however much it is beside none.
    assert culprit([LayerError("a", 40.0, 20.0)]) is None
    assert culprit([]) is None
    assert worst([]) is None
