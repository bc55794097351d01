"""Bias correction against means that are known, or computed anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.bias_correction import BiasCorrect
from flatsat.compressors.linear_quant import LinearQuantise
from flatsat.compressors.qat import QuantiseAwareTrain
from flatsat.compressors.recipe import RecipeKeyError, check, from_mapping
from flatsat.compressors.sharing import ShareWeights
from flatsat.compressors.train import FineTune
from flatsat.datasets.fit import evaluate, predict
from flatsat.errors import RecipeError

SHAPE = (1, 6, 6)


class Net(nn.Module):
    """A layer with a bias, one before batch norm, one with neither."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.conv2 = nn.Conv2d(6, 6, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(24, 12, bias=False)
        self.fc2 = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.bn2(self.conv2(torch.relu(self.conv1(x)))))
        return self.fc2(torch.relu(self.fc1(torch.flatten(x, 1))))


@pytest.fixture
def trained(blobs):
    ctx = blobs(SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = Network(Net().eval(), SHAPE)
    return FineTune(FineTune.Params(epochs=6, lr=0.05)).apply(start, ctx), ctx


def correct(network, ctx, **params):
    return BiasCorrect(BiasCorrect.Params.model_validate(params)).apply(network, ctx)


def quantise(network, ctx, **params):
    return LinearQuantise(LinearQuantise.Params.model_validate(params)).apply(network, ctx)


def means(module, ctx, name):
    """Return a layer's mean output by channel, over the calibration split."""
    seen = []
    handle = module.get_submodule(name).register_forward_hook(lambda _m, _a, out: seen.append(out))
    predict(module, ctx.calibration.x)
    handle.remove()
    out = torch.cat(seen)
    return out.transpose(0, 1).flatten(1).double().mean(1).numpy()


def test_a_planted_shift_is_removed(blobs):
    # y' = (w + e) x on inputs of mean m: the shift is e m, and a bias of -e m cancels it.
    ctx = blobs((1, 1, 3), n=64)
    images = np.abs(ctx.calibration.x) + 1.0
    ctx = replace(ctx, calibration=replace(ctx.calibration, x=images))
    before = nn.Sequential(nn.Flatten(), nn.Linear(3, 4)).eval()
    after = nn.Sequential(nn.Flatten(), nn.Linear(3, 4)).eval()
    after.load_state_dict(before.state_dict())
    error = torch.linspace(-0.5, 0.5, 12).reshape(4, 3)
    with torch.no_grad():
        after[1].weight += error
    made = correct(Network(after, (1, 1, 3), frozen="planted", unquantised=before), ctx)
    mean = torch.from_numpy(images).flatten(1).mean(0)
    expected = before[1].bias - error @ mean
    assert torch.allclose(made.module.get_submodule("1").bias, expected, atol=1e-5)
    assert torch.equal(made.module.get_submodule("1").weight, after[1].weight)
    assert made.frozen == "planted"


@pytest.mark.parametrize("activations", [None, 4])
def test_mean_outputs_of_every_layer_are_those_before_quantising(trained, activations):
    network, ctx = trained
    low = quantise(network, ctx, bits=3, activations=activations)
    made = correct(low, ctx)
    places = {}
    for told in made.history[-1]["layers"]:
        name = told["name"]
        places[name] = told["place"]
        # What batch norm takes over is seen behind it.
        seen_at = "bn2" if name == "conv2" else name
        wanted, bad, good = (means(n.module, ctx, seen_at) for n in (network, low, made))
        gap = np.abs(bad - wanted).max()
        assert gap > 1e-3
        assert told["shift_max"] > 0
        assert np.abs(good - wanted).max() < 1e-4 * max(1.0, float(np.abs(wanted).max()))
        assert torch.equal(
            made.module.get_submodule(name).weight, low.module.get_submodule(name).weight
        )
    assert places == {
        "conv1": "conv1.bias",
        "conv2": "bn2.running_mean",
        "fc1": "fc1.bias",
        "fc2": "fc2.bias",
    }
    assert made.quantum == low.quantum
    with pytest.raises(RecipeError, match="fine-tune can't follow"):
        FineTune(FineTune.Params()).apply(made, ctx)


def test_accuracy_that_a_shift_cost_comes_back(trained):
    network, ctx = trained
    low = quantise(network, ctx, bits=8)
    with torch.no_grad():
        # Weights of the readers of positive values shift all one way.
        low.module.get_submodule("fc2").weight[0] += 1.0
    made = correct(low, ctx)
    dense, bad, good = (evaluate(n.module, ctx.validation) for n in (network, low, made))
    assert bad < dense - 0.2
    assert good > bad + 0.1


def test_layers_that_did_not_change_are_left_by_name(trained):
    network, ctx = trained
    made = correct(quantise(network, ctx, bits=3, skip=("conv2",)), ctx, n=40)
    told = made.history[-1]
    assert [entry["name"] for entry in told["layers"]] == ["conv1", "fc1", "fc2"]
    assert told["left"] == ["conv2"]
    assert told["cost"] == {"train_steps": 0, "forward_passes": 40 * 5}


def test_without_a_network_before_quantising_nothing_changes(trained):
    network, ctx = trained
    aware = QuantiseAwareTrain(QuantiseAwareTrain.Params(epochs=0.5)).apply(network, ctx)
    shared = ShareWeights(ShareWeights.Params(epochs=0.5)).apply(network, ctx)
    for start in (network, aware, shared):
        made = correct(start, ctx)
        assert made.history[-1]["layers"] == []
        assert made.history[-1]["left"] == ["conv1", "conv2", "fc1", "fc2"]
        assert np.array_equal(
            predict(made.module, ctx.validation.x), predict(start.module, ctx.validation.x)
        )


def test_shared_weights_are_corrected_unless_trained_or_with_biases_on_levels(trained):
    network, ctx = trained
    params = {"bits": {"conv": 2, "fc": 2}, "epochs": 0}
    shared = ShareWeights(ShareWeights.Params.model_validate(params)).apply(network, ctx)
    assert len(correct(shared, ctx).history[-1]["layers"]) == 4
    levels = ShareWeights(ShareWeights.Params.model_validate({**params, "biases": 4}))
    with pytest.raises(RecipeError, match="share-weights put the biases on levels"):
        correct(levels.apply(network, ctx), ctx)


def test_a_masked_bias_stays_zero(trained):
    network, ctx = trained
    mask = torch.tensor([True, False, True, True, True, True])
    with torch.no_grad():
        network.module.get_submodule("conv1").bias.masked_fill_(~mask, 0.0)
    low = quantise(replace(network, masks={"conv1.bias": mask}), ctx, bits=2)
    made = correct(low, ctx)
    bias = made.module.get_submodule("conv1").bias.detach()
    assert bias[1] == 0.0
    assert not torch.equal(bias, low.module.get_submodule("conv1").bias)


def test_a_recipe_puts_it_behind_what_it_mends():
    def recipe(*steps):
        return from_mapping(
            "r",
            {
                "workload": "mnist-mini/lenet5",
                "step": [{"use": name} for name in steps],
                "lower": [{"to": "onnx"}],
            },
        )

    check(recipe("fine-tune", "linear-quantise", "bias-correct"))
    for steps in (("bias-correct",), ("bias-correct", "linear-quantise")):
        with pytest.raises(RecipeKeyError, match="no such step is before it"):
            check(recipe(*steps))
    with pytest.raises(RecipeKeyError, match="fine-tune can't follow linear-quantise"):
        check(recipe("linear-quantise", "bias-correct", "fine-tune"))


class Shared(nn.Module):
    """One convolution called twice and a transposed one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.twice(torch.relu(self.stem(x))))))
        return self.up(x).mean((2, 3))


def test_a_layer_that_is_called_twice_is_corrected_by_the_mean_of_its_calls(blobs):
    ctx = blobs(SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(Shared().eval(), SHAPE)
    low = quantise(network, ctx, bits=2)
    made = correct(low, ctx)
    told = {entry["name"]: entry for entry in made.history[-1]["layers"]}
    assert list(told) == ["stem", "twice", "up"]
    wanted, bad, good = (means(n.module, ctx, "up") for n in (network, low, made))
    assert np.abs(bad - wanted).max() > 1e-3
    assert np.allclose(good, wanted, atol=1e-5)
    # Its own bias feeds its second call, so that one subtraction leaves a rest.
    assert 0 < told["twice"]["left_max"] < told["twice"]["shift_max"]
