"""`flatsat demo`: the whole loop on real images, as one run with one page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import canonical_json, sha256_bytes
from flatsat.harness.config import load_run
from flatsat.harness.execute import Tally
from flatsat.harness.run import RunResult, begin_run, config_json, end_run, work
from flatsat.harness.search.study import load_search, search_into
from flatsat.progress import NoProgress, Progress

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.reports.rows import Store

FOLDER = Path(__file__).parent


def run_demo(lab: Lab, *, progress: Progress | None = None) -> RunResult:
    """Run the demo's configuration, then its search, as one run; write its page.

    A demo that was stopped goes on where it was; one that has ended is measured anew with the
    networks that it made.

    Raises:
        FlatSatError: as `start_run` and `run_search` do.
    """
    progress = progress or NoProgress()
    config = load_run(FOLDER / "run.toml")
    search = load_search(FOLDER / "search.toml")
    lab.prepare()
    store = lab.store()
    value: dict[str, object] = {
        **config_json(config),
        "search": search.model_dump(mode="json", by_alias=True),
    }
    run_id = _unfinished(store, value) or begin_run(
        lab, store, kind="demo", config=value, seed=config.file.run.seed
    )
    result = work(lab, store, run_id, config.file, config.recipes, progress)
    search_into(search.search, lab, store, run_id, progress)
    report = end_run(lab, store, run_id, "incomplete" if result.tally.quarantined else "done")
    tally = Tally.of_run(store, run_id, result.tally.quarantined)
    return replace(result, report=report, tally=tally)


def _unfinished(store: Store, config: dict[str, object]) -> str | None:
    """Return the newest demo of this configuration that isn't done, set back to running."""
    sha256 = sha256_bytes(canonical_json(config).encode())
    for run in reversed(store.runs()):
        if run.kind == "demo" and run.config_sha == sha256:
            if run.state in ("done", "incomplete"):
                return None
            store.begin_run(run)
            return run.run_id
    return None
