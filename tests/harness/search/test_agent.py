"""The agent's parts: noise, replay, critic and actor, states, exact resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flatsat.errors import DataError
from flatsat.harness.search.amc import AmcSettings, AmcStrategy, decay_over
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.ddpg import Ddpg, DdpgSettings, FlatMlp, Replay, truncated_normal
from flatsat.harness.search.rewards import (
    AccuracyGuaranteed,
    ResourceConstrained,
    make_reward,
)
from flatsat.harness.search.seams import Estimate, Fidelity
from flatsat.harness.search.states import FEATURES, LayerStates
from flatsat.harness.search.wall import Wall

SMALL = DdpgSettings(hidden=32)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.5), (0.9, 0.5), (0.02, 0.1), (0.5, 0.01)])
def test_noise_follows_the_truncated_normal(mean: float, sigma: float) -> None:
    draw = np.random.default_rng(5)
    values = [truncated_normal(mean, sigma, draw) for _ in range(2000)]
    law = stats.truncnorm(-mean / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert stats.kstest(values, law.cdf).pvalue > 1e-3


@given(st.floats(0, 1), st.floats(1e-9, 10), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_noise_stays_in_the_unit_interval(mean: float, sigma: float, seed: int) -> None:
    assert 0.0 <= truncated_normal(mean, sigma, np.random.default_rng(seed)) <= 1.0


def test_defaults_are_those_of_the_paper() -> None:
    settings_ = DdpgSettings()
    assert (settings_.hidden, settings_.actor_lr, settings_.critic_lr) == (300, 1e-4, 1e-3)
    assert (settings_.tau, settings_.discount, settings_.batch) == (0.01, 1.0, 64)
    assert (settings_.replay_per_choice, settings_.sigma) == (100, 0.5)
    assert decay_over(300) == pytest.approx(0.99)
    # As far down at the end, however short the search.
    assert decay_over(60) ** 60 == pytest.approx(0.99**300)


def test_the_flat_network_is_two_hidden_layers_with_relu() -> None:
    net = FlatMlp(3, 5, np.random.default_rng(0))
    with torch.no_grad():
        flat = net.flat.numpy()
    parts = np.split(flat, np.cumsum([15, 5, 25, 5, 5]))
    x = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    h = np.maximum(0, x @ parts[0].reshape(5, 3).T + parts[1])
    h = np.maximum(0, h @ parts[2].reshape(5, 5).T + parts[3])
    want = h @ parts[4].reshape(1, 5).T + parts[5]
    assert np.allclose(net(torch.from_numpy(x)).detach().numpy(), want, atol=1e-6)


def test_the_replay_keeps_the_last_transitions_and_gives_each_step_the_reward() -> None:
    replay = Replay(6, 2)
    for episode in range(4):
        states = np.full((3, 2), episode, dtype=np.float32)
        replay.add(states, np.array([0.1, 0.2, 0.3], dtype=np.float32), float(episode))
        assert len(replay) == min(6, 3 * (episode + 1))
    assert sorted(set(replay.facts[:, 1])) == [2.0, 3.0]
    assert replay.facts[:3, 2].tolist() == [1.0, 1.0, 0.0]
    assert replay.following[2].tolist() == [0.0, 0.0]
    assert (replay.facts[:3, 1] == replay.facts[0, 1]).all()


def test_the_agent_finds_the_best_action_of_a_bandit() -> None:
    agent = Ddpg(SMALL, 2, 1, np.random.default_rng(0))
    draw = np.random.default_rng(1)
    state = np.ones((1, 2), dtype=np.float32)
    for episode in range(600):
        action = draw.random() if episode < 100 else agent.act(state[0], 0.2)
        agent.replay.add(state, np.array([action], dtype=np.float32), -((action - 0.8) ** 2))
        agent.update()
    assert agent.act(state[0], 0.0) == pytest.approx(0.8, abs=0.1)


def test_states_are_eleven_numbers_in_the_unit_interval(make_chain) -> None:
    domain = make_chain()
    states = LayerStates(domain, MacsModel(domain))
    chosen: list[int] = []
    for choice in domain.choices:
        state = states.state(chosen)
        assert state.shape == (len(FEATURES),) == (11,)
        assert ((state >= 0) & (state <= 1)).all()
        chosen.append(choice.options[0])


def test_live_states_tell_what_was_reduced_what_rests_and_the_last_action(make_chain) -> None:
    domain = make_chain()
    cost = MacsModel(domain)
    states = LayerStates(domain, cost)
    live = {name: FEATURES.index(name) for name in ("reduced", "rest", "last_action")}
    first = states.state([])
    assert first[live["reduced"]] == 0.0
    assert first[live["last_action"]] == 1.0
    counts = [8, 32, *domain.full[2:].tolist()]
    total = total_of(cost, domain.full)
    third = states.state([8, 32])
    assert third[live["reduced"]] == pytest.approx(1 - total_of(cost, counts) / total, abs=1e-6)
    assert third[live["last_action"]] == 1.0
    # Decided: conv0 and conv1. The rest: conv2 reads a decided group, but is itself open.
    open_layers = cost.per_layer(np.array(counts))[3:].sum() / total
    assert third[live["rest"]] == pytest.approx(open_layers, abs=1e-6)


def test_rewards_are_the_papers() -> None:
    estimate = Estimate(0.9, 0.01, Fidelity.NO_FINETUNE, 1e6)
    assert ResourceConstrained()(estimate) == 0.9
    assert AccuracyGuaranteed()(estimate) == pytest.approx(-0.1 * np.log(1e6))
    assert isinstance(make_reward("accuracy-guaranteed"), AccuracyGuaranteed)
    assert isinstance(make_reward("resource-constrained"), ResourceConstrained)


def test_a_state_of_another_search_is_refused(make_chain) -> None:
    wide, narrow = make_chain(), make_chain((0.5, 0.5))
    reward = ResourceConstrained()

    def strategy(domain, warmup=2):
        settings_ = AmcSettings(warmup=warmup, ddpg=SMALL)
        return AmcStrategy(Wall(domain, MacsModel(domain)), reward, settings_, 0)

    state = strategy(wide).state()
    with pytest.raises(DataError, match="another search"):
        strategy(narrow).restore(state)
    with pytest.raises(DataError, match="another search"):
        strategy(wide, warmup=3).restore(state)
    with pytest.raises(DataError):
        strategy(wide).restore(state[: len(state) // 2])
