"""Magnitude pruning: exact thresholds and counts, held masks, dead neurons, dropout."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.dead import clear_dead
from flatsat.compressors.graph import channel_groups, count
from flatsat.compressors.magnitude import MagnitudeParams, MagnitudePrune
from flatsat.datasets.fit import evaluate
from flatsat.errors import RecipeError

SHAPE = (1, 8, 8)


def small(seed=0, dropout=0.0, padding=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 5, 3),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, padding=padding),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * (2 + padding) ** 2, 20),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(20, 4),
        ).eval()
        with torch.no_grad():
            net[3].running_mean.uniform_(-0.2, 0.2)
            net[3].bias.uniform_(-0.3, 0.3)
        return net


WEIGHTED = ("0", "2", "7", "10")


def prune(net, ctx, **params):
    return MagnitudePrune(MagnitudeParams(**params)).apply(Network(net, SHAPE), ctx)


def test_threshold_is_quality_times_standard_deviation(blobs):
    net = small()
    pruned = prune(
        net, blobs(SHAPE), quality={"conv": 0.5, "fc": 1.0, "10": 0.2}, epochs=0, remove_dead="keep"
    )
    quality = {"0": 0.5, "2": 0.5, "7": 1.0, "10": 0.2}
    told = {layer["name"]: layer for layer in pruned.history[0]["layers"]}
    for name in WEIGHTED:
        weight = net.get_parameter(f"{name}.weight").detach().numpy().astype(np.float64)
        threshold = quality[name] * weight.std()
        kept = np.abs(weight) >= threshold
        assert told[name]["threshold"] == pytest.approx(threshold, rel=1e-12)
        assert told[name]["kept"] == kept.sum()
        assert told[name]["sparsity"] == pytest.approx(1 - kept.mean())
        assert np.array_equal(pruned.masks[f"{name}.weight"].numpy(), kept)
        got = pruned.module.get_parameter(f"{name}.weight").detach().numpy()
        assert np.array_equal(got, np.where(kept, weight, 0).astype(np.float32))
        old_bias, bias = (
            net.get_parameter(f"{name}.bias"),
            pruned.module.get_parameter(f"{name}.bias"),
        )
        assert torch.equal(old_bias, bias)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.0, 0.95), seed=st.integers(0, 5))
def test_sparsity_removes_exactly_the_smallest(share, seed):
    net = small(seed)
    step = MagnitudePrune(MagnitudeParams(sparsity=share, epochs=0, remove_dead="keep"))
    pruned = step.apply(Network(net, SHAPE), None)
    for name in WEIGHTED:
        size = net.get_parameter(f"{name}.weight").detach().abs().flatten()
        kept = pruned.masks[f"{name}.weight"].flatten()
        assert int((~kept).sum()) == round(share * kept.numel())
        if bool((~kept).any()):
            assert float(size[~kept].max()) <= float(size[kept].min())


def test_equal_weights_are_cut_to_the_exact_count():
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    with torch.no_grad():
        net[0].weight.fill_(0.5)
    step = MagnitudePrune(MagnitudeParams(sparsity={"0": 0.37}, epochs=0, remove_dead="keep"))
    pruned = step.apply(Network(net, (10,)), None)
    assert int(pruned.masks["0.weight"].sum()) == 63
    assert set(pruned.masks) == {"0.weight"}


def test_global_sparsity_has_one_threshold():
    net = small()
    step = MagnitudePrune(MagnitudeParams(global_sparsity=0.6, epochs=0, remove_dead="keep"))
    pruned = step.apply(Network(net, SHAPE), None)
    sizes = {n: net.get_parameter(f"{n}.weight").detach().abs() for n in WEIGHTED}
    together = torch.cat([size.flatten() for size in sizes.values()])
    gone = sum(int((~pruned.masks[f"{n}.weight"]).sum()) for n in WEIGHTED)
    assert gone == round(0.6 * len(together))
    threshold = float(torch.sort(together).values[gone])
    for name, size in sizes.items():
        assert torch.equal(pruned.masks[f"{name}.weight"], size >= threshold)
    assert {layer["threshold"] for layer in pruned.history[0]["layers"]} == {threshold}


def test_rounds_retrain_with_masks_held_and_nested(blobs):
    ctx, net = blobs(SHAPE), small()
    pruned = prune(net, ctx, sparsity=0.5, rounds=3, epochs=8, lr=0.05)
    shares = [
        [layer["sparsity"] for layer in told["layers"]] for told in pruned.history[0]["rounds"]
    ]
    for number, of_layers in enumerate(shares, 1):
        want = 1 - 0.5 ** (number / 3)
        sizes = [net.get_parameter(f"{name}.weight").numel() for name in WEIGHTED]
        got = [round(share * n) for share, n in zip(of_layers, sizes, strict=True)]
        # Dead neurons are dropped besides, and count from the next round on.
        assert all(g >= round(want * n) for g, n in zip(got, sizes, strict=True))
    for name, mask in pruned.masks.items():
        values = pruned.module.get_parameter(name)
        assert torch.equal(values[~mask], torch.zeros(int((~mask).sum())))
    survivors = pruned.masks["7.weight"]
    assert bool((pruned.module[7].weight[survivors] != net[7].weight[survivors]).any())
    assert pruned.history[0]["cost"]["train_steps"] == 3 * 8 * (240 // 64)
    assert evaluate(pruned.module, ctx.validation) > 0.9


def test_phases_prune_and_retrain_one_kind_at_a_time(blobs):
    ctx, net = blobs(SHAPE), small()
    conv_only = prune(
        net, ctx, sparsity={"conv": 0.5}, phases=["conv"], epochs=1, remove_dead="keep"
    )
    assert set(conv_only.masks) == {"0.weight", "2.weight"}
    assert torch.equal(conv_only.module[7].weight, net[7].weight)
    assert not torch.equal(conv_only.module[2].weight, net[2].weight)
    both = prune(net, ctx, sparsity=0.5, phases=["conv", "fc"], rounds=2, epochs=0)
    assert [(told["phase"], told["round"]) for told in both.history[0]["rounds"]] == [
        ("conv", 1),
        ("conv", 2),
        ("fc", 1),
        ("fc", 2),
    ]
    assert {f"{name}.weight" for name in WEIGHTED} <= set(both.masks)


def test_dropout_is_scaled_by_the_root_of_what_is_kept(blobs):
    net = small(dropout=0.5)
    pruned = prune(net, blobs(SHAPE), sparsity={"7": 0.75}, rounds=2, epochs=0, remove_dead="keep")
    kept = float(pruned.masks["7.weight"].float().mean())
    assert pruned.module[9].p == pytest.approx(0.5 * math.sqrt(kept))
    assert pruned.history[0]["dropout"] == {"9": pruned.module[9].p}
    assert net[9].p == 0.5


def test_an_earlier_mask_is_kept(blobs):
    net = small()
    mask = torch.ones_like(net[7].weight, dtype=torch.bool)
    mask[:, ::2] = False
    with torch.no_grad():
        net[7].weight[~mask] = 0.0
    step = MagnitudePrune(MagnitudeParams(quality={"7": 0.0}, epochs=0, remove_dead="keep"))
    pruned = step.apply(Network(net, SHAPE, masks={"7.weight": mask}), blobs(SHAPE))
    assert torch.equal(pruned.masks["7.weight"], mask)


def outputs(net, shape=SHAPE):
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return net(x)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.5, 0.97), seed=st.integers(0, 20), padding=st.sampled_from([0, 1]))
def test_removing_dead_neurons_leaves_the_outputs_equal(share, seed, padding):
    net = small(seed, padding=padding)
    masks = {}
    with torch.no_grad():
        for name in WEIGHTED:
            weight = net.get_parameter(f"{name}.weight")
            generator = torch.Generator().manual_seed(seed)
            masks[f"{name}.weight"] = torch.rand(weight.shape, generator=generator) > share
            weight[~masks[f"{name}.weight"]] = 0.0
    before = copy.deepcopy(net.state_dict())
    cleared = clear_dead(net, masks, SHAPE, channel_groups(net, SHAPE))
    want, got = outputs(net), outputs(cleared.module)
    assert float((want - got).abs().max()) <= 1e-5 * float(want.abs().max())
    assert all(torch.equal(before[n], v) for n, v in net.state_dict().items())
    for name, mask in cleared.masks.items():
        assert not bool(cleared.module.get_parameter(name)[~mask].any())
    for group in channel_groups(net, SHAPE):
        if not group.prunable or group.name in cleared.left:
            continue
        alive = set(cleared.alive[group.name])
        rows = cleared.module.get_parameter(f"{group.name}.weight").flatten(1).any(1)
        assert set(torch.nonzero(rows).flatten().tolist()) == alive


def hand_made():
    """Three hidden units: the first has no output, the second no input, the third both."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, -1.0]]))
        net[0].bias.copy_(torch.tensor([5.0, 2.0, 1.0]))
        net[2].weight.copy_(torch.tensor([[0.0, 3.0, 1.0], [0.0, -1.0, 1.0]]))
        net[2].bias.copy_(torch.tensor([0.5, 0.5]))
    return net


def test_a_constant_neuron_moves_into_the_next_bias():
    net = hand_made()
    masks = {f"{i}.weight": net[i].weight != 0 for i in (0, 2)}
    cleared = clear_dead(net, masks, (2,), channel_groups(net, (2,)))
    assert cleared.no_output == {"0": 1}
    assert cleared.no_input == {"0": 1}
    assert cleared.alive == {"0": (2,)}
    # relu(2) = 2 through weights 3 and -1.
    assert cleared.module[2].bias.tolist() == [6.5, -1.5]
    assert cleared.module[0].bias.tolist() == [0.0, 0.0, 1.0]
    assert cleared.masks["0.bias"].tolist() == [False, False, True]
    assert not bool(cleared.module[2].weight[:, :2].any())


def test_a_constant_behind_a_padded_convolution_is_left_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten())
    net.append(nn.Linear(72, 3)).eval()
    with torch.no_grad():
        net[0].weight[0] = 0.0
        net[0].bias.copy_(torch.tensor([1.0, 1.0]))
    groups = channel_groups(net, SHAPE)
    cleared = clear_dead(net, {"0.weight": net[0].weight != 0}, SHAPE, groups)
    assert cleared.left == {"0": 1}
    assert float(cleared.module[0].bias[0].detach()) == 1.0
    with torch.no_grad():
        net[0].bias[0] = -1.0  # relu(-1) = 0: nothing to move.
    cleared = clear_dead(net, {"0.weight": net[0].weight != 0}, SHAPE, groups)
    assert (cleared.left, cleared.alive["0"]) == ({}, (1,))


def test_dead_neurons_can_be_removed_for_good(blobs):
    ctx, net = blobs(SHAPE), small()
    params = {"sparsity": {"7": 0.97, "10": 0.9}, "epochs": 0}
    zeroed = prune(net, ctx, **params, remove_dead="zero")
    removed = prune(net, ctx, **params, remove_dead="remove")
    want, got = outputs(zeroed.module), outputs(removed.module)
    assert float((want - got).abs().max()) <= 1e-5 * float(want.abs().max())
    (dead,) = [told for told in removed.history[0]["dead"] if told["name"] == "7"]
    assert removed.module[7].out_features == dead["alive"] < 20
    assert count(removed.module, SHAPE)[1] == count(zeroed.module, SHAPE)[1]
    assert count(removed.module, SHAPE)[2] < count(zeroed.module, SHAPE)[2]
    for name, mask in removed.masks.items():
        assert mask.shape == removed.module.get_parameter(name).shape


def test_pruning_a_whole_layer_is_refused(blobs):
    with pytest.raises(RecipeError, match="would prune all of 7"):
        prune(small(), blobs(SHAPE), quality={"7": 50.0})


def test_a_global_share_in_phases_is_that_of_each_kind(blobs):
    net = small()
    pruned = prune(
        net, blobs(SHAPE), global_sparsity=0.6, phases=["conv", "fc"], epochs=0, remove_dead="keep"
    )
    for names in (("0", "2"), ("7", "10")):
        sizes = {n: net.get_parameter(f"{n}.weight").detach().abs() for n in names}
        together = torch.cat([size.flatten() for size in sizes.values()]).sort().values
        first_kept = together[round(0.6 * len(together))]
        for name, size in sizes.items():
            assert torch.equal(pruned.masks[f"{name}.weight"], size >= first_kept)


def test_layers_that_stay_dense_are_told(blobs):
    pruned = prune(small(), blobs(SHAPE), sparsity={"conv": 0.5, "7": 0.5}, phases=["fc"], epochs=0)
    assert [layer["name"] for layer in pruned.history[0]["layers"]] == ["7"]
    assert pruned.history[0]["left"] == {
        "0": "no phase is for its kind",
        "2": "no phase is for its kind",
        "10": "the recipe doesn't name it",
    }


def test_phases_without_a_layer_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with pytest.raises(RecipeError, match="would prune no layer"):
        prune(net, None, sparsity=0.5, phases=["conv"])


@pytest.mark.parametrize("params", [{"sparsity": 0.5}, {"quality": {"fc": 1.0}}])
def test_weights_that_are_not_finite_are_refused(params):
    net = small()
    with torch.no_grad():
        net[7].weight[0, 0] = math.nan
    with pytest.raises(RecipeError, match="weights of '7' are not finite"):
        prune(net, None, **params)


def test_unknown_layers_are_refused(blobs):
    with pytest.raises(RecipeError, match="no layer 'fc9'"):
        prune(small(), blobs(SHAPE), quality={"fc9": 1.0})


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"quality": {"fc": 1.0}, "sparsity": 0.5},
        {"sparsity": 1.0},
        {"sparsity": {"fc": -0.1}},
        {"global_sparsity": 1.5},
        {"quality": {"fc": float("nan")}},
        {"sparsity": 0.5, "rounds": 0},
        {"sparsity": 0.5, "phases": []},
        {"sparsity": 0.5, "qualty": 1},
    ],
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        MagnitudeParams(**params)
