"""The action wall: for random policies on random nets the budget is never exceeded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.errors import UsageError
from flatsat.harness.search.amc import AmcSettings, AmcStrategy
from flatsat.harness.search.baselines import RandomStrategy, UniformStrategy
from flatsat.harness.search.costs import BoardModel, CostModel, MacsModel, total_of
from flatsat.harness.search.ddpg import DdpgSettings
from flatsat.harness.search.domain import Choice, CostLayer, Domain
from flatsat.harness.search.rewards import ResourceConstrained
from flatsat.harness.search.seams import Estimate, Fidelity
from flatsat.harness.search.table import TablePlan
from flatsat.harness.search.wall import Wall, round_up


@st.composite
def domains(draw: st.DrawFn) -> Domain:
    """Nets of 1 to 6 choices: each layer reads one or two groups or the image, some depthwise."""
    count = draw(st.integers(1, 6))
    choices, layers = [], []
    for index in range(count):
        channels = draw(st.integers(1, 40))
        round_to = draw(st.sampled_from([1, 2, 8]))
        least = math.ceil(draw(st.floats(0.05, 1.0)) * channels - 1e-9)
        options = [c for c in range(max(1, least), channels) if c % round_to == 0]
        name = f"l{index}"
        choices.append(Choice(name, channels, (*options, channels), (name,)))
        sources = draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=2, unique=True))
        inputs = tuple(
            (None, 3, 1) if s < 0 else (s, choices[s].channels, draw(st.sampled_from([1, 4])))
            for s in sources
        )
        layers.append(_conv(name, inputs, (index, channels, 1), draw(st.integers(1, 9))))
        if draw(st.booleans()):
            layers.append(
                _conv(f"{name}dw", ((index, channels, 1),), (index, channels, 1), 9, "depthwise")
            )
    last = (count - 1, choices[-1].channels, 1)
    layers.append(_conv("head", (last,), (None, 10, 1), 1))
    return Domain(tuple(choices), tuple(layers))


def _conv(
    name: str,
    inputs: tuple[tuple[int | None, int, int], ...],
    output: tuple[int | None, int, int],
    taps: int,
    kind: str = "conv",
) -> CostLayer:
    into = 1 if kind == "depthwise" else sum(c * r for _, c, r in inputs)
    weights = into * output[1] * taps
    return CostLayer(
        name, kind, inputs, output, (taps, 1), (1, 1), (7, 5), (7, 5), 1, weights, weights * 35
    )


def _latency(domain: Domain, seed: int) -> CostModel:
    draw = np.random.default_rng(seed)
    plan = TablePlan(domain, 3)
    noisy = {
        probe: float(500 + draw.random() * 300 + probe.inputs * probe.outputs)
        for probe in plan.probes()
    }
    noisy[plan.empty] = 400.0
    return BoardModel(domain, plan.table(noisy, {}), scale=1.2, offset=50.0)


@given(
    domains(),
    st.floats(0.0, 1.0),
    st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_no_policy_exceeds_the_budget_and_rounding_never_breaks_it(
    domain: Domain, share: float, wishes: list[float], by_latency: bool, seed: int
) -> None:
    cost = _latency(domain, seed) if by_latency else MacsModel(domain)
    least, full = total_of(cost, domain.least), total_of(cost, domain.full)
    limit = least + share * (full - least)
    wall = Wall(domain, cost, limit)
    chosen = wall.settle_all(wishes[: len(domain.choices)])
    assert total_of(cost, chosen) <= limit
    for count, choice in zip(chosen, domain.choices, strict=True):
        assert count in choice.options


@given(domains(), st.integers(0, 5), st.floats(0.0, 1.0))
@settings(max_examples=20, deadline=None)
def test_every_strategy_keeps_to_the_wall(domain: Domain, seed: int, share: float) -> None:
    cost = MacsModel(domain)
    least, full = total_of(cost, domain.least), total_of(cost, domain.full)
    wall = Wall(domain, cost, least + share * (full - least))
    reward = ResourceConstrained()
    for strategy in (
        AmcStrategy(wall, reward, AmcSettings(warmup=1, ddpg=DdpgSettings(hidden=16)), seed),
        RandomStrategy(wall, reward, seed),
        UniformStrategy(wall, reward),
    ):
        for _ in range(3):
            proposal = strategy.ask()
            assert wall.within(proposal.key)
            strategy.tell(proposal, Estimate(0.5, 0.0, Fidelity.PREDICTED, 1.0))


@given(domains(), st.floats(0.0, 0.999))
@settings(max_examples=50, deadline=None)
def test_a_budget_below_the_least_reachable_is_refused_and_says_so(
    domain: Domain, share: float
) -> None:
    cost = MacsModel(domain)
    least = total_of(cost, domain.least)
    with pytest.raises(UsageError, match="least reachable") as caught:
        Wall(domain, cost, least * share - 1e-6)
    assert f"{least:,.0f}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_the_tightest_budget_leaves_only_the_least(planted: Domain) -> None:
    cost = MacsModel(planted)
    wall = Wall(planted, cost, total_of(cost, planted.least))
    assert wall.settle_all([1.0] * 8) == tuple(planted.least)


def test_the_cap_is_the_largest_count_with_the_rest_at_its_least(planted: Domain) -> None:
    cost = MacsModel(planted)
    limit = total_of(cost, [32, 20, 15, *[8] * 5]) + 1.0
    wall = Wall(planted, cost, limit)
    cap = wall.affordable([32, 20])[-1]
    rest = [8] * 5
    assert cap == 15
    assert total_of(cost, [32, 20, cap, *rest]) <= limit
    assert total_of(cost, [32, 20, cap + 1, *rest]) > limit


def test_without_a_limit_nothing_is_capped(planted: Domain) -> None:
    assert Wall(planted, MacsModel(planted)).settle_all([1.0] * 8) == tuple(planted.full)


@pytest.mark.parametrize(
    ("ratio", "count"), [(0.0, 4), (0.2, 4), (0.26, 8), (0.4, 8), (0.41, 12), (0.99, 20), (1, 20)]
)
def test_ratios_are_rounded_up_to_an_option(ratio: float, count: int) -> None:
    assert round_up(ratio, Choice("c", 20, (4, 8, 12, 16, 20), ("c",))) == count


@given(st.integers(1, 2000), st.data())
def test_a_ratio_made_of_a_count_gives_that_count(channels: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, channels))
    choice = Choice("c", channels, tuple(range(1, channels + 1)), ("c",))
    assert round_up(count / channels, choice) == count
