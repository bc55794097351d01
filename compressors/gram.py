"""Least squares on samples of a layer's inputs: Gram matrices summed once, solved many times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np

# Relative to the mean diagonal of the Gram matrix: inputs that never vary (an image's border)
# keep their weights instead of dividing by zero.
_RIDGE = 1e-7


@dataclass(frozen=True)
class Sampling:
    """Where the least squares look: `points` positions of each map in `batches` of `batch` images.

    He et al. 2018 take 60 batches and 10 points. Where the images don't fill so many batches, each
    batch is taken once with more points, to the same number of samples.
    """

    batches: int = 60
    points: int = 10
    batch: int = 50


@dataclass(frozen=True)
class Normal:
    """The normal equations of one consumer of pruned channels, from the dense network.

    Attributes:
        gram: A^T A over n samples A (n, k) of the layer's input patches, float64 (k, k), divided
            by n; about the mean where the layer has a bias, so that the bias is fitted as well.
        mean: of the samples, float64 (k,); zero where the layer has no bias.
        weight: dense weights, float64 (k, out).
        bias: dense bias, float64 (out,), or None.
        taps: columns a channel: the kernel's size.
        readers: group -> per channel, its columns (channels, columns a channel).
    """

    gram: Tensor
    mean: Tensor
    weight: Tensor
    bias: Tensor | None
    taps: int
    readers: Mapping[str, Tensor]


class Sum:
    """Sums A^T A and the rows of A over batches."""

    def __init__(self) -> None:
        self._gram: Tensor | None = None
        self._rows: Tensor | None = None
        self._count = 0

    def add(self, samples: Tensor) -> None:
        """Add samples (n, k)."""
        a = samples.double()
        gram, rows = a.T @ a, a.sum(0)
        self._gram = gram if self._gram is None else self._gram.add_(gram)
        self._rows = rows if self._rows is None else self._rows.add_(rows)
        self._count += len(a)

    def normal(self, part: nn.Module, groups: Mapping[str, Tensor]) -> Normal:
        """Return the layer's normal equations."""
        assert self._gram is not None
        assert self._rows is not None
        gram, mean = self._gram / self._count, self._rows / self._count
        weight = own_weight(part)
        bias = part.bias
        if isinstance(bias, nn.Parameter):
            gram -= torch.outer(mean, mean)
        else:
            mean = torch.zeros_like(mean)
        taps = weight[0, 0].numel()
        readers = {
            name: (index[:, :, None] * taps + torch.arange(taps)).flatten(1)
            for name, index in groups.items()
        }
        return Normal(
            gram=gram,
            mean=mean,
            weight=weight.flatten(1).double().T.contiguous(),
            bias=bias.detach().double() if isinstance(bias, nn.Parameter) else None,
            taps=taps,
            readers=readers,
        )


def columns(normal: Normal, reads: Mapping[str, tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """Return the columns that stay and those that go."""
    gone = torch.zeros(len(normal.gram), dtype=torch.bool)
    for name, kept in reads.items():
        columns = normal.readers[name]
        lost = torch.ones(len(columns), dtype=torch.bool)
        lost[list(kept)] = False
        gone[columns[lost].flatten()] = True
    return torch.nonzero(~gone).flatten(), torch.nonzero(gone).flatten()


def solve(normal: Normal, stays: Tensor, goes: Tensor) -> Tensor:
    """Return W'_S (see `ChannelPruner`), float64 (columns that stay, out)."""
    old = normal.weight[stays]
    if len(goes) == 0:
        return old
    system = normal.gram[stays][:, stays]
    ridge = _RIDGE * float(normal.gram.diagonal().mean())
    if ridge <= 0.0:
        return old
    system.diagonal().add_(ridge)
    target = normal.gram[stays][:, goes] @ normal.weight[goes]
    factor, fault = torch.linalg.cholesky_ex(system)
    if int(fault) == 0:
        change: Tensor = torch.cholesky_solve(target, factor)
    else:
        # Rounding made the sum of squares indefinite: least squares by singular values.
        change = torch.linalg.lstsq(system, target, driver="gelsd").solution
    return old + change


class Nested:
    """Solutions of one consumer whose channels go in a fixed order, each by one triangular solve.

    The channels that stay are always the first ones of an order; with the columns in that order and
    G + r I = L L^T, the leading block L_SS is the factor of the system of those that stay, and

        W'_S = W_S + (G_SS + r I)^-1 G_SR W_R = L_SS^-T (L^T W)_S.
    """

    def __init__(self, normal: Normal, name: str, order: Tensor) -> None:
        """Factorise once.

        Args:
            normal: of a consumer that reads the channels of one group alone, perhaps beside others
                that always stay.
            name: the group.
            order: its channels, those that stay longest first.
        """
        taken = normal.readers[name][order].flatten()
        left = torch.ones(len(normal.gram), dtype=torch.bool)
        left[taken] = False
        always = torch.nonzero(left).flatten()
        self._always = len(always)
        self._width = normal.readers[name].shape[1]
        self._columns = torch.cat((always, taken))
        system = normal.gram[self._columns][:, self._columns]
        ridge = _RIDGE * float(normal.gram.diagonal().mean())
        system.diagonal().add_(ridge)
        self._factor, fault = torch.linalg.cholesky_ex(system)
        self.sound = ridge > 0.0 and int(fault) == 0
        self._image = self._factor.T @ normal.weight[self._columns]

    def solve(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the columns that stay with the first `count` channels, and W'_S for them."""
        end = self._always + count * self._width
        upper = self._factor[:end, :end].T
        solved: Tensor = torch.linalg.solve_triangular(upper, self._image[:end], upper=True)
        return self._columns[:end], solved


def schedule(images: int, sampling: Sampling) -> Iterator[tuple[int, int]]:
    """Yield (first image, how often its points are drawn) of each batch."""
    available = -(-images // sampling.batch)
    for number in range(min(available, sampling.batches)):
        yield number * sampling.batch, len(range(number, sampling.batches, available))


def patches(part: nn.Module, x: Tensor, points: int, draw: np.random.Generator) -> Tensor:
    """Return input patches (samples, k), as the layer's flattened weights meet them."""
    if isinstance(part, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(part, nn.Conv2d)
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    padding = part._reversed_padding_repeated_twice
    padded = F.pad(x, padding, mode=mode) if any(padding) else x
    starts = []
    for axis in (0, 1):
        reach = part.dilation[axis] * (part.kernel_size[axis] - 1) + 1
        places = (padded.shape[2 + axis] - reach) // part.stride[axis] + 1
        chosen = torch.from_numpy(draw.integers(0, places, points)) * part.stride[axis]
        starts.append(chosen[:, None] + torch.arange(part.kernel_size[axis]) * part.dilation[axis])
    rows, columns = starts
    taken = padded[:, :, rows[:, :, None], columns[:, None, :]]  # (n, c, points, kh, kw)
    return taken.permute(0, 2, 1, 3, 4).reshape(len(x) * points, -1)


def own_weight(part: nn.Module) -> Tensor:
    """Return a layer's weights, detached, sharing their memory."""
    weight = part.weight
    assert isinstance(weight, Tensor)
    own: Tensor = weight.detach()
    return own
