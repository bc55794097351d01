"""Pages that follow a run: its status and the index while it goes on, its report at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import FlatSatError

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.reports.comparison import Comparison
    from flatsat.reports.model import MaskPicture
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
    page = page_of(lab, run_id)
    comparisons = comparisons_of(store, run_id)
    render_run(collect(store, run_id, masks=masks, comparisons=comparisons), page)
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


def masks_of(lab: Lab, store: Store, run_id: str) -> dict[str, MaskPicture]:
    """Return the sparsity picture of each pruned candidate's first dense layer.

    A candidate whose folder is gone or was changed has none: its measurements stand all the same.
    """
    import numpy as np

    from flatsat.compressors.candidate import load_candidate
    from flatsat.datasets.workload import parse_ref
    from flatsat.reports.model import MaskPicture

    pictures: dict[str, MaskPicture] = {}
    for row in store.candidates(run_id):
        try:
            masks = load_candidate(lab.candidates_dir / row.candidate_id).masks()
        except FlatSatError:
            continue
        dense = next(((name, m) for name, m in masks.items() if m.ndim == 2), None)
        if dense is None:
            continue
        name, mask = dense
        rows, cols = (int(n) for n in mask.shape)
        height, width = parse_ref(row.workload)[0].input.shape[-2:]
        image = (int(height), int(width)) if int(height) * int(width) == cols else None
        packed = np.packbits(mask).tobytes()
        pictures[row.candidate_id] = MaskPicture(name, rows, cols, packed, image)
    return pictures
