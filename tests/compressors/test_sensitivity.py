"""The sensitivity scan: each layer alone, by the very steps of recipes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.registry import step_class
from flatsat.compressors.sensitivity import METHODS, Scanner, checked_values, scan_method
from flatsat.datasets.fit import evaluate, fit
from flatsat.datasets.nets import build
from flatsat.errors import DataError, RecipeError

SHAPE = (1, 4, 4)


class Recorder:
    """Keeps what progress was told."""

    def __init__(self):
        self.told = []

    def update(self, task, done, total, note=""):
        self.told.append((task, done, total, note))

    def log(self, message):
        pass


@pytest.fixture
def ctx(blobs):
    return blobs(SHAPE)


@pytest.fixture
def planted(ctx):
    """`spare` copies its input by 16 of its 256 weights; each weight of `tight` tells classes."""
    centres = np.stack([ctx.train.x[ctx.train.y == c].reshape(-1, 16).mean(0) for c in range(4)])
    module = nn.Sequential()
    module.add_module("flat", nn.Flatten())
    module.add_module("spare", nn.Linear(16, 16))
    module.add_module("tight", nn.Linear(16, 4))
    noise = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) * 1e-6
    with torch.no_grad():
        module.spare.weight.copy_(torch.eye(16) + noise)
        module.spare.bias.zero_()
        module.tight.weight.copy_(torch.tensor(centres))
        module.tight.bias.copy_(torch.tensor(-(centres**2).sum(1) / 2))
    return Network(module.eval(), SHAPE)


@pytest.fixture(scope="module")
def learnt():
    """A LeNet-5 of 16 x 16 images that has learnt; made once."""
    made = {}

    def make(ctx):
        if not made:
            weights = torch.Generator().manual_seed(0)
            module = build("lenet5", classes=4, input_shape=(1, 16, 16), generator=weights)
            fit(module, ctx.train, epochs=3, lr=0.02, seed=0, batch=32)
            made["module"] = module
        return Network(made["module"], (1, 16, 16))

    return make


def test_a_layer_with_spare_weights_is_flat_and_a_tight_one_falls(planted, ctx):
    found = Scanner(planted, ctx).scan()
    curves = {layer.target.name: dict(layer.points) for layer in found.layers}
    assert list(curves) == ["spare", "tight"]
    assert found.dense > 0.95
    assert list(curves["spare"]) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    # 26 weights are left of it at 90 %: the 16 that matter are among them.
    assert all(accuracy == found.dense for s, accuracy in curves["spare"].items() if s <= 0.9)
    assert curves["spare"][0.95] < found.dense
    assert curves["tight"][0.9] < found.dense - 0.05
    assert curves["tight"][0.95] < found.dense - 0.2


@pytest.mark.parametrize(
    ("method", "layer", "value"),
    [("magnitude", "conv2", 0.9), ("filters", "conv2", 0.8), ("bits", "conv2", 1.0)],
)
def test_a_point_is_what_the_recipes_step_gives(blobs, learnt, method, layer, value):
    ctx = blobs((1, 16, 16))
    network = learnt(ctx)
    noise = np.random.default_rng(0).normal(0, 4, ctx.validation.x.shape).astype(np.float32)
    ctx = replace(ctx, validation=replace(ctx.validation, x=ctx.validation.x + noise))
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    scanner = Scanner(network, ctx, method=method)
    known = METHODS[method]
    given = {known.key: {layer: int(value) if method == "bits" else value}}
    if method == "magnitude":
        given["epochs"] = 0
    if method == "bits":
        given["skip"] = [t.name for t in scanner.targets if t.name != layer]
    cls = step_class(known.step)
    made = cls(cls.Params.model_validate(given)).apply(network, ctx)
    accuracy = scanner.accuracy({layer: value})
    assert accuracy == evaluate(made.module, ctx.validation)
    assert accuracy != scanner.dense
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_layers_at_once_are_worse_than_any_alone(planted, ctx):
    scanner = Scanner(planted, ctx)
    alone = [scanner.accuracy({"spare": 0.98}), scanner.accuracy({"tight": 0.9})]
    both = scanner.accuracy({"spare": 0.98, "tight": 0.9})
    assert scanner.accuracy({}) == scanner.dense
    assert both < min(alone)


def test_equal_seeds_give_equal_scans_on_equal_images(planted, ctx):
    values = (0.5, 0.8, 0.9)
    one, same, other = (
        Scanner(planted, replace(ctx, seed=seed), images=60).scan(values) for seed in (0, 0, 1)
    )
    assert one == same
    assert one.images == 60
    assert one != other
    whole = Scanner(planted, ctx, images=10**6)
    assert whole.images == len(ctx.validation)
    assert whole.dense == evaluate(planted.module, ctx.validation)


def test_every_point_is_told(planted, ctx):
    recorder = Recorder()
    Scanner(planted, replace(ctx, progress=recorder)).scan((0.5, 0.9))
    assert [(done, total) for _, done, total, _ in recorder.told] == [(i, 4) for i in range(5)]
    assert recorder.told[-1][3].startswith("tight at 90 %: ")


def test_coupled_channels_go_together_and_the_output_stays(blobs):
    ctx = blobs((1, 8, 8))
    weights = torch.Generator().manual_seed(1)
    module = build("resnet20", classes=4, input_shape=(1, 8, 8), width=0.25, generator=weights)
    scanner = Scanner(Network(module, (1, 8, 8)), ctx, method="filters")
    first = scanner.targets[0]
    assert len(first.coupled) == 3  # The stem and the second layer of each block of its stage.
    sizes = {name: m.weight.numel() for name, m in module.named_modules() if hasattr(m, "weight")}
    assert first.weights == sum(sizes[name] for name in (first.name, *first.coupled))
    assert [why for _, why in scanner.skipped] == [
        "it gives the network's output: no layer reads it"
    ]
    scanner.scan((0.5, 0.55, 0.9))
    # Of four channels 0.5 and 0.55 leave two, which are measured once.
    assert scanner.forward_passes < len(ctx.validation) * (1 + 3 * len(scanner.targets))


def test_borrowed_weights_are_left_alone_and_named(ctx):
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    module[2].weight = module[1].weight
    for method in ("magnitude", "bits"):
        found = Scanner(Network(module.eval(), SHAPE), ctx, method=method).scan()
        assert [layer.target.name for layer in found.layers] == ["1", "3"]
        assert found.skipped == (("2", "its weights are those of 1"),)


def test_a_layer_that_would_keep_nothing_has_no_point_there(ctx):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 4))
    (layer,) = Scanner(Network(module.eval(), SHAPE), ctx).scan((0.5, 0.95)).layers
    assert [value for value, _ in layer.points] == [0.5]


@pytest.mark.parametrize(
    ("method", "given", "tried"),
    [
        ("magnitude", (0.9, 0.1, 0.9), (0.1, 0.9)),
        ("filters", (0.5,), (0.5,)),
        ("bits", (1, 8, 3), (8, 3, 1)),
    ],
)
def test_values_go_from_mild_to_hard(method, given, tried):
    assert checked_values(scan_method(method), given) == tried


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("magnitude", (), "no points"),
        ("magnitude", (0.5, 1.0), "share of 1"),
        ("filters", (0.0,), "share of 0"),
        ("filters", (float("nan"),), "share of nan"),
        ("bits", (2.5,), "2.5 bits"),
        ("bits", (9,), "9 bits"),
    ],
)
def test_values_out_of_range_are_refused(method, given, words):
    with pytest.raises(RecipeError, match=words):
        checked_values(scan_method(method), given)


def test_what_can_not_be_scanned_says_why(planted, ctx):
    with pytest.raises(RecipeError, match="unknown method 'l2'"):
        Scanner(planted, ctx, method="l2")
    with pytest.raises(DataError, match="images of the validation split"):
        Scanner(planted, ctx, images=0)
    single = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(RecipeError, match="can treat no layer") as caught:
        Scanner(Network(single.eval(), SHAPE), ctx, method="filters")
    assert "gives the network's output" in str(caught.value)
