"""Networks whose redundant layers are known: the agent learns, and beats chance and rules there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.graph import layers
from flatsat.compressors.reconstruct import ChannelPruner
from flatsat.harness.search.amc import AmcSettings, AmcStrategy, decay_over
from flatsat.harness.search.baselines import RandomStrategy, UniformStrategy
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.domain import Graph
from flatsat.harness.search.estimate import NoFinetuneEstimator
from flatsat.harness.search.rewards import ResourceConstrained
from flatsat.harness.search.seams import Fidelity
from flatsat.harness.search.spaces import ChannelSpace
from flatsat.harness.search.wall import Wall


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _amc(wall: Wall, seed: int, episodes: int, warmup: int) -> AmcStrategy:
    settings = AmcSettings(warmup=warmup, noise_decay=decay_over(episodes - warmup))
    return AmcStrategy(wall, ResourceConstrained(), settings, seed)


def _rewards(strategy, estimate, episodes: int) -> np.ndarray:
    found = []
    for _ in range(episodes):
        proposal = strategy.ask()
        found.append(strategy.tell(proposal, estimate(proposal)))
    return np.array(found)


@pytest.mark.slow
def test_the_agent_learns_which_layers_are_redundant_and_beats_chance(planted, judged) -> None:
    """Eight layers; the budget leaves 15 % more MACs than the channels that are needed."""
    episodes, warmup, seeds = 240, 60, range(4)
    needed = [8, 29, 8, 26, 8, 32, 10, 23]
    cost = MacsModel(planted)
    wall = Wall(planted, cost, 1.15 * total_of(cost, needed))
    agent, chance = [], []
    for seed in seeds:
        agent.append(
            _rewards(_amc(wall, seed, episodes, warmup), lambda one: judged(planted, one), episodes)
        )
        random = RandomStrategy(wall, ResourceConstrained(), seed)
        chance.append(_rewards(random, lambda one: judged(planted, one), episodes))
    rules = _rewards(
        UniformStrategy(wall, ResourceConstrained()), lambda one: judged(planted, one), episodes
    )
    first = np.mean([run[:50].mean() for run in agent])
    last = np.mean([run[-50:].mean() for run in agent])
    assert last > 2 * first
    best, best_by_chance = (np.mean([run.max() for run in runs]) for runs in (agent, chance))
    assert best > 1.2 * best_by_chance
    assert best > rules.max()


def planted_network(needs: tuple[float, ...], channels: int) -> nn.Module:
    """Return a network of which some layers' channels are all zero but the first few."""
    draw = torch.Generator().manual_seed(3)
    parts: list[nn.Module] = []
    inputs = 1
    for need in needs:
        conv = nn.Conv2d(inputs, channels, 3, padding=1)
        with torch.no_grad():
            weight = torch.randn(conv.weight.shape, generator=draw)
            weight *= (0.85 ** torch.arange(channels)).reshape(-1, 1, 1, 1)
            weight[round(need * channels) :] = 0
            conv.weight.copy_(weight / (weight.square().sum() / channels).sqrt())
            conv.bias.zero_()
        parts += [conv, nn.ReLU()]
        inputs = channels
    head = nn.Linear(channels * 16, 4)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=draw) * 0.1)
        head.bias.zero_()
    return nn.Sequential(*parts, nn.MaxPool2d(2), nn.Flatten(), head).eval()


@pytest.mark.slow
def test_it_learns_on_a_real_network_with_dead_channels() -> None:
    """Labels are the dense network's own answers: without the dead channels nothing changes."""
    needs = (0.25, 1.0, 0.25, 1.0, 0.25, 1.0)
    channels, episodes, warmup = 16, 140, 40
    module = planted_network(needs, channels)
    x = torch.randn(192, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        head = module[-1]
        assert isinstance(head, nn.Linear)
        head.bias -= module(x).mean(0)
        y = module(x).argmax(1)
    pruner = ChannelPruner(Network(module, (1, 8, 8)), x.numpy(), reconstruct=False)
    graph = Graph(layers(module, (1, 8, 8)), pruner.groups, (1, 8, 8))
    domain = ChannelSpace("planted", lower=0.25).domain(graph)
    cost = MacsModel(domain)
    needed = [round(need * channels) for need in needs]
    wall = Wall(domain, cost, 1.2 * total_of(cost, needed))

    def right(smaller: nn.Module) -> float:
        with torch.no_grad():
            return float((smaller(x).argmax(1) == y).float().mean())

    estimator = NoFinetuneEstimator(
        lambda proposal: pruner.prune(proposal.ratios), right, len(x), cost
    )
    assert estimator.estimate(domain.proposal(needed), Fidelity.NO_FINETUNE).value == 1.0
    runs = [
        _rewards(
            _amc(wall, seed, episodes, warmup),
            lambda one: estimator.estimate(one, Fidelity.NO_FINETUNE),
            episodes,
        )
        for seed in range(2)
    ]
    assert np.mean([run[-50:].mean() for run in runs]) > np.mean([run[:50].mean() for run in runs])
