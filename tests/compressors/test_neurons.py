"""Neuron pruning: the least worthy neurons go, and what stays is the network without them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.graph import channel_groups, count, layers
from flatsat.compressors.neurons import NeuronParams, NeuronPrune, mean_activations
from flatsat.datasets.fit import evaluate
from flatsat.errors import DataError, RecipeError

SHAPE = (1, 8, 8)
MAPS = 4


class Net(nn.Module):
    """A convolution, two hidden dense layers with dropout, a head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(1, MAPS, 3)
        self.fc1 = nn.Linear(MAPS * 9, 16)
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(16, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)
        return self.head(F.relu(self.fc2(self.drop(F.relu(self.fc1(x))))))


class Tied(nn.Module):
    """A residual sum ties the neurons of two dense layers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 12)
        self.b = nn.Linear(12, 12)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = F.relu(self.a(x.flatten(1)))
        return self.head(F.relu(x + self.norm(self.b(x))))


def made(kind, seed=0, **given):
    net = kind(**given).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return net


def prune(net, ctx=None, **params):
    return NeuronPrune(NeuronParams(**{"epochs": 0, **params})).apply(Network(net, SHAPE), ctx)


def outputs(net):
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return net(x)


def zeroed(net, gone):
    """Return a copy whose readers get zeros from the neurons that go, by layer."""
    net = copy.deepcopy(net)
    for layer, positions in gone.items():
        net.get_submodule(layer).register_forward_hook(
            lambda part, args, out, positions=positions: out.index_fill(1, positions, 0.0)
        )
    return net


def worth(net):
    """Return the product of norms by layer, each computed on its own."""
    incoming = {n: net.get_parameter(f"{n}.weight").detach().double() for n in ("fc1", "fc2")}
    outgoing = {"fc1": net.fc2.weight, "fc2": net.head.weight}
    return {
        name: weight.norm(dim=1) * outgoing[name].detach().double().norm(dim=0)
        for name, weight in incoming.items()
    }


def least(scores, gone):
    return {name: torch.sort(scores[name]).indices[:n].sort().values for name, n in gone.items()}


@settings(max_examples=25, deadline=None)
@given(
    ratio=st.fixed_dictionaries({"fc1": st.floats(0, 0.95), "fc2": st.floats(0, 0.95)}),
    seed=st.integers(0, 50),
)
def test_removing_neurons_equals_zeroing_the_least_worthy(ratio, seed):
    net = made(Net, seed)
    pruned = prune(net, ratio=ratio)
    kept = {n: max(1, math.ceil((1 - ratio[n]) * w - 1e-9)) for n, w in (("fc1", 16), ("fc2", 10))}
    gone = least(worth(net), {"fc1": 16 - kept["fc1"], "fc2": 10 - kept["fc2"]})
    want, got = outputs(zeroed(net, gone)), outputs(pruned.module)
    assert float((want - got).abs().max()) <= 1e-5 * float(want.abs().max())
    assert pruned.module.fc1.weight.shape == (kept["fc1"], MAPS * 9)
    assert pruned.module.fc2.weight.shape == (kept["fc2"], kept["fc1"])
    assert pruned.module.head.weight.shape == (4, kept["fc2"])
    told = {layer["name"]: layer["kept"] for layer in pruned.history[0]["layers"]}
    assert told == kept


@pytest.mark.parametrize("criterion", ["l2", "activation"])
def test_the_network_is_really_smaller(blobs, criterion):
    net = made(Net)
    pruned = prune(net, blobs(SHAPE), ratio=0.5, criterion=criterion)
    before, after = count(net, SHAPE), count(pruned.module, SHAPE)
    lost = 8 * (MAPS * 9 + 1) + (160 - 40) + 5 + 4 * 5
    assert (before[0] - after[0], before[2] - after[2]) == (lost, lost - 13)
    assert [info.out_channels for info in layers(pruned.module, SHAPE)] == [MAPS, 8, 5, 4]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50), data=st.data())
def test_a_factor_that_moves_between_layers_changes_no_choice(seed, data):
    net, scaled = made(Net, seed), made(Net, seed)
    factors = torch.tensor(data.draw(st.lists(st.floats(0.05, 20), min_size=16, max_size=16)))
    with torch.no_grad():
        scaled.fc1.weight *= factors[:, None]
        scaled.fc1.bias *= factors
        scaled.fc2.weight /= factors
    one, other = prune(net, ratio={"fc1": 0.5}), prune(scaled, ratio={"fc1": 0.5})
    assert torch.allclose(outputs(one.module), outputs(other.module), rtol=1e-3, atol=1e-4)


def test_activations_are_those_that_readers_get(blobs):
    net, ctx = made(Net), blobs(SHAPE)
    x = torch.from_numpy(ctx.calibration.x)
    with torch.no_grad():
        maps = F.max_pool2d(F.relu(net.conv(x)), 2)
        first = F.relu(net.fc1(maps.flatten(1)))
    want = {"conv": maps.double().mean((0, 2, 3)), "fc1": first.double().mean(0)}
    groups = [group for group in channel_groups(net, SHAPE) if group.name in want]
    got = mean_activations(net, groups, x)
    assert all(torch.allclose(got[name], want[name], rtol=1e-5) for name in want)
    pruned = prune(net, ctx, ratio={"fc1": 0.25}, criterion="activation", n=100)
    gone = least(want, {"fc1": 4})
    assert torch.allclose(outputs(pruned.module), outputs(zeroed(net, gone)), atol=1e-5)
    assert pruned.history[0]["cost"] == {"train_steps": 0, "forward_passes": 100}


def test_a_neuron_that_never_fires_goes_first(blobs):
    net = made(Net)
    with torch.no_grad():
        net.fc1.weight[[3, 11]] = 0.0
        net.fc1.bias[[3, 11]] = -1.0
    pruned = prune(net, blobs(SHAPE), ratio={"fc1": 2 / 16}, criterion="activation")
    assert pruned.module.fc1.out_features == 14
    assert torch.allclose(outputs(pruned.module), outputs(net), atol=1e-5)


def test_tied_neurons_go_together():
    net = made(Tied)
    pruned = prune(net, ratio=0.5)
    forming = (net.a.weight.detach().square().sum(1) + net.b.weight.detach().square().sum(1)).sqrt()
    reading = net.b.weight.detach().square().sum(0) + net.head.weight.detach().square().sum(0)
    kept = torch.topk(forming * reading.sqrt(), 6).indices.sort().values
    assert torch.equal(pruned.module.b.weight, net.b.weight[kept][:, kept])
    assert pruned.module.norm.num_features == 6
    assert pruned.history[0]["layers"][0]["coupled"] == ["a", "b"]


def test_rounds_shrink_geometrically_and_retrain_the_survivors(blobs):
    ctx = blobs(SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
    pruned = prune(net, ctx, ratio=0.5, rounds=2, epochs=20, lr=0.1)
    told = pruned.history[0]
    widths = [[layer["kept"] for layer in entry["layers"]] for entry in told["rounds"]]
    assert widths == [[12, 8], [8, 5]]
    assert [info.out_channels for info in layers(pruned.module, SHAPE)] == [MAPS, 8, 5, 4]
    assert told["cost"]["train_steps"] == 2 * 20 * (240 // 64)
    assert len(pruned.history) == 1
    assert evaluate(pruned.module, ctx.validation) > 0.9


def test_a_kind_reaches_convolutions_and_a_name_beats_it():
    pruned = prune(made(Net), ratio={"conv": 0.5, "fc": 0.5, "fc2": 0.0})
    assert [info.out_channels for info in layers(pruned.module, SHAPE)] == [2, 8, 10, 4]


def test_what_stays_whole_is_told_with_the_reason():
    left = prune(made(Net), ratio=0.5).history[0]["left"]
    assert set(left) == {"conv", "head"}
    assert "output" in left["head"]
    assert "ratio.conv" in left["conv"]
    assert set(prune(made(Net), ratio={"fc2": 0.5}).history[0]["left"]) == {"conv", "fc1", "head"}


def test_a_network_without_hidden_neurons_is_left_alone(blobs):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 4)).eval()
    made_network = prune(net, blobs(SHAPE), ratio=0.5, epochs=1)
    assert torch.equal(made_network.module[0].weight, net[0].weight)
    assert made_network.module is not net
    assert set(made_network.history[0]["left"]) == {"0", "2"}
    assert made_network.history[0]["cost"]["train_steps"] == 0


def test_dropout_falls_with_the_connections():
    pruned = prune(made(Net, dropout=0.5), ratio={"fc1": 0.75})
    assert pruned.module.drop.p == pytest.approx(0.25)
    assert pruned.history[0]["dropout"] == {"drop": pruned.module.drop.p}


def test_masks_are_cut_and_held(blobs):
    net = made(Net)
    mask = torch.rand(net.fc2.weight.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    with torch.no_grad():
        net.fc2.weight[~mask] = 0.0
    step = NeuronPrune(NeuronParams(ratio={"fc1": 0.5, "fc2": 0.2}, epochs=1))
    pruned = step.apply(Network(net, SHAPE, masks={"fc2.weight": mask}), blobs(SHAPE))
    weight = pruned.module.fc2.weight
    assert pruned.masks["fc2.weight"].shape == weight.shape == (8, 8)
    assert not weight[~pruned.masks["fc2.weight"]].any()


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ({"fc9": 0.5}, "no channel group 'fc9'.*did you mean"),
        ({"head": 0.5}, "head can't be pruned: it gives the network's output"),
    ],
)
def test_layers_that_do_not_fit_are_refused(ratio, message):
    with pytest.raises(RecipeError, match=message):
        prune(made(Net), ratio=ratio)


def test_a_layer_tied_to_another_is_pointed_to_it():
    with pytest.raises(RecipeError, match="go with those of 'a'"):
        prune(made(Tied), ratio={"b": 0.5})


def test_ranking_by_activation_needs_images(blobs):
    from dataclasses import replace

    ctx = blobs(SHAPE)
    empty = replace(ctx.calibration, x=ctx.calibration.x[:0], y=ctx.calibration.y[:0])
    with pytest.raises(DataError, match="no calibration images"):
        prune(made(Net), replace(ctx, calibration=empty), ratio=0.5, criterion="activation")


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"ratio": 1.0},
        {"ratio": {"fc": -0.1}},
        {"ratio": float("nan")},
        {"ratio": 0.5, "criterion": "l1"},
        {"ratio": 0.5, "rounds": 0},
        {"ratio": 0.5, "n": 0},
    ],
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        NeuronParams(**params)
