import json
import re

import pytest

from flatsat.canonical import sha256_bytes
from flatsat.errors import DataError
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Fault, Measured, Owner
from flatsat.reports.index import write_index, write_status
from flatsat.reports.pages import render_run
from flatsat.reports.rows import JobRow, RunRow
from flatsat.reports.store import SqlStore

NOW = "2026-11-24T23:20:00.000000+00:00"
HOSTILE = "<img src=x onerror=alert(1)>"


class FrozenClock:
    def utc(self):
        return NOW

    def monotonic_s(self):
        return 0.0

    def new_id(self, prefix):
        return prefix


@pytest.fixture
def store(tmp_path):
    made = SqlStore(f"sqlite:///{tmp_path}/record.db")
    made.put_board("b", "host", "host", {})
    yield made
    made.close()


def _run(store, run_id, minute, title=None):
    started = f"2026-11-24T23:{minute:02d}:00+00:00"
    store.begin_run(RunRow(run_id, "run", "{}", sha256_bytes(b"{}"), "0.1.0", started, "h", 0))
    if title is not None:
        store.put_note(run_id, "title", title)


def _jobs(store, run_id, outcomes):
    for index, outcome in enumerate(outcomes):
        spec = JobSpec(JobKind.LATENCY, "a" * 64, "onnx", "host")
        job_id = f"{run_id}-{index}"
        row = JobRow(job_id, "a" * 64, "host", "latency", json.dumps(spec.to_json()), 0, index)
        store.add_jobs(run_id, [row])
        if outcome is not None:
            store.start_job(job_id, "b")
            store.put_outcome(job_id, "b", outcome, NOW, 1.0)


def _failed():
    return Failed(Fault(Owner.CANDIDATE, False, "crash", "it crashed"))


def test_status_counts_jobs_by_what_became_of_them(store, tmp_path):
    _run(store, "r1", 1, "nightly")
    _jobs(store, "r1", [Measured(()), Measured(()), _failed(), None])
    folder = tmp_path / "runs" / "r1"
    write_status(store, folder, "r1", clock=FrozenClock())
    told = json.loads((folder / "status.json").read_text())
    assert told["schema"] == "flatsat.status/1"
    assert (told["name"], told["state"], told["updated_utc"]) == ("nightly", "running", NOW)
    assert told["jobs"] == {
        "planned": 4,
        "done": 3,
        "running": 0,
        "reused": 0,
        "measured": 2,
        "failed": 1,
        "inconclusive": 0,
    }
    assert told["report"] is None
    assert told["headline"] is None


def test_status_of_an_unknown_run_is_refused(store, tmp_path):
    with pytest.raises(DataError):
        write_status(store, tmp_path / "runs" / "r9", "r9")
    assert not (tmp_path / "runs" / "r9" / "status.json").exists()


def test_status_takes_the_headline_from_the_page(store, tmp_path, report):
    _run(store, "r1", 1)
    folder = tmp_path / "runs" / "r1"
    render_run(report, folder / "report.html")
    status = write_status(store, folder, "r1")
    assert status.report == "report.html"
    assert status.headline.startswith("filters-50 int8 on host (wall clock): ")


def test_the_index_lists_the_newest_run_first_with_state_counts_and_link(store, tmp_path, report):
    for run_id, minute, title in (("r1", 1, "first"), ("r2", 2, "second")):
        _run(store, run_id, minute, title)
    _jobs(store, "r1", [Measured(()), _failed()])
    store.finish_run("r1", "done", NOW)
    render_run(report, tmp_path / "runs" / "r1" / "report.html")
    for run_id in ("r1", "r2"):
        write_status(store, tmp_path / "runs" / run_id, run_id)
    text = write_index(store, tmp_path, clock=FrozenClock()).read_text()
    assert text.index("second <span") < text.index(">first</a>")
    assert "2 runs, 1 running" in text
    assert '<a href="runs/r1/report.html">first</a>' in text
    assert "runs/r2/report.html" not in text
    assert "2 of 2 jobs, 1 failed" in text
    assert "filters-50 int8 on host (wall clock): 14.3" in text
    assert re.search(r'http-equiv="refresh"', text)


def test_the_index_rests_when_nothing_runs(store, tmp_path):
    _run(store, "r1", 1)
    store.finish_run("r1", "done", NOW)
    assert "refresh" not in write_index(store, tmp_path).read_text()


def test_an_empty_lab_has_an_index_that_says_what_to_do(store, tmp_path):
    assert "flatsat demo" in write_index(store, tmp_path).read_text()


def test_names_in_the_index_are_escaped(store, tmp_path):
    _run(store, "r1", 1, HOSTILE)
    write_status(store, tmp_path / "runs" / "r1", "r1")
    text = write_index(store, tmp_path).read_text()
    assert HOSTILE not in text
    assert "&lt;img src=x" in text


@pytest.mark.parametrize("broken", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_status_that_cannot_be_read_costs_only_its_name(store, tmp_path, broken):
    _run(store, "r1", 1, "nightly")
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    (folder / "status.json").write_bytes(broken)
    assert "r1" in write_index(store, tmp_path).read_text()


def test_a_full_disk_leaves_the_old_index(store, tmp_path, monkeypatch):
    write_index(store, tmp_path)
    before = (tmp_path / "index.html").read_text()
    _run(store, "r1", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_index(store, tmp_path)
    assert (tmp_path / "index.html").read_text() == before
    assert not list(tmp_path.glob(".index*"))
