"""The one training loop, and evaluation. References, fine-tuning and baselines all use it."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsat.errors import DataError, UsageError
from flatsat.seeds import integer_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flatsat.datasets.splits import Split
    from flatsat.progress import Progress

Schedule = Literal["one-cycle", "cosine", "constant"]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FitStats:
    """What a training cost and where it ended.

    Attributes:
        steps: optimiser steps.
        cpu_s: processor seconds of this process, all threads.
        wall_s: seconds on the host's monotonic clock.
        loss: mean training loss over the last epoch.
    """

    steps: int
    cpu_s: float
    wall_s: float
    loss: float


def fit(
    module: nn.Module,
    split: Split,
    *,
    epochs: float,
    lr: float,
    seed: int,
    batch: int = 64,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    schedule: Schedule = "one-cycle",
    shift: int = 0,
    loss: Loss | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    progress: Progress | None = None,
    task: str = "train",
) -> FitStats:
    """Train `module` in place by SGD with momentum, on the CPU; it is left in eval mode.

    The order of images comes from a generator of its own seed; torch's global generator is left
    as it was found (a module with dropout, which can draw from no other, gets it seeded for the
    time of the call). The number of threads is the caller's: equal seeds give equal weights on
    one machine with one number of threads.

    Args:
        module: maps (n, c, h, w) to logits (n, classes); parameters that need no gradient stay.
        split: what to train on.
        epochs: passes over the split; a fraction is allowed, at least one step is made.
        lr: peak learning rate.
        seed: of the order of images.
        batch: images a step; the images that fill no whole batch sit an epoch out.
        weight_decay: L2 term of weights; parameters of one axis (biases, batch norm) have none.
        momentum: of SGD.
        schedule: "one-cycle": linearly up to `lr` over the first 30 % of the steps, then a cosine
            down to nearly 0 (Smith and Topin 2018); "cosine": down from `lr`; "constant".
        shift: each image of each step is moved by up to so many pixels on both axes, its edges
            repeated: as if there were more images, where that keeps their labels.
        loss: callable(logits, labels, positions in the split) -> scalar; None: cross-entropy.
        after_step: called with the module after every step, without gradients (to hold masks).
            Convolution weights are channels-last then: `reshape` works on them, `view` may not.
        progress: told the steps done.
        task: the name that `progress` is told.

    Raises:
        DataError: the split is empty.
        UsageError: a setting out of range, or the loss is not finite any more.
    """
    _check(split, epochs=epochs, lr=lr, batch=batch, schedule=schedule)
    if shift < 0 or (shift and split.x.ndim != 4):
        raise UsageError(f"shift is {shift}", hint="give 0 pixels, or more where inputs are images")
    x, y = tensors(split)
    spatial = _bears_channels_last(module, x)
    batch = min(batch, len(split))
    per_epoch = len(split) // batch
    total = max(1, round(epochs * per_epoch))
    optimiser = _sgd(module, lr, momentum, weight_decay)
    order = torch.Generator().manual_seed(integer_seed(seed, "datasets.fit/order"))
    moves = torch.Generator().manual_seed(integer_seed(seed, "datasets.fit/shift"))
    criterion = _cross_entropy if loss is None else loss
    report_every = max(1, total // 200)
    losses: list[float] = []
    cpu_started, wall_started = time.process_time(), time.perf_counter()
    module.train()
    with torch.enable_grad(), _dropout_seeded(module, seed), _channels_last(module, spatial):
        for step, index in zip(range(total), _batches(order, len(split), batch), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = lr * rate(schedule, step, total)
            images = shifted(x[index], shift, moves) if shift else x[index]
            value = criterion(module(_laid_out(images, spatial)), y[index], index)
            losses.append(value.item())
            if not math.isfinite(losses[-1]):
                module.eval()
                raise UsageError(
                    f"training diverged: the loss is {losses[-1]} at step {step + 1} of {total}",
                    hint=f"lower the learning rate, which is {lr:g}",
                )
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if after_step is not None:
                with torch.no_grad():
                    after_step(module)
            if progress is not None and ((step + 1) % report_every == 0 or step + 1 == total):
                progress.update(task, step + 1, total, f"loss {losses[-1]:.3f}")
    optimiser.zero_grad(set_to_none=True)
    module.eval()
    return FitStats(
        steps=total,
        cpu_s=time.process_time() - cpu_started,
        wall_s=time.perf_counter() - wall_started,
        loss=float(np.mean(losses[-per_epoch:])),
    )


def shifted(x: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Return images (n, c, h, w), each moved by -most to most pixels on both axes."""
    n, _, height, width = x.shape
    padded = F.pad(x, (most,) * 4, mode="replicate")
    rows, columns = torch.randint(0, 2 * most + 1, (2, n, 1), generator=draw)
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    images = torch.arange(n)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def rate(schedule: Schedule, step: int, total: int) -> float:
    """Return the factor, in (0, 1], that the peak learning rate has at `step` of `total`."""
    if schedule == "constant":
        return 1.0
    rising = 0.3 * total if schedule == "one-cycle" else 0.0
    if step < rising:
        return (step + 1) / (math.floor(rising) + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, total - rising)))


def evaluate(module: nn.Module, split: Split, batch: int = 500) -> float:
    """Return the share of images whose largest logit is their label's, in [0, 1].

    Raises:
        DataError: the split is empty.
    """
    if len(split) == 0:
        raise DataError(f"the split {split.name!r} is empty", hint="give at least one image")
    return float(np.mean(predict(module, split.x, batch).argmax(axis=1) == split.y))


def predict(module: nn.Module, x: NDArray[np.float32], batch: int = 500) -> NDArray[np.float32]:
    """Return the logits (n, classes), float32, of images (n, c, h, w), computed in eval mode.

    The module's mode is left as it was.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            parts = [module(as_tensor(x[i : i + batch])) for i in range(0, len(x), batch)]
            logits: NDArray[np.float32] = torch.cat(parts).numpy()
    finally:
        module.train(was_training)
    return logits


def tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Return a split's images and labels as tensors that share its memory: don't write to them."""
    return as_tensor(split.x), as_tensor(split.y)


def as_tensor(array: NDArray[np.generic]) -> Tensor:
    """Return a tensor that shares the memory of a (perhaps read-only) array: don't write to it.

    `torch.from_numpy` warns of read-only arrays, since a tensor can't be read-only.
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _check(split: Split, *, epochs: float, lr: float, batch: int, schedule: str) -> None:
    if len(split) == 0:
        raise DataError(f"the split {split.name!r} is empty", hint="give at least one image")
    for name, value in (("epochs", epochs), ("lr", lr), ("batch", batch)):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value}", hint="give a number above 0")
    if schedule not in ("one-cycle", "cosine", "constant"):
        raise UsageError(
            f"unknown schedule {schedule!r}", hint="there are one-cycle, cosine, constant"
        )


def _cross_entropy(logits: Tensor, labels: Tensor, _positions: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def _sgd(module: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    learned = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum)


def _batches(order: torch.Generator, count: int, batch: int) -> Iterator[Tensor]:
    """Yield positions without end: each epoch a new permutation, whole batches only."""
    while True:
        permutation = torch.randperm(count, generator=order)
        yield from permutation[: count - count % batch].view(-1, batch)


def _laid_out(images: Tensor, spatial: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if spatial else images


def _bears_channels_last(module: nn.Module, x: Tensor) -> bool:
    """Return whether a network of two-dimensional convolutions runs in that layout.

    A `view` of a map, as many networks flatten theirs, can't read it.
    """
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        return False
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), _channels_last(module, spatial=True):
            module(_laid_out(x[:2], spatial=True))
    except RuntimeError:
        return False
    finally:
        for part, training in modes:
            part.training = training
    return True


@contextlib.contextmanager
def _channels_last(module: nn.Module, spatial: bool) -> Iterator[None]:
    """Keep convolution weights channels-last for a while: training is 1.5 times quicker so."""
    if not spatial:
        yield
        return
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@contextlib.contextmanager
def _dropout_seeded(module: nn.Module, seed: int) -> Iterator[None]:
    if not any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules()):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer_seed(seed, "datasets.fit/dropout"))
        yield
