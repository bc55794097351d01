"""Pruning agents: they find what is redundant, and the drop bound holds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.agent_policy import (
    LEAST_ACCURACY_TERM,
    Learning,
    accuracy_term,
    efficiency_term,
    learn,
    reward,
)
from flatsat.compressors.agents import AgentParams, AgentPrune
from flatsat.compressors.base import Network
from flatsat.compressors.graph import channel_groups, count, layers
from flatsat.datasets.fit import evaluate
from flatsat.datasets.nets import build
from flatsat.datasets.splits import Split
from flatsat.errors import DataError, RecipeError

CLASSES, FILTERS, USEFUL = 4, 12, (1, 4, 7, 10)
SHAPE = (CLASSES, 2, 2)
STILL = {"tune_epochs": 0.0, "epochs": 0.2, "lr": 1e-5, "weight_decay": 0.0}
"""So little training that filters are recognised afterwards."""


# The reward


@pytest.mark.parametrize(
    ("p", "term"),
    [
        (97.0, 1.0),
        (96.0, 0.5),
        (95.0, 0.0),
        (94.0, -0.5),
        (93.0, LEAST_ACCURACY_TERM),
        (10.0, LEAST_ACCURACY_TERM),
        (99.0, 1.0),
    ],
)
def test_accuracy_term_is_one_without_a_drop_and_zero_at_the_bound(p, term):
    assert accuracy_term(2.0, 97.0, p) == pytest.approx(term)


def test_efficiency_term_is_the_logarithm_of_the_filters_over_those_kept():
    assert efficiency_term(20, 20) == 0.0
    assert efficiency_term(10, 20) == pytest.approx(math.log(2))
    assert efficiency_term(1, 20) == pytest.approx(math.log(20))


def test_reward_is_their_product():
    assert reward(2.0, 97.0, 96.0, 5, 20) == pytest.approx(0.5 * math.log(4))
    # Nothing dropped earns nothing, however accurate; beyond the bound, dropping more costs more.
    assert reward(2.0, 97.0, 99.0, 20, 20) == 0.0
    assert reward(2.0, 97.0, 94.0, 5, 20) < reward(2.0, 97.0, 94.0, 10, 20) < 0.0


# Learning


def lesson(seed=0, filters=(20, 25), useful=(2, 3, 11, 17), **change):
    """Teach an agent a layer in which each useful filter is worth 3 points."""
    seen = []

    def try_out(keep):
        seen.append(tuple(keep.tolist()))
        lost = sum(not keep[i] for i in useful)
        return reward(2.0, 97.0, 97.0 - 3.0 * lost, int(keep.sum()), len(keep))

    learning = Learning(**{"samples": 5, "iterations": 60, "lr": 0.2, "hidden": 32, **change})
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(*filters, generator=torch.Generator().manual_seed(1))
    return learn(weights, try_out, learning, generator), seen


@pytest.mark.parametrize("filters", [(20, 25), (20, 4)], ids=["with convolutions", "without"])
def test_an_agent_learns_which_filters_matter(filters):
    learnt, _ = lesson(filters=filters, iterations=120)
    kept = set(torch.nonzero(learnt.keep > 0.5).flatten().tolist())
    assert kept >= {2, 3, 11, 17}
    assert len(kept) <= 8
    tenth = len(learnt.rewards) // 10
    assert np.mean(learnt.rewards[-tenth:]) > np.mean(learnt.rewards[:tenth]) + 0.3


def test_equal_generators_teach_the_same_and_no_other_is_drawn_from():
    before = torch.get_rng_state()
    first, second, other = lesson(3)[0], lesson(3)[0], lesson(4)[0]
    assert torch.equal(first.keep, second.keep)
    assert first.rewards == second.rewards
    assert not torch.equal(first.keep, other.keep)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_action_is_empty_and_none_is_tried_twice():
    learnt, seen = lesson(filters=(2, 3), useful=(), iterations=40)
    assert all(any(action) for action in seen)
    assert len(set(seen)) == len(seen) == learnt.trials


def test_a_sure_agent_ends_early():
    learnt, _ = lesson(filters=(3, 4), useful=(1,), iterations=2000)
    assert len(learnt.rewards) < 1000
    assert (learnt.keep > 0.5).tolist() == [False, True, False]


# The step


def planted(redundant=True):
    """Return a network whose useful filters alone are read; all others weigh more."""
    generator = torch.Generator().manual_seed(0)
    filters = FILTERS if redundant else CLASSES
    useful = USEFUL if redundant else range(CLASSES)
    net = nn.Sequential(
        nn.Conv2d(CLASSES, filters, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * filters, CLASSES)
    )
    with torch.no_grad():
        net[0].weight.normal_(0, 3, generator=generator)
        net[0].bias.zero_()
        net[3].weight.zero_()
        net[3].bias.zero_()
        for label, channel in enumerate(useful):
            net[0].weight[channel] = torch.eye(CLASSES)[label][:, None, None]
            net[3].weight[label, 4 * channel : 4 * channel + 4] = 1.0
    return Network(net.eval(), SHAPE)


@pytest.fixture
def context(blobs):
    """Images that are bright in the channel of their label."""
    rng = np.random.default_rng(5)

    def split(name, n):
        y = rng.integers(0, CLASSES, n)
        x = rng.normal(0.0, 0.2, (n, *SHAPE))
        x[np.arange(n), y] += 1.0
        return Split(name, x.astype(np.float32), y.astype(np.int64))

    return replace(blobs(SHAPE), train=split("train", 320), validation=split("validation", 200))


def prune(network, ctx, **params):
    made = AgentPrune(AgentParams(**params)).apply(network, ctx)
    return made, made.history[-1]


def kept_filters(start, made):
    """Return the positions that the remaining first filters had."""
    before, after = (part.module[0].weight.detach().flatten(1) for part in (start, made))
    gaps = torch.cdist(after, before)
    assert float(gaps.min(1).values.max()) < 0.01
    return gaps.argmin(1).tolist()


def test_planted_filters_stay_and_redundant_ones_of_greater_norm_go(context):
    start = planted()
    assert evaluate(start.module, context.validation) > 0.99
    made, told = prune(start, context, b=4.0, iterations=80, **STILL)
    kept = kept_filters(start, made)
    assert set(kept) >= set(USEFUL)
    # A random half of the filters would be 6 and hold all useful ones once in 33 times.
    assert len(kept) <= 6
    (layer,) = told["layers"]
    assert (layer["kept"], layer["total"], layer["outcome"]) == (len(kept), FILTERS, "pruned")
    assert layer["last_reward"] > layer["first_reward"] + 0.3
    assert evaluate(made.module, context.validation) > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_the_drop_bound_holds_where_an_agent_has_learnt_nothing(context, seed):
    start, ctx = planted(), replace(context, seed=seed)
    made, told = prune(start, ctx, b=0.5, samples=1, iterations=1, retries=2, **STILL)
    p_ref = evaluate(start.module, ctx.validation)
    accuracy = evaluate(made.module, ctx.validation)
    assert 100 * (p_ref - accuracy) <= 0.5
    assert (told["p_ref"], told["accuracy"]) == (pytest.approx(p_ref), pytest.approx(accuracy))
    (layer,) = told["layers"]
    assert layer["chosen"] < FILTERS
    assert layer["outcome"] in ("pruned", "weakened", "undone")
    assert set(kept_filters(start, made)) >= set(USEFUL)
    assert (layer["kept"] == FILTERS) == (layer["outcome"] == "undone")
    assert (layer["kept"] > layer["chosen"]) == (layer["outcome"] != "pruned")


def test_filters_come_back_by_halves_until_the_bound_holds(context):
    """With enough retries, no layer need stay whole but one that can't lose a single filter."""
    outcomes = set()
    for seed in range(6):
        ctx = replace(context, seed=seed)
        _, told = prune(planted(), ctx, b=0.5, samples=1, iterations=1, retries=8, **STILL)
        outcomes.add(told["layers"][0]["outcome"])
    assert "weakened" in outcomes


def test_a_layer_without_redundancy_is_left_as_it_was(context):
    start = planted(redundant=False)
    made, told = prune(start, context, b=0.5, samples=1, iterations=1, retries=0, **STILL)
    (layer,) = told["layers"]
    assert (layer["kept"], layer["outcome"]) == (CLASSES, "undone")
    for name, value in start.module.state_dict().items():
        assert torch.equal(made.module.state_dict()[name], value)
    # One step: a fifth of the 5 batches of 64. Judged are the reference, the trial, the layer after
    # retraining, and the result.
    assert told["cost"] == {"train_steps": 1, "forward_passes": 4 * 200}


def test_equal_seeds_give_equal_networks(context):
    params = {"b": 4.0, "iterations": 10, "tune_epochs": 0.2, "epochs": 1.0}
    first, told = prune(planted(), context, **params)
    second, again = prune(planted(), context, **params)
    assert told == again
    for name, value in first.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], value)
    _, other = prune(planted(), replace(context, seed=1), **params)
    assert other["layers"] != told["layers"]


def test_trials_may_be_judged_by_part_of_the_images(context):
    _, told = prune(planted(), context, b=4.0, samples=1, iterations=1, images=50, **STILL)
    (layer,) = told["layers"]
    judged = told["cost"]["forward_passes"]
    # The reference by all and by part, the one trial by part, the rest by all.
    assert judged % 200 == 2 * 50
    assert layer["trials"] == 1


def test_a_residual_network_stays_sound(blobs):
    shape = (1, 16, 16)
    net = build(
        "resnet20",
        classes=4,
        input_shape=shape,
        width=0.25,
        generator=torch.Generator().manual_seed(0),
    )
    groups = [group for group in channel_groups(net, shape) if group.prunable]
    made, told = prune(
        Network(net, shape),
        blobs(shape, n=64),
        b=100.0,
        samples=1,
        iterations=1,
        tune_epochs=0.0,
        epochs=1.0,
    )
    assert [layer["name"] for layer in told["layers"]] == [group.name for group in groups]
    widths = {info.name: info.out_channels for info in layers(made.module, shape)}
    for layer in told["layers"]:
        assert {widths[name] for name in layer["coupled"]} == {layer["kept"]}
    assert any(len(layer["coupled"]) > 1 and layer["kept"] < 4 for layer in told["layers"])
    assert count(made.module, shape)[0] < count(net, shape)[0]
    assert "output" in told["left"]["fc"]
    with torch.no_grad():
        assert torch.isfinite(made.module(torch.zeros(2, *shape))).all()


def test_dense_layers_get_agents_where_asked_and_the_rest_is_told(blobs):
    shape = (1, 8, 8)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)
    ).eval()
    network, ctx = Network(net, shape), blobs(shape)
    with pytest.raises(RecipeError, match="no conv layer of the network can be pruned"):
        prune(network, ctx)
    quick = {"b": 100.0, "samples": 1, "iterations": 2, "tune_epochs": 0.0, "epochs": 1.0}
    _, told = prune(network, ctx, kinds=["fc"], **quick)
    assert [layer["name"] for layer in told["layers"]] == ["1", "3"]
    assert list(told["left"]) == ["5"]
    _, told = prune(planted(), ctx_of(ctx), kinds=["conv"], **quick)
    assert "output" in told["left"]["3"]


def ctx_of(ctx):
    """Return a context whose images have the planted network's shape."""

    def fitted(split):
        return Split(split.name, split.x.reshape(len(split), *SHAPE, -1).mean(-1), split.y)

    return replace(ctx, train=fitted(ctx.train), validation=fitted(ctx.validation))


def test_masks_are_cut_and_held(context):
    start = planted()
    mask = torch.ones_like(start.module[0].weight, dtype=torch.bool)
    mask[:, 0] = False
    with torch.no_grad():
        start.module[0].weight[~mask] = 0.0
    start = replace(start, masks={"0.weight": mask})
    made, told = prune(start, context, b=100.0, samples=1, iterations=1, epochs=1.0)
    kept = told["layers"][0]["kept"]
    assert kept < FILTERS
    assert made.masks["0.weight"].shape == (kept, CLASSES, 1, 1)
    assert not made.module[0].weight.detach()[~made.masks["0.weight"]].any()


def test_progress_tells_each_agents_reward_and_what_became_of_its_layer(context):
    notes, lines = [], []

    class Listener:
        def update(self, task, done, total, note=""):
            notes.append((task, done, total, note))

        def log(self, message):
            lines.append(message)

    prune(planted(), replace(context, progress=Listener()), b=4.0, iterations=3, **STILL)
    told = [note for note in notes if "reward" in note[3]]
    assert [note[1:3] for note in told] == [(1, 3), (2, 3), (3, 3)]
    assert all(note[0] == "agent-prune 0 (1 of 1)" for note in told)
    assert len(lines) == 1
    assert "of 12" in lines[0]


def test_without_validation_images_nothing_can_be_judged(context):
    with pytest.raises(DataError, match="validation"):
        prune(planted(), replace(context, validation=context.validation.first(0)))


@pytest.mark.parametrize(
    "params", [{"b": 0.0}, {"b": -1.0}, {"samples": 0}, {"iterations": 0}, {"kinds": []}]
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        AgentParams(**params)
