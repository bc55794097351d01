"""The run that measures a latency table: each single layer is an ordinary job in the record."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.harness.search.bench import run_jobs, timed
from flatsat.harness.search.probes import Probe, model_bytes

if TYPE_CHECKING:
    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab
    from flatsat.harness.search.settings import SearchSection
    from flatsat.harness.search.table import BoardTable, TablePlan
    from flatsat.progress import Progress


def measure_table(
    lab: Lab, plan: TablePlan, section: SearchSection, progress: Progress
) -> BoardTable:
    """Measure every probe of a plan on the search's board, in a run of kind "layers".

    The run is one of its own, so that the search's page shows networks and not their parts.
    Layers that this very board ran before may be reused as `measure.reuse` allows.

    Raises:
        InfrastructureError: the board ran none of the layers.
    """
    from flatsat.harness import publish
    from flatsat.harness.run import begin_run, end_run

    store = lab.store()
    board = section.budget.board
    probes = plan.probes()
    config = {"workload": section.workload, "board": board, "probes": [p.name for p in probes]}
    run_id = begin_run(lab, store, kind="layers", config=config, seed=0)
    try:
        store.put_note(run_id, "title", f"layers of {section.workload} on {board}")
        progress.log(f"measuring {len(probes)} single layers on {board} (run {run_id})")
        candidates = {probe: _candidate(lab, probe) for probe in probes}
        rows = run_jobs(
            lab,
            run_id,
            list(candidates.values()),
            board=board,
            kinds=(section.job_kind,),
            plan=section.measure.plan(),
            rounds=1,
            comparison="layers",
            reuse=section.measure.reuse,
            progress=progress,
        )
        measured: dict[Probe, float] = {}
        failed: dict[Probe, str] = {}
        for probe, candidate in candidates.items():
            found = timed(rows, {artifact.sha256 for artifact in candidate.artifacts})
            if found.medians:
                measured[probe] = found.medians[0]
            else:
                failed[probe] = found.why
        table = plan.table(measured, failed, run_id)
    except BaseException:
        publish.quietly_mark(lab, store, run_id, "interrupted")
        raise
    end_run(lab, store, run_id, "done")
    for layer, why in table.failed.items():
        progress.log(f"layer {layer} could not be measured alone: {why}")
    return table


def _candidate(lab: Lab, probe: Probe) -> Candidate:
    from flatsat.compressors.importing import import_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{probe.name}.onnx"
        path.write_bytes(model_bytes(probe))
        return import_model(path, None, lab.candidates_dir, probe.name)
