"""Weight sharing: k-means in one dimension, and centroids that are trained as one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.sharing import ShareWeights, kmeans
from flatsat.errors import RecipeError

values_of = st.lists(
    st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=80
)
inits = st.sampled_from(["linear", "density", "forgy"])


@given(values_of, st.integers(1, 12), inits)
def test_each_value_has_the_nearest_centroid_and_each_centroid_is_a_mean(
    drawn: list[float], k: int, init: Any
) -> None:
    values = np.array(drawn, np.float32)
    found = kmeans(values, k, init, seed=3)
    assert 1 <= len(found.centroids) <= k
    assert (np.diff(found.centroids) > 0).all()
    distance = np.abs(values[:, None].astype(np.float64) - found.centroids[None])
    own = distance[np.arange(len(values)), found.labels]
    assert np.allclose(own, distance.min(axis=1), rtol=0, atol=1e-4)
    assert found.squared_error == pytest.approx(float(np.square(own).sum()), abs=1e-6)
    spread = float(np.square(values - values.mean(dtype=np.float64)).sum())
    assert found.squared_error <= spread + 1e-3


@given(values_of, st.integers(1, 12), inits)
def test_values_that_are_few_stay_as_they_are(drawn: list[float], k: int, init: Any) -> None:
    values = np.array((drawn * k)[: max(k, 1)], np.float32)
    found = kmeans(values, len(values), init)
    assert np.array_equal(found.centroids[found.labels], values + np.float32(0))
    assert found.squared_error == 0.0


def test_it_is_as_good_as_another_implementation() -> None:
    from sklearn.cluster import KMeans

    values = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    start = np.linspace(values.min(), values.max(), 16)[:, None]
    theirs = KMeans(16, init=start, n_init=1, max_iter=300, tol=0.0).fit(values[:, None])
    ours = kmeans(values, 16, "linear")
    assert ours.squared_error <= 1.001 * theirs.inertia_


def test_linear_begins_evenly_and_keeps_large_weights() -> None:
    # Section 3.2: the linear beginning serves the few large weights better.
    values = np.concatenate([np.random.default_rng(1).normal(size=5000), [9.0, -9.0]])
    worst = {
        init: float(np.abs(kmeans(values, 8, init).centroids).max())
        for init in ("linear", "density")
    }
    assert worst["linear"] == pytest.approx(9.0)
    assert worst["density"] < 5.0


def shared(network: Network, ctx: Any, **params: Any) -> Network:
    return ShareWeights(ShareWeights.Params(**params)).apply(network, ctx)


@pytest.fixture
def pruned(blobs: Any) -> tuple[Network, Any]:
    """A small network of which a third is pruned, and what it is trained on."""
    ctx = blobs((1, 6, 6))
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for name in ("0.weight", "3.weight"):
        weight = dict(module.named_parameters())[name]
        masks[name] = torch.rand(weight.shape, generator=generator) > 0.33
        weight.data *= masks[name]
    return Network(module, (1, 6, 6), masks), ctx


@pytest.mark.parametrize("gradient", ["sum", "mean"])
@pytest.mark.parametrize("epochs", [0.0, 2.0])
def test_a_layer_takes_2_to_the_b_values_and_zeros_stay(
    pruned: tuple[Network, Any], epochs: float, gradient: str
) -> None:
    network, ctx = pruned
    made = shared(network, ctx, bits={"conv": 3, "fc": 2, "5": 1}, epochs=epochs, gradient=gradient)
    parameters = dict(made.module.named_parameters())
    for name, bits in (("0", 3), ("3", 2), ("5", 1)):
        weight = parameters[f"{name}.weight"].detach()
        mask = network.masks.get(f"{name}.weight", torch.ones_like(weight, dtype=torch.bool))
        assert not weight[~mask].any()
        levels = torch.unique(weight[mask])
        assert len(levels) <= 2**bits
        (told,) = [layer for layer in made.history[-1]["layers"] if layer["name"] == name]  # type: ignore[attr-defined]
        assert told["codebook"] == levels.tolist()
        assert (told["levels"], told["stored"]) == (len(levels), int(mask.sum()))
        assert told["range_bytes"] == 4 * len(levels)
    assert made.frozen
    with pytest.raises(RecipeError, match="codebooks"):
        shared(made, ctx)


def test_biases_go_on_evenly_spaced_levels_if_asked(pruned: tuple[Network, Any]) -> None:
    network, ctx = pruned
    made = shared(network, ctx, biases=2, epochs=1)
    plain = shared(network, ctx, epochs=1)
    for name, before in plain.module.named_parameters():
        if name.endswith("bias"):
            after = dict(made.module.named_parameters())[name]
            assert len(torch.unique(before)) == before.numel()
            assert len(torch.unique(after)) <= 4
            spread = float(before.detach().max() - before.detach().min())
            assert float((after - before).detach().abs().max()) <= spread / 6 + 1e-6


def test_training_moves_centroids_and_lowers_the_loss(pruned: tuple[Network, Any]) -> None:
    network, ctx = pruned

    def loss(one: Network) -> float:
        with torch.no_grad():
            logits = one.module(torch.from_numpy(ctx.train.x))
            return float(nn.functional.cross_entropy(logits, torch.from_numpy(ctx.train.y)))

    before = shared(network, ctx, bits={"conv": 2, "fc": 2}, epochs=0)
    after = shared(network, ctx, bits={"conv": 2, "fc": 2}, epochs=4, lr=2e-3)
    assert loss(after) < loss(before)
    books = [one.history[-1]["layers"][0]["codebook"] for one in (before, after)]  # type: ignore[index]
    assert books[0] != books[1]


def test_the_gradient_of_a_centroid_is_the_sum_of_its_weights(blobs: Any) -> None:
    # Eq. 3 on one linear layer and one step of SGD without momentum's past.
    ctx = blobs((1, 2, 2), n=64)
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).eval()
    network = Network(module, (1, 2, 2))
    start = shared(network, ctx, bits={"fc": 1}, epochs=0)
    weight = start.module.get_submodule("1").weight
    assert isinstance(weight, nn.Parameter)
    lr = 1e-3
    made = shared(
        network,
        ctx,
        bits={"fc": 1},
        epochs=1,
        lr=lr,
        batch=len(ctx.train),
        schedule="constant",
    )
    start.module.train()
    weight.requires_grad_(True)
    logits = start.module(torch.from_numpy(ctx.train.x))
    nn.functional.cross_entropy(logits, torch.from_numpy(ctx.train.y)).backward()
    assert weight.grad is not None
    moved = made.module.get_submodule("1").weight
    assert isinstance(moved, nn.Parameter)
    for level in torch.unique(weight.detach()):
        mine = weight.detach() == level
        expected = level - lr * weight.grad[mine].sum()
        assert torch.allclose(moved.detach()[mine], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"bits": {"conv1": 3}}, "no layer 'conv1'"),
        ({"bits": {"fc": 13}}, "13 bits for 'fc'"),
        ({"bits": {"fc": 0}}, "0 bits for 'fc'"),
    ],
)
def test_what_cannot_be_is_told(
    pruned: tuple[Network, Any], params: dict[str, Any], says: str
) -> None:
    network, ctx = pruned
    with pytest.raises(RecipeError, match=says) as caught:
        shared(network, ctx, **params)
    assert caught.value.hint


def test_weights_that_are_no_numbers_are_told(pruned: tuple[Network, Any]) -> None:
    network, ctx = pruned
    module = network.module
    module.get_submodule("5").weight.data[0, 0] = float("nan")  # type: ignore[operator,union-attr,index]
    with pytest.raises(RecipeError, match="'5' are not finite"):
        shared(replace(network, module=module), ctx, epochs=0)
