"""Fine-tuning: it learns, holds masks, and is the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.train import FineTune, TrainParams, hold, retrain
from flatsat.datasets.fit import evaluate
from flatsat.errors import RecipeError

SHAPE = (1, 6, 6)


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        ).eval()


def half_masks(net):
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(net.get_parameter(name).shape, generator=generator) > 0.5
        for name in ("0.weight", "4.weight", "4.bias")
    }


def test_it_learns_and_leaves_the_original(blobs):
    ctx, net = blobs(SHAPE), small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trained = FineTune(TrainParams(epochs=4, lr=0.05)).apply(Network(net, SHAPE), ctx)
    assert evaluate(trained.module, ctx.validation) > 0.9 > evaluate(net, ctx.validation)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not trained.module.training
    (entry,) = trained.history
    assert entry["step"] == "fine-tune"
    assert entry["cost"] == {"train_steps": 4 * (240 // 64), "forward_passes": 0}


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_masked_weights_stay_exactly_zero_and_others_move(blobs, weight_decay):
    ctx, net = blobs(SHAPE), small()
    masks = half_masks(net)
    step = FineTune(TrainParams(epochs=3, lr=0.05, weight_decay=weight_decay))
    trained = step.apply(Network(net, SHAPE, masks=masks), ctx)
    for name, mask in masks.items():
        old, new = net.get_parameter(name), trained.module.get_parameter(name)
        assert torch.equal(new[~mask], torch.zeros(int((~mask).sum())))
        # Weights of units that never fire stand still without being held.
        assert float((new[mask] != old[mask]).float().mean()) > 0.5
    assert trained.masks is masks


def test_masked_weights_get_no_gradient_and_hooks_go_again(blobs):
    ctx, net = blobs(SHAPE), small()
    masks = half_masks(net)
    module, _ = retrain(
        Network(net, SHAPE, masks=masks), ctx, TrainParams(epochs=1, lr=0.05), purpose="test"
    )
    module(torch.ones(2, *SHAPE)).square().sum().backward()
    gradient = module.get_parameter("4.weight").grad
    assert bool(gradient[~masks["4.weight"]].any())


def test_masks_hold_when_weights_have_another_layout():
    net = small()
    masks = half_masks(net)
    enforce = hold(net, masks)
    net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1.0)
    enforce(net)
    for name, mask in masks.items():
        assert torch.equal(net.get_parameter(name).detach() != 0, mask)


def test_equal_seeds_give_equal_weights(blobs):
    def weights(seed):
        step = FineTune(TrainParams(epochs=1, lr=0.05))
        trained = step.apply(Network(small(), SHAPE), blobs(SHAPE, seed=seed))
        return trained.module.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["4.weight"], other["4.weight"])


def test_layers_that_stand_still_stand_still(blobs):
    net = small()
    module, _ = retrain(
        Network(net, SHAPE), blobs(SHAPE), TrainParams(epochs=1), purpose="test", still=["0", "4"]
    )
    assert torch.equal(module.get_parameter("4.weight"), net.get_parameter("4.weight"))
    assert not torch.equal(module.get_parameter("6.weight"), net.get_parameter("6.weight"))
    assert all(p.requires_grad for p in module.parameters())


def test_a_mask_that_fits_nothing_is_refused(blobs):
    network = Network(small(), SHAPE, masks={"4.weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(RecipeError, match=r"mask of '4.weight' fits no parameter"):
        FineTune(TrainParams()).apply(network, blobs(SHAPE))


def test_frozen_weights_are_refused(blobs):
    network = Network(small(), SHAPE, frozen="weights are quantised")
    with pytest.raises(RecipeError, match="fine-tune can't follow: weights are quantised"):
        FineTune(TrainParams()).apply(network, blobs(SHAPE))
