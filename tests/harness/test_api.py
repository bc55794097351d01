"""FlatSat from Python: the functions, their tables, and the notebook that shows them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import flatsat
from flatsat import load_run, measure
from flatsat.errors import FlatSatError, ModelError, UsageError
from flatsat.harness.api import compare, open_lab

Onnx = Callable[..., Path]
NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def quick(path: Path | str, lab: Path) -> flatsat.harness.api.MeasureResult:  # type: ignore[name-defined]
    return measure(path, lab=lab, processes=2, min_inferences=30, min_s=0.0)


def test_importing_the_package_imports_no_room() -> None:
    code = "import sys, flatsat; print([m for m in sys.modules if m.startswith('flatsat.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError):
        _ = flatsat.no_such_name


def test_a_measurement_is_a_value_and_a_table(dense_file: Onnx, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    result = quick(dense_file(), lab)
    assert result.status == "measured"
    assert result.latency_ns is not None
    assert result.latency_ns.n >= 60
    assert result.latency_ns.p99 is None
    (row,) = load_run(result.run_id, lab).to_dict("records")
    assert row["candidate"] == "dense"
    assert (row["n"], row["processes"]) == (result.latency_ns.n, 2)
    assert row["p50_ns"] == pytest.approx(result.latency_ns.p50)
    samples = load_run(lab / "runs" / result.run_id, samples=True)
    assert int(samples.warm.sum()) == result.latency_ns.n
    assert (~samples.warm).any()
    assert samples[samples.warm].latency_ns.min() == result.latency_ns.min
    assert load_run("last", lab).run_id.tolist() == [result.run_id]


def test_a_model_that_fails_is_a_value_too(onnx_file: Onnx, tmp_path: Path) -> None:
    import numpy as np
    from onnx import TensorProto, helper

    path = onnx_file(
        "gather.onnx",
        {"i": (TensorProto.INT64, [64])},
        [helper.make_node("Gather", ["t", "i"], ["y"], axis=0)],
        {"y": (TensorProto.FLOAT, [64, 2])},
        {"t": np.zeros((1, 2), np.float32)},
    )
    result = quick(path, tmp_path / "lab")
    assert (result.status, result.latency_ns) == ("failed", None)
    frame = load_run(result.run_id, tmp_path / "lab")
    assert frame.status.tolist() == ["failed"]
    assert frame.fault.tolist() == [result.fault.code if result.fault else None]
    assert load_run(result.run_id, tmp_path / "lab", samples=True).empty


def test_bad_input_is_an_error_of_flatsats(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError):
        quick(tmp_path / "text.onnx", tmp_path / "lab")
    with pytest.raises(UsageError, match="no such file"):
        quick(tmp_path / "none.onnx", tmp_path / "lab")
    with pytest.raises(FlatSatError, match="no record"):
        load_run("last", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(UsageError, match="at least two"):
        compare("one", lab=tmp_path / "lab")


async def test_a_running_event_loop_is_no_hindrance(dense_file: Onnx, tmp_path: Path) -> None:
    assert quick(dense_file(), tmp_path / "lab").status == "measured"


def test_a_lab_has_the_built_in_boards(tmp_path: Path) -> None:
    assert open_lab(tmp_path).board_names() == ["host", "qemu-arm64", "qemu-arm64-a76"]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    said = "".join(
        output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "small is faster than large" in said
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["large.onnx", "small.onnx"]
