"""Quantisation for rate: never worse than rounding, errors made up for, the price in command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.bias_correction import BiasCorrect
from flatsat.compressors.curvature import WIDEST, curvatures
from flatsat.compressors.rate_levels import Curvature, choose, costs, levels_cost
from flatsat.compressors.rate_quant import RateQuantise
from flatsat.datasets.fit import evaluate, fit
from flatsat.errors import RecipeError

SHAPE = (1, 6, 6)


def mlp(widths=(36, 24, 4), seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:])
    ).eval()


def step(**params):
    return RateQuantise(RateQuantise.Params(**params))


@pytest.fixture
def trained(blobs):
    context = blobs(SHAPE)
    module = mlp()
    fit(module, context.train, epochs=6, lr=0.05, seed=0)
    return Network(module, SHAPE), context


def drawn(seed, rows, columns, groups=1, correlated=True):
    draw = np.random.default_rng(seed)
    weight = torch.from_numpy(draw.normal(size=(rows, columns))).float()
    samples = draw.normal(size=(groups, 4 * columns, columns))
    if correlated:
        samples += 2 * draw.normal(size=(groups, 4 * columns, 1))
    inputs = torch.from_numpy(samples.transpose(0, 2, 1) @ samples / samples.shape[1])
    outputs = torch.from_numpy(draw.uniform(0.1, 1, rows))
    return weight, Curvature(inputs, torch.zeros(groups, columns), outputs)


def total(numbers, weight, kept, curvature, spacing, price):
    groups = len(curvature.inputs)
    change = (numbers.double() * spacing - weight.double() * kept).view(
        groups, len(weight) // groups, -1
    )
    error = float(
        (((change @ curvature.inputs) * change).sum(2).reshape(-1) * curvature.outputs).sum()
    )
    zero, other, levels = costs(numbers.double(), kept)
    bits = torch.where(numbers == 0, zero, other + levels_cost(levels, numbers.double()))
    return error, error + price * float(bits[kept].sum())


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(4, 3, 1), (6, 8, 2), (6, 1, 6), (9, 12, 3)]),
    st.floats(0.02, 2),
    st.floats(0, 0.3),
)
def test_dropped_weights_stay_zero_and_errors_are_at_most_those_of_rounding(
    seed, sizes, spacing, share
):
    rows, columns, groups = sizes
    weight, curvature = drawn(seed, rows, columns, groups)
    kept = torch.from_numpy(np.random.default_rng(seed).random((rows, columns)) >= share)
    found = choose(weight, kept, curvature, step=spacing, price=0.0, sweeps=3)
    rounded = torch.round(weight.double() * kept / spacing)
    assert not bool(found.numbers[~kept].any())
    error, _ = total(found.numbers, weight, kept, curvature, spacing, 0.0)
    assert found.error == pytest.approx(error, rel=1e-6, abs=1e-9)
    assert error <= total(rounded, weight, kept, curvature, spacing, 0.0)[0] * (1 + 1e-9) + 1e-12
    assert torch.equal(found.values, (found.numbers.double() * spacing).float())


def test_weights_make_up_for_each_others_errors_where_inputs_go_together():
    weight, curvature = drawn(1, 20, 30)
    kept = torch.ones_like(weight, dtype=torch.bool)
    whole = choose(weight, kept, curvature, step=0.7, price=0.0, sweeps=3)
    alone = replace(curvature, inputs=curvature.inputs.diagonal(dim1=1, dim2=2))
    apart = choose(weight, kept, alone, step=0.7, price=0.0, sweeps=3)
    error, _ = total(apart.numbers, weight, kept, curvature, 0.7, 0.0)
    assert whole.error < 0.5 * error


def test_a_higher_price_buys_fewer_bits_with_more_error():
    weight, curvature = drawn(2, 30, 40)
    kept = torch.ones_like(weight, dtype=torch.bool)
    found = [
        choose(weight, kept, curvature, step=0.4, price=price, sweeps=4)
        for price in (0.0, 0.5, 2.0, 8.0)
    ]
    bits, errors = [one.bits for one in found], [one.error for one in found]
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)
    zeros = [int((one.numbers == 0).sum()) for one in found]
    assert zeros[-1] > zeros[0]


def test_curvature_tells_the_error_of_a_change(trained):
    network, context = trained
    names = ["1", "3"]
    found = curvatures(network.module, names, context.train, 240, 0)
    images = torch.from_numpy(context.train.x)
    with torch.no_grad():
        before = network.module(images)
        before = before - before.mean(1, keepdim=True)
        for name in names:
            ratios = []
            for seed in range(8):
                changed = mlp()
                changed.load_state_dict(network.module.state_dict())
                part = changed.get_submodule(name)
                torch.manual_seed(seed)
                move = 0.01 * torch.randn_like(part.weight)
                part.weight += move
                # Curvature is about the mean, which the bias takes up.
                part.bias -= (move.double() @ found[name].mean[0]).float()
                after = changed(images)
                after = after - after.mean(1, keepdim=True)
                real = float((after - before).square().sum() / before.square().sum())
                d = move.double()
                told = float((((d @ found[name].inputs[0]) * d).sum(1) * found[name].outputs).sum())
                ratios.append(told / real)
            assert 0.6 < np.mean(ratios) < 1.6


def test_wide_layers_have_a_diagonal(blobs):
    context = blobs((1, 1, WIDEST + 8), n=32)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(WIDEST + 8, 4)).eval()
    found = curvatures(module, ["1"], context.train, 32, 0)["1"]
    assert found.inputs.shape == (1, WIDEST + 8)
    made = step(price=1e-6).apply(Network(module, (1, 1, WIDEST + 8)), context)
    assert made.history[-1]["layers"][0]["stored"] < 4 * (WIDEST + 8)


def test_weights_stand_on_multiples_of_the_step_and_zeros_join_the_masks(trained):
    network, context = trained
    kept = torch.ones(24, 36, dtype=torch.bool)
    kept[:, ::3] = False
    masked = replace(network, masks={"1.weight": kept})
    masked.module[1].weight.data.masked_fill_(~kept, 0.0)
    made = step(price=1e-4).apply(masked, context)
    weight = made.module[1].weight.detach()
    told = made.history[-1]["layers"][0]
    numbers = weight.double() / told["step"]
    assert torch.equal(torch.round(numbers), numbers.round(decimals=4))
    assert not bool(weight[~kept].any())
    assert torch.equal(made.masks["1.weight"], weight != 0)
    assert told["stored"] == int((weight != 0).sum()) < int(kept.sum())
    assert told["levels"] == len(torch.unique(weight[weight != 0]))
    assert not torch.signbit(made.module[1].bias[made.module[1].bias == 0]).any()


def test_drop_takes_the_highest_price_that_keeps_to_it(trained):
    network, context = trained
    before = evaluate(network.module, context.validation)
    made = step(price=0.1, drop=1.0, n=200).apply(network, context)
    entry = made.history[-1]
    assert evaluate(made.module, context.validation) >= before - 0.01
    assert entry["price"] < 0.1
    coarser = step(price=entry["price"] * 10**0.25, n=200)
    try:
        worse = evaluate(coarser.apply(network, context).module, context.validation)
    except RecipeError:
        worse = 0.0
    assert worse < before - 0.01


def test_training_between_rounds_regains_what_a_price_cost(trained):
    network, context = trained
    at_once = step(price=3e-3).apply(network, context)
    slowly = step(price=3e-3, rounds=4, epochs=2, lr=0.05).apply(network, context)
    sizes = [
        sum(one["estimated_bits"] for one in made.history[-1]["layers"])
        for made in (at_once, slowly)
    ]
    assert sizes[1] < 1.5 * sizes[0]
    assert evaluate(slowly.module, context.validation) > evaluate(
        at_once.module, context.validation
    )
    assert slowly.history[-1]["cost"]["train_steps"] > 0


def test_transposed_convolutions_and_skipped_layers_are_left_alone(blobs):
    context = blobs(SHAPE)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, groups=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2, stride=2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Flatten(),
        nn.Linear(400, 4),
    ).eval()
    made = step(price=1e-6, skip=["6"]).apply(Network(module, SHAPE), context)
    entry = made.history[-1]
    assert entry["left"] == ["3", "6"]
    assert [one["name"] for one in entry["layers"]] == ["0", "4"]
    assert torch.equal(made.module[3].weight, module[3].weight)


def test_bias_correction_follows_only_where_biases_are_free(trained):
    network, context = trained
    with pytest.raises(RecipeError, match="biases on levels"):
        BiasCorrect(BiasCorrect.Params()).apply(step().apply(network, context), context)
    free = step(biases=False, price=1e-4).apply(network, context)
    BiasCorrect(BiasCorrect.Params()).apply(free, context)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"skip": ["head"]}, "no layer 'head'"),
        ({"price": 1.0}, "without weights"),
        ({"price": 1.0, "drop": 0.0, "coarseness": 100.0}, "no price"),
    ],
)
def test_what_can_not_be_done_is_said(trained, params, message):
    network, context = trained
    with pytest.raises(RecipeError, match=message):
        step(**params).apply(network, context)


def test_weights_that_are_not_finite_are_refused(trained):
    network, context = trained
    network.module[1].weight.data[0, 0] = float("nan")
    with pytest.raises(RecipeError, match="not finite"):
        step().apply(network, context)
