"""HTML, CSV and JSON say the same of each requirement; what is open comes first."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path

from flatsat.harness.flight.evidence import Evidence
from flatsat.harness.flight.matrix import COLUMNS, Matrix, Subject, untraced_evidence
from flatsat.harness.flight.requirements import load_mission
from flatsat.harness.flight.verdict import judge_mission

EXAMPLE = Path(__file__).parents[3] / "examples" / "mission.toml"
SUBJECT = Subject(
    candidate_id="c" * 64,
    candidate_name="<script>alert(1)</script>",
    artifact="a" * 64,
    role="float",
    size_bytes=1000,
    board="host",
    board_id="b" * 64,
    board_kind="host",
    runtime="onnxruntime",
    clock="wall",
    run_id="validate-1",
    date_utc="2026-11-24T00:00:00+00:00",
    version="0",
    mission_sha="m" * 64,
)


def matrix() -> Matrix:
    mission = load_mission(EXAMPLE)
    evidence = Evidence(
        latency_ns=((1000,) * 500,) * 6,
        load_ns=(10**6,) * 6,
        rss_bytes=(60_000_000,) * 6,
        rss_method="ru_maxrss",
        size_bytes=4_500_000,
        correct=(True,) * 990 + (False,) * 10,
        board="host",
        runtime="onnxruntime",
    )
    verdicts = judge_mission(mission, evidence, datetime.date(2026, 11, 24))
    return Matrix(mission, SUBJECT, tuple(verdicts), untraced_evidence(mission, evidence))


def test_csv_and_json_agree() -> None:
    made = matrix()
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    value = json.loads(made.to_json())
    assert tuple(rows[0]) == COLUMNS
    assert [r["id"] for r in rows] == [r["id"] for r in value["rows"]]
    assert [r["verdict"] for r in rows] == [r["verdict"] for r in value["rows"]]
    by_id = {r["id"]: r["verdict"] for r in rows}
    assert by_id["TSK-01"] == "pass"
    assert by_id["STO-01"] == "pass_margin_short"  # 4.5 MB of 5 MB; 40 % is asked for at CDR
    assert by_id["AGR-01"] == "not_run"
    assert value["exit_code"] == made.exit_code == 1


def test_html_shows_open_rows_first_and_escapes_names() -> None:
    page = matrix().to_html()
    assert "<script>alert" not in page
    assert "Not accepted" in page
    head = page.index("Not closed")
    assert head < page.index("STO-01") < page.index("All requirements")
    assert "http" not in page.replace("http-equiv", "")


def test_evidence_without_requirement_is_named() -> None:
    mission = load_mission(EXAMPLE)
    kept = mission.model_copy(update={"requirement": mission.requirement[:1]})
    assert untraced_evidence(kept, Evidence(size_bytes=3, load_ns=(1,))) == ("load_time", "storage")
