"""What all tests of the compressors share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flatsat.compressors.base import StepContext
from flatsat.datasets.splits import Split
from flatsat.datasets.workload import workload


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks here are so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def blobs(tmp_path):
    """Make a context whose images are points around one centre a class: easy to learn."""

    def make(shape, *, classes=4, n=240, seed=0, network=""):
        rng = np.random.default_rng(11)
        centres = rng.normal(0, 1, (classes, *shape))

        def split(name, count):
            y = rng.integers(0, classes, count)
            x = centres[y] + rng.normal(0, 0.7, (count, *shape))
            return Split(name, x.astype(np.float32), y.astype(np.int64))

        return StepContext(
            workload=replace(workload("mnist-mini"), classes=classes),
            network=network,
            train=split("train", n),
            calibration=split("calibration", 100),
            validation=split("validation", 200),
            seed=seed,
            cache_dir=tmp_path,
        )

    return make
