"""The lab's list of runs and each run's status; cheap enough for every batch of outcomes.

`runs/<run_id>/status.json`::

    {"schema": "flatsat.status/1", "run_id": "...", "name": "nightly", "kind": "run",
     "state": "running", "started_utc": "...", "finished_utc": null, "updated_utc": "...",
     "jobs": {"planned": 86, "done": 40, "running": 1, "measured": 38, "failed": 1,
              "inconclusive": 1, "reused": 0},
     "headline": null,                    # one line, once there is a report
     "report": null}                      # "report.html", once there is one
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.reports import words
from flatsat.reports.files import write_atomically
from flatsat.reports.rows import RunCounts
from flatsat.units import SystemClock

if TYPE_CHECKING:
    from flatsat.reports.rows import RunRow, Store
    from flatsat.units import Clock

STATUS_SCHEMA = "flatsat.status/1"
STATUS_FILE = "status.json"
REPORT_FILE = "report.html"
_HEAD_CHARS = 4096
_DESCRIPTION = re.compile(r'<meta name="description" content="([^"]*)">')
_TONES = {"done": "good", "running": "", "failed": "bad"}


@dataclass(frozen=True)
class StatusValue:
    """What `status.json` says of a run; see the module's docstring."""

    run_id: str
    name: str
    kind: str
    state: str
    started_utc: str
    finished_utc: str | None
    updated_utc: str
    counts: RunCounts
    headline: str | None
    report: str | None

    def to_json(self) -> dict[str, object]:
        """Return the JSON-able mapping that stands in `status.json`."""
        value = asdict(self)
        counts = value.pop("counts")
        jobs = {"planned": counts.pop("jobs"), **counts}
        return {"schema": STATUS_SCHEMA, **value, "jobs": jobs}


@dataclass(frozen=True)
class _Line:
    run: RunRow
    name: str
    counts: RunCounts
    headline: str | None
    link: str | None
    tone: str


def write_status(
    store: Store, run_dir: Path, run_id: str, *, clock: Clock | None = None
) -> StatusValue:
    """Write a run's `status.json`, whole or not at all, and return what it says.

    Raises:
        DataError: there is no such run.
        InfrastructureError: the record can't be read.
        OSError: the folder can't be written.
    """
    run = store.run(run_id)
    page = run_dir / REPORT_FILE
    title = store.notes(run_id).get("title")
    status = StatusValue(
        run_id=run_id,
        name=str(title) if title else run_id,
        kind=run.kind,
        state=run.state,
        started_utc=run.started_utc,
        finished_utc=run.finished_utc,
        updated_utc=(clock or SystemClock()).utc(),
        counts=store.counts(run_id).get(run_id, RunCounts()),
        headline=_headline(page),
        report=page.name if page.is_file() else None,
    )
    text = json.dumps(status.to_json(), indent=1, ensure_ascii=False) + "\n"
    write_atomically(run_dir / STATUS_FILE, text)
    return status


def write_index(store: Store, lab_root: Path, *, clock: Clock | None = None) -> Path:
    """Write the lab's `index.html`, whole or not at all, and return its path.

    Names and headlines come from the runs' `status.json`, so that no run's notes or samples are
    read for it.

    Raises:
        InfrastructureError: the record can't be read.
        OSError: the folder can't be written.
    """
    from flatsat.reports.pages import index_html

    counts = store.counts()
    lines: list[_Line] = []
    for run in reversed(store.runs()):
        folder = lab_root / "runs" / run.run_id
        told = _read_status(folder / STATUS_FILE)
        page = f"runs/{run.run_id}/{REPORT_FILE}"
        lines.append(
            _Line(
                run,
                str(told.get("name") or run.run_id),
                counts.get(run.run_id, RunCounts()),
                str(told["headline"]) if told.get("headline") else None,
                page if (lab_root / page).is_file() else None,
                _TONES.get(run.state, "warn"),
            )
        )
    out = lab_root / "index.html"
    running = sum(line.run.state == "running" for line in lines)
    title = words.plural(len(lines), "run") + (f", {running} running" if running else "")
    write_atomically(
        out,
        index_html(
            lines=lines,
            title=title,
            running=running > 0,
            generated_utc=(clock or SystemClock()).utc(),
        ),
    )
    return out


def _headline(page: Path) -> str | None:
    """Return what a run's page says of itself in its head."""
    try:
        with page.open(encoding="utf-8") as stream:
            found = _DESCRIPTION.search(stream.read(_HEAD_CHARS))
    except (OSError, UnicodeDecodeError):
        return None
    return html.unescape(found[1]) or None if found else None


def _read_status(path: Path) -> dict[str, object]:
    """Return a `status.json`, {} where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
