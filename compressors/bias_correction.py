"""Bias correction of quantised networks, Nagel et al. 2019, section 4.2."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from flatsat.compressors.base import StepParams
from flatsat.compressors.folding import foldable
from flatsat.compressors.graph import layers
from flatsat.compressors.layers import evaluating
from flatsat.datasets.fit import as_tensor
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.base import Network, StepContext

_BATCH = 64


class BiasCorrect:
    """Take the expected output error of each quantised layer out of its bias.

    Rounding weights by epsilon = w' - w shifts a layer's mean output, E[y'] = E[y] + E[epsilon x]
    (eq. 15 to 17). The means are taken over calibration images, per output channel and before the
    activation: E[y] in the network as it was before its weights were put on levels, E[y'] in the
    quantised one, whose earlier layers are corrected already (appendix D, empirical correction).
    Then b' = b - (E[y'] - E[y]).

    Where a layer has no bias, the batch norm that reads it takes the shift into its mean, and else
    the layer gets a bias. Weights stay as they are. A network whose weights were trained on their
    levels has no network before it to be true to: it is left alone, and so are layers whose weights
    are as before.
    """

    name: ClassVar[str] = "bias-correct"

    class Params(StepParams):
        """How the expectation is taken."""

        n: int = Field(256, ge=1, description="calibration images")

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the corrected network.

        Raises:
            RecipeError: its biases are on levels too, or there are no calibration images.
        """
        module = copy.deepcopy(network.module)
        names = [info.name for info in layers(module, network.input_shape)]
        before = network.unquantised
        if before is None:
            return network.after(module, self._entry([], names, 0))
        _require_free_biases(self.name, network.history)
        images = as_tensor(ctx.calibration.x[: self.params.n])
        if len(images) == 0:
            raise RecipeError(f"{self.name} needs calibration images")
        chosen = [name for name in names if _changed(before, module, name)]
        norms = {layer: norm for norm, layer in foldable(module).items()} if chosen else {}
        norms = {n: norms[n] for n in chosen if n in norms and module.get_submodule(n).bias is None}
        wanted = _means(before, chosen, images, norms)
        told: list[dict[str, object]] = []
        for name in chosen:
            error = _means(module, [name], images, norms)[name] - wanted[name]
            place = _shift(module, name, norms.get(name), error, network.masks)
            told.append({"name": name, "place": place, "shift_max": float(error.abs().max())})
        after = _means(module, chosen, images, norms)
        for entry in told:
            name = str(entry["name"])
            entry["left_max"] = float((after[name] - wanted[name]).abs().max())
        left = [name for name in names if name not in chosen]
        passes = len(images) * (len(chosen) + 2)
        return network.after(module, self._entry(told, left, passes))

    def _entry(
        self, told: list[dict[str, object]], left: list[str], passes: int
    ) -> dict[str, object]:
        return {
            "step": self.name,
            "params": self.params.model_dump(mode="json"),
            "layers": told,
            "left": left,
            "cost": {"train_steps": 0, "forward_passes": passes},
        }


def _require_free_biases(step: str, history: Sequence[Mapping[str, object]]) -> None:
    for entry in history:
        params = entry.get("params")
        if isinstance(params, Mapping) and params.get("biases") not in (None, False):
            raise RecipeError(
                f"{step} can't follow: {entry['step']} put the biases on levels too",
                hint=f"leave out {entry['step']}.biases",
            )


def _changed(before: nn.Module, after: nn.Module, name: str) -> bool:
    """Return whether a layer's weights are others than before, of the same shape."""
    try:
        old, new = (module.get_submodule(name).weight for module in (before, after))
    except AttributeError:
        return False
    assert isinstance(old, Tensor) and isinstance(new, Tensor)
    return old.shape == new.shape and not torch.equal(old, new)


def _means(
    module: nn.Module, names: Sequence[str], images: Tensor, norms: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the mean output of each layer by name, float64 (channels,), over all its calls.

    Where a batch norm of `norms` reads the layer, less the batch norm's own mean.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = []
    for name in names:

        def hook(part: nn.Module, _args: object, out: Tensor, name: str = name) -> None:
            # Features are the last axis of a linear layer's output, the second of a map.
            values = out if isinstance(part, nn.Linear) else out.movedim(1, -1)
            values = values.reshape(-1, values.shape[-1]).double()
            sums[name] = sums.get(name, 0.0) + values.sum(0)
            counts[name] = counts.get(name, 0) + len(values)

        handles.append(module.get_submodule(name).register_forward_hook(hook))
    try:
        with evaluating(module):
            for start in range(0, len(images), _BATCH):
                module(images[start : start + _BATCH])
    finally:
        for handle in handles:
            handle.remove()
    means = {name: sums[name] / counts[name] for name in names}
    for name in names:
        if name in norms:
            means[name] = means[name] - _running_mean(module, norms[name]).double()
    return means


def _running_mean(module: nn.Module, norm: str) -> Tensor:
    mean = module.get_submodule(norm).running_mean
    assert isinstance(mean, Tensor)
    return mean


def _shift(
    module: nn.Module, name: str, norm: str | None, error: Tensor, masks: Mapping[str, Tensor]
) -> str:
    """Subtract `error` from a layer's outputs; return the tensor that took it."""
    layer = module.get_submodule(name)
    bias = layer.bias
    amount = error.to(torch.float32)
    with torch.no_grad():
        if isinstance(bias, nn.Parameter):
            kept = masks.get(f"{name}.bias")
            bias.sub_(amount if kept is None else amount.masked_fill(~kept, 0.0))
            return f"{name}.bias"
        if norm is not None:
            _running_mean(module, norm).add_(amount)
            return f"{norm}.running_mean"
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    layer.bias = nn.Parameter(-amount, requires_grad=weight.requires_grad)
    return f"{name}.bias"
