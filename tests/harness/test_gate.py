"""A gate fails on what is shown, a whole interval beyond the limit; an alarm only warns."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatsat.artifact import Artifact
from flatsat.canonical import canonical_json
from flatsat.errors import UsageError
from flatsat.harness.config_tables import AccuracyGate, Gate, LatencyGate
from flatsat.harness.gate import Findings, find
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Measured, Samples
from flatsat.reports.rows import AccuracyRow, CandidateRow, JobRow, RunRow
from flatsat.reports.store import SqlStore

AT = "2026-03-01T12:00:00.000000+00:00"


def lab(folder: Path, slowdown: float, right: int) -> SqlStore:
    """A dense network at 1000 ns, and one that is slower and right on so many of 1,000 images."""
    store = SqlStore(f"sqlite:///{folder / 'record.db'}")
    store.begin_run(RunRow("r", "run", "{}", "0", "0", AT, "h", 0))
    store.put_board("b", "host", "host", {})
    for name, role, factor, correct in (
        ("dense", "reference", 1.0, 950),
        ("small", "compressed", slowdown, right),
    ):
        store.put_candidate(CandidateRow(name, None, name, role, "w/n"), "r")
        store.put_artifact(Artifact(name, "onnx", "float", 1, "f", 17, 8, "", (), ()), name)
        for index in range(6):
            latency = JobSpec(JobKind.LATENCY, name, "onnx", "host")
            values = tuple(round((1000 + index + i % 3) * factor) for i in range(80))
            measured = Measured((Samples("latency_ns", "wall", 0, True, values),))
            add(store, f"{name}{index}", latency, index, measured)
        answers = tuple(i < correct for i in range(1000))
        accuracy = AccuracyRow("split", "accuracy", 1000, correct / 1000, answers)
        spec = JobSpec(JobKind.ACCURACY, name, "onnx", "host", dataset="d")
        add(store, f"{name}-acc", spec, 1, Measured(()), accuracy)
    return store


def add(
    store: SqlStore,
    job_id: str,
    spec: JobSpec,
    index: int,
    outcome: Measured,
    accuracy: AccuracyRow | None = None,
) -> None:
    text = canonical_json(spec.to_json())
    row = JobRow(job_id, spec.artifact, "host", spec.kind.value, text, index, index, "run")
    store.add_jobs("r", [row])
    store.start_job(job_id, "b")
    store.put_outcome(job_id, "b", outcome, AT, 1.0, accuracy)


GATE = Gate(
    latency=LatencyGate(slower_than=0.02, alarm=0.005),
    accuracy=AccuracyGate(non_inferior=0.01),
)


def test_a_slower_candidate_fails_the_run(tmp_path: Path) -> None:
    found = find(lab(tmp_path, 1.05, 950), "r", GATE, None)
    assert len(found.regressions) == 1
    assert "small is slower than dense by 5.0 % or more" in found.regressions[0]


def test_between_alarm_and_limit_it_only_warns(tmp_path: Path) -> None:
    found = find(lab(tmp_path, 1.01, 950), "r", GATE, None)
    assert not found.regressions
    assert len(found.alarms) == 1


def test_a_less_accurate_candidate_fails_the_run(tmp_path: Path) -> None:
    found = find(lab(tmp_path, 1.0, 900), "r", GATE, None)
    assert len(found.regressions) == 1
    assert "small is less accurate than dense" in found.regressions[0]


def test_what_is_as_good_passes(tmp_path: Path) -> None:
    assert find(lab(tmp_path, 0.5, 952), "r", GATE, None) == Findings()


def test_no_gate_finds_nothing(tmp_path: Path) -> None:
    assert find(lab(tmp_path, 9.0, 0), "r", Gate(), None) == Findings()


def test_an_unknown_baseline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'ghost' was not measured"):
        find(lab(tmp_path, 1.0, 950), "r", GATE, "ghost")
