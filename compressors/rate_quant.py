"""Quantisation that weighs each weight's bits against the error it causes in the logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from flatsat.compressors.curvature import curvatures
from flatsat.compressors.folding import fold_batch_norms
from flatsat.compressors.layers import layers
from flatsat.compressors.linear_quant import check_layers
from flatsat.compressors.rate_levels import Chosen, Curvature, choose
from flatsat.compressors.train import TrainParams, retrain
from flatsat.datasets.fit import evaluate
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.base import Network, StepContext

_TRIES = 17
"""Prices that `drop` tries, four to a decade."""
_FLOAT_BYTES = 4
_FIRST = 0.1
"""Price of the first round of several, as a share of the last one's."""


class RateQuantise:
    """Put weights on the levels of least error + price x bits.

    Of a layer's weights W (rows are outputs) on multiples of a step,

        J = tr(G (Q - W) A (Q - W)^T) + price x bits(Q)

    is made small, where the first term is the error of the logits relative to their variance to
    second order (`curvature`), and bits are those of an adaptive coder: of a zero or not given the
    densities of row and column, and of the value. Entropy-constrained quantisation (Chou et al.
    1989) with a curvature as weight (Choi et al. 2017, section 3) in the manner of DeepCABAC
    (Wiedemann et al. 2020, eq. 1), but A is kept whole, so that weights make up for each other's
    errors as in Optimal Brain Surgeon (Hassibi and Stork 1993). Levels are chosen one weight of
    each row at a time, in `sweeps` passes (`rate_levels.choose`). A step is
    `coarseness` x sqrt(6 price / (ln 2 h)), h the mean curvature of the layer's kept weights: what
    a uniform quantiser of fine steps would take at that price. Biases take up the mean error and
    are put on levels likewise.

    Weights that a mask holds at zero stay zero; weights that become zero join the mask. With
    `rounds` the price rises to its value over so many rounds, between which the weights that are
    left are trained from their levels. With `drop` the highest price is taken, from `price`
    downwards, at which validation accuracy falls by at most so much.

    Batch norms are folded first; of convolutions those over two axes are treated, transposed ones
    are left alone. Layers with more than 2,048 inputs a row take A's diagonal only. The ONNX file
    stays as large as before: a recipe's `code` table makes the small file.
    """

    name: ClassVar[str] = "rate-quantise"

    class Params(TrainParams):
        """What a bit may cost, and how weights are trained in between.

        Attributes:
            price: of a bit, in error of the logits relative to their variance.
            drop: of accuracy on validation images that is allowed, in points; None takes `price`.
            coarseness: of the steps, against those of fine quantisation at that price.
            sweeps: how often each weight's level is chosen.
            n: training images over which curvatures are taken.
            rounds: until the price is reached.
            epochs: of training between two rounds.
            biases: whether they are put on levels, too.
            skip: layers left in float32.
        """

        price: float = Field(3e-7, gt=0.0, le=1.0)
        drop: float | None = Field(None, ge=0.0, le=100.0)
        coarseness: float = Field(1.4, gt=0.0, le=100.0)
        sweeps: int = Field(3, ge=1, le=100)
        n: int = Field(1000, ge=1)
        rounds: int = Field(1, ge=1, le=100)
        biases: bool = True
        skip: tuple[str, ...] = ()

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the network on its levels; its weights are frozen from here on.

        Raises:
            RecipeError: a layer that is named doesn't exist, the price leaves a layer without
                weights, no price keeps to `drop`, or the weights may no longer change.
            UsageError: a training diverged.
        """
        network.require_free(self.name)
        folded = fold_batch_norms(network.module, network.masks)
        start = replace(network, module=folded.module, masks=folded.masks)
        found = [info.name for info in layers(start.module, network.input_shape)]
        check_layers(self.name, found, {}, self.params.skip)
        names = [name for name in found if name not in self.params.skip and _treated(start, name)]
        price, made = self._made(start, names, ctx)
        entry = {
            "step": self.name,
            "params": self.params.model_dump(mode="json"),
            "price": price,
            "layers": [
                _told(made.before.module.get_submodule(name), name, chosen)
                for name, chosen in made.chosen.items()
            ],
            "left": [name for name in found if name not in names],
            "cost": {"train_steps": made.steps, "forward_passes": made.passes},
        }
        frozen = f"{self.name} put the weights on levels that further changes would leave"
        done = network.after(made.after.module, entry, masks=made.after.masks)
        return replace(done, frozen=frozen, unquantised=made.before.module)

    def _made(self, start: Network, names: Sequence[str], ctx: StepContext) -> tuple[float, _Made]:
        """Return the price and what it gave."""
        params = self.params
        # Where the rounds begin no price has changed anything: once is enough.
        first = self._curvatures(start, names, ctx)
        seen = min(params.n, len(ctx.train))
        if params.drop is None:
            made = self._at(params.price, start, names, ctx, first)
            return params.price, replace(made, passes=made.passes + seen)
        if len(ctx.validation) == 0:
            raise RecipeError(f"{self.name} needs validation images for drop")
        least = evaluate(start.module, ctx.validation) - params.drop / 100 - 1e-9
        steps = 0
        passes = seen + len(ctx.validation)
        for number in range(_TRIES):
            price = params.price * 10 ** (-number / 4)
            ctx.progress.update(self.name, number, _TRIES, f"price {price:.1e}")
            try:
                made = self._at(price, start, names, ctx, first)
            except _AllGoneError:
                continue
            steps, passes = steps + made.steps, passes + made.passes + len(ctx.validation)
            if evaluate(made.after.module, ctx.validation) >= least:
                return price, replace(made, steps=steps, passes=passes)
        raise RecipeError(
            f"{self.name}: no price from {params.price:g} down to {price:g} keeps within "
            f"{params.drop:g} points",
            hint="allow a larger drop, or give a lower price",
        )

    def _at(
        self,
        price: float,
        start: Network,
        names: Sequence[str],
        ctx: StepContext,
        first: Mapping[str, Curvature],
    ) -> _Made:
        """Return the network at a price; `first` are the curvatures of the start."""
        params = self.params
        current, steps, passes = start, 0, 0
        for number in range(1, params.rounds + 1):
            share = (params.rounds - number) / max(params.rounds - 1, 1)
            now = price * _FIRST**share
            found = first if number == 1 else self._curvatures(current, names, ctx)
            passes += 0 if number == 1 else min(params.n, len(ctx.train))
            made, chosen = self._quantised(current, names, found, now)
            if number == params.rounds:
                return _Made(current, made, chosen, steps, passes)
            module, stats = retrain(made, ctx, params, purpose=f"{self.name} {number}")
            current, steps = replace(made, module=module), steps + stats.steps
        raise AssertionError("there is a last round")

    def _curvatures(
        self, network: Network, names: Sequence[str], ctx: StepContext
    ) -> Mapping[str, Curvature]:
        if not names:
            return {}
        return curvatures(network.module, names, ctx.train, self.params.n, ctx.seed)

    def _quantised(
        self,
        network: Network,
        names: Sequence[str],
        found: Mapping[str, Curvature],
        price: float,
    ) -> tuple[Network, dict[str, Chosen]]:
        module = copy.deepcopy(network.module)
        masks = dict(network.masks)
        told: dict[str, Chosen] = {}
        for name in names:
            part = module.get_submodule(name)
            weight, bias = part.weight, part.bias
            assert isinstance(weight, nn.Parameter)
            kept = masks.get(f"{name}.weight", torch.ones_like(weight, dtype=torch.bool))
            before = weight.detach().clone()
            if not bool(torch.isfinite(before).all()):
                raise RecipeError(f"{self.name}: the weights of {name!r} are not finite")
            if not bool((kept & (before != 0)).any()):
                continue
            curvature = found[name]
            chosen = choose(
                before.flatten(1),
                kept.flatten(1),
                curvature,
                step=self._step(before, kept, curvature, price),
                price=price,
                sweeps=self.params.sweeps,
            )
            if not bool(chosen.numbers.any()):
                raise _AllGoneError(
                    f"{self.name} would leave {name!r} without weights", hint="lower the price"
                )
            told[name] = chosen
            with torch.no_grad():
                weight.copy_(chosen.values.view(weight.shape))
                masks[f"{name}.weight"] = weight != 0
                if isinstance(bias, nn.Parameter):
                    change = weight.detach() - before
                    self._place_bias(bias, change, curvature, price)
        return replace(network, module=module, masks=masks), told

    def _step(self, weight: Tensor, kept: Tensor, curvature: Curvature, price: float) -> float:
        curve = curvature.outputs[:, None] * curvature.diagonal()
        mean = float(curve[kept.flatten(1)].mean())
        most = float(weight[kept].abs().max())
        return _rounded(min(self._wide(price, mean), most))

    def _wide(self, price: float, curve: float) -> float:
        if curve <= 0.0:
            return math.inf
        return self.params.coarseness * math.sqrt(6 * price / (math.log(2) * curve))

    def _place_bias(
        self, bias: nn.Parameter, change: Tensor, curvature: Curvature, price: float
    ) -> None:
        """Let the bias take the mean error of the layer, on levels of its own."""
        groups = len(curvature.mean)
        by_group = change.double().flatten(1).view(groups, len(bias) // groups, -1)
        moved = (by_group * curvature.mean[:, None, :]).sum(2).reshape(-1)
        wanted = bias.double() - moved
        most = float(wanted.abs().max())
        step = _rounded(min(self._wide(price, float(curvature.outputs.mean())), most))
        if not self.params.biases:
            bias.copy_(wanted)
        elif step > 0.0:
            # Adding zero makes -0.0 a zero that costs no level of its own.
            bias.copy_((torch.round(wanted / step) * step).float() + 0.0)
        else:
            bias.zero_()


class _AllGoneError(RecipeError):
    """A layer would have no weights left."""


@dataclass(frozen=True)
class _Made:
    before: Network
    after: Network
    chosen: Mapping[str, Chosen]
    steps: int
    passes: int


def _treated(network: Network, name: str) -> bool:
    return isinstance(network.module.get_submodule(name), nn.Conv2d | nn.Linear)


def _rounded(step: float) -> float:
    """Return the float32 nearest to `step`, as files hold it."""
    return float(torch.tensor(step, dtype=torch.float32))


def _told(part: nn.Module, name: str, chosen: Chosen) -> dict[str, object]:
    numbers = chosen.numbers[chosen.numbers != 0]
    weight = part.weight
    assert isinstance(weight, Tensor)
    levels = torch.unique(numbers)
    return {
        "name": name,
        "parameter": f"{name}.weight",
        "bits": max((len(levels) - 1).bit_length(), 1),
        "weights": weight.numel(),
        "stored": numbers.numel(),
        "levels": len(levels),
        "codebook": (levels * chosen.step).float().tolist(),
        "step": chosen.step,
        "range_bytes": _FLOAT_BYTES * len(levels),
        "zeros_apart": numbers.numel() < weight.numel(),
        "estimated_bits": chosen.bits,
        "error": chosen.error,
    }
