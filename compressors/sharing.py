"""Weight sharing by k-means, Han et al. 2016 ("Deep Compression", section 3)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field

from flatsat.compressors.layers import LayerInfo, layers, untreated
from flatsat.compressors.linear_quant import quantise_range
from flatsat.compressors.train import TrainParams, retrain
from flatsat.errors import RecipeError
from flatsat.seeds import integer_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from flatsat.compressors.base import Network, StepContext

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Init = Literal["linear", "forgy", "density"]
_MOST_ROUNDS = 300
_FLOAT_BYTES = 4
_DEFAULT_BITS = {"conv": 8, "fc": 5}


@dataclass(frozen=True)
class Shared:
    """Values on k-means centroids.

    Attributes:
        centroids: (k,) float32, ascending; fewer than asked for where values are few.
        labels: (n,) int64, each value's centroid.
        rounds: Lloyd iterations until nothing changed.
        squared_error: sum of squared distances.
    """

    centroids: Array
    labels: Array
    rounds: int
    squared_error: float


def kmeans(values: Array, k: int, init: Init = "linear", seed: int = 0) -> Shared:
    """Return the values' k-means clustering by Lloyd's iterations, in one dimension.

    Clusters of sorted values are intervals, so that an iteration is k searches and differences of
    prefix sums: n log n once, k log n each time.

    Args:
        values: (n,) finite floats, n >= 1.
        k: centroids.
        init: "linear": evenly from minimum to maximum (the paper's choice, which keeps the large
            weights); "density": evenly in the number of values between; "forgy": k of the values,
            drawn at random.
        seed: of "forgy".
    """
    order = np.argsort(values, kind="stable")
    sorted_values = values[order].astype(np.float64)
    sums = np.concatenate(([0.0], np.cumsum(sorted_values)))
    distinct = np.unique(sorted_values)
    if len(distinct) <= k:
        centroids = distinct
        rounds = 0
    else:
        centroids = _begin(sorted_values, distinct, k, init, seed)
        for rounds in range(1, _MOST_ROUNDS + 1):  # noqa: B007
            edges = _edges(sorted_values, centroids)
            count = np.diff(edges)
            total = np.diff(sums[edges])
            moved = total / np.maximum(count, 1)
            empty = np.flatnonzero(count == 0)
            if len(empty):
                # Where a value is served worst, one more centroid helps most.
                own = np.repeat(centroids, count)
                worst = np.argsort(-np.abs(sorted_values - own), kind="stable")[: len(empty)]
                moved[empty] = sorted_values[worst]
                moved = np.sort(moved)
            if np.array_equal(moved, centroids):
                break
            centroids = moved
        used = np.diff(_edges(sorted_values, centroids)) > 0
        centroids = centroids[used]
    rounded = np.unique(centroids.astype(np.float32))
    edges = _edges(sorted_values, rounded.astype(np.float64))
    sorted_labels = np.repeat(np.arange(len(rounded)), np.diff(edges))
    labels = np.empty(len(values), np.int64)
    labels[order] = sorted_labels
    error = float(np.square(sorted_values - rounded.astype(np.float64)[sorted_labels]).sum())
    return Shared(rounded, labels, rounds, error)


def _edges(sorted_values: Array, centroids: Array) -> Array:
    """Return (k + 1,) positions: cluster i is the values from edge i to edge i + 1."""
    middles = (centroids[1:] + centroids[:-1]) / 2
    inner = np.searchsorted(sorted_values, middles)
    found: Array = np.concatenate(([0], inner, [len(sorted_values)]))
    return found


def _begin(sorted_values: Array, distinct: Array, k: int, init: Init, seed: int) -> Array:
    if init == "linear":
        found: Array = np.linspace(sorted_values[0], sorted_values[-1], k)
    elif init == "density":
        found = np.quantile(sorted_values, (np.arange(k) + 0.5) / k)
    else:
        found = np.sort(np.random.default_rng(seed).choice(distinct, k, replace=False))
    return found


class ShareWeights:
    """Let the weights of a layer share 2^b values, its codebook (section 3).

    k-means with k = 2^b centroids minimises the within-cluster sum of squares of the layer's kept
    weights (eq. 2). Then the centroids are trained with the assignments held: the gradient of a
    centroid is the sum of the gradients of its weights (eq. 3). Weights that a mask holds at zero
    stay zero and belong to no cluster, as in the paper, where sharing follows pruning.

    A sum over thousands of weights wants a small learning rate; `gradient = "mean"` divides it by
    the cluster's size, so that one rate suits large and small clusters, which departs from the
    paper. Biases and normalisation are trained along and stay float32,
    unless `biases` says otherwise.

    The ONNX file stays as large as before: a recipe's `code` table makes the small file.
    """

    name: ClassVar[str] = "share-weights"

    class Params(TrainParams):
        """How many values a layer, and how they are trained.

        Attributes:
            bits: a weight, by kind ("conv", "fc") or layer name; a name beats a kind.
            init: of the centroids.
            epochs: of training the centroids; 0 for none.
            gradient: of a centroid, from those of its weights.
            biases: bits of the biases, which are put on evenly spaced levels in the end; None
                leaves them in float32.
        """

        bits: dict[str, int] = Field(default_factory=lambda: dict(_DEFAULT_BITS))
        init: Init = "linear"
        epochs: float = Field(2.0, ge=0.0, le=10_000.0)
        lr: float = Field(5e-4, gt=0.0)
        weight_decay: float = Field(0.0, ge=0.0)
        gradient: Literal["sum", "mean"] = "sum"
        biases: int | None = Field(None, ge=1, le=8)

    def __init__(self, params: Params) -> None:
        self.params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the network on its codebooks; its weights are frozen from here on.

        Raises:
            RecipeError: a layer that is named doesn't exist, a number of bits is not from 1 to
                12, a weight is not finite, or the weights may no longer change.
        """
        network.require_free(self.name)
        found = layers(network.module, network.input_shape)
        self._check(found)
        unfit = untreated(network.module, found)
        own = [info for info in found if info.name not in unfit]
        module, shared = self._clustered(network, own, ctx.seed)
        steps = 0
        if self.params.epochs > 0:
            on_codebook = replace(network, module=module)
            changes = {
                f"{name}.weight": _grouped(labels, self.params.gradient)
                for name, (_, labels) in shared.items()
            }
            module, stats = retrain(
                on_codebook, ctx, self.params, purpose=self.name, gradients=changes
            )
            steps = stats.steps
        if self.params.biases is not None:
            _quantise_biases(module, [info.name for info in found], self.params.biases)
        told = [
            self._told(module.get_submodule(name).weight, name, *shared[name]) for name in shared
        ]
        entry = {
            "step": self.name,
            "params": self.params.model_dump(mode="json"),
            "layers": told,
            "left": {
                info.name: "no bits are given for it, or all its weights are masked"
                for info in found
                if info.name not in shared
            }
            | unfit,
            "cost": {"train_steps": steps, "forward_passes": 0},
        }
        frozen = f"{self.name} put the weights on codebooks that further changes would leave"
        before = network.module if steps == 0 else None
        return replace(network.after(module, entry), frozen=frozen, unquantised=before)

    def _check(self, found: list[LayerInfo]) -> None:
        names = [info.name for info in found]
        for name, bits in self.params.bits.items():
            if name not in (*_DEFAULT_BITS, *names):
                near = difflib.get_close_matches(name, [*_DEFAULT_BITS, *names], n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"layers are {', '.join(names)}"
                raise RecipeError(f"{self.name}: there is no layer {name!r}", hint=hint)
            if not 1 <= bits <= 12:
                raise RecipeError(f"{self.name}: {bits} bits for {name!r}", hint="give 1 to 12")

    def _clustered(
        self, network: Network, found: list[LayerInfo], seed: int
    ) -> tuple[Any, dict[str, tuple[Shared, Tensor]]]:
        import copy

        module = copy.deepcopy(network.module)
        shared: dict[str, tuple[Shared, Tensor]] = {}
        for info in found:
            bits = self.params.bits.get(info.name, self._bits_of_kind(info.kind))
            weight = module.get_submodule(info.name).weight
            assert isinstance(weight, torch.nn.Parameter)
            kept = network.masks.get(f"{info.name}.weight")
            kept = torch.ones_like(weight, dtype=torch.bool) if kept is None else kept
            if bits is None or not bool(kept.any()):
                continue
            values = weight.detach()[kept].numpy()
            if not np.isfinite(values).all():
                raise RecipeError(f"{self.name}: the weights of {info.name!r} are not finite")
            drawn = integer_seed(seed, f"compressors.{self.name}/{info.name}")
            clusters = kmeans(values, 2**bits, self.params.init, drawn)
            labels = torch.full(weight.shape, -1, dtype=torch.int64)
            labels[kept] = torch.from_numpy(clusters.labels)
            with torch.no_grad():
                weight.zero_()
                weight[kept] = torch.from_numpy(clusters.centroids[clusters.labels])
            shared[info.name] = (clusters, labels)
        return module, shared

    def _bits_of_kind(self, kind: str) -> int | None:
        return self.params.bits.get("conv" if kind == "deconv" else kind)

    def _told(
        self, weight: Tensor, name: str, clusters: Shared, labels: Tensor
    ) -> Mapping[str, object]:
        kept = labels >= 0
        codebook = torch.unique(weight.detach()[kept]).tolist()
        stored = int(kept.sum())
        return {
            "name": name,
            "parameter": f"{name}.weight",
            "bits": max((len(clusters.centroids) - 1).bit_length(), 1),
            "weights": weight.numel(),
            "stored": stored,
            "levels": len(codebook),
            "codebook": codebook,
            "range_bytes": _FLOAT_BYTES * len(codebook),
            "zeros_apart": stored < weight.numel(),
            "kmeans_rounds": clusters.rounds,
            "squared_error": clusters.squared_error,
        }


def _quantise_biases(module: torch.nn.Module, names: list[str], bits: int) -> None:
    """Put each layer's biases on 2^bits levels from their minimum to their maximum."""
    for name in names:
        bias = module.get_submodule(name).bias
        if isinstance(bias, torch.nn.Parameter):
            with torch.no_grad():
                bias.copy_(quantise_range(bias.detach(), bits).values)


def _grouped(labels: Tensor, how: str) -> Callable[[Tensor], Tensor]:
    """Return what gives each weight its cluster's gradient (eq. 3)."""
    flat = (labels + 1).reshape(-1)
    size = int(flat.max()) + 1
    count = torch.bincount(flat, minlength=size).clamp(min=1)

    def group(gradient: Tensor) -> Tensor:
        # In float64, so that the order of summing can't part equal weights.
        total = torch.zeros(size, dtype=torch.float64)
        total.index_add_(0, flat, gradient.reshape(-1).double())
        if how == "mean":
            total /= count
        return total[flat].reshape(gradient.shape).to(gradient.dtype)

    return group
