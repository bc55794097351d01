"""Cross-layer equalisation: equal outputs, equal ranges, less error with one range a layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.equalise import Equalise
from flatsat.compressors.linear_quant import LinearQuantise
from flatsat.datasets.fit import predict
from flatsat.datasets.nets import build
from flatsat.errors import RecipeError

SHAPE = (2, 8, 8)


class Chain(nn.Module):
    """Convolution, depthwise, pointwise, grouped, transposed, flattened into linear layers."""

    def __init__(self, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.point = nn.Conv2d(6, 8, 1)
        self.grouped = nn.Conv2d(8, 4, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(54, 5)
        self.fc2 = nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.point(torch.relu(self.depthwise(x))))
        x = self.pool(self.up(torch.relu(self.grouped(x))))
        return self.fc2(nn.functional.relu(self.fc1(torch.flatten(x, 1))))


CHAIN = ["conv", "depthwise", "point", "grouped", "up", "fc1"]


def drawn(module, seed=0):
    """Return the module with weights and batch norm statistics from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 2.0, generator=generator)
                part.running_mean.uniform_(-0.3, 0.3, generator=generator)
                part.running_var.uniform_(0.3, 3.0, generator=generator)
    return module.eval()


@pytest.fixture
def apply(blobs):
    """Apply the step: it needs no data, the context is any."""
    ctx = blobs(SHAPE, n=8)

    def call(network, **params):
        return Equalise(Equalise.Params.model_validate(params)).apply(network, ctx)

    return call


def images(n=16):
    rng = np.random.default_rng(5)
    return rng.normal(0, 1, (n, *SHAPE)).astype(np.float32)


def close(left, right, tolerance=1e-4):
    x = images()
    a, b = predict(left, x), predict(right, x)
    return float(np.abs(a - b).max() / np.abs(a).max()) < tolerance


# Ranges by hand, not by the step's own views.
def made_ranges(module, name):
    weight = module.get_submodule(name).weight.detach().abs()
    if name == "up":  # (4, 3, 2, 2) in 2 groups: outputs 0..2 of inputs 0..1, 3..5 of 2..3
        return torch.cat([weight[:2].amax((0, 2, 3)), weight[2:].amax((0, 2, 3))])
    return weight.flatten(1).amax(1)


def read_ranges(module, name):
    weight = module.get_submodule(name).weight.detach().abs()
    if name == "depthwise":
        return weight.flatten(1).amax(1)
    if name == "grouped":  # (4, 4, 3, 3) in 2 groups: inputs 0..3 go to outputs 0..1
        return torch.cat([weight[:2].amax((0, 2, 3)), weight[2:].amax((0, 2, 3))])
    if name == "up":
        return weight.flatten(1).amax(1)
    if name == "fc1":
        return weight.reshape(5, 6, 9).amax((0, 2))
    return weight.transpose(0, 1).flatten(1).amax(1)


def test_ranges_on_both_sides_are_equal_and_outputs_as_before(apply):
    module = drawn(Chain())
    made = apply(Network(module, SHAPE), tolerance=1e-6)
    told = made.history[-1]
    readers = [*CHAIN[1:], "fc2"]
    assert [(t["name"], t["reader"]) for t in told["layers"]] == list(
        zip(CHAIN, readers, strict=True)
    )
    assert told["folded"] == {"bn": "conv"}
    assert told["left"] == [{"name": "fc2", "reason": "it gives the network's output"}]
    for first, second in zip(CHAIN, readers, strict=True):
        left, right = made_ranges(made.module, first), read_ranges(made.module, second)
        assert torch.allclose(left, right, rtol=1e-4), first
    assert close(module, made.module)
    # It did something: before, ranges differed.
    assert not torch.allclose(
        made_ranges(module, "point"), read_ranges(module, "grouped"), rtol=0.1
    )
    assert 1 < told["rounds"] < 100


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.integers(0, 5))
def test_any_scales_between_layers_leave_the_outputs_and_are_undone(exponents, seed):
    # Channels scaled by any factors are the same function; equalisation comes to the same weights.
    plain = drawn(Chain(norm=False), seed)
    scaled = drawn(Chain(norm=False), seed)
    factor = torch.tensor([10.0**e for e in exponents])
    with torch.no_grad():
        scaled.depthwise.weight *= factor[:, None, None, None]
        scaled.depthwise.bias *= factor
        scaled.point.weight /= factor[None, :, None, None]
    step = Equalise(Equalise.Params(tolerance=1e-6))
    left, right = (step.apply(Network(m, SHAPE), None) for m in (plain, scaled))  # type: ignore[arg-type]
    assert close(scaled, right.module)
    for name in CHAIN:
        one, other = (n.module.get_submodule(name).weight for n in (left, right))
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_one_range_a_layer_then_suits_a_badly_scaled_network(apply, blobs):
    module = drawn(Chain())
    with torch.no_grad():
        factor = torch.logspace(-2, 2, 6)
        module.depthwise.weight *= factor[:, None, None, None]
        module.depthwise.bias *= factor
        module.point.weight /= factor[None, :, None, None]
    ctx = blobs(SHAPE, n=8)
    quantise = LinearQuantise(LinearQuantise.Params(bits=8, per="layer"))
    network = Network(module, SHAPE)
    x = images()
    dense = predict(module, x)
    errors = [
        np.abs(predict(quantise.apply(n, ctx).module, x) - dense).max() / np.abs(dense).max()
        for n in (network, apply(network))
    ]
    assert errors[0] > 0.1
    assert errors[1] < 0.05
    spreads = {t["name"]: t for t in apply(network).history[-1]["layers"]}["depthwise"]
    assert spreads["spread_after"] < spreads["spread_before"] / 100


class Awkward(nn.Module):
    """Layers that are read twice, called twice, summed, or cut off at 6."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 1)
        self.relu6 = nn.ReLU6()
        self.last = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.twice(self.twice(x))
        x = self.last(self.relu6(self.inner(x)))
        return self.head(torch.sigmoid(x).mean((2, 3)))


def test_what_it_cannot_treat_is_left_by_name_with_the_reason(apply):
    module = drawn(Awkward())
    made = apply(Network(module, SHAPE))
    assert made.history[-1]["layers"] == []
    reasons = {entry["name"]: entry["reason"] for entry in made.history[-1]["left"]}
    assert reasons["stem"] == "2 parts read relu"
    assert reasons["twice"] == "it is called more than once"
    assert reasons["inner"].startswith("relu6 (ReLU6)")
    assert reasons["last"].startswith("sigmoid")
    assert reasons["head"] == "it gives the network's output"
    assert all(
        torch.equal(a, b)
        for a, b in zip(module.parameters(), made.module.parameters(), strict=True)
    )


def test_relu6_goes_only_if_asked(apply):
    module = drawn(Awkward())
    made = apply(Network(module, SHAPE), relu6="replace")
    assert made.history[-1]["relu6_replaced"] == ["relu6"]
    assert [t["name"] for t in made.history[-1]["layers"]] == ["inner"]
    assert not any(isinstance(part, nn.ReLU6) for part in made.module.modules())
    # Below 6 it is the same function.
    with torch.no_grad():
        low = predict(module, images() * 1e-3), predict(made.module, images() * 1e-3)
    assert np.allclose(*low, atol=1e-5)


def test_zero_channels_and_masks_stay(apply):
    module = drawn(Chain())
    weight = torch.ones_like(module.point.weight, dtype=torch.bool)
    weight[2] = False
    reader = torch.ones_like(module.fc2.weight, dtype=torch.bool)
    reader[:, 1] = False
    with torch.no_grad():
        module.point.weight.masked_fill_(~weight, 0.0)
        module.fc2.weight.masked_fill_(~reader, 0.0)
    masks = {"point.weight": weight, "fc2.weight": reader}
    made = apply(Network(module, SHAPE, masks=masks))
    parameters = dict(made.module.named_parameters())
    for name, mask in made.masks.items():
        assert not parameters[name].detach()[~mask].any()
    assert close(module, made.module)
    unequal = {t["name"]: t["unequal"] for t in made.history[-1]["layers"]}
    assert (unequal["point"], unequal["fc1"]) == (1, 1)


@pytest.mark.parametrize(
    "name", ["lenet5", "mobilenet-small", "resnet20", "unet-classifier", "googlenet"]
)
def test_reference_networks_give_the_same_outputs(blobs, name):
    shape = (3, 64, 64) if name == "googlenet" else (1, 28, 28)
    generator = torch.Generator().manual_seed(1)
    module = build(name, classes=4, input_shape=shape, width=0.25, generator=generator)
    made = Equalise(Equalise.Params()).apply(Network(module, shape), blobs(shape, n=8))
    x = torch.randn(4, *shape, generator=generator)
    with torch.no_grad():
        assert torch.allclose(module(x), made.module(x), atol=1e-4)
    assert made.history[-1]["layers"]
    if name == "mobilenet-small":
        assert len(made.history[-1]["left"]) == 1


def test_weights_on_levels_or_not_finite_are_refused(apply):
    network = Network(drawn(Chain()), SHAPE)
    with pytest.raises(RecipeError, match="equalise can't follow"):
        apply(replace(network, frozen="they stand on levels"))
    with torch.no_grad():
        network.module.get_submodule("point").weight[0] = torch.nan
    with pytest.raises(RecipeError, match="not finite"):
        apply(network)


def test_a_network_that_cannot_be_traced_is_refused(apply):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(128, 4)

        def forward(self, x):
            return self.fc(x.flatten(1) if x.sum() > 0 else -x.flatten(1))

    with pytest.raises(RecipeError, match=r"torch\.fx can't trace the network"):
        apply(Network(Branching().eval(), SHAPE))
