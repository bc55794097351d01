"""Layers as arithmetic: parameters, weights and MACs, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
        inputs, outputs: channels or units.
        kernel: side of a square kernel; 1 for a dense layer.
        positions: output positions (height x width), of a transposed convolution input positions;
            1 for a dense layer.
        groups: of a convolution.
        bias: has one.
        norm: is followed by batch norm (two learned numbers a channel).
    """

    inputs: int
    outputs: int
    kernel: int = 1
    positions: int = 1
    groups: int = 1
    bias: bool = True
    norm: bool = False

    @property
    def weights(self) -> int:
        """Weights without bias and norm."""
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.weights * self.positions

    @property
    def parameters(self) -> int:
        """Learned numbers."""
        return self.weights + self.outputs * (self.bias + 2 * self.norm)


def normed(inputs: int, outputs: int, kernel: int, sides: Sequence[int], groups: int = 1) -> Layer:
    """Return a convolution without bias whose output, of these sides, goes through batch norm."""
    return Layer(inputs, outputs, kernel, math.prod(sides), groups, bias=False, norm=True)


def scaled(count: int, width: float) -> int:
    """Return `count` channels times `width`, rounded half up, at least 1.

    Raises:
        UsageError: `width` is not a positive finite number.
    """
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"width is {width}", hint="give a number above 0, such as 0.5")
    return max(1, math.floor(count * width + 0.5))


def after(side: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Return the side of a convolution's or a pooling's output.

    Raises:
        UsageError: nothing is left of the image.
    """
    length = (side + 2 * padding - kernel) // stride + 1
    if length < 1:
        raise UsageError(
            f"an input of side {side} is too small for a kernel of side {kernel}",
            hint="choose a network for smaller images",
        )
    return length


def pooled(side: int) -> int:
    """Return the side that max pooling by 2 leaves.

    Raises:
        UsageError: nothing is left of the image.
    """
    return after(side, 2, 2)


def pooled_up(side: int) -> int:
    """Return the side that 3 x 3 pooling of stride 2 leaves where it rounds up (Caffe's way).

    Raises:
        UsageError: the image is smaller than the window.
    """
    return after(side, 3) if side < 3 else -(-(side - 3) // 2) + 1
