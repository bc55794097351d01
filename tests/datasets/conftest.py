from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flatsat.datasets.workload import TrainSettings, Workload, workload


def encode_idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes((0, 0, kind, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small train quicker on one thread, whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def to_idx() -> Callable[..., bytes]:
    return encode_idx


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files with MNIST's names: 240 training images of unequal classes, 40 test images."""
    folder = tmp_path_factory.mktemp("mnist")
    rng = np.random.default_rng(7)
    for part, count in (("train", 240), ("t10k", 40)):
        labels = np.concatenate([np.arange(10), rng.integers(0, 7, count - 10)])
        images = rng.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label : 2 * label + 4] += 180  # A bar whose height tells the class.
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode_idx(images)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    return folder


@pytest.fixture
def quick(small_mnist: Path) -> Workload:
    """A workload whose lenet300 trains in a moment."""
    settings = TrainSettings(epochs=2, lr=0.05, batch=32)
    return replace(workload("mnist", small_mnist), training=(("lenet300", settings),))
