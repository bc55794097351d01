"""Pages that follow a run: its status and the index while it goes on, its report at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import FlatSatError

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.reports.comparison import Comparison
    from flatsat.reports.rows import Store


def status(lab: Lab, store: Store, run_id: str) -> None:
    """Rewrite `status.json` of a run and the lab's `index.html`."""
    from flatsat.reports.index import write_index, write_status

    write_status(store, lab.run_dir(run_id), run_id)
    write_index(store, lab.root)


def report(lab: Lab, store: Store, run_id: str) -> Path:
    """Write a run's page and tables, and the index; return the page's path."""
    from flatsat.harness.survey import survey_of
    from flatsat.reports.collect import collect
    from flatsat.reports.exports import export_run
    from flatsat.reports.pages import render_run

    masks, survey = survey_of(lab, store, run_id)
    folder = lab.run_dir(run_id)
    page = page_of(lab, run_id)
    comparisons = comparisons_of(store, run_id)
    render_run(collect(store, run_id, masks=masks, survey=survey, comparisons=comparisons), page)
    export_run(store, run_id, folder)
    status(lab, store, run_id)
    return page


def comparisons_of(store: Store, run_id: str) -> list[Comparison]:
    """Return what a run of `flatsat compare` says of each candidate against its baseline."""
    from flatsat.reports.compare import compare_all, subjects

    run = store.run(run_id)
    if run.kind != "compare":
        return []
    config = json.loads(run.config_json)
    labelled = list(subjects(store, run_id).values())
    baseline = {a.sha256 for a in store.artifacts(config["candidates"][0])}
    labelled.sort(key=lambda subject: subject.rows[0].job.artifact not in baseline)
    found: list[Comparison] = []
    for other in labelled[1:]:
        report = compare_all(
            labelled[0], [other], threshold=config["threshold"], margin=config["margin"]
        )
        found += report.rows
    return found


def page_of(lab: Lab, run_id: str) -> Path:
    """Return where a run's page is, or will be."""
    return lab.run_dir(run_id) / "report.html"


def quietly_mark(lab: Lab, store: Store, run_id: str, state: str) -> None:
    """Note that a run stopped early, as far as the record can still be written."""
    try:
        store.finish_run(run_id, state)
        status(lab, store, run_id)
    except (FlatSatError, OSError):
        return
