"""After kill -9 at any moment a resumed run ends with every job done once and no sample lost."""

from __future__ import annotations

import json
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


DRIVER = """
import signal, sys
from pathlib import Path
from flatsat.harness.config import load_run
from flatsat.harness.lab import Lab
from flatsat.harness.run import resume_run, start_run

lab, config, kill_after_s = Lab(Path(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3])
started = [r for r in lab.store().runs() if r.kind == "run"]
# SIGALRM's default action ends the process at once, wherever it is: no handler, no clean-up.
signal.setitimer(signal.ITIMER_REAL, kill_after_s)
if not started:
    start_run(load_run(config), lab)
elif started[-1].state != "done":
    resume_run(lab, None)
"""
KILLS_AT_MOST = 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_many_times_then_whole(lab: Path, tmp_path: Path, seed: int) -> None:
    config = tmp_path / "run.toml"
    config.write_text(CONFIG)
    draw = random.Random(seed)
    finished: dict[str, str] = {}
    kills = 0
    for _ in range(KILLS_AT_MOST):
        killed = drive(lab, config, draw.uniform(0.01, 0.6))
        kills += killed
        before, finished = finished, fingerprints(lab)
        # An outcome that was in the record stays as it was: same start, same raw samples.
        assert before.items() <= finished.items()
        if not killed:
            break
    assert kills >= 3
    assert not drive(lab, config, 0.0)
    after = fingerprints(lab)
    assert finished.items() <= after.items()
    record = Lab(lab).store()
    (run,) = [r for r in record.runs() if r.kind == "run"]
    assert run.state == "done"
    rows = record.outcomes(run_id=run.run_id)
    assert len(rows) == ROUNDS * MODELS == len({row.job.job_id for row in rows})
    for row in rows:
        assert isinstance(row.outcome, Measured)
        counted = [s for s in row.outcome.samples if s.quantity == "latency_ns" and s.warm]
        assert len(counted) == 1
        assert len(counted[0].values) >= 5
    status = json.loads((lab / "runs" / run.run_id / "status.json").read_text())
    assert status["state"] == "done"
    assert (lab / "runs" / run.run_id / "report.html").is_file()
    assert run.run_id in (lab / "index.html").read_text()


def drive(lab: Path, config: Path, kill_after_s: float) -> bool:
    """Start or resume the run; True if it was killed. 0 lets it end."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(lab), str(config), str(kill_after_s)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGALRM), done.stderr
    return done.returncode != 0


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
