"""Levels chosen for the error that they cause in the logits and for the bits that they take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SMOOTH = 0.5


@dataclass(frozen=True)
class Curvature:
    """What a change of a layer's weights does to the logits: tr(G d A d^T), d the change.

    Attributes:
        inputs: A, second moments of the layer's input patches, about their mean where a bias can
            take the mean's part, float64 (groups, k, k) or, of wide layers, their diagonals
            (groups, k).
        mean: of the patches, float64 (groups, k); zero without a bias.
        outputs: G's diagonal: mean squared derivative of the logits by each output, summed over
            positions, float64 (rows,).
    """

    inputs: Tensor
    mean: Tensor
    outputs: Tensor

    def diagonal(self) -> Tensor:
        """Return A's diagonal for each row, (rows, k)."""
        of_groups = self.inputs if self.inputs.ndim == 2 else self.inputs.diagonal(dim1=1, dim2=2)
        return of_groups.repeat_interleave(len(self.outputs) // len(of_groups), 0)


@dataclass(frozen=True)
class Chosen:
    """A layer's weights on levels.

    Attributes:
        numbers: each weight is `step` times its number, int64 (rows, k).
        step: between levels.
        bits: that the numbers take by the model of `costs`.
        error: tr(G d A d^T).
    """

    numbers: Tensor
    step: float
    bits: float
    error: float

    @property
    def values(self) -> Tensor:
        """The weights, float32 (rows, k)."""
        return (self.numbers.double() * self.step).float()


def choose(
    weight: Tensor, kept: Tensor, curvature: Curvature, *, step: float, price: float, sweeps: int
) -> Chosen:
    """Put weights on multiples of a step so that error + price x bits is small.

    One weight of each row at a time, column by column, goes to the level that is best for what the
    others are then: the error's minimum over that weight alone lies where it makes up for the
    errors of the others, t = q - (A d)_j / A_jj, and of the two levels beside t and 0 the one of
    least G A_jj (q - t)^2 + price x bits(q) is taken. Bits are those of `costs` for the numbers of
    the sweep before.

    Args:
        weight: (rows, k).
        kept: bool (rows, k); others are zero and stay it.
        curvature: of the layer.
        step: between levels.
        price: of a bit, in the error's unit.
        sweeps: how often each weight is chosen.
    """
    w = weight.double() * kept
    rows, columns = w.shape
    full = curvature.inputs.ndim == 3
    groups = len(curvature.inputs)
    diagonal = curvature.diagonal()
    least = 1e-9 * float(diagonal.mean()) + 1e-300
    g = curvature.outputs.clamp(min=1e-9 * float(curvature.outputs.mean()) + 1e-300)
    numbers = torch.round(w / step)
    change = (numbers * step - w).view(groups, rows // groups, columns)
    pull = change @ curvature.inputs if full else None
    for _ in range(sweeps):
        at_zero, at_other, levels = costs(numbers, kept)
        for j in range(columns):
            mine = kept[:, j]
            if not bool(mine.any()):
                continue
            curve = diagonal[:, j].clamp(min=least)
            now = numbers[:, j] * step
            target = w[:, j] if pull is None else now - pull[:, :, j].reshape(-1) / curve
            below = torch.floor(target / step)
            best, best_cost = torch.zeros_like(below), torch.full_like(below, math.inf)
            for tried in (torch.zeros_like(below), below, below + 1):
                bits = torch.where(
                    tried == 0, at_zero[:, j], at_other[:, j] + levels_cost(levels, tried)
                )
                cost = g * curve * (tried * step - target) ** 2 + price * bits
                better = cost < best_cost
                best = torch.where(better, tried, best)
                best_cost = torch.where(better, cost, best_cost)
            best = torch.where(mine, best, torch.zeros_like(best))
            moved = (best - numbers[:, j]) * step
            numbers[:, j] = best
            if pull is not None and bool(moved.any()):
                shaped = moved.view(groups, -1, 1)
                pull += shaped * curvature.inputs[:, j, None, :]
    change = (numbers * step - w).view(groups, rows // groups, columns)
    if full:
        of_rows = ((change @ curvature.inputs) * change).sum(2).reshape(-1)
    else:
        of_rows = (change**2 * curvature.inputs[:, None, :]).sum(2).reshape(-1)
    at_zero, at_other, levels = costs(numbers, kept)
    bits = torch.where(numbers == 0, at_zero, at_other + levels_cost(levels, numbers))
    return Chosen(
        numbers=numbers.long(),
        step=step,
        bits=float(bits[kept].sum()),
        error=float((of_rows * curvature.outputs).sum()),
    )


def costs(numbers: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bits of a zero and of another number at each place, and of each number's value.

    A stand-in for the context coder, which predicts from densities of row and column, too:
    logit p = logit(row's share of non-zeros) + logit(column's) - logit(matrix's).

    Returns:
        (rows, k), (rows, k), and (2 m + 1,): of the values from -m to m, all in bits.
    """
    there = (numbers != 0).double()
    rows, columns = there.shape
    overall = (there.sum() + _SMOOTH) / (there.numel() + 2 * _SMOOTH)
    by_row = (there.sum(1) + 2 * overall) / (columns + 2)
    by_column = (there.sum(0) + 2 * overall) / (rows + 2)
    logit = torch.logit(by_row)[:, None] + torch.logit(by_column)[None] - torch.logit(overall)
    nats = 1 / math.log(2)
    at_zero = torch.nn.functional.softplus(logit) * nats
    at_other = torch.nn.functional.softplus(-logit) * nats
    most = int(numbers.abs().max()) + 1
    used = numbers[kept & (numbers != 0)].long() + most
    counts = torch.bincount(used, minlength=2 * most + 1).double() + _SMOOTH
    return at_zero, at_other, -torch.log2(counts / counts.sum())


def levels_cost(levels: Tensor, numbers: Tensor) -> Tensor:
    """Return the bits of each number's value; beyond the known ones each step costs a bit more."""
    most = (len(levels) - 1) // 2
    inside = numbers.clamp(-most, most)
    return levels[(inside + most).long()] + (numbers - inside).abs()
