"""Pages that follow a run: its status and the index while it goes on, its report at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import FlatSatError

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.reports.rows import Store


def status(lab: Lab, store: Store, run_id: str) -> None:
    """Rewrite `status.json` of a run and the lab's `index.html`."""
    from flatsat.reports.index import write_index, write_status

    write_status(store, lab.run_dir(run_id), run_id)
    write_index(store, lab.root)


def report(lab: Lab, store: Store, run_id: str) -> Path:
    """Write a run's page and tables, and the index; return the page's path."""
    from flatsat.reports.collect import collect
    from flatsat.reports.exports import export_run
    from flatsat.reports.pages import render_run

    masks = masks_of(lab, store, run_id)
    folder = lab.run_dir(run_id)
    page = folder / "report.html"
    render_run(collect(store, run_id, masks=masks), page)
    export_run(store, run_id, folder)
    status(lab, store, run_id)
    return page


def quietly_mark(lab: Lab, store: Store, run_id: str, state: str) -> None:
    """Note that a run stopped early, as far as the record can still be written."""
    try:
        store.finish_run(run_id, state)
        status(lab, store, run_id)
    except (FlatSatError, OSError):
        return


def masks_of(lab: Lab, store: Store, run_id: str) -> dict[str, object]:
    """Return the sparsity pictures of a run's candidates, where their folders hold one."""
    raise NotImplementedError
