"""Every transform on networks of every kind: it works and tells of each layer, or says why not.

A new technique is tested by being registered; where its defaults don't do it has its parameters in
PARAMS.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatsat.canonical import canonical_json
from flatsat.compressors.base import Network
from flatsat.compressors.graph import channel_groups, count, layers
from flatsat.compressors.onnx_model import run_host
from flatsat.compressors.registry import entry, step_class, step_names
from flatsat.datasets.fit import predict
from flatsat.errors import RecipeError
from flatsat.tensors import TensorSpec

SHAPE = (1, 8, 8)
CLASSES = 4


def conv(ins, outs, kernel=3, **given):
    return nn.Conv2d(ins, outs, kernel, padding=kernel // 2, **given)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv(1, 6, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = conv(6, 8, stride=2)
        self.fc1 = nn.Linear(128, 12)
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(x)))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """A sum with an identity, and one with a projection."""

    def __init__(self):
        super().__init__()
        self.stem = conv(1, 8)
        self.one = conv(8, 8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.two = conv(8, 12, stride=2)
        self.short = conv(8, 12, 1, stride=2)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.one(x)))
        x = F.relu(self.two(x) + self.short(x))
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """Down and up again; the skip is concatenated with a transposed convolution's output."""

    def __init__(self):
        super().__init__()
        self.down = conv(1, 6)
        self.norm = nn.BatchNorm2d(6)
        self.deep = conv(6, 10, stride=2)
        self.up = nn.ConvTranspose2d(10, 6, 2, stride=2)
        self.join = conv(12, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        skip = F.relu(self.norm(self.down(x)))
        up = F.relu(self.up(F.relu(self.deep(skip))))
        return self.head(F.relu(self.join(torch.cat([up, skip], 1))).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(1, 6)
        self.one = conv(6, 4, 1)
        self.reduce = conv(6, 4, 1)
        self.three = conv(4, 6)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.project = conv(6, 3, 1)
        self.after = conv(13, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        three = self.three(F.relu(self.reduce(x)))
        x = F.relu(torch.cat([self.one(x), three, self.project(self.pool(x))], 1))
        return self.head(F.relu(self.after(x)).mean((2, 3)))


class DepthwiseSeparable(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(1, 8)
        self.depthwise = conv(8, 8, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.pointwise = conv(8, 12, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.act(self.norm(self.depthwise(F.relu(self.stem(x)))))
        return self.head(F.relu(self.pointwise(x)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(1, 8)
        self.grouped = conv(8, 12, groups=4)
        self.norm = nn.BatchNorm2d(12)
        self.after = conv(12, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.grouped(F.relu(self.stem(x)))))
        return self.head(F.relu(self.after(x)).mean((2, 3)))


class Transposed(nn.Module):
    """One transposed convolution in one group, one in two."""

    def __init__(self):
        super().__init__()
        self.down = conv(1, 8, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2)
        self.last = conv(6, 5, stride=2)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.up(F.relu(self.down(x)))))
        return self.head(F.relu(self.last(F.relu(self.grouped(x)))).mean((2, 3)))


class Twice(nn.Module):
    """A convolution with its norm, and a linear layer, each called twice."""

    def __init__(self):
        super().__init__()
        self.stem = conv(1, 6)
        self.again = conv(6, 6)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = F.relu(self.norm(self.again(x)))
        x = x.mean((2, 3))
        return self.head(F.relu(self.fc(F.relu(self.fc(x)))))


class Tied(nn.Module):
    """Two layers hold one weight; the map is flattened by a view."""

    def __init__(self):
        super().__init__()
        self.conv = conv(1, 6, stride=2)
        self.first = nn.Linear(96, 10)
        self.second = nn.Linear(10, 10)
        self.third = nn.Linear(10, 10)
        self.third.weight = self.second.weight
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x):
        x = F.relu(self.conv(x))
        x = F.relu(self.first(x.view(x.size(0), -1)))
        return self.head(F.relu(self.third(F.relu(self.second(x)))))


class Attention(nn.Module):
    """Matrix products of activations, a sum with a parameter, weights outside any layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, stride=2)
        self.place = nn.Parameter(torch.zeros(16, 8))
        self.query, self.key = nn.Linear(8, 6), nn.Linear(8, 6)
        self.value, self.out = nn.Linear(8, 10), nn.Linear(10, 8)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        seen = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2), -1)
        x = self.norm(x + self.out(seen @ self.value(x)))
        return self.head(F.gelu(self.hidden(x.mean(1))))


class Gated(nn.Module):
    """Halves of the channels gate each other; a layer's result is thrown away."""

    def __init__(self):
        super().__init__()
        self.stem = conv(1, 8)
        self.inner = conv(4, 6)
        self.unread = nn.Linear(6, 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.relu(self.inner(F.glu(self.stem(x), 1))).mean((2, 3))
        self.unread(x)
        return self.head(x)


KINDS = [
    Plain, Residual, UNet, Inception, DepthwiseSeparable, Grouped, Transposed, Twice
]  # fmt: skip
ODD = [Tied, Attention, Gated]

PARAMS: dict[str, dict[str, Any]] = {
    "magnitude-prune": {"sparsity": 0.5, "epochs": 1},
    "gradual-prune": {"final_sparsity": 0.5, "epochs": 2, "frequency": 1},
    "l1-filter-prune": {"ratio": 0.4},
    "neuron-prune": {"ratio": {"conv": 0.4, "fc": 0.4}, "epochs": 1},
    "agent-prune": {"b": 20, "samples": 2, "iterations": 2, "tune_epochs": 0, "epochs": 1},
    "fine-tune": {"epochs": 1},
    "narrow": {"macs_ratio": 0.5},
    "linear-quantise": {"bits": 4, "activations": 8, "n": 32},
    "quantise-aware-train": {"bits": 4, "epochs": 1, "batch_norm": "fold"},
    "share-weights": {"bits": {"conv": 3, "fc": 3}, "epochs": 1},
    "rate-quantise": {"price": 1e-9, "rounds": 2, "epochs": 1, "n": 32},
}
SMALLER = {"l1-filter-prune", "neuron-prune", "channel-prune", "agent-prune"}
WHOLE = {"fine-tune", "narrow"}
"""Steps that treat a network as a whole."""


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = kind().eval()
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.3, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return net


@dataclass(frozen=True)
class Start:
    """A network of one kind with what is asked of it more than once."""

    network: Network
    names: tuple[str, ...]
    costs: tuple[int, int, int]
    onnx_bytes: int
    keep: dict[str, float]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Give each kind's network, exported once."""
    known: dict[type[nn.Module], Start] = {}

    def start(kind, ctx):
        if kind not in known:
            network = Network(made(kind), SHAPE)
            groups = channel_groups(network.module, SHAPE)
            known[kind] = Start(
                network,
                tuple(info.name for info in layers(network.module, SHAPE)),
                count(network.module, SHAPE),
                exported(network, tmp_path_factory.mktemp("start"), ctx).size_bytes,
                {group.name: 0.5 for group in groups if group.prunable},
            )
        return known[kind]

    return start


@pytest.fixture
def ctx(blobs):
    found = blobs(SHAPE, n=64)
    batch = ("batch", *SHAPE)
    task = replace(
        found.workload,
        input=TensorSpec("image", "float32", batch),
        output=TensorSpec("logits", "float32", ("batch", CLASSES)),
    )
    few = replace(found.calibration, x=found.calibration.x[:48], y=found.calibration.y[:48])
    return replace(found, workload=task, calibration=few)


def exported(network, folder, ctx):
    """Write the ONNX file, which is checked against PyTorch on the way."""
    cls = step_class("onnx")
    return cls(cls.Params(goldens=16)).lower(network, folder, ctx)


def applied(name, network, keep, ctx):
    params = {"keep": keep, "batches": 2} if name == "channel-prune" else PARAMS.get(name, {})
    if entry(name).corrects:
        network = applied("linear-quantise", network, keep, ctx)
    cls = step_class(name)
    return cls(cls.Params.model_validate(params)).apply(network, ctx)


def told_names(value):
    """Return the layers of a provenance, which is a table, or a list of names or of tables."""
    if isinstance(value, dict):
        return set(value)
    names = {item["name"] if isinstance(item, dict) else item for item in value}
    coupled = {c for item in value if isinstance(item, dict) for c in item.get("coupled", ())}
    return names | coupled


def require_sound(name, result, start, ctx, folder):
    x = ctx.validation.x
    logits = predict(result.module, x)
    assert logits.shape == (len(x), CLASSES)
    assert np.isfinite(logits).all()
    assert result.input_shape == SHAPE
    assert not any(part.training for part in result.module.modules())
    parameters = dict(result.module.named_parameters())
    for key, mask in result.masks.items():
        assert mask.shape == parameters[key].shape
        assert not parameters[key].detach()[~mask].any()
    artifact = exported(result, folder, ctx)
    found = run_host(folder / artifact.file, {"image": x.copy()})["logits"]
    assert found.shape == logits.shape
    story = json.loads(canonical_json(dict(result.history[-1])))
    if name not in WHOLE:
        told = told_names(story["layers"]) | told_names(story["left"])
        assert set(start.names) <= told
    return artifact


STEPS = step_names("transform")


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_network_is_treated(kind, name, started, ctx, tmp_path):
    start = started(kind, ctx)
    try:
        result = applied(name, start.network, start.keep, ctx)
    except RecipeError as error:
        assert name == "narrow", error
        assert "needs a reference architecture" in str(error)
        return
    artifact = require_sound(name, result, start, ctx, tmp_path)
    if name in SMALLER:
        params, _, macs = count(result.module, SHAPE)
        assert params < start.costs[0]
        assert macs < start.costs[2]
        assert artifact.size_bytes < start.onnx_bytes
        # The output stays whole; a grouped transposed convolution can't be cut.
        may_stay = {start.names[-1], *(("up", "grouped") if kind is Transposed else ())}
        if name == "agent-prune":  # By default agents are for convolutions.
            infos = layers(start.network.module, SHAPE)
            may_stay |= {info.name for info in infos if info.kind == "fc"}
        assert told_names(result.history[-1]["left"]) <= may_stay


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_what_does_not_fit_is_left_or_refused_by_name(kind, name, started, ctx, tmp_path):
    start = started(kind, ctx)
    try:
        result = applied(name, start.network, start.keep, ctx)
    except RecipeError as error:
        assert "\n" not in str(error)
        assert name == "narrow" or any(layer in str(error) for layer in start.names)
    else:
        require_sound(name, result, start, ctx, tmp_path)


@pytest.mark.parametrize("name", ["magnitude-prune", "gradual-prune", "share-weights"])
def test_a_weight_that_two_layers_hold_is_treated_once(name, started, ctx):
    start = started(Tied, ctx)
    result = applied(name, start.network, start.keep, ctx)
    assert result.module.second.weight is result.module.third.weight
    assert result.history[-1]["left"] == {"third": "its weights are those of second"}


@pytest.mark.parametrize("name", ["magnitude-prune", "l1-filter-prune", "linear-quantise"])
def test_weights_outside_layers_are_told(name, started, ctx):
    start = started(Attention, ctx)
    left = applied(name, start.network, start.keep, ctx).history[-1]["left"]
    assert left["place"] == "its weights are in no convolution or linear layer"
