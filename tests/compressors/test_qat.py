"""Quantisation-aware training: levels, straight-through gradients, ranges, and what it gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flatsat.compressors.base import Network
from flatsat.compressors.grids import nudged, quantise_on
from flatsat.compressors.linear_quant import LinearQuantise
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.qat import QuantiseAwareTrain
from flatsat.compressors.storage import bytes_by_coding
from flatsat.compressors.train import FineTune
from flatsat.datasets.fit import evaluate, predict
from flatsat.errors import RecipeError
from flatsat.tensors import TensorSpec

SHAPE = (1, 6, 6)


class Net(nn.Module):
    """Two convolutions with batch norm and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(96, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.flatten(x, 1))


@pytest.fixture
def trained(blobs):
    ctx = blobs(SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Network(Net().eval(), SHAPE)
    return FineTune(FineTune.Params(epochs=6, lr=0.05)).apply(start, ctx), ctx


def train(network, ctx, **params):
    wanted = {"epochs": 4, "batch": 32, **params}
    return QuantiseAwareTrain(QuantiseAwareTrain.Params.model_validate(wanted)).apply(network, ctx)


def rows(weight: Tensor, per: str):
    return list(weight) if per == "channel" else [weight]


@pytest.mark.parametrize("grid", ["symmetric", "affine", "minmax"])
@pytest.mark.parametrize(("bits", "per"), [(1, "layer"), (2, "channel"), (4, "layer")])
def test_weights_end_on_at_most_2_to_the_b_levels(trained, grid, bits, per):
    network, ctx = trained
    made = train(network, ctx, bits=bits, per=per, grid=grid, epochs=0.5)
    assert made.frozen
    for told in made.history[-1]["layers"]:
        weight = made.module.get_submodule(told["name"]).weight.detach()
        for row in rows(weight, per):
            assert len(torch.unique(row)) <= 2**bits
        if grid == "symmetric" and bits > 1:
            for row in rows(weight, per):
                step = row.abs().max() / (2 ** (bits - 1) - 1)
                assert torch.allclose(row / step, (row / step).round(), atol=1e-5)
    with pytest.raises(RecipeError, match="fine-tune can't follow"):
        FineTune(FineTune.Params()).apply(made, ctx)


WEIGHT = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(WEIGHT, min_size=1, max_size=12),
    st.integers(2, 8),
    st.sampled_from(["symmetric", "affine"]),
)
def test_grids_err_by_a_step_at_most_and_keep_zero(values, bits, grid):
    weight = torch.tensor([values])
    result = quantise_on(grid, weight, bits)
    slack = 4 * float(weight.abs().max()) * 2**-23
    # A rounded zero point shifts the affine range by half a step.
    part = 0.5 if grid == "symmetric" else 1.0
    assert bool(((result.values - weight).abs() <= part * result.step + slack).all())
    assert int(result.codes.max()) < 2**bits
    with_zero = torch.cat([weight, torch.zeros(1, 1)], 1)
    assert float(quantise_on(grid, with_zero, bits).values[0, -1]) == 0.0


@settings(max_examples=100, deadline=None)
@given(WEIGHT, WEIGHT, st.integers(1, 8))
def test_nudged_ranges_hold_zero_as_a_level(one, other, bits):
    low, high = nudged(min(one, other), max(one, other), bits)
    width = max(one, other, 0.0) - min(one, other, 0.0)
    assert high - low == pytest.approx(width)
    if width > 0:
        level = -low / ((high - low) / (2**bits - 1))
        assert level == pytest.approx(round(level), abs=1e-6)
        assert 0 <= round(level) <= 2**bits - 1


def test_it_beats_quantising_afterwards_at_two_bits(trained):
    network, ctx = trained
    with torch.no_grad():
        # One weight far from the others makes the steps wide.
        network.module.get_submodule("conv2").weight[0, 0, 1, 1] = 3.0
    dense = evaluate(network.module, ctx.validation)
    after = LinearQuantise(LinearQuantise.Params(bits=2)).apply(network, ctx)
    # The same levels: minimum to maximum of the layer, activations in float.
    same = {"bits": 2, "per": "layer", "grid": "minmax", "activations": None}
    aware = train(network, ctx, lr=0.02, epochs=8, **same)
    # A training that can't move the weights gains nothing: the gain is no accident of the levels.
    still = train(network, ctx, lr=1e-12, epochs=0.2, **same)
    accuracy = [evaluate(n.module, ctx.validation) for n in (after, aware, still)]
    assert dense > 0.95
    assert accuracy[0] < dense - 0.1
    assert accuracy[1] > accuracy[0] + 0.1
    assert accuracy[2] < accuracy[1]
    for name in ("conv1", "conv2", "fc"):
        left, right = (n.module.get_submodule(name).weight for n in (after, still))
        assert torch.allclose(left, right, atol=1e-5)


def test_gradients_at_the_levels_move_the_float_weights(blobs):
    # One step of SGD on one linear layer, by hand.
    ctx = blobs((1, 2, 2), n=64)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    network = Network(module, (1, 2, 2))
    lr = 0.4
    made = train(
        network,
        ctx,
        bits=3,
        per="layer",
        activations=None,
        epochs=1,
        batch=64,
        lr=lr,
        weight_decay=0.0,
        schedule="constant",
    )
    before = module[1].weight.detach()
    placed = quantise_on("symmetric", before, 3).values.requires_grad_(True)
    x = torch.from_numpy(ctx.train.x).flatten(1)
    logits = nn.functional.linear(x, placed, module[1].bias.detach())
    nn.functional.cross_entropy(logits, torch.from_numpy(ctx.train.y)).backward()
    moved = before - lr * placed.grad
    expected = quantise_on("symmetric", moved, 3).values
    found = made.module.get_submodule("1").weight
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(expected, placed.detach(), atol=1e-3)


def test_history_records_the_ranges_that_activations_are_rounded_to(trained):
    network, ctx = trained
    made = train(network, ctx, bits=4, activations=3)
    told = made.history[-1]
    assert set(told["activations"]) == {"conv1", "conv2", "fc", ""}
    # What conv2 reads comes from a ReLU.
    assert told["activations"]["conv2"][0] == 0.0
    seen: list[Tensor] = []
    handle = made.module.get_submodule("conv2").input_quantiser.register_forward_hook(
        lambda _m, _a, out: seen.append(out)
    )
    logits = predict(made.module, ctx.validation.x)
    handle.remove()
    assert len(torch.unique(seen[0])) <= 8
    assert len(np.unique(logits)) <= 8
    low, high = told["activations"]["conv2"]
    assert float(seen[0].max()) == pytest.approx(high, rel=1e-5)
    assert float(seen[0].min()) == low
    assert made.quantum == pytest.approx(
        (told["activations"][""][1] - told["activations"][""][0]) / 7
    )
    # Ranges follow the batches slowly: they differ from those of the last batch alone.
    fast = train(network, ctx, bits=4, activations=3, ema=0.0)
    assert fast.history[-1]["activations"] != told["activations"]


def test_without_simulation_the_network_is_plain_and_its_ranges_are_told(trained):
    network, ctx = trained
    made = train(network, ctx, simulate=False)
    names = {name for name, _ in made.module.named_modules()}
    assert names == {name for name, _ in network.module.named_modules()}
    assert made.quantum is None
    assert set(made.history[-1]["activations"]) == {"conv1", "conv2", "fc", ""}
    float_only = train(network, ctx, activations=None)
    assert float_only.history[-1]["activations"] == {}


def test_int8_files_keep_the_trained_weights(trained, tmp_path):
    network, ctx = trained
    made = train(network, ctx, simulate=False, epochs=1)
    workload = replace(
        ctx.workload,
        input=TensorSpec("image", "float32", ("batch", *SHAPE)),
        output=TensorSpec("logits", "float32", ("batch", 4)),
    )
    ctx = replace(ctx, workload=workload)
    source = OnnxLower(OnnxLower.Params(goldens=16)).lower(made, tmp_path, ctx)
    int8 = OnnxInt8(OnnxInt8.Params(n=32)).apply(source, tmp_path, ctx)
    exact = [
        onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / source.file).graph.initializer
    ]
    kept = onnx.load(tmp_path / int8.file).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in kept.initializer}
    found = 0
    for node in kept.node:
        codes = stored.get(node.input[0])
        if node.op_type != "DequantizeLinear" or codes is None or codes.dtype != np.int8:
            continue
        axis = next(a.i for a in node.attribute if a.name == "axis")
        scale = stored[node.input[1]].reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
        again = codes * scale
        # Batch norm is folded by the export; the trained levels survive that and the pass.
        found += any(
            again.shape == w.shape and np.allclose(again, w, rtol=1e-5, atol=1e-7) for w in exact
        )
    assert found == 3


def test_masked_weights_stay_zero_and_are_stored_apart(trained):
    network, ctx = trained
    weight = network.module.get_submodule("fc").weight.detach()
    mask = weight.abs() > weight.abs().median()
    with torch.no_grad():
        network.module.get_submodule("fc").weight.masked_fill_(~mask, 0.0)
    made = train(
        replace(network, masks={"fc.weight": mask}), ctx, bits=2, per="layer", grid="minmax"
    )
    after = made.module.get_submodule("fc").weight.detach()
    assert not after[~mask].any()
    (told,) = [t for t in made.history[-1]["layers"] if t["name"] == "fc"]
    assert (told["stored"], told["zeros_apart"]) == (int(mask.sum()), True)
    assert len(torch.unique(after[mask])) <= 4
    sizes = bytes_by_coding(made.module, made.history)
    assert sizes["linear"] < sizes["bitmap_fp32"]


def test_folded_batch_norm_leaves_the_network_without_it(trained):
    network, ctx = trained
    made = train(network, ctx, batch_norm="fold", per="layer")
    assert made.history[-1]["folded"] == {"bn1": "conv1", "bn2": "conv2"}
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.module.modules())
    assert isinstance(made.module.get_submodule("conv1").bias, nn.Parameter)
    assert evaluate(made.module, ctx.validation) > 0.9


def test_layers_can_be_left_or_have_bits_of_their_own(trained):
    network, ctx = trained
    made = train(network, ctx, bits=2, bits_by_layer={"fc": 3}, skip=("conv1",), epochs=0.5)
    told = {entry["name"]: entry["bits"] for entry in made.history[-1]["layers"]}
    assert told == {"conv2": 2, "fc": 3}
    assert made.history[-1]["left"] == {"conv1": "skip names it"}
    assert len(torch.unique(made.module.get_submodule("conv1").weight)) > 16
    for wrong in ({"skip": ("conv9",)}, {"bits_by_layer": {"fc": 9}}):
        with pytest.raises(RecipeError, match="quantise-aware-train: "):
            train(network, ctx, **wrong)
    with torch.no_grad():
        network.module.get_submodule("conv2").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(RecipeError, match=r"'conv2'.*not finite"):
        train(network, ctx)


class Shared(nn.Module):
    """One convolution called twice, a transposed one, a sum and a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.down = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.mix = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(144, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.twice(torch.relu(self.twice(x))))
        x = torch.cat([x, self.up(self.down(x))], 1)
        return self.fc(torch.flatten(torch.relu(self.mix(x)), 1))


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_shared_transposed_grouped_and_joined_layers_are_trained(blobs, per):
    ctx = blobs(SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Network(Shared().eval(), SHAPE)
    network = FineTune(FineTune.Params(epochs=6, lr=0.05)).apply(start, ctx)
    made = train(network, ctx, bits=3, activations=6, per=per)
    names = [told["name"] for told in made.history[-1]["layers"]]
    assert names == ["stem", "twice", "up", "mix", "fc"]
    assert set(made.history[-1]["activations"]) == {*names, ""}
    axes = {"up": 1}
    for name in names:
        weight = made.module.get_submodule(name).weight.detach()
        parts = weight.transpose(0, axes.get(name, 0)) if per == "channel" else [weight]
        assert all(len(torch.unique(part)) <= 7 for part in parts)
    assert evaluate(made.module, ctx.validation) > 0.9
