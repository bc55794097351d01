"""`flatsat search` on real images and the real board: the record, the page, kill -9 and resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flatsat.harness.lab import Lab

HEAD = """schema = 1
[search]
name = "small"
workload = "mnist-mini/lenet300"
strategies = ["amc", "random"]
episodes = 12
warmup_episodes = 6
[search.estimate]
calibration_batches = 6
grid = 2
[search.measure]
every = 4
top = 1
rounds = 2
processes = 1
min_inferences = 5
min_s = 0.001
[search.finish]
rounds = 3
attempts = 2
equal_macs = false
[search.budget]
"""
MACS = HEAD + 'quantity = "macs"\nratio = 0.4\n'
LATENCY = HEAD + 'quantity = "latency"\nratio = 0.8\n'


def _runs(lab: Path, kind: str):
    return [run for run in Lab(lab).store().runs() if run.kind == kind]


def _searched(lab: Path) -> dict[str, list[tuple[object, ...]]]:
    store = Lab(lab).store()
    note = store.notes(_runs(lab, "search")[-1].run_id)["search"]
    return {
        one["strategy"]: list(zip(one["reward"], one["cost"], strict=True))
        for one in note["strategies"]
    }


@pytest.mark.slow
def test_a_search_by_latency_leaves_its_evidence_in_the_record(flatsat, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(LATENCY)
    said = flatsat("search", "s.toml")
    assert said.code in (0, 1, 4), said.err
    lab = tmp_path / "lab"
    (search,), (layers,) = _runs(lab, "search"), _runs(lab, "layers")
    assert (search.state, layers.state) == ("done", "done")
    store = Lab(lab).store()
    notes = store.notes(search.run_id)
    note, detail = notes["search"], notes["search-detail"]
    assert detail["layers_run"] == layers.run_id
    assert note["budget"]["limit"] == pytest.approx(0.8 * note["budget"]["reference"])
    assert [len(one["reward"]) for one in note["strategies"]] == [12, 12]
    # Every measurement is an ordinary job: each candidate of the note is in the record.
    jobs = {job.job_id: job for job in store.jobs(search.run_id)}
    assert {job.state for job in jobs.values()} == {"done"}
    assert {job.comparison for job in jobs.values()} >= {"dense", "batch-0", "final"}
    recorded = {candidate.candidate_id for candidate in store.candidates(search.run_id)}
    assert {one["candidate_id"] for one in note["measured"]} <= recorded
    assert any(one["measured"] for one in note["measured"])
    # The test images ran in the last comparison only.
    accuracy = {job.comparison for job in jobs.values() if job.kind == "accuracy"}
    assert accuracy == {"final"}
    assert (lab / "runs" / search.run_id / "report.html").is_file()
    assert said.code == {"met": 0, "unclear": 4}.get(detail["verdict"], 1)


def _start(lab: Path, file: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flatsat.harness.cli", "--lab", str(lab), "search", str(file)]
    return subprocess.Popen(
        [*command, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def _kill_when(process: subprocess.Popen[str], told: str, times: int) -> bool:
    """Kill the whole process group the moment that a line holds `told` so often."""
    assert process.stderr is not None
    for line in process.stderr:
        times -= told in line
        if times == 0:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
    process.wait()
    return False


@pytest.mark.slow
def test_a_search_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(MACS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert not _kill_when(_start(whole, file), "never said", 1)
    moments = [("search search-", 1), ("measure:", 1), ("build candidates:", 1)]
    kills = sum(
        _kill_when(_start(killed, file, *(["--resume"] if number else [])), *moment)
        for number, moment in enumerate(moments)
    )
    assert kills == len(moments)
    last = _start(killed, file, "--resume")
    assert not _kill_when(last, "never said", 1)
    assert last.returncode == 0
    assert len(_runs(killed, "search")) == 1
    assert _searched(killed) == _searched(whole)
    stores = [Lab(lab).store() for lab in (killed, whole)]
    ids = [_runs(lab, "search")[0].run_id for lab in (killed, whole)]
    counts = [store.counts(run)[run] for store, run in zip(stores, ids, strict=True)]
    assert counts[0] == counts[1]
    assert counts[0].jobs == counts[0].done
    notes = [store.notes(run)["search"] for store, run in zip(stores, ids, strict=True)]
    assert notes[0]["measured"] == notes[1]["measured"]
    assert notes[0]["chosen"] == notes[1]["chosen"] is not None


def test_an_unknown_board_is_refused_before_a_run_begins(flatsat, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(MACS + 'board = "em9"\n')
    said = flatsat("search", "s.toml")
    assert said.code == 2
    assert "em9" in said.error
    assert not (tmp_path / "lab" / "record.db").exists()


def test_there_is_nothing_to_resume(flatsat, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(MACS)
    said = flatsat("search", "s.toml", "--resume")
    assert said.code == 2
    assert "no unfinished search" in said.error


@pytest.mark.slow
def test_a_budget_out_of_reach_says_what_can_be_reached(flatsat, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(MACS.replace("ratio = 0.4", 'ratio = 0.01\nboard = ""'))
    said = flatsat("search", "s.toml")
    assert said.code == 2
    assert "least reachable" in said.err.strip().splitlines()[-2]
    assert _runs(tmp_path / "lab", "search")[-1].state == "failed"
