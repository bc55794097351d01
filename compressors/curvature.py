"""How much logits change when a layer's weights do: Gauss-Newton matrices, Kronecker-factored."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatsat.compressors.gram import patches
from flatsat.compressors.rate_levels import Curvature
from flatsat.datasets.fit import as_tensor
from flatsat.seeds import generator

if TYPE_CHECKING:
    import numpy as np

    from flatsat.datasets.splits import Split

WIDEST = 2048
"""Columns of the widest layer whose inputs' products are kept; of wider ones only squares are."""
_BATCH = 64
_POINTS = 10


@dataclass
class _Layer:
    part: nn.Conv2d | nn.Linear
    products: Tensor | None = None
    sums: Tensor | None = None
    samples: int = 0
    slopes: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)

    def see(self, x: Tensor, draw: np.random.Generator) -> None:
        found = patches(self.part, x.detach(), _POINTS, draw).double()
        groups = self.part.groups if isinstance(self.part, nn.Conv2d) else 1
        found = found.view(len(found), groups, -1).transpose(0, 1)
        wide = found.shape[2] > WIDEST
        products = (found**2).sum(1) if wide else found.transpose(1, 2) @ found
        self.products = products if self.products is None else self.products + products
        sums = found.sum(1)
        self.sums = sums if self.sums is None else self.sums + sums
        self.samples += found.shape[1]

    def slope(self, gradient: Tensor) -> None:
        squares = gradient.detach().double() ** 2
        if isinstance(self.part, nn.Conv2d):
            found = squares.sum((0, 2, 3))
        else:
            found = squares.reshape(-1, squares.shape[-1]).sum(0)
        self.slopes = found if self.slopes is None else self.slopes + found


def curvatures(
    module: nn.Module, names: Sequence[str], split: Split, n: int, seed: int
) -> Mapping[str, Curvature]:
    """Return the curvature of each layer, relative to the logits' own variance.

    H of a layer is taken as G (x) A (Martens and Grosse 2015, section 3): A over its input patches,
    G's diagonal from the derivatives of the logits about their mean, in one random direction an
    image (so no label is needed, and a network that is certain of its training images is no
    special case). The error of a change d of the weights is tr(G d A d^T).

    Args:
        module: in eval mode; stays as it is.
        names: of its Conv2d and Linear layers.
        split: of images.
        n: of them are used.
        seed: of directions and positions.
    """
    work = copy.deepcopy(module).requires_grad_(True)
    draw = generator(seed, "compressors.curvature")
    torch_draw = torch.Generator().manual_seed(int(draw.integers(1 << 62)))
    seen: dict[str, _Layer] = {}
    handles = []
    for name in names:
        part = work.get_submodule(name)
        assert isinstance(part, nn.Conv2d | nn.Linear)
        layer = seen[name] = _Layer(part)

        def hook(
            _part: nn.Module, args: tuple[Tensor, ...], output: Tensor, layer: _Layer = layer
        ) -> None:
            layer.see(args[0], draw)
            layer.outputs.append(output)

        handles.append(part.register_forward_hook(hook))
    images = as_tensor(split.x[:n])
    power = 0.0
    try:
        with torch.enable_grad():
            for start in range(0, len(images), _BATCH):
                logits = work(images[start : start + _BATCH])
                centred = logits - logits.mean(1, keepdim=True)
                power += float(centred.detach().double().square().sum())
                direction = torch.randn(logits.shape, generator=torch_draw)
                told = [output for layer in seen.values() for output in layer.outputs]
                found = torch.autograd.grad((centred * direction).sum(), told, allow_unused=True)
                at = iter(found)
                for layer in seen.values():
                    for output in layer.outputs:
                        gradient = next(at)
                        layer.slope(torch.zeros_like(output) if gradient is None else gradient)
                    layer.outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: _curvature(layer, power) for name, layer in seen.items()}


def _curvature(layer: _Layer, power: float) -> Curvature:
    assert layer.products is not None
    assert layer.sums is not None
    assert layer.slopes is not None
    inputs, mean = layer.products / layer.samples, layer.sums / layer.samples
    if layer.part.bias is None:
        mean = torch.zeros_like(mean)
    elif inputs.ndim == 2:
        inputs = (inputs - mean**2).clamp(min=0.0)
    else:
        inputs = inputs - mean[:, :, None] * mean[:, None, :]
    return Curvature(inputs, mean, layer.slopes / max(power, 1e-300))
