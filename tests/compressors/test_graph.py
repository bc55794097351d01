"""Channel groups: what hangs together, and that cutting it is zeroing it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.channels import checked_keep, cut_verified, kept_count, shrunk
from flatsat.compressors.graph import (
    channel_groups,
    count,
    layers,
    prune_channels,
    prune_network,
)
from flatsat.datasets.nets import build, cost
from flatsat.datasets.workload import workload
from flatsat.errors import RecipeError


class Plain(nn.Module):
    """Convolutions, flatten, linear layers."""

    shape = (2, 10, 10)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3)
        self.b = nn.Conv2d(6, 5, 3)
        self.c = nn.Linear(20, 7)
        self.d = nn.Linear(7, 3)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.a(x)), 2)
        return self.d(F.gelu(self.c(self.b(x).flatten(1))))


class Residual(nn.Module):
    """Two sums over one set of channels; the second block's inner channels are its own."""

    shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 6, 3, padding=1)
        self.three = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.one(x)))
        x = x + self.three(F.relu6(self.two(x)))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """A U-Net in small: a transposed convolution and a concatenation with an offset."""

    shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 5, 3, padding=1)
        self.deep = nn.Conv2d(5, 9, 3, stride=2, padding=1)
        self.act = nn.PReLU(9)
        self.up = nn.ConvTranspose2d(9, 4, 2, stride=2)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.join = nn.Conv2d(9, 6, 3)
        self.head = nn.Linear(6 * 36, 4)

    def forward(self, x):
        skip = F.relu(self.down(x))
        up = self.norm(self.up(self.act(self.deep(skip))))
        return self.head(F.relu(self.join(torch.cat([up, skip], 1))).flatten(1))


class Depthwise(nn.Module):
    shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.filter = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.hardswish(self.norm(self.filter(F.relu(self.expand(x)))))
        return self.head(F.relu(self.project(x)).mean((2, 3)))


class Grouped(nn.Module):
    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 12, 3, padding=1, groups=4)
        self.after = nn.Conv2d(12, 5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.before(x))))
        return self.head(F.relu(self.after(x)).mean((2, 3)))


class Twice(nn.Module):
    """A convolution and a linear layer, each called twice."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.narrow = nn.Conv2d(6, 5, 1)
        self.fc = nn.Linear(5, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = F.relu(self.norm(self.again(x)))
        x = F.relu(self.narrow(x)).mean((2, 3))
        return self.head(F.relu(self.fc(F.relu(self.fc(x)))))


NETS = [Plain, Residual, Concat, Depthwise, Grouped, Twice]


def made(kind, seed=0):
    """Build with random weights, biases, batch norm statistics included."""
    net = kind().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-0.6, 0.6, generator=generator)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return net


def outputs(net, shape, seed=5):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return net(x)


def zeroed_outputs(net, shape, groups, keep):
    """Run the original, multiplying the channels that go by zero wherever they are made."""
    net = copy.deepcopy(net)
    for group in groups:
        gone = sorted(set(range(group.channels)) - set(keep.get(group.name, range(10**6))))
        for slot in group.slots:
            positions = [p for channel in gone for p in slot.index[channel]]
            if slot.side == "out" and positions:

                def hook(part, args, out, positions=positions):
                    axis = -1 if isinstance(part, nn.Linear) else 1
                    return out.index_fill(axis, torch.tensor(positions), 0.0)

                net.get_submodule(slot.layer).register_forward_hook(hook)
    return outputs(net, shape)


GROUPS = {kind: channel_groups(made(kind), kind.shape) for kind in NETS}


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_cutting_channels_equals_zeroing_them(kind, data):
    net, groups = made(kind, data.draw(st.integers(0, 3))), GROUPS[kind]
    keep = {}
    for group in groups:
        if group.prunable and data.draw(st.booleans()):
            channels = st.sets(st.integers(0, group.channels - 1), min_size=1)
            keep[group.name] = sorted(data.draw(channels))
    pruned = prune_channels(net, kind.shape, keep, groups)
    want = zeroed_outputs(net, kind.shape, groups, keep)
    got = outputs(pruned, kind.shape)
    assert float((want - got).abs().max()) <= 1e-5 * max(float(want.abs().max()), 1e-3)
    counts = {name: len(kept) for name, kept in keep.items()}
    told = shrunk(layers(net, kind.shape), groups, counts)
    assert [replace(info, nonzeros=info.params) for info in layers(pruned, kind.shape)] == told


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_every_weighted_layers_outputs_belong_to_one_group(kind):
    made_by = [layer for group in GROUPS[kind] for layer in group.layers]
    assert sorted(made_by) == sorted(info.name for info in layers(made(kind), kind.shape))


def test_coupled_layers_share_a_group():
    groups = {group.name: group for group in GROUPS[Residual]}
    assert groups["stem"].layers == ("stem", "one", "three")
    assert groups["stem"].consumers == ("one", "two", "head")
    assert groups["two"].layers == ("two",)
    groups = {group.name: group for group in GROUPS[Depthwise]}
    assert groups["expand"].layers == ("expand", "filter")
    assert groups["expand"].consumers == ("project",)


def test_positions_follow_flatten_and_concatenation():
    plain = {group.name: group for group in GROUPS[Plain]}
    (reader,) = [slot for slot in plain["b"].slots if slot.layer == "c"]
    assert reader.index[1] == (4, 5, 6, 7)
    concat = {group.name: group for group in GROUPS[Concat]}
    (reader,) = [s for s in concat["down"].slots if (s.layer, s.side) == ("join", "in")]
    assert reader.index == tuple((4 + i,) for i in range(5))


def test_grouped_convolution_takes_the_same_offset_of_each_group():
    groups = {group.name: group for group in GROUPS[Grouped]}
    assert (groups["before"].channels, groups["before"].bundle) == (4, 4)
    (maker,) = [slot for slot in groups["before"].slots if slot.side == "out"]
    assert maker.index[1] == (1, 5, 9, 13)
    pruned = prune_channels(made(Grouped), Grouped.shape, {"before": [0, 3], "grouped": [1]})
    assert pruned.before.out_channels == 8
    assert (pruned.grouped.in_channels, pruned.grouped.out_channels) == (8, 4)
    assert pruned.grouped.groups == 4


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_the_output_stays_whole(kind):
    last = GROUPS[kind][-1]
    assert last.name in ("head", "d")
    assert not last.prunable
    assert "output" in last.reason
    with pytest.raises(RecipeError, match=r"can't be pruned: it gives the network's output"):
        prune_channels(made(kind), kind.shape, {last.name: [0, 1]}, GROUPS[kind])


class Chunked(nn.Module):
    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 1)
        self.b = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        one, two = self.a(x).chunk(2, 1)
        return self.head(F.relu(self.b(one * two)).mean((2, 3)))


class Sigmoid(nn.Module):
    """sigmoid(0) is not 0, and layer norm sees all channels at once."""

    shape = (12,)

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 9)
        self.b = nn.Linear(9, 7)
        self.norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        return self.head(self.norm(self.b(torch.sigmoid(self.a(x)))))


class WithInput(nn.Module):
    """The first sum takes in the image, whose channels nobody can cut."""

    shape = (4, 6, 6)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.b = nn.Conv2d(4, 6, 3)
        self.c = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.b(x + self.a(x))))
        return self.head(F.relu(self.c(x)).mean((2, 3)))


class Scaled(nn.Module):
    """A parameter outside of any layer has the channels' shape."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.scale = nn.Parameter(torch.ones(1, 6, 1, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head((self.a(x) * self.scale).mean((2, 3)))


class Gated(nn.Module):
    """Each channel of the first half is scaled by one of the second."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.b(F.glu(self.a(x), 1))).mean((2, 3)))


class Detached(nn.Module):
    """No gradient of the output reaches the first layer; a third gives nothing to it."""

    shape = (3, 6, 6)

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.Conv2d(6, 5, 1)
        self.unread = nn.Linear(5, 7)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        with torch.no_grad():
            x = F.relu(self.a(x))
        x = self.b(x).mean((2, 3))
        self.unread(x.square())
        return self.head(F.relu(x))


@pytest.mark.parametrize(
    ("kind", "unprunable", "prunable"),
    [
        (Chunked, {"a"}, {"b"}),
        (Sigmoid, {"a", "b"}, set()),
        (WithInput, {"a", "b"}, {"c"}),
        (Scaled, {"a"}, set()),
        (Gated, {"a"}, {"b"}),
        (Detached, {"a", "b", "unread"}, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_would_go_wrong_is_left_alone_with_a_reason(kind, unprunable, prunable):
    groups = channel_groups(made(kind), kind.shape)
    assert {g.name for g in groups if g.prunable} == prunable
    assert {g.name for g in groups if not g.prunable} == unprunable | {"head"}
    assert all(group.reason for group in groups if not group.prunable)
    made_by = [layer for group in groups for layer in group.layers]
    assert sorted(made_by) == sorted(info.name for info in layers(made(kind), kind.shape))


def test_a_wrong_map_of_channels_is_caught():
    group = next(group for group in GROUPS[Plain] if group.name == "a")
    slots = tuple(
        replace(slot, index=slot.index[::-1]) if slot.side == "in" else slot for slot in group.slots
    )
    wrong = replace(group, slots=slots)
    with pytest.raises(RecipeError, match="outputs differ"):
        cut_verified(made(Plain), Plain.shape, [wrong], {"a": (0, 1)})


def test_the_original_is_not_touched():
    net = made(Residual)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    prune_channels(net, Residual.shape, {"stem": [1, 2, 5], "two": [0]})
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.requires_grad for p in net.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_tracing_leaves_modes_as_they_were():
    net = made(Residual).train()
    net.norm.eval()
    layers(net, Residual.shape)
    assert net.training
    assert net.one.training
    assert not net.norm.training


def test_masks_are_cut_with_their_weights():
    net = made(Plain)
    mask = torch.rand(net.b.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    network = Network(net, Plain.shape, masks={"b.weight": mask})
    pruned = prune_network(network, {"a": [1, 4], "b": [0, 2, 3]}, {"step": "test"})
    assert torch.equal(pruned.masks["b.weight"], mask[[0, 2, 3]][:, [1, 4]])
    assert pruned.masks["b.weight"].shape == pruned.module.b.weight.shape
    assert pruned.history == ({"step": "test"},)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"aa": [0]}, "no channel group 'aa'.*did you mean 'a'"),
        ({"a": []}, "keep no channel"),
        ({"a": [0, 0]}, "different numbers from 0 to 5"),
        ({"a": [0, 6]}, "different numbers from 0 to 5"),
        ({"a": [-1, 2]}, "different numbers from 0 to 5"),
    ],
)
def test_unsound_choices_are_refused(keep, message):
    with pytest.raises(RecipeError, match=message):
        checked_keep(GROUPS[Plain], keep)


def test_a_network_that_cannot_be_traced_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, x):
            return torch.from_numpy(np.asarray(self.a(x).detach()))

    with pytest.raises(RecipeError, match="traced"):
        channel_groups(Odd().eval(), (3,))


@settings(max_examples=40, deadline=None)
@given(ratio=st.floats(0.001, 1.0), round_to=st.integers(1, 9), kind=st.sampled_from(NETS))
def test_a_ratio_keeps_enough_in_whole_multiples(ratio, round_to, kind):
    for group in GROUPS[kind]:
        kept = kept_count(group, ratio, round_to)
        assert 1 <= kept <= group.channels
        assert kept >= ratio * group.channels - 1e-6
        assert kept == group.channels or kept * group.bundle % round_to == 0


def test_a_ratio_of_a_count_gives_the_count():
    (group,) = [group for group in GROUPS[Plain] if group.name == "c"]
    for channels in range(1, 60):
        wide = replace(group, channels=channels)
        assert [kept_count(wide, n / channels) for n in range(1, channels + 1)] == [
            *range(1, channels + 1)
        ]


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(RecipeError, match="preserve ratio"):
        kept_count(GROUPS[Plain][0], ratio)


@pytest.mark.parametrize("name", workload("fashion").networks)
def test_counts_equal_the_architectures_arithmetic(name):
    for width in (1.0, 0.3):
        net = build(
            name,
            classes=10,
            input_shape=(1, 28, 28),
            width=width,
            generator=torch.Generator().manual_seed(0),
        )
        want = cost(name, classes=10, input_shape=(1, 28, 28), width=width)
        params, nonzeros, macs = count(net, (1, 28, 28))
        assert (params, macs) == (want.parameters, want.macs)
        assert 0 < nonzeros <= params


def test_lenet5_has_the_papers_counts():
    net = build(
        "lenet5", classes=10, input_shape=(1, 28, 28), generator=torch.Generator().manual_seed(0)
    )
    params, _, macs = count(net, (1, 28, 28))
    assert (params, macs) == (431_080, 2_293_000)


def test_nonzeros_and_repeated_calls_are_counted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.a(x))

    net = Twice()
    with torch.no_grad():
        net.a.weight.fill_(1.0)
        net.a.weight[0] = 0.0
        net.a.bias.fill_(2.0)
    assert count(net, (4,)) == (20, 16, 32)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet-small"])
def test_reference_networks_can_be_pruned_everywhere_but_at_the_output(name):
    net = build(
        name,
        classes=10,
        input_shape=(1, 28, 28),
        width=0.25,
        generator=torch.Generator().manual_seed(0),
    )
    groups = channel_groups(net, (1, 28, 28))
    assert [g.name for g in groups if not g.prunable] == [groups[-1].name]
