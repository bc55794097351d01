"""Programs of one operation and of every kind, and the library that runs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatsat.compressors.sparse_program import Op, Program, Stored, sides, store
from flatsat.errors import InfrastructureError
from flatsat.targets.agent.runtime_sparse import SparseLibrary
from flatsat.targets.native_sites import sparse_library

Array = np.ndarray[Any, Any]


class Programs:
    """Makes programs with random weights."""

    def matrix(self, shape: tuple[int, int], density: float = 0.3, seed: int = 0) -> Array:
        rng = np.random.default_rng(seed)
        full = rng.standard_normal(shape) * (rng.random(shape) < density)
        return np.asarray(full, np.float32)

    def one(self, op: Op, taken: tuple[int, ...], given: tuple[int, ...]) -> Program:
        """Return a program of one operation, whose values 0 and 1 are input and output."""
        placed = replace(op, output=1, inputs=(0,))
        return Program((taken, given), (placed,), 0, 1, "image", "logits")

    def conv(
        self,
        taken: tuple[int, ...],
        rows: int,
        format_: str = "csr",
        density: float = 0.3,
        seed: int = 0,
        **window: Any,
    ) -> Program:
        """Return a convolution of `taken`, its outputs as many as the window makes."""
        op = Op("conv", 1, (0,), **window)
        columns = taken[0] // op.groups * op.kernel[0] * op.kernel[1]
        places = tuple(
            (taken[i + 1] + op.before[i] + op.behind[i] - op.dilation[i] * (op.kernel[i] - 1) - 1)
            // op.stride[i]
            + 1
            for i in (0, 1)
        )
        weights = store(self.matrix((rows, columns), density, seed), format_, op.groups)
        bias = np.linspace(-1, 1, rows, dtype=np.float32)
        return self.one(replace(op, weights=weights, bias=bias), taken, (rows, *places))

    def everything(self, format_: str = "csr") -> Program:
        """Return a program with an operation of every kind."""
        bias = np.arange(6, dtype=np.float32)
        shapes = ((2, 8, 8), (6, 8, 8), (6, 4, 4), (6, 4, 4), (6, 4, 4), (12, 4, 4), (192,), (5,))
        window = {"kernel": (3, 3), "before": (1, 1), "behind": (1, 1)}
        first: Stored = store(self.matrix((6, 18)), format_)
        last: Stored = store(self.matrix((5, 192), 0.1), format_)
        ops = (
            Op("conv", 1, (0,), 0.0, 6.0, **window, weights=first, bias=bias),  # type: ignore[arg-type]
            Op("maxpool", 2, (1,), kernel=(2, 2), stride=(2, 2)),
            Op("avgpool", 3, (1,), kernel=(2, 2), stride=(2, 2)),
            Op("add", 4, (2, 3), low=0.0),
            Op("concat", 5, (4, 2)),
            Op("copy", 6, (5,)),
            Op("fc", 7, (6,), weights=last, bias=bias[:5]),
        )
        return Program(shapes, ops, 0, 7, "image", "logits")

    def images(self, program: Program, count: int = 2, seed: int = 9) -> Array:
        shape = (count, *sides(program.shapes[program.source]))
        made = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return made.reshape(count, *program.shapes[program.source])


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def programs() -> Programs:
    return Programs()


@pytest.fixture(scope="session")
def library_path() -> Path:
    try:
        return sparse_library()
    except InfrastructureError as error:
        pytest.skip(f"no library of sparse-c: {error.message}")


@pytest.fixture(scope="session")
def library(library_path: Path) -> SparseLibrary:
    return SparseLibrary(str(library_path))
