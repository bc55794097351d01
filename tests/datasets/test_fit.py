from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatsat.datasets.fit import evaluate, fit, predict, rate, shifted, tensors
from flatsat.datasets.nets import build
from flatsat.datasets.splits import Split
from flatsat.errors import DataError, UsageError


def make_split(count: int = 200, side: int = 8) -> Split:
    """Bright left or right halves: two classes that any network tells apart."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, count)
    x = rng.random((count, 1, side, side), dtype=np.float32) * 0.3
    for image, label in zip(x, y, strict=True):
        image[0, :, label * side // 2 : (label + 1) * side // 2] += 0.6
    x.flags.writeable = y.flags.writeable = False
    return Split("train", x, y)


def tiny(
    seed: int = 0, dropout: bool = False, network: str = "lenet300", width: float = 0.1
) -> nn.Module:
    module = build(
        network,
        classes=2,
        input_shape=(1, 8, 8),
        width=width,
        generator=torch.Generator().manual_seed(seed),
    )
    return nn.Sequential(module, nn.Dropout(0.3)).eval() if dropout else module


def train(module: nn.Module, split: Split, **changes) -> object:
    return fit(module, split, **{"epochs": 3, "lr": 0.05, "seed": 5, "batch": 16, **changes})


def state(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("network", ["lenet300", "resnet20", "mobilenet-small"])
def test_it_learns(network: str) -> None:
    split = make_split()
    module = tiny(network=network, width=0.3)
    stats = train(module, split, epochs=8)
    assert evaluate(module, split) > 0.95
    assert stats.steps == 8 * (200 // 16)
    assert stats.wall_s > 0
    assert not module.training
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("dropout", [False, True])
def test_equal_seeds_give_equal_weights_and_no_global_state_moves(dropout: bool) -> None:
    split = make_split()
    one, two, other = (tiny(dropout=dropout) for _ in range(3))
    threads, before = torch.get_num_threads(), torch.random.get_rng_state()
    train(one, split)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    torch.rand(3)  # What others draw changes nothing.
    train(two, split)
    train(other, split, seed=6)
    assert equal(state(one), state(two))
    assert not equal(state(one), state(other))


def test_masks_hold_when_the_hook_reapplies_them() -> None:
    module = tiny()
    weight = module.fc1.weight
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    calls = []

    def hold(trained: nn.Module) -> None:
        assert not torch.is_grad_enabled()
        calls.append(trained)
        trained.fc1.weight.mul_(mask)

    stats = train(module, make_split(), after_step=hold)
    assert len(calls) == stats.steps
    assert torch.count_nonzero(weight[~mask]) == 0
    assert torch.count_nonzero(weight[mask]) > 0


def test_a_loss_gets_the_positions_of_its_images() -> None:
    split = make_split(40)
    seen: list[int] = []

    def loss(logits: torch.Tensor, y: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        assert y.tolist() == split.y[positions.numpy()].tolist()
        seen.extend(positions.tolist())
        return F.cross_entropy(logits, y)

    own, default = tiny(), tiny()
    train(own, split, loss=loss, epochs=2, batch=10)
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))
    assert seen[:40] != seen[40:]
    train(default, split, epochs=2, batch=10)
    assert equal(state(own), state(default))


def test_frozen_parameters_stay_and_layout_is_given_back() -> None:
    module = tiny(network="resnet20")
    module.conv1.weight.requires_grad_(False)
    before = module.conv1.weight.clone()
    train(module, make_split(64), epochs=1)
    assert torch.equal(before, module.conv1.weight)
    assert all(p.is_contiguous() for p in module.parameters())


class Viewing(nn.Module):
    """Flattens its maps by a view, which can't read them channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(144, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(x.view(x.size(0), -1))


def test_a_network_that_flattens_by_view_is_trained() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Viewing().eval()
    split = make_split()
    train(module, split, epochs=0.1)
    # Trying the layout is no step: the batch norm has seen one batch.
    assert module.norm.num_batches_tracked == 1
    train(module, split)
    assert evaluate(module, split) > 0.95
    assert not module.training


def test_biases_and_norms_have_no_weight_decay() -> None:
    module = tiny(network="resnet20")
    bias = module.fc.bias.clone()
    weight = module.fc.weight.clone()

    def no_loss(logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return logits.sum() * 0.0

    train(module, make_split(64), loss=no_loss, weight_decay=0.5)
    assert torch.equal(bias, module.fc.bias)
    assert module.fc.weight.norm() < weight.norm()


def test_fractions_of_epochs_and_small_splits() -> None:
    assert train(tiny(), make_split(), epochs=0.5).steps == 6
    assert train(tiny(), make_split(), epochs=1e-6).steps == 1
    assert train(tiny(), make_split(5), epochs=2).steps == 2


class Watching:
    def __init__(self) -> None:
        self.told: list[tuple[str, float, float]] = []

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        assert note
        self.told.append((task, done, total))

    def log(self, message: str) -> None:
        raise AssertionError(message)


def test_progress_ends_with_the_task() -> None:
    watching = Watching()
    stats = train(tiny(), make_split(), progress=watching, task="retrain")
    assert watching.told[-1] == ("retrain", stats.steps, stats.steps)
    assert [done for _, done, _ in watching.told] == sorted({d for _, d, _ in watching.told})


def test_the_rate_rises_then_falls() -> None:
    cycle = [rate("one-cycle", step, 100) for step in range(100)]
    top = int(np.argmax(cycle))
    assert cycle[top] == 1.0
    assert 25 <= top <= 35
    assert cycle[:top] == sorted(cycle[:top])
    assert cycle[top:] == sorted(cycle[top:], reverse=True)
    assert cycle[-1] < 0.01
    assert rate("cosine", 0, 100) == 1.0
    assert rate("cosine", 99, 100) < 0.01
    assert rate("constant", 99, 100) == 1.0
    for schedule in ("one-cycle", "cosine", "constant"):
        assert all(0 < rate(schedule, s, n) <= 1 for n in range(1, 12) for s in range(n))


def test_divergence_is_said_in_one_line() -> None:
    module = tiny()
    with pytest.raises(UsageError, match=r"training diverged.*lower the learning rate"):
        train(module, make_split(), lr=1e20)
    assert not module.training


def test_settings_out_of_range() -> None:
    for wrong in ({"epochs": 0}, {"lr": float("nan")}, {"batch": 0}, {"schedule": "warm"}):
        with pytest.raises(UsageError):
            train(tiny(), make_split(), **wrong)
    empty = make_split().first(0)
    for use in (lambda: train(tiny(), empty), lambda: evaluate(tiny(), empty)):
        with pytest.raises(DataError, match="empty"):
            use()


def test_predict_keeps_mode_and_order_and_warns_of_nothing() -> None:
    module, split = tiny(network="resnet20"), make_split(37)
    module.train()
    statistics = module.bn1.running_mean.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = predict(module, split.x, 100)
        x, y = tensors(split)
    assert module.training
    assert torch.equal(statistics, module.bn1.running_mean)
    np.testing.assert_allclose(predict(module, split.x, 10), whole, rtol=1e-4, atol=1e-5)
    assert (x.numpy() == split.x).all()
    assert (y.numpy() == split.y).all()
    expected = (whole.argmax(1) == split.y).mean()
    assert evaluate(module, split) == pytest.approx(expected)


def test_shifted_images_are_the_image_moved_with_its_edges_repeated():
    image = torch.arange(2 * 5 * 4, dtype=torch.float32).reshape(1, 2, 5, 4)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="replicate")
    possible = [padded[0, :, r : r + 5, c : c + 4] for r in range(5) for c in range(5)]
    moved = shifted(image.repeat(200, 1, 1, 1), 2, torch.Generator().manual_seed(0))
    found = {
        next(i for i, one in enumerate(possible) if torch.equal(one, image)) for image in moved
    }
    assert len(found) == 25


def test_a_shift_needs_images():
    flat = Split("train", np.zeros((8, 4), np.float32), np.zeros(8, np.int64))
    with pytest.raises(UsageError, match="shift is 1"):
        fit(nn.Linear(4, 2), flat, epochs=1, lr=0.1, seed=0, shift=1)
