"""What every search strategy must hold to; a new one is added to `STRATEGIES`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from flatsat.errors import DataError
from flatsat.harness.search.amc import AmcSettings, AmcStrategy
from flatsat.harness.search.baselines import RandomStrategy, UniformStrategy
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.ddpg import DdpgSettings
from flatsat.harness.search.domain import Choice, CostLayer, Domain
from flatsat.harness.search.rewards import ResourceConstrained
from flatsat.harness.search.seams import Estimate, Fidelity, Strategy
from flatsat.harness.search.wall import Wall

Make = Callable[[Wall, int], Strategy]
AGENT = AmcSettings(warmup=4, noise_decay=0.9, ddpg=DdpgSettings(hidden=24, batch=8))
STRATEGIES: dict[str, Make] = {
    "amc": lambda wall, seed: AmcStrategy(wall, ResourceConstrained(), AGENT, seed),
    "uniform": lambda wall, seed: UniformStrategy(wall, ResourceConstrained(), seed),
    "random": lambda wall, seed: RandomStrategy(wall, ResourceConstrained(), seed),
}


def _domain() -> Domain:
    choices, layers = [], []
    for index in range(4):
        name = f"c{index}"
        choices.append(Choice(name, 24, tuple(range(6, 25, 2)), (name,)))
        source = (None, 3, 1) if index == 0 else (index - 1, 24, 1)
        size = source[1] * 24 * 9
        layers.append(
            CostLayer(
                name,
                "conv",
                (source,),
                (index, 24, 1),
                (3, 3),
                (1, 1),
                (8, 8),
                (8, 8),
                1,
                size,
                size * 64,
            )
        )
    return Domain(tuple(choices), tuple(layers))


DOMAIN = _domain()


@pytest.fixture(params=STRATEGIES)
def make(request: pytest.FixtureRequest) -> Make:
    return STRATEGIES[request.param]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _wall(ratio: float | None = 0.4) -> Wall:
    cost = MacsModel(DOMAIN)
    return Wall(DOMAIN, cost, None if ratio is None else ratio * total_of(cost, DOMAIN.full))


def _estimate(key: tuple[int, ...]) -> Estimate:
    value = float(np.tanh(np.dot(key, [0.01, 0.02, 0.03, 0.001])))
    cost = total_of(MacsModel(DOMAIN), key)
    return Estimate(value, 0.01, Fidelity.NO_FINETUNE, cost)


def _run(strategy: Strategy, episodes: int) -> list[tuple[tuple[int, ...], str, float]]:
    history = []
    for _ in range(episodes):
        proposal = strategy.ask()
        reward = strategy.tell(proposal, _estimate(proposal.key))
        history.append((proposal.key, proposal.label, reward))
    return history


def test_it_proposes_options_within_the_budget(make: Make) -> None:
    strategy, wall = make(_wall(), 0), _wall()
    for key, label, reward in _run(strategy, 12):
        assert wall.within(key)
        for count, choice in zip(key, DOMAIN.choices, strict=True):
            assert count in choice.options
        assert label
        assert reward == _estimate(key).value


def test_the_same_seed_gives_the_same_search(make: Make) -> None:
    assert _run(make(_wall(), 7), 12) == _run(make(_wall(), 7), 12)


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 9])
def test_an_interrupted_search_goes_on_to_the_bit(make: Make, cut: int) -> None:
    whole = make(_wall(), 3)
    expected = _run(whole, 14)
    first = make(_wall(), 3)
    history = _run(first, cut)
    second = make(_wall(), 99)
    second.restore(first.state())
    assert history + _run(second, 14 - cut) == expected
    assert second.state() == whole.state()


def test_a_state_is_the_same_however_often_it_is_taken(make: Make) -> None:
    strategy = make(_wall(), 1)
    _run(strategy, 6)
    assert strategy.state() == strategy.state()
    again = make(_wall(), 1)
    again.restore(strategy.state())
    assert again.state() == strategy.state()


def test_a_state_of_another_strategy_is_refused(make: Make) -> None:
    for other in STRATEGIES.values():
        strategy = make(_wall(), 0)
        state = other(_wall(), 0).state()
        if type(other(_wall(), 0)) is not type(strategy):
            with pytest.raises(DataError):
                strategy.restore(state)


def test_a_new_wall_is_followed(make: Make) -> None:
    strategy = make(_wall(0.9), 0)
    _run(strategy, 6)
    tighter = _wall(0.2)
    strategy.rewall(tighter)
    assert all(tighter.within(key) for key, _, _ in _run(strategy, 6))


def test_it_works_without_a_budget(make: Make) -> None:
    history = _run(make(_wall(None), 0), 10)
    assert len({key for key, _, _ in history}) > 1
