"""What each workload is made of: where its data come from, and how they are read. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from flatsat.datasets import training
from flatsat.datasets.agreement import (
    GENERATED_SIZES,
    agreement_files,
    agreement_sizes,
    agreement_splits,
)
from flatsat.datasets.cifar import cifar_files, cifar_sizes, cifar_splits
from flatsat.datasets.digits import digits_file, digits_sizes, digits_splits
from flatsat.datasets.fashion import fashion_files, fashion_sizes, fashion_splits
from flatsat.datasets.folders import folder_classes, folder_files, folder_sizes, folder_splits
from flatsat.datasets.mnist import mnist_files, mnist_sizes, mnist_splits
from flatsat.datasets.pretrained import CLASSES, INPUT_SHAPE, PRETRAINED
from flatsat.datasets.training import Training, TrainSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flatsat.datasets.architectures import Shape
    from flatsat.datasets.splits import Splits


@dataclass(frozen=True)
class Source:
    """A workload before its path is known.

    Attributes:
        title: for people.
        image_shape: (c, h, w) of one image.
        classes: number of classes; of image folders a stand-in, until a path tells.
        sizes: images a split at the usual source; empty without one.
        training: settings of each reference network.
        read: (cache folder, path) -> splits.
        count: path -> images a split, without reading them.
        files: path -> folder and files that are read.
        class_names: path -> the classes, where the data tell them.
        needs_path: there is no usual place.
        keeps: leaves something in the cache folder.
        pretrained: networks come with weights; none is trained.
        metric: "accuracy", or "agreement" with the dense network.
    """

    title: str
    image_shape: Shape
    classes: int
    sizes: Mapping[str, int]
    training: Training
    read: Callable[[Path, str | None], Splits]
    count: Callable[[str | None], dict[str, int]]
    files: Callable[[str | None], tuple[Path, list[Path]]]
    class_names: Callable[[str | None], tuple[str, ...]] | None = None
    needs_path: bool = False
    keeps: bool = False
    pretrained: bool = False
    metric: str = "accuracy"


def sources() -> Mapping[str, Source]:
    """Return the sources by the workloads' names."""
    return _SOURCES


def read_splits(name: str, cache_dir: Path, path: str | None) -> Splits:
    """Return a workload's splits, read once a process.

    Raises:
        DataError: the data are missing or damaged.
    """
    return _read(name, cache_dir if _SOURCES[name].keeps else None, path)


@cache
def _read(name: str, cache_dir: Path | None, path: str | None) -> Splits:
    # Of a source that keeps nothing the folder is no part of the key.
    return _SOURCES[name].read(cache_dir or Path(), path)


def _digits_files(path: str | None) -> tuple[Path, list[Path]]:
    file = digits_file(path)
    return file.parent, [file]


_MINI_SIZES = {"train": 3000, "calibration": 500, "validation": 500, "test": 1000}
_FULL_SIZES = {"train": 54000, "calibration": 1000, "validation": 5000, "test": 10000}
_CIFAR_SIZES = {"train": 44000, "calibration": 1000, "validation": 5000, "test": 10000}


def _images(side: int) -> Source:
    return Source(
        title=f"your own images, a sub-folder a class, {side} x {side} RGB",
        image_shape=(3, side, side),
        classes=10,
        sizes={},
        training=training.IMAGES_32 if side < 64 else training.IMAGES,
        read=lambda _cache, path: folder_splits(path, side),
        count=folder_sizes,
        files=folder_files,
        class_names=folder_classes,
        needs_path=True,
    )


def _cifar(name: str, title: str, classes: int) -> Source:
    return Source(
        title=title,
        image_shape=(3, 32, 32),
        classes=classes,
        sizes=_CIFAR_SIZES,
        training=training.CIFAR,
        read=lambda _cache, path: cifar_splits(name, path),
        count=partial(cifar_sizes, name),
        files=partial(cifar_files, name),
        needs_path=True,
    )


_SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "fashion": Source(
            title="Fashion-MNIST: clothing, 28 x 28 grey, 10 classes",
            image_shape=(1, 28, 28),
            classes=10,
            sizes=_FULL_SIZES,
            training=training.MNIST,
            read=lambda _cache, path: fashion_splits(path),
            count=fashion_sizes,
            files=fashion_files,
        ),
        "mnist-mini": Source(
            title="5,000 MNIST digits, 28 x 28 grey, 10 classes",
            image_shape=(1, 28, 28),
            classes=10,
            sizes=_MINI_SIZES,
            training=training.DIGITS,
            read=digits_splits,
            count=digits_sizes,
            files=_digits_files,
            keeps=True,
        ),
        "mnist": Source(
            title="MNIST: digits, 28 x 28 grey, 10 classes",
            image_shape=(1, 28, 28),
            classes=10,
            sizes=_FULL_SIZES,
            training=training.MNIST,
            read=lambda _cache, path: mnist_splits(path),
            count=mnist_sizes,
            files=mnist_files,
            needs_path=True,
        ),
        "cifar10": _cifar("cifar10", "CIFAR-10: objects, 32 x 32 RGB, 10 classes", 10),
        "cifar100": _cifar("cifar100", "CIFAR-100: objects, 32 x 32 RGB, 100 classes", 100),
        "images": _images(64),
        "images-32": _images(32),
        "images-224": _images(224),
        "agreement": Source(
            title=(
                "agreement with the dense network pretrained on ImageNet, on generated images "
                "or your own, 224 x 224 RGB; labels are its own answers"
            ),
            image_shape=INPUT_SHAPE,
            classes=CLASSES,
            sizes=GENERATED_SIZES,
            # Nothing is trained from scratch here; steps that fine-tune take rate and batch.
            training=((PRETRAINED, TrainSettings(epochs=1, lr=0.001, batch=32)),),
            read=agreement_splits,
            count=agreement_sizes,
            files=agreement_files,
            keeps=True,
            pretrained=True,
            metric="agreement",
        ),
    }
)
