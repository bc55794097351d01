"""Networks lowered to TensorFlow Lite, in floats and in integers; and the layouts of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.recipe import RecipeKeyError, from_mapping
from flatsat.compressors.tflite_lower import TfliteInt8, TfliteLower
from flatsat.compressors.tflite_model import inspect, run_host
from flatsat.datasets.nets import build
from flatsat.datasets.workload import Split, workload
from flatsat.errors import RecipeError
from flatsat.layouts import NHWC, for_model, from_model
from flatsat.tensors import TensorSpec

converter = pytest.mark.converter


@pytest.fixture(scope="session")
def ctx(converter_cache: Path) -> StepContext:
    draw = np.random.default_rng(0)

    def split(name: str, n: int) -> Split:
        x = draw.normal(size=(n, 1, 28, 28)).astype(np.float32)
        return Split(name, x, np.asarray(draw.integers(0, 10, n), dtype=np.int64))

    return StepContext(
        workload=workload("mnist-mini"),
        network="",
        train=split("train", 8),
        calibration=split("calibration", 32),
        validation=split("validation", 24),
        seed=0,
        cache_dir=converter_cache,
    )


def network(name: str) -> Network:
    generator = torch.Generator().manual_seed(3)
    module = build(name, classes=10, input_shape=(1, 28, 28), generator=generator)
    return Network(module.eval(), (1, 28, 28))


@converter
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_a_network_becomes_a_float_and_a_full_integer_file(
    name: str, ctx: StepContext, tmp_path: Path
) -> None:
    net = network(name)
    floats = TfliteLower(TfliteLower.Params(goldens=16)).lower(net, tmp_path, ctx)
    assert (floats.format, floats.role, floats.layout) == ("tflite", "float", NHWC)
    assert floats.inputs[0].shape == (1, 28, 28, 1)
    integers = TfliteInt8(TfliteInt8.Params(n=32)).apply(floats, tmp_path, ctx)
    assert {s.dtype for s in (*integers.inputs, *integers.outputs)} == {"int8"}
    assert integers.size_bytes < 0.35 * floats.size_bytes
    images = ctx.validation.x
    with torch.no_grad():
        expected = net.module(torch.from_numpy(images)).numpy()
    data = (tmp_path / integers.file).read_bytes()
    found = run_host(data, for_model(images, integers.inputs[0], NHWC))
    real = from_model(found, integers.outputs[0])
    # Random weights decide little; the values must follow all the same.
    assert np.corrcoef(real.ravel(), expected.ravel())[0, 1] > 0.98
    info = inspect((tmp_path / floats.file).read_bytes(), "it")
    assert info.params == sum(p.numel() for p in net.module.parameters())
    assert info.macs == {"lenet300": 266_200, "lenet5": 2_293_000}[name]


@converter
def test_a_network_that_the_converter_does_not_know_is_refused_in_one_line(
    ctx: StepContext, tmp_path: Path
) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x.reshape(1, 28, 28))[:, :10]

    with pytest.raises(RecipeError) as caught:
        TfliteLower(TfliteLower.Params(goldens=2)).lower(Network(Odd(), (1, 28, 28)), tmp_path, ctx)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@converter
@pytest.mark.slow
def test_a_file_that_would_compute_in_floats_is_no_int8_file(
    ctx: StepContext, tmp_path: Path
) -> None:
    class Floor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = torch.nn.Linear(784, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.floor(self.dense(x.flatten(1)))

    net = Network(Floor().eval(), (1, 28, 28))
    floats = TfliteLower(TfliteLower.Params(goldens=4)).lower(net, tmp_path, ctx)
    with pytest.raises(RecipeError, match="leaves FLOOR in floating point"):
        TfliteInt8(TfliteInt8.Params(n=8)).apply(floats, tmp_path, ctx)
    assert [path.name for path in tmp_path.glob("*.tflite")] == [floats.file]


def test_int8_of_a_tflite_file_takes_that_pass_and_its_parameters() -> None:
    recipe = {"workload": "mnist-mini/lenet5", "lower": [{"to": "tflite", "int8": {"n": 8}}]}
    (lower,) = from_mapping("r", recipe).lowers
    assert lower.int8 == {"calibrator": "minmax", "n": 8, "per_channel": True}
    recipe["lower"] = [{"to": "tflite", "int8": {"calibrator": "entropy"}}]
    with pytest.raises(RecipeKeyError, match="calibrator"):
        from_mapping("r", recipe)


# Layouts


@given(
    scale=st.floats(1e-3, 10.0),
    zero_point=st.integers(-128, 127),
    seed=st.integers(0, 2**16),
)
def test_what_is_quantised_comes_back_within_half_a_step(
    scale: float, zero_point: int, seed: int
) -> None:
    spec = TensorSpec("x", "int8", (1, 4, 5, 3), scale, zero_point)
    low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
    values = np.random.default_rng(seed).uniform(low, high, (6, 3, 4, 5))
    taken = for_model(values, spec, NHWC)
    assert taken.shape == (6, 4, 5, 3)
    assert taken.dtype == np.int8
    back = from_model(taken, spec).transpose(0, 3, 1, 2)
    assert np.abs(back - values).max() <= scale / 2 * 1.001 + 1e-6


def test_values_beyond_the_range_saturate() -> None:
    spec = TensorSpec("x", "int8", (1, 2), 1.0, 0)
    assert for_model(np.array([[1e9, -1e9]]), spec, "").tolist() == [[127, -128]]
