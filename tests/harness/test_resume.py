"""After kill -9 at any moment a resumed run ends with every job done once and no sample lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from flatsat.canonical import sha256_json
from flatsat.harness.lab import Lab
from flatsat.outcome import Measured

ROUNDS = 8
MODELS = 2
CONFIG = f"""
schema = 1
[run]
name = "killed"
seed = 7
[matrix]
candidates = ["model-0", "model-1"]
jobs = ["latency"]
[plan.wall]
processes = 1
min_inferences = 5
min_s = 0.001
rounds = {ROUNDS}
warmup = "fixed"
max_warmup = 1
"""


def write_model(path: Path, width: int) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    shape = [1, width]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)


def flatsat(lab: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "flatsat.harness.cli", "--lab", str(lab), *arguments]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    for index in range(MODELS):
        model = tmp_path / f"model-{index}.onnx"
        write_model(model, 4 + index)
        subprocess.run(
            flatsat(folder, "candidates", "import", str(model)), check=True, capture_output=True
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_many_times_then_whole(lab: Path, tmp_path: Path, seed: int) -> None:
    config = tmp_path / "run.toml"
    config.write_text(CONFIG)
    draw = random.Random(seed)
    finished: dict[str, str] = {}
    kills = 0
    command = flatsat(lab, "run", str(config))
    while True:
        lines_until_kill = draw.randrange(1, 8)
        ended = run_and_kill(command, lines_until_kill)
        kills += not ended
        before, finished = finished, fingerprints(lab)
        # An outcome that was in the record stays as it was: same start, same raw samples.
        assert before.items() <= finished.items()
        if ended:
            break
        command = flatsat(lab, "run", "--resume") if finished or has_run(lab) else command
    assert kills >= 2
    record = Lab(lab).store()
    (run,) = [r for r in record.runs() if r.kind == "run"]
    assert run.state == "done"
    rows = record.outcomes(run_id=run.run_id)
    assert len(rows) == ROUNDS * MODELS == len({row.job.job_id for row in rows})
    assert {row.job.state for row in rows} == {"done"}
    for row in rows:
        assert isinstance(row.outcome, Measured)
        counted = [s for s in row.outcome.samples if s.quantity == "latency_ns" and s.warm]
        assert all(len(s.values) >= 5 for s in counted)
        assert len(counted) == 1
    status = json.loads((lab / "runs" / run.run_id / "status.json").read_text())
    assert status["state"] == "done"
    assert (lab / "runs" / run.run_id / "report.html").is_file()
    assert (lab / "index.html").is_file()


def run_and_kill(command: list[str], lines: int) -> bool:
    """Run a command; kill its process group after so many lines of progress. True: it ended."""
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if len(said) >= lines:
                os.killpg(process.pid, signal.SIGKILL)
                break
        code = process.wait()
    assert code in (0, -signal.SIGKILL), "".join(said)
    return code == 0


def has_run(lab: Path) -> bool:
    return any(run.kind == "run" for run in Lab(lab).store().runs())


def fingerprints(lab: Path) -> dict[str, str]:
    """What the record holds of each finished job, as hashes."""
    if not (lab / "record.db").exists():
        return {}
    found = {}
    for row in Lab(lab).store().outcomes():
        assert isinstance(row.outcome, Measured)
        samples = [[s.quantity, s.process, list(s.values)] for s in row.outcome.samples]
        found[row.job.job_id] = sha256_json([row.started_utc, samples])
    return found
