"""Gradual pruning: the equation at each pruning, exact counts, masks that hold."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.gradual import GradualParams, GradualPrune, Schedule
from flatsat.datasets.fit import evaluate
from flatsat.errors import RecipeError

SHAPE = (1, 8, 8)
SIZES = {"0": 5 * 9, "2": 6 * 5 * 9, "7": 20 * 24, "9": 80}
PER_EPOCH = 240 // 64


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 20),
            nn.ReLU(),
            nn.Linear(20, 4),
        ).eval()


def prune(ctx, net=None, masks=None, **params):
    step = GradualPrune(GradualParams(**{"epochs": 4, "frequency": 1, **params}))
    return step.apply(Network(small() if net is None else net, SHAPE, masks=masks or {}), ctx)


def equation(t, initial, final, t0, n_dt):
    return final + (initial - final) * (1 - (t - t0) / n_dt) ** 3


@settings(max_examples=60, deadline=None)
@given(
    begin=st.integers(0, 500),
    prunings=st.integers(1, 60),
    frequency=st.integers(1, 40),
    initial=st.floats(0, 0.99),
    more=st.floats(0, 1),
)
def test_the_schedule_is_the_equation_at_each_pruning(begin, prunings, frequency, initial, more):
    final = initial + (0.999 - initial) * more
    end = begin + prunings * frequency
    schedule = Schedule(begin, end, frequency)
    due = [step for step in range(end + 50) if schedule.due(step)]
    assert due == [begin + i * frequency for i in range(prunings + 1)]
    got = [schedule.sparsity(step, initial, final) for step in due]
    want = [equation(step, initial, final, begin, prunings * frequency) for step in due]
    assert got == pytest.approx(want, abs=1e-12)
    assert got[0] == pytest.approx(initial)
    assert got[-1] == final
    assert got == sorted(got)


@settings(max_examples=40, deadline=None)
@given(begin=st.integers(0, 50), span=st.integers(1, 50), frequency=st.integers(1, 80))
def test_the_last_pruning_is_at_the_end_whatever_the_frequency(begin, span, frequency):
    schedule = Schedule(begin, begin + span, frequency)
    due = [step for step in range(begin + span + 20) if schedule.due(step)]
    assert due[0] == begin
    assert due[-1] == begin + span


def test_each_pruning_drops_exactly_what_the_equation_says(blobs):
    pruned = prune(
        blobs(SHAPE), initial_sparsity=0.1, final_sparsity=0.8, begin=0.25, end=0.75, frequency=2
    )
    told = pruned.history[0]
    steps = 4 * PER_EPOCH
    assert told["schedule"] == {"begin": 3, "end": 9, "steps": steps}
    assert [entry["step"] for entry in told["rounds"]] == [3, 5, 7, 9]
    for entry in told["rounds"]:
        share = equation(entry["step"], 0.1, 0.8, 3, 6)
        assert entry["kept"] == {n: size - round(share * size) for n, size in SIZES.items()}
        assert entry["sparsity"] == pytest.approx(dict.fromkeys(SIZES, share))
    assert told["cost"] == {"train_steps": steps, "forward_passes": 0}


def test_masked_weights_are_zero_and_the_rest_is_trained(blobs):
    ctx = blobs(SHAPE)
    pruned = prune(ctx, final_sparsity=0.7, epochs=20, lr=0.05, weight_decay=0.01)
    assert set(pruned.masks) == {f"{name}.weight" for name in SIZES}
    for name, size in SIZES.items():
        mask = pruned.masks[f"{name}.weight"]
        weight = pruned.module.get_parameter(f"{name}.weight").detach()
        assert int((~mask).sum()) == round(0.7 * size)
        assert torch.equal(weight != 0, mask)
    told = {layer["name"]: layer for layer in pruned.history[0]["layers"]}
    assert {name: layer["weights"] for name, layer in told.items()} == SIZES
    assert all(layer["sparsity"] == pytest.approx(0.7, abs=0.02) for layer in told.values())
    assert evaluate(pruned.module, ctx.validation) > 0.9


def test_the_smallest_go_at_the_only_pruning(blobs):
    # One step before training, then the end: the first choice is that of the given weights.
    net = small()
    pruned = prune(
        blobs(SHAPE), net, initial_sparsity=0.5, final_sparsity=0.5, frequency=1000, lr=1e-9
    )
    for name, size in SIZES.items():
        weight = net.get_parameter(f"{name}.weight").detach().abs()
        gone = torch.sort(weight.flatten()).values[: round(0.5 * size)]
        assert torch.equal(pruned.masks[f"{name}.weight"], weight > gone[-1])


class Watched(nn.Linear):
    """Tells which of its weights are zero whenever it trains."""

    seen: ClassVar[list[torch.Tensor]] = []

    def forward(self, x):
        if self.training:
            self.seen.append(self.weight.detach() == 0)
        return super().forward(x)


def test_training_sees_the_schedules_zeros_and_none_comes_back(blobs):
    net = nn.Sequential(nn.Flatten(), Watched(64, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    Watched.seen.clear()
    prune(blobs(SHAPE), net, final_sparsity=0.9, frequency=3, begin=0.25, end=0.8, lr=0.1, epochs=6)
    begin, end = round(0.25 * 18), round(0.8 * 18)
    due = [*range(begin, end, 3), end]
    for done, zeros in enumerate(Watched.seen):
        at = max((step for step in due if step <= done), default=None)
        share = 0.0 if at is None else equation(at, 0.0, 0.9, begin, end - begin)
        assert int(zeros.sum()) == round(share * 1280)
    assert len(Watched.seen) == 18
    assert all(not (a & ~b).any() for a, b in pairwise(Watched.seen))


def test_global_scope_has_one_threshold(blobs):
    net = small()
    pruned = prune(blobs(SHAPE), net, final_sparsity=0.6, scope="global", frequency=99, lr=1e-9)
    sizes = {n: net.get_parameter(f"{n}.weight").detach().abs() for n in SIZES}
    together = torch.cat([size.flatten() for size in sizes.values()]).sort().values
    first_kept = together[round(0.6 * sum(SIZES.values()))]
    for name, size in sizes.items():
        assert torch.equal(pruned.masks[f"{name}.weight"], size >= first_kept)
    assert len({layer["threshold"] for layer in pruned.history[0]["layers"]}) == 1


def test_a_table_gives_layers_their_own_sparsity(blobs):
    pruned = prune(blobs(SHAPE), final_sparsity={"conv": 0.5, "fc": 0.9, "9": 0.3})
    got = {layer["name"]: layer["kept"] for layer in pruned.history[0]["layers"]}
    want = {"0": 0.5, "2": 0.5, "7": 0.9, "9": 0.3}
    assert got == {name: SIZES[name] - round(share * SIZES[name]) for name, share in want.items()}


def test_layers_left_dense_are_told(blobs):
    pruned = prune(blobs(SHAPE), final_sparsity={"conv": 0.5, "7": 0.5}, skip=["0"])
    assert set(pruned.masks) == {"2.weight", "7.weight"}
    assert pruned.history[0]["left"] == {"0": "skip names it", "9": "the recipe doesn't name it"}


def test_earlier_masks_are_held_and_count(blobs):
    net = small()
    mask = torch.ones_like(net[7].weight, dtype=torch.bool)
    mask[:, ::3] = False
    bias = torch.ones_like(net[9].bias, dtype=torch.bool)
    bias[1] = False
    with torch.no_grad():
        net[7].weight[~mask] = 0.0
        net[9].bias[1] = 0.0
    pruned = prune(
        blobs(SHAPE), net, {"7.weight": mask, "9.bias": bias}, final_sparsity={"7": 0.5, "0": 0.1}
    )
    got = pruned.masks["7.weight"]
    assert not (got & ~mask).any()
    assert int((~got).sum()) == round(0.5 * SIZES["7"])
    assert torch.equal(pruned.masks["9.bias"], bias)
    assert pruned.module[9].bias[1] == 0


def test_a_training_of_one_step_reaches_the_final_sparsity(blobs):
    pruned = prune(blobs(SHAPE), final_sparsity=0.5, begin=0.99, end=1.0, epochs=0.1)
    assert pruned.history[0]["cost"]["train_steps"] == 1
    kept = {layer["name"]: layer["kept"] for layer in pruned.history[0]["layers"]}
    assert kept == {name: size - round(0.5 * size) for name, size in SIZES.items()}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"final_sparsity": {"8": 0.5}}, "no layer '8'"),
        ({"final_sparsity": 0.5, "skip": ["conv9"]}, "no layer 'conv9'"),
        ({"final_sparsity": 0.5, "skip": ["conv", "fc"]}, "would prune no layer"),
        ({"final_sparsity": 0.995}, "would prune all of 0"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_training(params, message):
    class Unread:
        seed = 0
        train = range(240)

    with pytest.raises(RecipeError, match=message):
        prune(Unread(), **params)


def test_a_layer_that_the_global_threshold_would_empty_is_named(blobs):
    net = small()
    with torch.no_grad():
        net[0].weight *= 1e-6
    with pytest.raises(RecipeError, match="would prune all of 0"):
        prune(blobs(SHAPE), net, final_sparsity=0.9, scope="global", lr=1e-6)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"final_sparsity": 1.0},
        {"final_sparsity": 0.5, "initial_sparsity": 0.6},
        {"final_sparsity": {"fc": 0.1, "conv": 0.9}, "initial_sparsity": 0.2},
        {"final_sparsity": {"fc": 0.5}, "scope": "global"},
        {"final_sparsity": 0.5, "begin": 0.5, "end": 0.5},
        {"final_sparsity": 0.5, "end": 1.5},
        {"final_sparsity": 0.5, "frequency": 0},
        {"final_sparsity": 0.5, "scope": "network"},
        {"final_sparsity": float("nan")},
    ],
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        GradualParams(**params)
