"""Fixtures of the harness's tests: small ONNX files, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flatsat.harness.cli import entry


@dataclass(frozen=True)
class Said:
    """What a command line said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that an error must be, with its hint if it has one."""
        lines = self.err.strip().splitlines()
        assert lines, "nothing was said"
        assert len(lines) <= 2, self.err
        assert all(line.startswith("hint: ") for line in lines[1:])
        return "\n".join(lines)


@pytest.fixture
def flatsat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run a command line in this process, in an empty folder, with a lab of its own."""
    monkeypatch.setenv("FLATSAT_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        code = entry.run(arguments)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


Onnx = Callable[..., Path]


@pytest.fixture
def onnx_file(tmp_path: Path) -> Onnx:
    """Write an ONNX file: `onnx_file(name, inputs, nodes, outputs, weights)`."""

    def write(
        name: str,
        inputs: Mapping[str, tuple[int, Sequence[int | str | None]]],
        nodes: Sequence[Any],
        outputs: Mapping[str, tuple[int, Sequence[int | str | None]]],
        weights: Mapping[str, np.ndarray] | None = None,
        opset: int = 17,
    ) -> Path:
        graph = helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [helper.make_tensor_value_info(key, *value) for key, value in outputs.items()],
            [numpy_helper.from_array(value, key) for key, value in (weights or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def dense_file(onnx_file: Onnx) -> Callable[..., Path]:
    """Write a two-layer network: `dense_file(name, hidden)`."""

    def write(name: str = "dense.onnx", hidden: int = 16) -> Path:
        draw = np.random.default_rng(hidden)
        return onnx_file(
            name,
            {"in/x:0": (TensorProto.FLOAT, ["batch", 8])},
            [
                helper.make_node("MatMul", ["in/x:0", "w"], ["a"]),
                helper.make_node("Relu", ["a"], ["b"]),
                helper.make_node("MatMul", ["b", "v"], ["y"]),
            ],
            {"y": (TensorProto.FLOAT, ["batch", 4])},
            {
                "w": draw.normal(size=(8, hidden)).astype(np.float32),
                "v": draw.normal(size=(hidden, 4)).astype(np.float32),
            },
        )

    return write
