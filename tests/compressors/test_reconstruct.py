"""Reconstruction: redundant channels cost nothing, others cost less than plain removal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.channel_policy import ChannelPrune, ChannelPruneParams
from flatsat.compressors.channels import difference
from flatsat.compressors.gram import Sampling
from flatsat.compressors.graph import channel_groups, count, layers
from flatsat.compressors.importance import l1, strongest
from flatsat.compressors.reconstruct import ChannelPruner
from flatsat.datasets.nets import build
from flatsat.errors import DataError, RecipeError

SHAPE = (1, 12, 12)
FEW = Sampling(batches=12, points=10, batch=50)


def images(n=300, shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (n, *shape)).astype(np.float32)


def outputs(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x))


class Wide(nn.Module):
    """conv -> conv (padded) -> flatten -> linear -> linear."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.c = nn.Linear(8 * 4, 10)
        self.d = nn.Linear(10, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2)[:, :, :2, :2]
        return self.d(F.relu(self.c(x.flatten(1))))


class Tied(nn.Module):
    """A residual sum and a depthwise convolution, without biases beside batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.one = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.two(F.relu(self.norm(self.one(x))))
        x = F.relu(self.point(F.relu(self.deep(x))))
        return self.head(x.mean((2, 3)))


def made(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind().eval()


def pruner_of(net, **settings):
    settings.setdefault("sampling", FEW)
    return ChannelPruner(Network(net, SHAPE), images(), **settings)


def make_redundant(layer, seed=1):
    """Make the second half of a layer's channels small multiples of the first half."""
    with torch.no_grad():
        half = layer.weight.shape[0] // 2
        factor = torch.rand(half, generator=torch.Generator().manual_seed(seed)) * 0.1 + 0.1
        shape = (-1,) + (1,) * (layer.weight.ndim - 1)
        layer.weight[half:] = layer.weight[:half] * factor.view(shape)
        layer.bias[half:] = layer.bias[:half] * factor


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_duplicated_channels_can_go_at_no_cost(name):
    net = made(Wide)
    make_redundant(net.get_submodule(name))
    x = images(64, seed=4)
    want = outputs(net, x)
    keep = {name: 0.5}
    got = outputs(pruner_of(net).prune(keep), x)
    plain = outputs(pruner_of(net, reconstruct=False).prune(keep), x)
    scale = float(want.abs().max())
    assert float((got - want).abs().max()) <= 1e-4 * scale
    assert float((plain - want).abs().max()) > 1e-2 * scale


def test_a_linear_combination_can_go_at_no_cost():
    """Between two linear layers any channel that is a sum of others is redundant."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        mix = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) * 0.2
        net[1].weight[4:] = mix @ net[1].weight[:4]
        net[1].bias[4:] = mix @ net[1].bias[:4] + 0.3  # A constant that the next bias takes up.
    x = images(64, seed=4)
    want = outputs(net, x)
    got = outputs(pruner_of(net).prune({"1": 0.5}), x)
    assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def test_a_redundant_residual_can_go_at_no_cost():
    net = made(Tied)
    for layer in (net.stem, net.two):
        make_redundant(layer)
    with torch.no_grad():
        net.deep.weight[:] = net.deep.weight[:1]
        net.deep.bias[:] = 0.0
    assert pruner_of(net).kept({"stem": 0.5})["stem"] == (0, 1, 2, 3)
    x = images(64, seed=4)
    want = outputs(net, x)
    got = outputs(pruner_of(net).prune({"stem": 0.5}), x)
    plain = outputs(pruner_of(net, reconstruct=False).prune({"stem": 0.5}), x)
    scale = float(want.abs().max())
    assert float((got - want).abs().max()) <= 1e-4 * scale
    assert float((plain - want).abs().max()) > 1e-2 * scale


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from([Wide, Tied]),
    seed=st.integers(0, 3),
    ratio=st.floats(0.1, 0.9),
)
def test_reconstruction_is_never_worse_than_removal_on_its_samples(kind, seed, ratio):
    net = made(kind, seed)
    pruner = pruner_of(net)
    for group in pruner.groups:
        if not group.prunable:
            continue
        keep = {group.name: ratio}
        if not pruner.kept(keep):
            continue
        for layer in group.consumers:
            if layer in pruner.skipped:
                continue
            plain = pruner.layer_error(layer, keep, plain=True)
            fitted = pruner.layer_error(layer, keep)
            # A channel that never fires on the samples costs nothing either way.
            assert 0.0 <= fitted <= plain * (1 + 1e-9)


def test_the_layers_output_comes_nearer_on_fresh_images():
    net = made(Wide)
    keep = {"a": 0.5}
    x = torch.from_numpy(images(100, seed=8))

    def at_b(module):
        with torch.no_grad():
            return module.b(F.relu(module.a(x)))

    want = at_b(net)
    fitted = (at_b(pruner_of(net).prune(keep)) - want).square().mean()
    plain = (at_b(pruner_of(net, reconstruct=False).prune(keep)) - want).square().mean()
    assert float(fitted) < 0.7 * float(plain)


def test_the_solution_is_the_least_squares_solution():
    """Against NumPy on the very samples: a linear layer takes one sample an image."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 10), nn.ReLU(), nn.Linear(10, 4)).eval()
    x = images(300)
    pruner = ChannelPruner(Network(net, SHAPE), x, sampling=FEW)
    pruned = pruner.prune({"1": 0.6})
    with torch.no_grad():
        a = net[:3](torch.from_numpy(x)).numpy().astype(np.float64)
        y = net(torch.from_numpy(x)).numpy().astype(np.float64)
    stays = list(pruner.kept({"1": 0.6})["1"])
    with_one = np.hstack([a[:, stays], np.ones((300, 1))])
    solution, *_ = np.linalg.lstsq(with_one, y, rcond=None)
    assert np.allclose(pruned[3].weight.detach().numpy(), solution[:-1].T, atol=1e-5)
    assert np.allclose(pruned[3].bias.detach().numpy(), solution[-1], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from([Wide, Tied]),
    ratios=st.lists(st.floats(0.05, 1.0), min_size=4, max_size=4),
    reconstruct=st.booleans(),
)
def test_the_smaller_network_equals_the_masked_one(kind, ratios, reconstruct):
    net = made(kind)
    pruner = pruner_of(net, reconstruct=reconstruct)
    names = [group.name for group in pruner.groups if group.prunable]
    keep = dict(zip(names, ratios, strict=False))
    pruned, masked = pruner.prune(keep), pruner.masked(keep)
    assert difference(masked, pruned, SHAPE) <= 1e-6
    assert count(masked, SHAPE)[0] == count(net, SHAPE)[0]
    widths = {info.name: info.out_channels for info in layers(pruned, SHAPE)}
    for name, kept in pruner.kept(keep).items():
        assert widths[name] == len(kept)


def test_keeping_all_gives_the_dense_network():
    net = made(Wide)
    pruned = pruner_of(net).prune({"a": 1.0, "b": 1.0})
    assert all(torch.equal(v, pruned.state_dict()[n]) for n, v in net.state_dict().items())


def test_episodes_do_not_disturb_each_other():
    net = made(Wide)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruner = pruner_of(net)
    first = pruner.prune({"a": 0.5, "b": 0.25}).state_dict()
    pruner.prune({"a": 0.25, "b": 0.75, "c": 0.5})
    again = pruner.prune({"a": 0.5, "b": 0.25}).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(part._forward_pre_hooks for part in net.modules())


def test_equal_seeds_sample_equal_points():
    net = made(Wide)
    first, again, other = (pruner_of(net, seed=seed).prune({"a": 0.5}) for seed in (1, 1, 2))
    assert torch.equal(first.b.weight, again.b.weight)
    assert not torch.equal(first.b.weight, other.b.weight)


def test_the_largest_norms_stay():
    net = made(Wide)
    groups = {group.name: group for group in channel_groups(net, SHAPE)}
    assert pruner_of(net).kept({"b": 0.5})["b"] == strongest(l1(net, groups["b"]), 4)
    other = pruner_of(net, criterion="l1-consumer")
    assert other.kept({"b": 0.5})["b"] == strongest(l1(net, groups["b"], "in"), 4)


def test_what_is_not_reconstructed_is_told():
    net = made(Tied)
    pruner = pruner_of(net)
    assert set(pruner.skipped) == {"deep"}
    with pytest.raises(RecipeError, match="deep is not reconstructed: a depthwise"):
        pruner.layer_error("deep", {"stem": 0.5})
    masked = Network(net, SHAPE, masks={"point.weight": net.point.weight != 0})
    assert (
        ChannelPruner(masked, images(), sampling=FEW).skipped["point"] == "its weights are masked"
    )


def test_all_batches_count_even_where_images_are_few():
    pruner = pruner_of(made(Wide), sampling=Sampling(batches=60, points=10, batch=50))
    assert pruner.forward_passes == 300
    assert pruner_of(made(Wide), sampling=Sampling(2, 10, 50)).forward_passes == 100


@pytest.mark.parametrize("x", [images(0), images(5, (1, 6, 6))], ids=["none", "other shape"])
def test_unsuitable_images_are_refused(x):
    with pytest.raises(DataError, match="calibration images"):
        ChannelPruner(Network(made(Wide), SHAPE), x)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"d": 0.5}, "d can't be pruned: it gives the network's output"),
        ({"aa": 0.5}, "no channel group 'aa'.*did you mean 'a'"),
        ({"a": 0.0}, "preserve ratio"),
    ],
)
def test_unsound_policies_are_refused(keep, message):
    with pytest.raises(RecipeError, match=message):
        pruner_of(made(Wide), reconstruct=False).prune(keep)


def test_the_step_prunes_by_policy(blobs):
    ctx = blobs(SHAPE)
    net = made(Wide)
    mask = net.c.weight != 0
    params = ChannelPruneParams(keep={"a": 0.3, "c": 0.5}, round_to=4, batches=4)
    made_by_step = ChannelPrune(params).apply(Network(net, SHAPE, masks={"c.weight": mask}), ctx)
    (entry,) = made_by_step.history
    assert {layer["name"]: layer["kept"] for layer in entry["layers"]} == {"a": 4, "b": 8, "c": 8}
    assert entry["cost"] == {"train_steps": 0, "forward_passes": 100}
    assert made_by_step.masks["c.weight"].shape == made_by_step.module.c.weight.shape == (8, 32)
    assert net.a.out_channels == 8


@pytest.mark.parametrize(
    "params", [{}, {"keep": {"a": 0.0}}, {"keep": {"a": 1.5}}, {"keep": {}, "criterion": "l2"}]
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        ChannelPruneParams(**params)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-small"])
def test_reference_networks_can_be_pruned_by_policy(name):
    net = build(
        name,
        classes=10,
        input_shape=(1, 28, 28),
        width=0.25,
        generator=torch.Generator().manual_seed(0),
    )
    x = images(50, (1, 28, 28))
    pruner = ChannelPruner(Network(net, (1, 28, 28)), x, sampling=Sampling(4, 5, 25))
    keep = {group.name: 0.5 for group in pruner.groups if group.prunable}
    pruned = pruner.prune(keep)
    assert difference(pruner.masked(keep), pruned, (1, 28, 28)) <= 1e-5
    assert count(pruned, (1, 28, 28))[2] < 0.5 * count(net, (1, 28, 28))[2]
