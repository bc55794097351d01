"""The verbs that work with a lab, each through the command line and on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Flatsat = Callable[..., Any]
Onnx = Callable[..., Path]
CONFIG = """
schema = 1
[run]
name = "pair"
[matrix]
candidates = ["small", "large"]
jobs = ["latency"]
[plan.wall]
processes = 1
min_inferences = 70
min_s = 0.001
rounds = 2
warmup = "fixed"
max_warmup = 5
"""
MISSION = """
schema = 1
[mission]
id = "TEST"
issue = "1"
phase = "cdr"
margin_policy = "none"
[[requirement]]
id = "STO-01"
text = "The file shall be small."
category = "storage"
quantity = "storage"
statistic = "value"
comparator = "<="
limit = {limit}
unit = "kB"
"""


@pytest.fixture
def pair(flatsat: Flatsat, dense_file: Onnx, tmp_path: Path) -> Flatsat:
    """A lab with two imported networks, and `pair.toml` that measures both."""
    for name, hidden in (("small", 4), ("large", 3000)):
        assert flatsat("candidates", "import", str(dense_file(f"{name}.onnx", hidden))).code == 0
    (tmp_path / "pair.toml").write_text(CONFIG)
    return flatsat


def test_a_run_is_measured_recorded_shown_and_reported(pair: Flatsat, tmp_path: Path) -> None:
    said = pair("run", "pair.toml")
    assert said.code == 0, said.err
    assert "4 measured" in said.out
    assert said.out.index("small") < said.out.index("large"), "the fastest comes first"
    page = Path(said.out.split("report: ")[1].strip())
    assert page.read_text().startswith("<!doctype html>")
    # Plain lines on standard error, since this is no terminal.
    assert "measure: 100 %" in said.err
    assert "\x1b" not in said.err

    (run,) = json.loads(pair("runs", "list", "--json").out)["runs"]
    assert (run["name"], run["kind"], run["state"], run["jobs"]["done"]) == (
        "pair",
        "run",
        "done",
        4,
    )
    assert "4 measured" in pair("runs", "show", "last").out
    page.unlink()
    assert str(page) in pair("report", run["run_id"][:20], "--open", "no").out
    assert page.is_file()
    assert "no run is left to resume" in pair("run", "--resume").error
    assert "no unfinished run" in pair("run", "pair.toml", "--resume").error


def test_a_run_gives_json_on_request(pair: Flatsat) -> None:
    said = pair("run", "pair.toml", "--json", "--quiet")
    told = json.loads(said.out)
    assert (told["exit_code"], told["jobs"]["measured"], told["regressions"]) == (0, 4, [])
    assert Path(told["report"]).is_file()


def test_candidates_are_listed_and_shown(pair: Flatsat) -> None:
    found = json.loads(pair("candidates", "list", "--json").out)["candidates"]
    assert [c["name"] for c in sorted(found, key=lambda c: c["bytes"])] == ["small", "large"]
    assert found[0]["role"] == "imported"
    table = pair("candidates", "list").out
    assert all(c["candidate_id"][:12] in table for c in found)
    shown = pair("candidates", "show", found[0]["candidate_id"][:8])
    assert found[0]["artifacts"][0]["sha256"][:12] in shown.out
    assert "no candidate 'smal'" in pair("candidates", "show", "smal").error


def test_the_layer_that_int8_gets_wrong_is_told(pair: Flatsat, tmp_path: Path) -> None:
    for path in (tmp_path / "lab" / "candidates").glob("*/candidate.json"):
        about = json.loads(path.read_text())
        small = about["name"] == "small"
        about["history"] = [
            {
                "step": "int8",
                "artifact": about["artifacts"][0]["sha256"],
                "layers": [
                    {"layer": "/a/Conv", "sqnr_db": 38.0, "fall_db": 9.0},
                    {"layer": "/b/Gemm", "sqnr_db": 4.2 if small else 37.0, "fall_db": 33.8},
                ],
                "culprit": "/b/Gemm" if small else None,
            }
        ]
        path.write_text(json.dumps(about))
    jump = "int8's error jumps at layer /b/Gemm (SQNR 4.2 dB)"
    assert jump in pair("candidates", "show", "small").out
    assert "least SQNR 37.0 dB at /b/Gemm" in pair("candidates", "show", "large").out
    said = pair("compare", "large", "small", "--rounds", "2", "--no-accuracy", "--json")
    assert json.loads(said.out)["notes"] == [f"small: {jump}"]


def test_wrong_goldens_are_refused_on_import(
    flatsat: Flatsat, dense_file: Onnx, tmp_path: Path
) -> None:
    path = dense_file()
    np.savez(tmp_path / "goldens.npz", **{"in:x": np.zeros((1, 8), np.float32)})
    said = flatsat("candidates", "import", str(path), "--goldens", "goldens.npz")
    assert said.code == 2
    assert "lacks" in said.error
    assert json.loads(flatsat("candidates", "list", "--json").out)["candidates"] == []


@pytest.mark.parametrize(("limit", "code", "verdict"), [(100, 0, "pass"), (0.1, 1, "fail")])
def test_validate_judges_and_writes_the_matrix(
    pair: Flatsat, tmp_path: Path, limit: float, code: int, verdict: str
) -> None:
    (tmp_path / "mission.toml").write_text(MISSION.format(limit=limit))
    said = pair("validate", "small", "--requirements", "mission.toml", "--json", "--quiet")
    assert said.code == code, said.err
    matrix = json.loads(said.out)
    assert [row["verdict"] for row in matrix["rows"]] == [verdict]
    folder = next((tmp_path / "lab" / "runs").glob("validate-*"))
    assert {"matrix.html", "matrix.csv", "matrix.json"} <= {p.name for p in folder.iterdir()}


def test_a_mission_with_a_mistake_stops_before_anything_runs(pair: Flatsat, tmp_path: Path) -> None:
    (tmp_path / "mission.toml").write_text(MISSION.format(limit=1).replace("limit", "limitt"))
    said = pair("validate", "small", "--requirements", "mission.toml")
    assert said.code == 2
    assert "did you mean 'limit'?" in said.error
    assert pair("runs", "list").code == 2


def test_boards_are_listed_and_examined(flatsat: Flatsat, tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "lab.toml").write_text('[board.bench]\nkind = "host"\n')
    boards = json.loads(flatsat("board", "list", "--json").out)["boards"]
    assert [(b["name"], b["kind"], b["clock"], b["from"]) for b in boards] == [
        ("bench", "host", "wall", "lab.toml"),
        ("host", "host", "wall", "built in"),
        ("qemu-arm64", "qemu-arm64", "virtual", "built in"),
        ("qemu-arm64-a76", "qemu-arm64", "virtual", "built in"),
    ]
    said = flatsat("board", "doctor", "bench", "--json")
    findings = json.loads(said.out)["findings"]
    assert said.code == (0 if all(f["ok"] for f in findings) else 3)
    checks = {f["check"]: f["ok"] for f in findings}
    assert checks["link"] is True
    assert checks["agent"] is True
    assert "'em1'" in flatsat("board", "doctor", "em1").error
    (tmp_path / "lab" / "lab.toml").write_text('[board.bench]\nkind = "hots"\n')
    assert "lab.toml:2: " in flatsat("board", "list").error


def test_workloads_tell_sizes_and_what_is_missing(
    flatsat: Flatsat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATSAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLATSAT_DATA", str(tmp_path / "data"))
    rows = json.loads(flatsat("workloads", "--json").out)["workloads"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["mnist-mini"]["splits"]["test"] == 1000
    assert by_name["mnist"]["problem"] is not None
    shown = flatsat("workloads").out
    assert "266,610" in shown
    assert "needs a path: workload mnist: no folder was given" in shown


def test_output_that_is_not_a_terminal_keeps_its_lines_whole(
    flatsat: Flatsat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    lines = flatsat("compressors", "list").out.splitlines()
    assert any("threshold by layer, retrain the rest (Han et al. 2015)" in line for line in lines)
