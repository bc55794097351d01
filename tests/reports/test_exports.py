"""A run's table in four forms that say the same, written whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import resource
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from flatsat.artifact import Artifact
from flatsat.canonical import canonical_json
from flatsat.errors import DataError, InfrastructureError
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import (
    AgreementResult,
    Failed,
    Fault,
    Inconclusive,
    Measured,
    Outcome,
    Owner,
    Samples,
)
from flatsat.reports.exports import export_run, to_frame
from flatsat.reports.rows import AccuracyRow, CandidateRow, JobRow, RunRow
from flatsat.reports.store import SqlStore
from flatsat.reports.table import COLUMNS

AT = "2026-03-01T12:00:00.000000+00:00"
SHA = "a" * 64

LATENCY = Measured(
    (
        Samples("latency_ns", "virtual", 0, False, (9_999,)),
        Samples("latency_ns", "virtual", 0, True, tuple(range(1, 51))),
        Samples("latency_ns", "virtual", 1, True, tuple(range(51, 101))),
        Samples("load_ns", "virtual", 0, True, (70,)),
        Samples("load_ns", "virtual", 1, True, (90,)),
        Samples("rss_bytes", "VmHWM", 0, True, (5_000,)),
        Samples("rss_bytes", "ru_maxrss", 0, True, (4_000,)),
        Samples("rss_bytes", "ru_maxrss", 1, True, (4_100,)),
        Samples("energy_nj", "modelled", 0, True, (2_000_000_000, 4_000_000_000)),
    ),
    AgreementResult("tol", 1e-6, math.nan, 1e-7, 1.0, 64, True),
    evidence={"runtime": {"name": "onnxruntime", "version": "1.20.1"}},
)
CRASH = Failed(Fault(Owner.CANDIDATE, False, "crash", 'signal 11, "core"\ndumped'))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with SqlStore(f"sqlite:///{tmp_path}/record.db") as opened:
        opened.begin_run(RunRow("run-1", "run", "{}", "c" * 64, "0.1", AT, "fp", 5))
        opened.begin_run(RunRow("empty", "run", "{}", "c" * 64, "0.1", AT, "fp", 5))
        opened.put_board("board-1", "bench", "host")
        deep = CandidateRow(
            "cand-1", "rec", "tief, größer", "compressed", "m/lenet5", 2, None, 9, 4
        )
        opened.put_candidate(deep, "run-1")
        opened.put_candidate(CandidateRow("cand-2", None, "waiting", "imported", ""), "run-1")
        artifact = Artifact(SHA, "onnx", "int8", 1234, "m.onnx", 17, 8, "NCHW", (), ())
        opened.put_artifact(artifact, "cand-1")
        put(opened, 0, LATENCY)
        put(opened, 1, CRASH)
        put(opened, 2, Inconclusive("the clock changed"))
        right = (True,) * 90 + (False,) * 10
        put(opened, 3, Measured(()), AccuracyRow("s" * 64, "accuracy", 100, 0.9, right))
        yield opened


def put(
    store: SqlStore, position: int, outcome: Outcome, accuracy: AccuracyRow | None = None
) -> None:
    kind = JobKind.LATENCY if accuracy is None else JobKind.ACCURACY
    spec = JobSpec(kind, SHA, "onnx", "bench", threads=2)
    text = canonical_json(spec.to_json())
    job = JobRow(f"j{position}", SHA, "bench", kind.value, text, 0, position, "run")
    store.add_jobs("run-1", [job])
    store.put_outcome(job.job_id, "board-1", outcome, AT, 2.5, accuracy)


def test_a_frame_tells_what_was_measured_with_units_and_kinds(store: SqlStore) -> None:
    frame = to_frame(store, "run-1")
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert list(frame["status"]) == [
        "measured",
        "failed",
        "inconclusive",
        "measured",
        "unmeasured",
    ]
    row = frame.iloc[0]
    wanted = {
        "candidate": "tief, größer",
        "seed": 2,
        "params": 9,
        "nonzeros": 4,
        "precision": "int8",
        "size_bytes": 1234,
        "board": "bench",
        "board_kind": "host",
        "runtime_version": "1.20.1",
        "threads": 2,
        "processes": 2,
        "latency_clock": "virtual",
        "latency_n": 100,
        "latency_min_ns": 1,
        "latency_p50_ns": 50.5,
        "latency_p90_ns": 90.1,
        "load_ns": 80,
        "memory_method": "ru_maxrss",
        "memory_peak_bytes": 4_100,
        "energy_class": "modelled",
        "energy_mean_j": 3.0,
        "agreement_ok": True,
        "wall_s": 2.5,
    }
    assert {name: row[name] for name in wanted} == pytest.approx(wanted)
    for name in ("macs", "latency_p99_ns", "agreement_max_rel", "accuracy", "fault_code"):
        assert row[name] is pd.NA
    assert frame.attrs["units"]["latency_p50_ns"] == "ns"
    assert frame.attrs["units"]["energy_mean_j"] == "J"
    assert "latency_clock" in frame.attrs["meanings"]["latency_p50_ns"]


def test_faults_and_accuracies_have_their_columns(store: SqlStore) -> None:
    frame = to_frame(store, "run-1").set_index("job_id")
    assert tuple(frame.loc["j1", ["fault_owner", "fault_code"]]) == ("candidate", "crash")
    assert frame.loc["j2", "message"] == "the clock changed"
    low, value, high = frame.loc["j3", ["accuracy_low", "accuracy", "accuracy_high"]]
    assert (low, value, high) == pytest.approx((0.8256, 0.9, 0.9448), abs=1e-4)
    assert frame.loc["j3", "accuracy_n"] == 100


def test_an_empty_run_has_a_frame_with_all_columns_and_types(store: SqlStore) -> None:
    frame = to_frame(store, "empty")
    assert (len(frame), len(frame.columns)) == (0, len(COLUMNS))
    assert frame.dtypes.equals(to_frame(store, "run-1").dtypes)


def test_an_unknown_run_is_refused_before_anything_is_written(
    store: SqlStore, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no run 'nope'"):
        to_frame(store, "nope")
    with pytest.raises(DataError, match="no run 'nope'"):
        export_run(store, "nope", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_forms_say_the_same(store: SqlStore, tmp_path: Path) -> None:
    paths = export_run(store, "run-1", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.csv",
        "report.json",
        "report.parquet",
    ]
    frame = to_frame(store, "run-1")
    expected = [
        {name: None if value is pd.NA else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
    exported = json.loads(paths[1].read_text(encoding="utf-8"))
    assert exported["schema"] == "flatsat.outcomes/1"
    assert exported["run"]["run_id"] == "run-1"
    assert exported["rows"] == expected
    assert [column["name"] for column in exported["columns"]] == list(frame.columns)

    table = pq.read_table(paths[2])
    assert table.to_pylist() == expected
    assert table.schema.field("latency_p50_ns").metadata[b"unit"] == b"ns"

    with paths[0].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in expected
    ]


def test_exporting_again_replaces_and_a_full_disk_keeps_the_old(
    store: SqlStore, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    export_run(store, "run-1", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InfrastructureError, match=r"can't write .*report\.csv"):
            export_run(store, "run-1", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    export_run(store, "run-1", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_is_a_file_is_a_usage_error(store: SqlStore, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("notes")
    with pytest.raises(DataError, match="can't write") as caught:
        export_run(store, "run-1", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").read_text() == "notes"
