"""The emulated boards through the command line: a run of both, a measurement with energy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flatsat.targets.qemu_image import Image

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def test_a_measurement_names_its_clock_and_calls_its_energy_modelled(
    flatsat: Callable[..., Any], dense_file: Callable[..., Path], board_image: Image
) -> None:
    del board_image
    said = flatsat(
        *("measure", str(dense_file()), "--board", "qemu-arm64", "--energy", "--json"),
        *("--processes", "2"),
    )
    assert said.code == 0, said.err
    (outcome,) = json.loads(said.out)["outcomes"]
    assert outcome["board"]["kind"] == "qemu-arm64"
    latency, energy = outcome["latency_ns"], outcome["energy_j"]
    assert latency["clock"] == "virtual"
    assert latency["processes"] == 2
    assert energy["class"] == "modelled"
    assert "Horowitz" in energy["source"]
    assert 0 < energy["min"] <= energy["p50"] <= energy["max"]
    # Two nanoseconds an instruction: what the meter counts and what the clock says agree.
    assert 2 * energy["instructions"] == pytest.approx(latency["min"], rel=0.1)


def test_a_run_on_two_clocks_keeps_them_apart(
    flatsat: Callable[..., Any], tmp_path: Path, board_image: Image
) -> None:
    del board_image
    config = tmp_path / "run.toml"
    config.write_text(
        "schema = 1\n"
        '[run]\nname = "both"\n'
        '[matrix]\nboards = ["host", "qemu-arm64"]\n'
        'jobs = ["latency", "accuracy", "energy", "capability"]\n'
        "[plan.wall]\nprocesses = 1\nmin_inferences = 20\nmin_s = 0.01\nrounds = 2\n"
        "[plan.virtual]\nmin_inferences = 5\n"
        '[recipe.l300]\nworkload = "mnist-mini/lenet300"\n'
        'lower = [{ to = "onnx" }, { to = "onnx", int8 = {} }]\n'
    )
    said = flatsat("run", str(config), "--open", "no")
    assert said.code == 0, said.err
    run_id = json.loads(flatsat("runs", "list", "--json").out)["runs"][-1]["run_id"]
    folder = tmp_path / "lab" / "runs" / run_id
    page = (folder / "report.html").read_text()
    assert "wide multiply costs what a move costs" in page
    assert "modelled" in page
    table = json.loads((folder / "report.json").read_text())
    text = json.dumps(table)
    assert '"virtual"' in text
    assert '"wall"' in text
