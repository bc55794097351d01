"""Row 6: min/max linear quantisation against its own arithmetic."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.linear_quant import (
    FakeQuantise,
    LinearQuantise,
    quantise_range,
    quantise_sign,
)
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.storage import bytes_by_coding
from flatsat.datasets.workload import Split, workload
from flatsat.errors import RecipeError

WEIGHT = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    values = draw(st.lists(WEIGHT, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def network(*, constant: bool = False) -> Network:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(13), nn.Flatten(), nn.Linear(16, 10)
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1, generator=generator)
        if constant:
            module[4].weight.fill_(0.25)
    return Network(module, (1, 28, 28))


def context(tmp_path: Path, n: int = 40) -> StepContext:
    rng = np.random.default_rng(0)
    split = Split("any", rng.random((n, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, n))
    return StepContext(
        workload=workload("mnist-mini"),
        network="",
        train=split,
        calibration=split,
        validation=split,
        seed=0,
        cache_dir=tmp_path,
    )


def quantise(net: Network, ctx: StepContext, **params: object) -> Network:
    return LinearQuantise(LinearQuantise.Params.model_validate(params)).apply(net, ctx)


@settings(max_examples=150, deadline=None)
@given(weights(), st.integers(1, 8), st.sampled_from([None, 0, 1]))
def test_error_is_at_most_half_a_step_and_levels_at_most_2_to_the_b(
    weight: Tensor, bits: int, axis: int | None
) -> None:
    result = quantise_range(weight, bits, axis)
    # Twice the rounding of float32 at the largest weight is what the stored ranges may add.
    slack = 4 * float(weight.abs().max()) * 2**-23
    assert bool(((result.values - weight).abs() <= result.step / 2 + slack).all())
    rows = result.values if axis is None else result.values.movedim(axis, 0)
    for row in [rows] if axis is None else rows:
        assert len(torch.unique(row)) <= 2**bits
    stored = result.low.double() + result.step.double() * result.codes.double()
    assert torch.equal(stored.float(), result.values)


@given(weights(), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_range_touches_both_ends(weight: Tensor, bits: int) -> None:
    values = quantise_range(weight, bits).values
    slack = 4 * float(weight.abs().max()) * 2**-23
    assert float(values.min()) == float(weight.min())
    assert abs(float(values.max()) - float(weight.max())) <= slack


def test_two_bits_on_a_ruler() -> None:
    result = quantise_range(torch.tensor([0.0, 0.4, 0.6, 1.4, 1.6, 3.0]), 2)
    assert result.values.tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 3.0]
    assert result.codes.tolist() == [0, 0, 1, 1, 2, 3]
    assert float(result.step) == 1.0


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e-5])
def test_constant_weights_survive(bits: int, value: float) -> None:
    weight = torch.full((3, 5), value)
    assert torch.equal(quantise_range(weight, bits).values, weight)
    assert torch.equal(quantise_range(weight, bits, axis=0).values, weight)


def test_sign_scale_has_the_least_squared_error_of_all_scales() -> None:
    weight = torch.randn(200, generator=torch.Generator().manual_seed(1))
    result = quantise_sign(weight)
    best = float(((result.values - weight) ** 2).sum())
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert float(((factor * result.values - weight) ** 2).sum()) > best
    assert torch.unique(result.values.abs()).numel() == 1
    assert torch.equal(result.values > 0, weight >= 0)


def test_masked_weights_stay_zero_and_out_of_the_range() -> None:
    weight = torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    kept = torch.tensor([[False, True, True], [False, False, False]])
    for axis in (None, 0):
        result = quantise_range(weight, 1, axis, kept)
        assert torch.equal(result.values, weight)
    assert float(quantise_range(weight, 1, None, kept).low) == 2.0


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.module[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(RecipeError, match="layer '0': its weights are not finite"):
        quantise(net, context(tmp_path), bits=4)


def test_bits_by_layer_and_what_they_store(tmp_path: Path) -> None:
    made = quantise(network(), context(tmp_path), bits=4, bits_by_layer={"4": 2}, per="channel")
    conv, dense = made.history[-1]["layers"]
    assert (conv["bits"], dense["bits"]) == (4, 2)
    assert dense["levels"] <= 10 * 4  # Four levels in each of ten channels.
    sizes = bytes_by_coding(made.module, made.history)
    # 36 weights of 4 bits in 4 channels, 160 of 2 bits in 10, 14 biases in float32.
    assert sizes["linear"] == 18 + 4 * 8 + 40 + 10 * 8 + 14 * 4
    assert sizes["dense_fp32"] == 4 * (36 + 160 + 14)


def test_coding_of_masked_layers_pays_for_the_places_of_zeros(tmp_path: Path) -> None:
    net = network()
    mask = torch.zeros(10, 16, dtype=torch.bool)
    mask[:, :4] = True
    with torch.no_grad():
        net.module[4].weight.mul_(mask)
    masked = Network(net.module, net.input_shape, {"4.weight": mask})
    made = quantise(masked, context(tmp_path), bits=3, skip=["0"])
    assert torch.equal(made.module[4].weight != 0, mask)
    sizes = bytes_by_coding(made.module, made.history)
    others = 4 * (36 + 14)
    assert sizes["linear"] == others + 20 + 15 + 8  # A bit a place, 40 codes of 3 bits, one range.
    assert sizes["bitmap_fp32"] == others + 20 + 40 * 4


def test_skipped_layers_keep_their_weights(tmp_path: Path) -> None:
    net = network()
    made = quantise(net, context(tmp_path), bits=1, skip=["0"])
    assert torch.equal(made.module[0].weight, net.module[0].weight)
    assert torch.unique(made.module[4].weight).numel() == 2


def test_unknown_layer_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    module = nn.Sequential()
    module.add_module("flat", nn.Flatten())
    module.add_module("dense", nn.Linear(784, 10))
    net = Network(module.eval(), (1, 28, 28))
    with pytest.raises(RecipeError, match=r"no layer 'dens' \(did you mean 'dense'"):
        quantise(net, context(tmp_path), skip=["dens"])
    with pytest.raises(RecipeError, match="9 bits for 'dense'"):
        quantise(net, context(tmp_path), bits_by_layer={"dense": 9})


def test_a_second_quantisation_is_refused(tmp_path: Path) -> None:
    made = quantise(network(), context(tmp_path), bits=4)
    with pytest.raises(RecipeError, match="linear-quantise can't follow"):
        quantise(made, context(tmp_path), bits=2)


@given(st.floats(-10, 10), st.floats(0, 10), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_fake_quantiser_clips_and_rounds(low: float, width: float, bits: int) -> None:
    quantiser = FakeQuantise(low, low + width, bits)
    x = torch.linspace(low - 5, low + width + 5, 301)
    y = quantiser(x)
    assert torch.unique(y).numel() <= 2**bits
    slack = 1e-4
    inside = (x >= low) & (x <= low + width)
    assert bool(((y - x).abs()[inside] <= float(quantiser.step) / 2 + slack).all())
    assert float(y.min()) >= low - slack
    assert float(y.max()) <= low + width + slack


def test_constant_layer_survives_with_quantised_activations(tmp_path: Path) -> None:
    made = quantise(network(constant=True), context(tmp_path), bits=4, activations=8)
    out = made.module(torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(3)))
    assert bool(torch.isfinite(out).all())
    assert bool((made.module[4].weight == 0.25).all())


def test_eight_bit_activations_stay_near_and_are_lowered_by_decision(tmp_path: Path) -> None:
    net, ctx = network(), context(tmp_path)
    made = quantise(net, ctx, bits=8, activations=8, n=30)
    assert made.history[-1]["cost"]["forward_passes"] == 30
    x = torch.from_numpy(ctx.calibration.x.copy())
    with torch.no_grad():
        before, after = net.module(x), made.module(x)
    assert float((before - after).abs().max()) < 0.05 * float(before.abs().max())
    assert made.quantum is not None
    codes = (after - made.module.output_quantiser.low) / made.quantum
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    artifact = OnnxLower(OnnxLower.Params(goldens=32)).lower(made, tmp_path, ctx)
    assert artifact.agreement is not None
    assert (artifact.agreement.kind, artifact.agreement.quantum) == ("decision", made.quantum)


def test_a_copy_uses_its_own_quantisers(tmp_path: Path) -> None:
    made = quantise(network(), context(tmp_path), bits=8, activations=4)
    twin = copy.deepcopy(made.module)
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    before = made.module(x)
    with torch.no_grad():
        twin[0].input_quantiser.step.mul_(3)
    assert torch.equal(made.module(x), before)
    assert not torch.equal(twin(x), before)
