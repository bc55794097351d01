"""Sparse programs through the command line and from Python, on board `host`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatsat import measure
from flatsat.compressors.sparse_program import Op, Program, store, to_bytes
from flatsat.errors import InfrastructureError
from flatsat.targets.native_sites import sparse_library


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Write a program of one sparse layer."""
    try:
        sparse_library()
    except InfrastructureError as error:
        pytest.skip(f"no library of sparse-c: {error.message}")
    weights = np.zeros((8, 40), np.float32)
    weights[::3, ::7] = 1.5
    op = Op("fc", 1, (0,), weights=store(weights, "csr"))
    path = tmp_path / "small.sparse-c"
    path.write_bytes(to_bytes(Program(((40,), (8,)), (op,), 0, 1, "image", "logits")))
    return path


def test_such_a_file_is_measured_by_its_own_runtime(flatsat: Any, program: Path) -> None:
    said = flatsat("measure", str(program), "--processes", "2", "--json")
    assert said.code == 0, said.err
    (told,) = json.loads(said.out)["outcomes"]
    assert (told["status"], told["runtime"]) == ("measured", "sparse-c")
    assert told["artifact"]["format"] == "sparse-c"
    assert told["latency_ns"]["p50"] > 0


def test_from_python_too(program: Path, tmp_path: Path) -> None:
    result = measure(program, lab=tmp_path / "lab", processes=1, min_inferences=20, min_s=0.0)
    assert result.status == "measured"


def test_a_damaged_one_is_one_line(flatsat: Any, program: Path) -> None:
    program.write_bytes(program.read_bytes()[:-4])
    said = flatsat("measure", str(program))
    assert said.code == 2
    assert "small.sparse-c" in said.error
    assert "damaged" in said.error
    assert flatsat("measure", "none.sparse-c").error.startswith("error: no such file")
