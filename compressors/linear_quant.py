"""Min/max linear quantisation of weights and activations, 1 to 8 bits."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.layers import layers, untreated
from flatsat.datasets.fit import as_tensor
from flatsat.errors import RecipeError

_BATCH = 64
_FLOAT_BYTES = 4
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class LinearQuantise:
    """Put each layer's weights on evenly spaced levels between their minimum and maximum.

    For the weights w of a layer (or of one output channel) and b bits:

        step = (max w - min w) / (2^b - 1)
        q(w) = round((w - min w) / step), an integer from 0 to 2^b - 1
        w'   = min w + step q(w)

    so that |w' - w| <= step / 2 and w' takes at most 2^b values. Equal weights (step = 0) stay as
    they are. One bit leaves the levels min w and max w, or, with `one_bit = "sign"`, the levels
    -s and s: w' = s sign(w), s = mean|w|, which is the scale of least squared error for the signs
    (Rastegari et al. 2016, eq. 6).

    Weights that a mask holds at zero stay zero and take no part in the range: their places are
    stored, not their values. Biases and normalisation stay float32.

    With `activations`, the input of every weighted layer and the network's output are rounded to
    such levels too, one range a tensor, from the minimum and maximum over calibration images;
    values outside are clipped to the range.

    Bits below 8 are storage only: the values are float32 numbers that happen to stand on few
    levels, no runtime here executes them faster, and the ONNX file stays as large as before. The
    provenance states the bytes that a coded form takes: ceil(n b / 8) a layer plus the ranges
    (minimum and step, or the scale, as float32).
    """

    name: ClassVar[str] = "linear-quantise"

    class Params(StepParams):
        """How many levels, and over what they range."""

        bits: int = Field(8, ge=1, le=8, description="bits a weight")
        bits_by_layer: dict[str, int] = Field(
            default_factory=dict, description="other numbers of bits, by layer name"
        )
        skip: tuple[str, ...] = Field((), description="layers left in float32")
        per: Literal["layer", "channel"] = Field(
            "layer", description="one range a layer, or one an output channel"
        )
        one_bit: Literal["range", "sign"] = Field(
            "range", description="levels of 1 bit: minimum and maximum, or -mean|w| and mean|w|"
        )
        activations: int | None = Field(
            None, ge=1, le=8, description="bits an activation; without it they stay float32"
        )
        n: int = Field(256, ge=1, description="calibration images, for activations")

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the quantised network; its weights are frozen from here on.

        Raises:
            RecipeError: a layer that is named doesn't exist, a number of bits is not from 1 to 8,
                a weight is not finite, or the weights may no longer change.
        """
        network.require_free(self.name)
        module = copy.deepcopy(network.module)
        infos = layers(module, network.input_shape)
        names = [info.name for info in infos]
        check_layers(self.name, names, self.params.bits_by_layer, self.params.skip)
        left = dict.fromkeys(self.params.skip, "skip names it") | untreated(module, infos)
        told = [
            self._quantise_layer(module, name, network.masks) for name in names if name not in left
        ]
        quantum = None
        passes = 0
        if self.params.activations is not None:
            passes = min(self.params.n, len(ctx.calibration))
            if passes == 0:
                raise RecipeError(f"{self.name} of activations needs calibration images")
            images = as_tensor(ctx.calibration.x[:passes])
            chosen = [name for name in names if name not in self.params.skip]
            quantum = quantise_activations(module, chosen, images, self.params.activations)
        entry = {
            "step": self.name,
            "params": self.params.model_dump(mode="json"),
            "layers": told,
            "left": left,
            "cost": {"train_steps": 0, "forward_passes": passes},
            "output_step": quantum,
            "storage_only": True,
        }
        frozen = f"{self.name} put the weights on levels that further changes would leave"
        made = network.after(module, entry)
        return replace(made, frozen=frozen, quantum=quantum, unquantised=network.module)

    def _quantise_layer(
        self, module: nn.Module, name: str, masks: Mapping[str, Tensor]
    ) -> dict[str, object]:
        """Quantise one layer in place and return its provenance."""
        layer = module.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        bits = self.params.bits_by_layer.get(name, self.params.bits)
        axis = None
        if self.params.per == "channel":
            axis = 1 if isinstance(layer, _TRANSPOSED) else 0
        kept = masks.get(f"{name}.weight")
        sign = bits == 1 and self.params.one_bit == "sign"
        before = weight.detach().clone()
        try:
            result = (quantise_sign if sign else quantise_range)(before, bits, axis, kept)
        except RecipeError as error:
            raise RecipeError(f"{self.name}: layer {name!r}: {error.message}") from None
        with torch.no_grad():
            weight.copy_(result.values)
        return layer_entry(name, bits, before, result, kept)


@dataclass(frozen=True)
class Quantised:
    """Weights on levels.

    Attributes:
        values: float32, of the weights' shape.
        codes: integers from 0 to 2^bits - 1, of the same shape.
        low, step: float32, of a shape that broadcasts to the weights': value = low + step code.
        range_bytes: that storing the ranges takes.
    """

    values: Tensor
    codes: Tensor
    low: Tensor
    step: Tensor
    range_bytes: int


def check_layers(
    step: str, names: Sequence[str], bits_by_layer: Mapping[str, int], skip: Sequence[str]
) -> None:
    """Check what a quantising step was told of single layers against the network's `names`.

    Raises:
        RecipeError: a layer that is named doesn't exist, or a number of bits is not from 1 to 8.
    """
    for name in (*bits_by_layer, *skip):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"layers are {', '.join(names)}"
            raise RecipeError(f"{step}: there is no layer {name!r}", hint=hint)
    for name, bits in bits_by_layer.items():
        if not 1 <= bits <= 8:
            raise RecipeError(f"{step}: {bits} bits for {name!r}", hint="give 1 to 8")


def layer_entry(
    name: str, bits: int, before: Tensor, result: Quantised, kept: Tensor | None
) -> dict[str, object]:
    """Return the provenance of a layer whose weights were `before` and are now `result`."""
    stored = before.numel() if kept is None else int(kept.sum())
    present = result.values if kept is None else result.values[kept]
    return {
        "name": name,
        "parameter": f"{name}.weight",
        "bits": bits,
        "weights": before.numel(),
        "stored": stored,
        "levels": int(torch.unique(present).numel()),
        "step_max": float(result.step.max()),
        "error_max": float((result.values - before).abs().max()) if before.numel() else 0.0,
        "range_bytes": result.range_bytes,
        "zeros_apart": kept is not None and stored < before.numel(),
    }


def quantise_range(
    weight: Tensor, bits: int, axis: int | None = None, kept: Tensor | None = None
) -> Quantised:
    """Return `weight` on 2^bits levels from its minimum to its maximum.

    Args:
        weight: float32, of any shape with at least one element.
        bits: 1 to 8.
        axis: gives each index of this axis a range of its own; None: one range for all.
        kept: bool, of the weight's shape; the others become zero and stay out of the range.

    Raises:
        RecipeError: a weight is not finite.
    """
    levels = 2**bits - 1
    wide = weight.double()
    low, high = _extremes(wide, axis, kept)
    # The ranges are stored as float32, so the levels are those of the rounded ranges.
    low32, step32 = low.float(), ((high - low) / levels).float()
    _require_finite(low32, step32)
    divisor = torch.where(step32 > 0, step32, torch.ones_like(step32)).double()
    codes = ((wide - low32.double()) / divisor).round().clamp(0, levels)
    codes = torch.where(step32 > 0, codes, torch.zeros_like(codes))
    values = (low32.double() + codes * step32.double()).float()
    groups = low32.numel()
    return Quantised(
        _with_zeros(values, kept), codes.to(torch.uint8), low32, step32, 2 * _FLOAT_BYTES * groups
    )


def quantise_sign(
    weight: Tensor, bits: int = 1, axis: int | None = None, kept: Tensor | None = None
) -> Quantised:
    """Return s sign(w) with s = mean|w|; zero counts as positive. Arguments as `quantise_range`.

    Raises:
        RecipeError: a weight is not finite.
    """
    assert bits == 1
    axes = _other_axes(weight, axis)
    present = torch.ones_like(weight, dtype=torch.bool) if kept is None else kept
    count = present.sum(dim=axes, keepdim=True).clamp(min=1)
    total = (weight.double().abs() * present).sum(dim=axes, keepdim=True)
    scale = (total / count).float()
    _require_finite(scale)
    positive = weight >= 0
    values = torch.where(positive, scale, -scale)
    return Quantised(
        _with_zeros(values, kept),
        positive.to(torch.uint8),
        -scale,
        2 * scale,
        _FLOAT_BYTES * scale.numel(),
    )


class FakeQuantise(nn.Module):
    """Round a tensor to 2^bits levels from `low`, in float32; the range is fixed.

    y = low + step clip(round((x - low) / step), 0, 2^bits - 1)
    """

    low: Tensor
    step: Tensor

    def __init__(self, low: float, high: float, bits: int) -> None:
        super().__init__()
        levels = 2**bits - 1
        # A constant tensor has one level only, at `low`.
        self.levels = levels if high > low else 0
        step = (high - low) / levels if high > low else 1.0
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32))
        self.register_buffer("step", torch.tensor(step, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` on its levels."""
        codes = torch.clamp(torch.round((x - self.low) / self.step), 0, self.levels)
        return self.low + self.step * codes


def quantise_activations(
    module: nn.Module, names: list[str], images: Tensor, bits: int
) -> float | None:
    """Fake-quantise the inputs of the layers called `names` and the output of `module`, in place.

    Args:
        module: in eval mode.
        names: of weighted layers.
        images: (n, *input_shape), run once to find the ranges.
        bits: 1 to 8.

    Returns:
        The step of the output's quantiser, or None if the output is constant.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def note(name: str, values: Tensor) -> None:
        low, high = float(values.min()), float(values.max())
        old = ranges.get(name, (low, high))
        ranges[name] = (min(old[0], low), max(old[1], high))

    handles = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: note(name, args[0])
        )
        for name in names
    ]
    try:
        with torch.no_grad():
            for start in range(0, len(images), _BATCH):
                note("", module(images[start : start + _BATCH]))
    finally:
        for handle in handles:
            handle.remove()
    output = FakeQuantise(*ranges.pop(""), bits)
    inputs = {name: FakeQuantise(*ranges[name], bits) for name in names if name in ranges}
    place_quantisers(module, inputs, output)
    return float(output.step) if output.levels else None


def place_quantisers(module: nn.Module, inputs: Mapping[str, nn.Module], output: nn.Module) -> None:
    """Let values pass through quantisers: a layer's input by its name, and the module's output."""
    mode = module.training
    for name, quantiser in inputs.items():
        layer = module.get_submodule(name)
        layer.add_module("input_quantiser", quantiser)
        layer.register_forward_pre_hook(_quantise_input)
    module.add_module("output_quantiser", output)
    module.register_forward_hook(_quantise_output)
    module.train(mode)  # New modules start in training mode.


# Plain functions, so that a deep copy of a module keeps them and uses its own quantisers.
def _quantise_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule("input_quantiser")(args[0]), *args[1:])


def _quantise_output(module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
    quantised: Tensor = module.get_submodule("output_quantiser")(output)
    return quantised


def _other_axes(weight: Tensor, axis: int | None) -> tuple[int, ...]:
    return tuple(i for i in range(weight.ndim) if i != axis)


def _extremes(wide: Tensor, axis: int | None, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    axes = _other_axes(wide, axis)
    if kept is None:
        return wide.amin(axes, keepdim=True), wide.amax(axes, keepdim=True)
    low = wide.masked_fill(~kept, torch.inf).amin(axes, keepdim=True)
    high = wide.masked_fill(~kept, -torch.inf).amax(axes, keepdim=True)
    empty = kept.sum(dim=axes, keepdim=True) == 0
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def _with_zeros(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values.masked_fill(~kept, 0.0)


def _require_finite(*ranges: Tensor) -> None:
    if not all(bool(torch.isfinite(values).all()) for values in ranges):
        raise RecipeError("its weights are not finite")
