"""L1 filter pruning: the least filters go, with all that is coupled to them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.filters import L1FilterParams, L1FilterPrune
from flatsat.compressors.graph import channel_groups, count, layers, prune_channels
from flatsat.compressors.importance import l1, strongest
from flatsat.datasets.nets import build
from flatsat.errors import RecipeError

SHAPE = (1, 28, 28)


def net_of(name, width=0.25):
    return build(
        name,
        classes=10,
        input_shape=SHAPE,
        width=width,
        generator=torch.Generator().manual_seed(0),
    )


def prune(module, shape=SHAPE, **params):
    return L1FilterPrune(L1FilterParams(**params)).apply(Network(module, shape), None)


def outputs(net, shape=SHAPE):
    with torch.no_grad():
        return net(torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)))


def test_the_filters_of_least_l1_norm_go():
    net = net_of("lenet5", 1.0)
    pruned = prune(net, ratio={"conv1": 0.4, "conv2": 0.9})
    best = {}
    for name, kept in (("conv1", 12), ("conv2", 5)):
        norms = net.get_parameter(f"{name}.weight").detach().abs().flatten(1).sum(1)
        best[name] = sorted(torch.topk(norms, kept).indices.tolist())
    assert torch.equal(pruned.module.conv1.weight, net.conv1.weight[best["conv1"]])
    assert torch.equal(
        pruned.module.conv2.weight, net.conv2.weight[best["conv2"]][:, best["conv1"]]
    )
    assert pruned.module.fc1.in_features == 5 * 16
    told = {layer["name"]: layer for layer in pruned.history[0]["layers"]}
    assert (told["conv1"]["channels"], told["conv1"]["kept"]) == (20, 12)


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20", "mobilenet-small"])
def test_the_network_is_really_smaller_and_runs(name):
    net = net_of(name, 0.5)
    pruned = prune(net, ratio=0.5)
    before, after = count(net, SHAPE), count(pruned.module, SHAPE)
    assert after[0] < 0.5 * before[0]
    assert after[2] < 0.7 * before[2]
    assert outputs(pruned.module).shape == (3, 10)
    groups = channel_groups(net, SHAPE)
    keep = {g.name: strongest(l1(net, g), -(-g.channels // 2)) for g in groups if g.prunable}
    assert torch.equal(outputs(pruned.module), outputs(prune_channels(net, SHAPE, keep, groups)))


def test_norms_are_summed_over_coupled_layers():
    net = net_of("resnet20")
    groups = {group.name: group for group in channel_groups(net, SHAPE)}
    stem = groups["conv1"]
    assert len(stem.layers) == 4  # The stem and the second convolutions of three blocks.
    want = sum(
        net.get_parameter(f"{name}.weight").detach().double().abs().sum((1, 2, 3))
        for name in stem.layers
    )
    assert torch.allclose(l1(net, stem), want)
    read = sum(
        net.get_parameter(f"{name}.weight").detach().double().abs().sum((0, 2, 3))
        for name in stem.consumers
    )
    assert torch.allclose(l1(net, stem, "in"), read)


def test_norms_behind_a_flattened_map_count_all_its_positions():
    net = net_of("lenet5", 1.0)
    group = next(group for group in channel_groups(net, SHAPE) if group.name == "conv2")
    want = net.fc1.weight.detach().double().abs().reshape(500, 50, 16).sum((0, 2))
    assert torch.allclose(l1(net, group, "in"), want)


def test_ties_keep_the_earlier_channel():
    assert strongest(torch.tensor([1.0, 2.0, 1.0, 2.0]), 3) == (0, 1, 3)


def test_counts_are_rounded_up_to_a_multiple():
    pruned = prune(net_of("lenet5", 1.0), keep={"conv1": 0.3, "conv2": 0.5}, round_to=8)
    assert (pruned.module.conv1.out_channels, pruned.module.conv2.out_channels) == (8, 32)
    assert pruned.module.fc1.out_features == 500


def test_a_name_beats_a_kind_and_the_rest_stays():
    pruned = prune(net_of("lenet5", 1.0), ratio={"conv": 0.5, "conv1": 0.0})
    widths = [info.out_channels for info in layers(pruned.module, SHAPE)]
    assert widths == [20, 25, 500, 10]


class NamedLikeAKind(nn.Module):
    """The head is called `fc`, as in many networks; one convolution is transposed."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.hidden = nn.Linear(6, 10)
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.down(x)))).mean((2, 3))
        return self.fc(torch.relu(self.hidden(x)))


def test_kinds_reach_transposed_convolutions_and_spare_a_head_of_that_name():
    pruned = prune(NamedLikeAKind().eval(), ratio={"conv": 0.5, "fc": 0.5})
    assert [info.out_channels for info in layers(pruned.module, SHAPE)] == [4, 3, 5, 4]
    assert set(pruned.history[0]["left"]) == {"fc"}


def test_what_stays_whole_is_told_layer_by_layer():
    left = prune(net_of("resnet20"), keep={"blocks.0.conv1": 0.5}).history[0]["left"]
    names = {info.name for info in layers(net_of("resnet20"), SHAPE)}
    assert set(left) == names - {"blocks.0.conv1"}


def test_masks_follow():
    net = net_of("lenet300", 0.1)
    mask = net.fc2.weight.detach() > 0
    network = Network(net, SHAPE, masks={"fc2.weight": mask})
    pruned = L1FilterPrune(L1FilterParams(keep={"fc1": 0.5})).apply(network, None)
    group = channel_groups(net, SHAPE)[0]
    kept = list(strongest(l1(net, group), 15))
    assert torch.equal(pruned.masks["fc2.weight"], mask[:, kept])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"keep": {"conv9": 0.5}}, "no channel group 'conv9'.*did you mean"),
        ({"ratio": {"fc2": 0.5}}, "fc2 can't be pruned: it gives the network's output"),
        ({"ratio": {"conv": 0.5, "blocks": 0.2}}, "no channel group 'blocks'"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(params, message):
    with pytest.raises(RecipeError, match=message):
        prune(net_of("lenet5"), **params)


def test_a_kind_that_the_network_lacks_is_refused():
    with pytest.raises(RecipeError, match="no layer of kind 'conv'"):
        prune(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval(), (4,), ratio={"conv": 0.5})


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"ratio": 0.5, "keep": {"a": 0.5}},
        {"ratio": 1.0},
        {"ratio": {"a": -0.1}},
        {"keep": {"a": 0.0}},
        {"ratio": 0.5, "round_to": 0},
    ],
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        L1FilterParams(**params)
