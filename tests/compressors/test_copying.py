"""Copies of networks: as `copy.deepcopy` makes them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from flatsat.compressors.copying import copied
from flatsat.datasets.nets import build


class Tied(nn.Module):
    """One layer under two names, a tied weight, a list of modules that is no ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.again = self.one
        self.other = nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.plain = (1, "two", None)
        self.register_buffer("none", None)
        self.register_buffer("held", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.again(self.one(x))) + self.held


class Listed(Tied):
    """It reaches a layer by a way that only a deep copy follows."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [self.one, self.other]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.order:
            x = part(x)
        return x


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].register_forward_hook(lambda _part, _args, out: out + 1)
    return net


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)).eval()
    net[0].weight.requires_grad_(False)
    return net


NETS: dict[str, Any] = {
    "tied": Tied,
    "listed": Listed,
    "hooked": hooked,
    "frozen": frozen,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
    "spectral": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4))).eval(),
    "traced": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
}


@pytest.mark.parametrize("name", NETS)
def test_a_copy_is_what_a_deep_copy_is(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]()
    mine, deep = copied(net), copy.deepcopy(net)
    x = torch.randn(8, 4)
    assert torch.equal(mine(x), deep(x))
    assert [n for n, _ in mine.named_modules()] == [n for n, _ in deep.named_modules()]
    for a, b in zip(mine.named_parameters(), deep.named_parameters(), strict=True):
        assert (a[0], a[1].requires_grad) == (b[0], b[1].requires_grad)
        assert torch.equal(a[1], b[1])
    assert list(mine.state_dict()) == list(deep.state_dict())
    assert [part.training for part in mine.modules()] == [part.training for part in deep.modules()]


@pytest.mark.parametrize("name", NETS)
def test_copies_share_nothing_that_changes(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    theirs = {id(part) for part in net.modules()} | {id(p) for p in net.parameters()}
    made = copied(net)
    assert not theirs & ({id(part) for part in made.modules()} | {id(p) for p in made.parameters()})
    with torch.no_grad():
        for value in made.state_dict().values():
            value.zero_()
    made.new = nn.Linear(2, 2)
    made.train(not net.training)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not hasattr(net, "new")


def test_what_was_one_stays_one() -> None:
    made = copied(Tied())
    assert made.again is made.one
    assert made.other.weight is made.one.weight
    assert copied(Listed()).order[0] is not None


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mobilenet-small", "unet"])
def test_reference_networks_give_the_same_outputs(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    net = build(name, classes=10, input_shape=(1, 32, 32), width=0.5, generator=draw)
    x = torch.randn(2, 1, 32, 32, generator=draw)
    with torch.no_grad():
        assert torch.equal(copied(net)(x), net(x))
