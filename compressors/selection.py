"""Which weights stay by magnitude: the largest of each layer, or of all layers together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from flatsat.compressors.layers import weight_of
from flatsat.errors import RecipeError


def magnitudes(
    step: str, module: nn.Module, masks: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return layer -> |w| in float64, with -1 where a mask has dropped the weight already.

    Args:
        step: name of the step, for messages.
        module: the network.
        masks: parameter name -> kept.
        names: of the layers.

    Raises:
        RecipeError: a weight is not finite.
    """
    found: dict[str, Tensor] = {}
    for name in names:
        size = weight_of(module, name).double().abs()
        if not bool(size.isfinite().all()):
            raise RecipeError(f"{step}: the weights of {name!r} are not finite")
        mask = masks.get(f"{name}.weight")
        found[name] = size if mask is None else size.masked_fill(~mask, -1.0)
    return found


def largest_of_each(sizes: Mapping[str, Tensor], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """Return, by layer, which weights stay when each layer loses its own share.

    Exactly round(share x n) of a layer's n weights are dropped, smallest first, those dropped
    before among them; of equal ones the earlier go.

    Args:
        sizes: `magnitudes` by layer, of any shape.
        shares: of the weights to drop, in [0, 1), by layer.
    """
    kept = {name: _largest(size.flatten(), shares[name]) for name, size in sizes.items()}
    return {name: kept[name].view(size.shape) & (size >= 0.0) for name, size in sizes.items()}


def largest_of_all(sizes: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return, by layer, which weights stay when all layers together lose a share.

    As `largest_of_each`, with one threshold: of equal weights those of earlier layers go.
    """
    if not sizes:
        return {}
    kept = _largest(torch.cat([size.flatten() for size in sizes.values()]), share)
    parts = torch.split(kept, [size.numel() for size in sizes.values()])
    return {
        name: part.view(size.shape) & (size >= 0.0)
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }


def thresholds(
    sizes: Mapping[str, Tensor], kept: Mapping[str, Tensor], *, together: bool
) -> dict[str, float]:
    """Return, by layer, the smallest magnitude that stays, 0 where none does.

    Args:
        sizes: `magnitudes` by layer.
        kept: which weights stay, by layer.
        together: the smallest of all layers, for each.
    """
    found = {n: float(sizes[n][k].min()) if bool(k.any()) else 0.0 for n, k in kept.items()}
    return dict.fromkeys(found, min(found.values(), default=0.0)) if together else found


def require_some(step: str, layer: str, kept: Tensor) -> Tensor:
    """Return `kept`, unless a layer would lose all its weights.

    Raises:
        RecipeError: it would.
    """
    if not bool(kept.any()):
        raise RecipeError(
            f"{step} would prune all of {layer}",
            hint="ask for less, or give each layer a value of its own",
        )
    return kept


def _largest(size: Tensor, share: float) -> Tensor:
    """Return bool (n,): false for exactly round(share x n) smallest; of ties the earlier go."""
    gone = round(share * size.numel())
    if gone == 0:
        return torch.ones(size.numel(), dtype=torch.bool)
    # The order of the others doesn't matter: no need to sort a whole layer.
    last = torch.kthvalue(size, gone).values
    kept = size >= last
    equal = torch.nonzero(size == last).flatten()
    kept[equal[: gone - int((~kept).sum())]] = False
    return kept
