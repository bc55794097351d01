from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.layers import count
from flatsat.datasets.architectures import layers, scaled, usual
from flatsat.datasets.nets import build, cost, network_names, on_meta, width_for_macs
from flatsat.errors import UsageError

SHAPE = (1, 28, 28)
DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"


# Those that take 28 x 28: small enough to be built in earnest.
SMALL = (
    "lenet300",
    "lenet5",
    "resnet20",
    "mobilenet-small",
    "plain20",
    "resnet56",
    "unet",
    "unet-classifier",
)
LARGE = tuple(sorted(set(network_names()) - set(SMALL)))


def shape_of(network: str) -> tuple[int, int, int]:
    return SHAPE if network in SMALL else (3, 64, 64)


def make(network: str, width: float | None = 1.0, seed: int = 0, shape=SHAPE) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return build(network, classes=10, input_shape=shape, width=width, generator=generator)


def counted(module: nn.Module, shape=SHAPE, classes: int = 10) -> tuple[int, int, int]:
    """Parameters, weights and MACs as the running network shows them."""
    macs = weights = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal macs, weights
        weights += layer.weight.numel()
        spread = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        macs += layer.weight.numel() * int(np.prod(spread.shape[2:]))

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    device = next(module.parameters()).device
    with torch.inference_mode():
        logits = module(torch.zeros(1, *shape, device=device))
    assert logits.shape[:2] == (1, classes)
    assert logits.shape[2:] in ((), shape[1:])  # A segmenter's map is as large as the image.
    return sum(p.numel() for p in module.parameters()), weights, macs


# (parameters, MACs) for 1,000 classes of 3 x 224 x 224, or 10 of 3 x 32 x 32.
IMAGENET = {
    "alexnet": (61_100_840, 714_188_480),
    "alexnet-grouped": (60_965_224, 724_406_816),
    "vgg16": (138_357_544, 15_470_264_320),
    "googlenet": (6_998_552, 1_582_671_872),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "mobilenet-v1": (4_231_976, 568_740_352),
    "mobilenet-v2": (3_504_872, 300_774_272),
    "efficientnet-lite0": (4_652_008, 385_187_552),
}
CIFAR = {
    "resnet20": (272_474, 40_813_184),
    "resnet56": (855_770, 125_747_840),
    "plain20": (269_722, 40_551_040),
    "vgg16-cifar": (14_986_698, 313_463_808),
    "mobilenet-small": (37_162, 1_149_184),
    "unet": (117_514, 25_247_744),
    "unet-classifier": (117_514, 25_084_064),
}


def test_published_counts() -> None:
    assert counted(make("lenet300")) == (266_610, 266_200, 266_200)
    assert counted(make("lenet5")) == (431_080, 430_500, 2_293_000)


@pytest.mark.parametrize(
    ("network", "classes", "shape", "expected"),
    [(name, 1000, (3, 224, 224), figures) for name, figures in IMAGENET.items()]
    + [(name, 10, (3, 32, 32), figures) for name, figures in CIFAR.items()],
)
def test_counts_of_the_papers_networks(
    network: str, classes: int, shape: tuple[int, int, int], expected: tuple[int, int]
) -> None:
    module = on_meta(network, classes=classes, input_shape=shape)
    parameters, _, macs = counted(module, shape, classes)
    assert (parameters, macs) == expected
    said = cost(network, classes=classes, input_shape=shape)
    assert (said.parameters, said.macs) == expected


def test_every_network_is_pinned_at_its_papers_task() -> None:
    """The counts above, and those that the documentation tells, are for `usual`."""
    pinned = {"lenet300": (266_610, 266_200), "lenet5": (431_080, 2_293_000), **IMAGENET, **CIFAR}
    assert sorted(pinned) == sorted(network_names())
    table = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip(" `") for cell in line.split("|")]
        if len(cells) > 5 and cells[1] in pinned:
            table[cells[1]] = cells[2:6]
    for name, figures in pinned.items():
        task = usual(name)
        said = cost(name, classes=task.classes, input_shape=task.input_shape)
        assert (said.parameters, said.macs) == figures, name
        image = " x ".join(map(str, task.input_shape))
        told = [image, f"{task.classes:,}", *(f"{figure:,}" for figure in figures)]
        assert table[name] == told, "docs/data.md: see flatsat networks list"


def test_alexnet_in_two_towers_has_deep_compressions_layers() -> None:
    """Han et al. 2016, table 4: 35K, 307K, 885K, 663K, 442K, 38M, 17M, 4M weights."""
    found = layers("alexnet-grouped", classes=1000, input_shape=(3, 224, 224))
    assert [layer.weights // 1000 for layer in found] == [
        34,
        307,
        884,
        663,
        442,
        37748,
        16777,
        4096,
    ]


def test_channels_are_rounded_half_up_and_never_vanish() -> None:
    asked = [(20, 0.5), (50, 0.33), (5, 0.5), (3, 0.5), (20, 0.01), (16, 1.25)]
    assert [scaled(count, width) for count, width in asked] == [10, 17, 3, 2, 1, 20]


@pytest.mark.parametrize("network", network_names())
@pytest.mark.parametrize("width", [1.0, 0.5, 0.31, 0.01, 1.25])
def test_arithmetic_equals_the_real_network(network: str, width: float) -> None:
    shape = shape_of(network)
    said = cost(network, classes=10, input_shape=shape, width=width)
    module = on_meta(network, classes=10, input_shape=shape, width=width)
    assert counted(module, shape) == (said.parameters, said.weights, said.macs)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(network_names()),
    st.integers(1, 4),
    st.integers(64, 260),
    st.integers(64, 260),
    st.floats(0.05, 1.1),
)
def test_arithmetic_holds_for_any_input(
    network: str, channels: int, height: int, width: int, scale: float
) -> None:
    if network.startswith("unet"):
        height, width = height // 4 * 4, width // 4 * 4
    shape = (channels, height, width)
    said = cost(network, classes=7, input_shape=shape, width=scale)
    module = on_meta(network, classes=7, input_shape=shape, width=scale)
    assert counted(module, shape, 7) == (said.parameters, said.weights, said.macs)


@pytest.mark.parametrize("network", network_names())
def test_arithmetic_equals_what_compressors_count(network: str) -> None:
    shape = shape_of(network)
    said = cost(network, classes=10, input_shape=shape, width=0.25)
    parameters, nonzeros, macs = count(make(network, 0.25, shape=shape), shape)
    assert (parameters, macs) == (said.parameters, said.macs)
    assert nonzeros > said.weights * 0.99


@pytest.mark.parametrize("network", network_names())
def test_networks_can_be_traced(network: str) -> None:
    module = on_meta(network, classes=10, input_shape=shape_of(network))
    assert len(list(torch.fx.symbolic_trace(module).graph.nodes)) > 5


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(network_names()), st.floats(0.02, 1.5))
def test_width_for_macs_is_the_widest_within_the_budget(network: str, share: float) -> None:
    shape = shape_of(network)

    def macs(width: float) -> int:
        return cost(network, classes=10, input_shape=shape, width=width).macs

    budget = share * macs(1.0)
    width = width_for_macs(network, budget, classes=10, input_shape=shape)
    assert macs(width) <= budget
    wider = width
    while macs(wider) == macs(width):
        wider += 1e-5
    assert macs(wider) > budget


@pytest.mark.parametrize("network", network_names())
def test_full_macs_give_full_width(network: str) -> None:
    shape = shape_of(network)
    full = cost(network, classes=10, input_shape=shape).macs
    assert width_for_macs(network, full, classes=10, input_shape=shape) == 1.0


@pytest.mark.parametrize("network", network_names())
def test_weights_come_from_the_generator_alone(network: str) -> None:
    before = torch.random.get_rng_state()
    shape, width = shape_of(network), 1.0 if network in SMALL else 0.1
    one, same = (make(network, width, shape=shape) for _ in range(2))
    other = make(network, width, seed=1, shape=shape)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        assert torch.isfinite(value).all(), name
    x = torch.rand(2, *shape)
    assert not one.training
    assert not torch.equal(one(x), other(x))


@pytest.mark.parametrize("network", network_names())
def test_activations_keep_their_size_at_the_start(network: str) -> None:
    shape = shape_of(network)
    logits = make(network, 1.0 if network in SMALL else 0.25, shape=shape)(torch.rand(8, *shape))
    # In eval mode nothing is normalised yet, and each residual block adds as much again.
    assert 1e-3 < logits.std() < 1e3


def test_no_width_is_full_width() -> None:
    for one, same in zip(
        make("lenet5").parameters(), make("lenet5", None).parameters(), strict=True
    ):
        assert torch.equal(one, same)


def test_wrong_arguments_name_the_right_ones() -> None:
    with pytest.raises(UsageError, match="'lenet5'"):
        make("lenet-5")
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="width is"):
            make("lenet5", width)
    for network, shape in (
        ("lenet5", (1, 8, 8)),
        ("alexnet", (3, 32, 32)),
        ("vgg16", (3, 28, 28)),
        ("vgg16-cifar", (3, 31, 32)),
    ):
        with pytest.raises(UsageError, match="too small"):
            make(network, shape=shape)
    with pytest.raises(UsageError, match="multiples of 4"):
        make("unet", shape=(3, 30, 32))
    for macs in (0, -5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="macs is"):
            width_for_macs("lenet5", macs, classes=10, input_shape=SHAPE)
