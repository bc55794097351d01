from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsat.datasets.architectures import scaled
from flatsat.datasets.nets import build, cost, network_names, width_for_macs
from flatsat.errors import UsageError

SHAPE = (1, 28, 28)


def make(network: str, width: float | None = 1.0, seed: int = 0, shape=SHAPE) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build(network, classes=10, input_shape=shape, width=width, generator=generator)


def counted(module: nn.Module, shape=SHAPE) -> tuple[int, int, int]:
    """Parameters, weights and MACs as the running network shows them."""
    macs = weights = 0

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal macs, weights
        weights += layer.weight.numel()
        macs += layer.weight.numel() * int(np.prod(output.shape[2:]))

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        assert module(torch.zeros(1, *shape)).shape == (1, 10)
    return sum(p.numel() for p in module.parameters()), weights, macs


def test_published_counts() -> None:
    assert counted(make("lenet300")) == (266_610, 266_200, 266_200)
    assert counted(make("lenet5")) == (431_080, 430_500, 2_293_000)


def test_channels_are_rounded_half_up_and_never_vanish() -> None:
    asked = [(20, 0.5), (50, 0.33), (5, 0.5), (3, 0.5), (20, 0.01), (16, 1.25)]
    assert [scaled(count, width) for count, width in asked] == [10, 17, 3, 2, 1, 20]


@pytest.mark.parametrize("network", network_names())
@pytest.mark.parametrize("width", [1.0, 0.5, 0.31, 0.01, 1.25])
def test_arithmetic_equals_the_real_network(network: str, width: float) -> None:
    said = cost(network, classes=10, input_shape=SHAPE, width=width)
    assert counted(make(network, width)) == (said.parameters, said.weights, said.macs)


@pytest.mark.parametrize("network", network_names())
def test_arithmetic_holds_for_other_inputs(network: str) -> None:
    shape = (3, 32, 31)
    said = cost(network, classes=10, input_shape=shape, width=0.3)
    assert counted(make(network, 0.3, shape=shape), shape)[2] == said.macs


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(network_names()), st.floats(0.02, 1.5))
def test_width_for_macs_is_the_widest_within_the_budget(network: str, share: float) -> None:
    def macs(width: float) -> int:
        return cost(network, classes=10, input_shape=SHAPE, width=width).macs

    budget = share * macs(1.0)
    width = width_for_macs(network, budget, classes=10, input_shape=SHAPE)
    assert macs(width) <= budget
    wider = width
    while macs(wider) == macs(width):
        wider += 1e-5
    assert macs(wider) > budget


@pytest.mark.parametrize("network", network_names())
def test_full_macs_give_full_width(network: str) -> None:
    full = cost(network, classes=10, input_shape=SHAPE).macs
    assert width_for_macs(network, full, classes=10, input_shape=SHAPE) == 1.0


@pytest.mark.parametrize("network", network_names())
def test_weights_come_from_the_generator_alone(network: str) -> None:
    before = torch.random.get_rng_state()
    one, same, other = make(network), make(network, None), make(network, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        assert torch.isfinite(value).all(), name
    x = torch.rand(2, *SHAPE)
    assert not one.training
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize("network", network_names())
def test_activations_keep_their_size_at_the_start(network: str) -> None:
    logits = make(network)(torch.rand(16, *SHAPE))
    assert 1e-3 < logits.std() < 1e2


def test_wrong_arguments_name_the_right_ones() -> None:
    with pytest.raises(UsageError, match="'lenet5'"):
        make("lenet-5")
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="width is"):
            make("lenet5", width)
    with pytest.raises(UsageError, match="too small"):
        make("lenet5", shape=(1, 8, 8))
    for macs in (0, -5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="macs is"):
            width_for_macs("lenet5", macs, classes=10, input_shape=SHAPE)
