"""Evenly spaced levels of weights with zero among them, as int8 operators want them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flatsat.compressors.linear_quant import Quantised, quantise_range, quantise_sign
from flatsat.errors import RecipeError

Grid = Literal["symmetric", "affine", "minmax"]
_FLOAT_BYTES = 4


def quantise_on(
    grid: Grid, weight: Tensor, bits: int, axis: int | None = None, kept: Tensor | None = None
) -> Quantised:
    """Return `weight` on at most 2^bits levels.

    - "symmetric": w' = s clip(round(w / s), -n, n), n = 2^(bits - 1) - 1, s = max|w| / n.
    - "affine": w' = S (q - Z), q = clip(round(w / S) + Z, 0, 2^bits - 1), over the range
      [min(w, 0), max(w, 0)], whose zero point Z is rounded so that 0 is a level
      (Jacob et al. 2018, eq. 1, 12 and section 3.1).
    - "minmax": as `quantise_range`; 0 need not be a level.

    One bit leaves s sign(w), s = mean|w|, on the first two grids.

    Args:
        grid: which levels.
        weight: float32, of any shape with at least one element.
        bits: 1 to 8.
        axis: gives each index of this axis a range of its own; None: one range for all.
        kept: bool, of the weight's shape; the others become zero and stay out of the range.

    Raises:
        RecipeError: a weight is not finite.
    """
    if grid == "minmax":
        return quantise_range(weight, bits, axis, kept)
    if bits == 1:
        return quantise_sign(weight, bits, axis, kept)
    wide = weight.detach().double()
    if kept is not None:
        wide = wide.masked_fill(~kept, 0.0)
    axes = tuple(i for i in range(weight.ndim) if i != axis)
    low, high = wide.amin(axes, keepdim=True), wide.amax(axes, keepdim=True)
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise RecipeError("its weights are not finite")
    top = 2**bits - 1
    if grid == "symmetric":
        top -= 1
        step = torch.maximum(-low, high) / (top / 2)
    else:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        step = (high - low) / top
    # The step is stored as float32, so the levels are its multiples.
    step = step.float()
    divisor = torch.where(step > 0, step, torch.ones_like(step)).double()
    zero = torch.full_like(divisor, top / 2) if grid == "symmetric" else (-low / divisor).round()
    codes = ((wide / divisor).round() + zero).clamp(0, top)
    values = (step.double() * (codes - zero)).float()
    scales = step.numel() * _FLOAT_BYTES
    ranges = scales if grid == "symmetric" else scales + step.numel()
    lowest = (-zero * step.double()).float()
    return Quantised(values, codes.to(torch.uint8), lowest, step, ranges)


def nudged(low: float, high: float, bits: int) -> tuple[float, float]:
    """Return the range of 2^bits levels nearest to [low, high] in which 0 is a level.

    The range is widened to hold 0, then shifted by less than a step (Jacob et al. 2018,
    section 3.1).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2**bits - 1
    step = (high - low) / top
    if step <= 0.0:
        return 0.0, 0.0
    zero = round(-low / step)
    return -zero * step, (top - zero) * step
