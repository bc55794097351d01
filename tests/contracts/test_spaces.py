"""What every search space must hold to; a new one is added to `SPACES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.compressors.graph import channel_groups, count, layers, prune_channels
from flatsat.compressors.recipe import check, from_mapping
from flatsat.datasets.nets import build
from flatsat.errors import UsageError
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.domain import Domain, Graph
from flatsat.harness.search.spaces import ChannelSpace

if TYPE_CHECKING:
    from flatsat.harness.search.seams import Space

SHAPE = (1, 28, 28)
NETWORKS = ("lenet300", "lenet5", "resnet20", "mobilenet-small")
SPACES: dict[str, Space] = {
    "channels": ChannelSpace("mnist-mini/lenet5"),
    "channels, a multiple of 4, tuned": ChannelSpace(
        "mnist-mini/lenet5", lower=0.1, round_to=4, fine_tune_epochs=1.5
    ),
}


def _graph(network: str) -> tuple[torch.nn.Module, Graph]:
    weights = torch.Generator().manual_seed(0)
    module = build(network, classes=10, input_shape=SHAPE, generator=weights).eval()
    return module, Graph(layers(module, SHAPE), channel_groups(module, SHAPE), SHAPE)


GRAPHS = {network: _graph(network) for network in NETWORKS}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    return request.param


def test_choices_have_ascending_options_up_to_the_whole(space: Space, network: str) -> None:
    domain = space.domain(GRAPHS[network][1])
    assert domain.choices
    assert len({choice.name for choice in domain.choices}) == len(domain.choices)
    for choice in domain.choices:
        assert list(choice.options) == sorted(set(choice.options))
        assert choice.options[0] >= 1
        assert choice.options[-1] == choice.channels


def test_bounds_are_what_the_options_allow(space: Space, network: str) -> None:
    for choice in space.domain(GRAPHS[network][1]).choices:
        low, high = space.bounds(choice)
        assert 0.0 < low <= high <= 1.0
        assert low * choice.channels == pytest.approx(choice.options[0])


def test_every_policy_is_a_recipe_that_can_apply(space: Space) -> None:
    domain = space.domain(GRAPHS["lenet5"][1])
    draw = np.random.default_rng(0)
    for _ in range(5):
        counts = [int(draw.choice(choice.options)) for choice in domain.choices]
        spec = from_mapping("policy", space.realise(domain.proposal(counts)))
        assert check(spec).name == "mnist-mini"
        assert spec.steps[0].use == "channel-prune"
        kept = spec.steps[0].params["keep"]
        for choice, wanted in zip(domain.choices, counts, strict=True):
            assert round(kept[choice.name] * choice.channels) == wanted


@pytest.mark.parametrize("which", NETWORKS)
def test_macs_of_a_policy_are_those_of_the_smaller_network(which: str) -> None:
    module, graph = GRAPHS[which]
    domain = ChannelSpace("mnist-mini/lenet5", lower=0.1).domain(graph)
    cost = MacsModel(domain)
    assert total_of(cost, domain.full) == count(module, SHAPE)[2]
    draw = np.random.default_rng(1)
    for _ in range(2):
        counts = [int(draw.choice(choice.options)) for choice in domain.choices]
        keep = {c.name: range(n) for c, n in zip(domain.choices, counts, strict=True)}
        smaller = prune_channels(module, SHAPE, keep, graph.groups)
        assert total_of(cost, counts) == count(smaller, SHAPE)[2]


@given(st.integers(0, 999), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_macs_never_fall_when_channels_are_added(first: int, second: int) -> None:
    domain: Domain = ChannelSpace("x").domain(GRAPHS["resnet20"][1])
    draws = [np.random.default_rng(seed) for seed in (first, second)]
    counts = np.array([[draw.choice(c.options) for c in domain.choices] for draw in draws])
    both = MacsModel(domain).total(np.array([counts.min(axis=0), counts.max(axis=0)]))
    assert both[0] <= both[1]


def test_a_network_without_choices_is_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    graph = Graph(layers(module, SHAPE), channel_groups(module, SHAPE), SHAPE)
    with pytest.raises(UsageError, match="no channels that can be pruned"):
        ChannelSpace("x").domain(graph)
