"""How much accuracy each layer costs when it alone is compressed: the sensitivity scan.

Han et al. 2015, figure 6, prune one layer of AlexNet at a time to find each layer's threshold;
Li et al. 2017, section 3.2 and figure 2(b), remove the filters of one layer at a time. Both leave
every other layer dense and retrain nothing; so does this. Unlike figure 6 of Han et al. accuracy is
taken on the validation split: the scan makes choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import nn

from flatsat.compressors.channels import kept_count
from flatsat.compressors.graph import channel_groups, prune_channels
from flatsat.compressors.importance import l1, strongest
from flatsat.compressors.layers import layers, weight_of
from flatsat.compressors.linear_quant import LinearQuantise
from flatsat.compressors.magnitude import MagnitudeParams, MagnitudePrune
from flatsat.datasets.fit import evaluate
from flatsat.datasets.splits import Split
from flatsat.errors import DataError, RecipeError
from flatsat.seeds import generator

if TYPE_CHECKING:
    from flatsat.compressors.base import Network, StepContext

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BITS = (8, 7, 6, 5, 4, 3, 2, 1)
_BATCH = 500
_BATCH_VALUES = 4_000_000
"""Input values a batch: 500 images of 3 x 32 x 32, 26 of 3 x 224 x 224."""


@dataclass(frozen=True)
class ScanMethod:
    """A way to compress one layer alone.

    Attributes:
        name: as `Scanner` takes it.
        title: as a heading says it.
        step: the registered step that does the same in a recipe.
        key: the step's parameter that takes a table by layer.
        unit: "share" (of `what` that go, in (0, 1)) or "bits" (1 to 8).
        what: "weights" or "channels".
        values: what is tried by default, from mild to hard.
    """

    name: str
    title: str
    step: str
    key: str
    unit: Literal["share", "bits"]
    what: str
    values: tuple[float, ...]


METHODS: Mapping[str, ScanMethod] = {
    method.name: method
    for method in (
        ScanMethod(
            name="magnitude",
            title="magnitude",
            step="magnitude-prune",
            key="sparsity",
            unit="share",
            what="weights",
            values=SHARES,
        ),
        ScanMethod(
            name="filters",
            title="L1 norm of filters",
            step="l1-filter-prune",
            key="ratio",
            unit="share",
            what="channels",
            values=SHARES,
        ),
        ScanMethod(
            name="bits",
            title="min/max quantisation",
            step="linear-quantise",
            key="bits_by_layer",
            unit="bits",
            what="weights",
            values=BITS,
        ),
    )
}


@dataclass(frozen=True)
class Target:
    """What is compressed at once.

    Attributes:
        name: of the layer, or of the channel group: its first producer.
        coupled: other layers that lose channels with it.
        weights: how many the layer has; of a group those of all its producers.
    """

    name: str
    coupled: tuple[str, ...]
    weights: int


@dataclass(frozen=True)
class LayerScan:
    """One target's curve: (value, accuracy in [0, 1]) from mild to hard, all others dense."""

    target: Target
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Scan:
    """A scan of one network.

    Attributes:
        method: by which it was made.
        images: of the validation split that accuracy was taken on.
        dense: accuracy of the dense network on them, in [0, 1].
        layers: in the order of execution.
        skipped: (layer, why) of those that the method can't treat alone.
        forward_passes: images that went through a network.
    """

    method: ScanMethod
    images: int
    dense: float
    layers: tuple[LayerScan, ...]
    skipped: tuple[tuple[str, str], ...]
    forward_passes: int


def scan_method(name: str) -> ScanMethod:
    """Return the method called `name`.

    Raises:
        RecipeError: there is none.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown method {name!r}", hint=f"there are {', '.join(METHODS)}")
    return METHODS[name]


def checked_values(method: ScanMethod, values: Sequence[float]) -> tuple[float, ...]:
    """Return what is to be tried, once each, from mild to hard.

    Raises:
        RecipeError: a share is not in (0, 1), a number of bits is not 1 to 8, or nothing is given.
    """
    if not values:
        raise RecipeError("no points to scan", hint=f"such as {method.values[:3]}")
    for value in values:
        if method.unit == "bits" and value not in BITS:
            raise RecipeError(f"can't scan at {value:g} bits", hint="give whole numbers, 1 to 8")
        if method.unit == "share" and not (math.isfinite(value) and 0.0 < value < 1.0):
            raise RecipeError(f"can't scan at a share of {value:g}", hint="give 0.01 to 0.99")
    return tuple(sorted(set(values), reverse=method.unit == "bits"))


class Scanner:
    """Compresses chosen layers of one network and says what accuracy is left.

    Nothing is trained, and each setting starts from the dense network. What a layer becomes is what
    the method's step makes of it in a recipe with the same value: for "magnitude" the round(s n)
    smallest of n weights are zero, for "filters" ceil((1 - s) c) of c channels stay, and channels
    that other layers share go from all of them.

    Args:
        network: dense; stays as it was.
        ctx: whose validation split is used; its seed draws the images.
        method: a name in `METHODS`.
        images: of the validation split at most.

    Raises:
        RecipeError: no such method, the network can't be traced, or has no layer to compress.
        DataError: there are no images.
    """

    def __init__(
        self, network: Network, ctx: StepContext, *, method: str = "magnitude", images: int = 1000
    ) -> None:
        self.method = scan_method(method)
        self._network = network
        self._ctx = ctx
        self._split = _chosen(ctx, images)
        self._batch = max(1, min(_BATCH, _BATCH_VALUES // math.prod(network.input_shape)))
        self._compress, self.targets, self.skipped = _PREPARE[method](network, ctx)
        if not self.targets:
            raise RecipeError(
                f"{self.method.step} can treat no layer of this network",
                hint="; ".join(f"{name}: {why}" for name, why in self.skipped[:3]) or None,
            )
        self.forward_passes = 0
        self._known: dict[object, float] = {}
        self.dense = self._measured(network.module)

    @property
    def images(self) -> int:
        """How many images accuracy is taken on."""
        return len(self._split)

    def accuracy(self, settings: Mapping[str, float]) -> float | None:
        """Return the accuracy with some targets compressed together, in [0, 1].

        Args:
            settings: target -> value; the others stay dense.

        Returns:
            None where a layer would keep nothing.
        """
        if not settings:
            return self.dense
        made = self._compress(settings)
        if made is None:
            return None
        module, same_as = made
        # Of few channels several shares leave the same ones.
        if same_as not in self._known:
            self._known[same_as] = self._measured(module())
        return self._known[same_as]

    def scan(self, values: Sequence[float] | None = None) -> Scan:
        """Compress each target alone at each value.

        Args:
            values: see `checked_values`; None: the method's own.

        Raises:
            RecipeError: see `checked_values`.
        """
        tried = checked_values(self.method, self.method.values if values is None else values)
        task = f"scan {len(self.targets)} layers, {self.method.title}"
        total = len(self.targets) * len(tried)
        found: list[LayerScan] = []
        self._ctx.progress.update(task, 0, total)
        for i, target in enumerate(self.targets):
            points: list[tuple[float, float]] = []
            for j, value in enumerate(tried):
                accuracy = self.accuracy({target.name: value})
                if accuracy is not None:
                    points.append((value, accuracy))
                left = "nothing left" if accuracy is None else f"{100 * accuracy:.1f} %"
                at = f"{value:g} bits" if self.method.unit == "bits" else f"{100 * value:g} %"
                self._ctx.progress.update(
                    task, i * len(tried) + j + 1, total, f"{target.name} at {at}: {left}"
                )
            found.append(LayerScan(target, tuple(points)))
        return Scan(
            method=self.method,
            images=self.images,
            dense=self.dense,
            layers=tuple(found),
            skipped=self.skipped,
            forward_passes=self.forward_passes,
        )

    def _measured(self, module: nn.Module) -> float:
        self.forward_passes += len(self._split)
        return evaluate(module, self._split, self._batch)


# Settings -> what makes the module, and a key that equal modules share (one that was measured is
# not made again); None where a layer would keep nothing.
_Made = tuple[Callable[[], nn.Module], object]
_Compress = Callable[[Mapping[str, float]], _Made | None]
_Prepared = tuple[_Compress, tuple[Target, ...], tuple[tuple[str, str], ...]]


def _chosen(ctx: StepContext, images: int) -> Split:
    """Return at most so many images of the validation split, drawn by seed, in their order."""
    split = ctx.validation
    if not len(split) or images < 1:
        raise DataError("a scan needs images of the validation split", hint="give at least one")
    if images >= len(split):
        return split
    drawn = generator(ctx.seed, "compressors.sensitivity/images")
    index = np.sort(drawn.choice(len(split), images, replace=False))
    return Split(split.name, split.x[index], split.y[index])


def _weighted(network: Network) -> tuple[tuple[Target, ...], tuple[tuple[str, str], ...]]:
    """Return the layers that have weights of their own, and those that borrow another's."""
    owners: dict[int, str] = {}
    targets: list[Target] = []
    skipped: list[tuple[str, str]] = []
    for info in layers(network.module, network.input_shape):
        weight = network.module.get_submodule(info.name).weight
        owner = owners.setdefault(id(weight), info.name)
        if owner != info.name:
            skipped.append((info.name, f"its weights are those of {owner}"))
        else:
            targets.append(Target(info.name, (), weight_of(network.module, info.name).numel()))
    return tuple(targets), tuple(skipped)


def _magnitude(network: Network, ctx: StepContext) -> _Prepared:
    targets, skipped = _weighted(network)
    sizes = {target.name: target.weights for target in targets}

    def compress(settings: Mapping[str, float]) -> _Made | None:
        gone = {name: round(share * sizes[name]) for name, share in settings.items()}
        if any(count >= sizes[name] for name, count in gone.items()):
            return None
        params = MagnitudeParams.model_validate(
            {"sparsity": dict(settings), "epochs": 0, "remove_dead": "keep"}
        )
        step = MagnitudePrune(params)
        return lambda: step.apply(network, ctx).module, frozenset(gone.items())

    return compress, targets, skipped


def _bits(network: Network, ctx: StepContext) -> _Prepared:
    targets, skipped = _weighted(network)
    names = [info.name for info in layers(network.module, network.input_shape)]

    def compress(settings: Mapping[str, float]) -> _Made:
        bits = {name: int(value) for name, value in settings.items()}
        others = tuple(name for name in names if name not in bits)
        params = LinearQuantise.Params.model_validate({"bits_by_layer": bits, "skip": others})
        step = LinearQuantise(params)
        return lambda: step.apply(network, ctx).module, frozenset(bits.items())

    return compress, targets, skipped


def _filters(network: Network, ctx: StepContext) -> _Prepared:  # noqa: ARG001
    groups = channel_groups(network.module, network.input_shape)
    targets = tuple(
        Target(
            group.name,
            tuple(layer for layer in group.layers if layer != group.name),
            sum(weight_of(network.module, layer).numel() for layer in group.layers),
        )
        for group in groups
        if group.prunable
    )
    by_name = {group.name: group for group in groups}
    norms = {target.name: l1(network.module, by_name[target.name]) for target in targets}

    def compress(settings: Mapping[str, float]) -> _Made:
        keep = {
            name: strongest(norms[name], kept_count(by_name[name], 1.0 - share))
            for name, share in settings.items()
        }
        return (
            lambda: prune_channels(network.module, network.input_shape, keep, groups),
            frozenset(keep.items()),
        )

    return compress, targets, tuple((g.name, g.reason) for g in groups if not g.prunable)


_PREPARE: Mapping[str, Callable[[Network, StepContext], _Prepared]] = {
    "magnitude": _magnitude,
    "filters": _filters,
    "bits": _bits,
}
