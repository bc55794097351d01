"""`flatsat demo`: the whole loop on real images, as one run with one page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import canonical_json, sha256_bytes
from flatsat.errors import InfrastructureError, UsageError
from flatsat.harness.boards_in_use import prepare
from flatsat.harness.config import load_run
from flatsat.harness.execute import Tally
from flatsat.harness.run import RunResult, begin_run, config_json, end_run, work
from flatsat.harness.search.study import load_search, run_search, search_into
from flatsat.progress import NoProgress, Progress

if TYPE_CHECKING:
    from flatsat.compressors.recipe import RecipeSpec
    from flatsat.harness.config import RunConfig
    from flatsat.harness.lab import Lab
    from flatsat.harness.search.settings import SearchFile
    from flatsat.reports.rows import Store

FOLDER = Path(__file__).parent
HOST = "host"
SIBLINGS = "searches"
"""Note of a run: board -> run of the same search on that board, for a table side by side."""


def run_demo(lab: Lab, *, progress: Progress | None = None) -> RunResult:
    """Run the demo's configuration, then its searches, as one run; write its page.

    A demo that was stopped goes on where it was; one that has ended is measured anew with the
    networks that it made. What can't be had here (an emulator, the TensorFlow Lite converter) is
    left out, and said so.

    Raises:
        FlatSatError: as `start_run` and `run_search` do.
    """
    progress = progress or NoProgress()
    lab.prepare()
    config = load_run(FOLDER / "run.toml")
    search = load_search(FOLDER / "search.toml")
    forms = load_search(FOLDER / "forms.toml")
    emulated = _emulated(lab, config.file.matrix.boards, progress)
    config = _without_boards(config, emulated)
    if not _converts(lab, progress):
        config = replace(config, recipes=tuple(r for r in config.recipes if not _is_tflite(r)))
    if not emulated:
        search = _on(search, HOST)
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
    _search_forms(forms, emulated, lab, store, run_id, progress)
    report = end_run(lab, store, run_id, "incomplete" if result.tally.quarantined else "done")
    tally = Tally.of_run(store, run_id, result.tally.quarantined)
    return replace(result, report=report, tally=tally)


def _emulated(lab: Lab, boards: Sequence[str], progress: Progress) -> list[str]:
    """Make the emulated boards ready before anything is timed; return those that can be used."""
    ready = []
    for name in boards:
        if name == HOST:
            continue
        try:
            asyncio.run(prepare(lab.board(name), progress))
        except InfrastructureError as error:
            progress.log(f"going on without board {name}: {error}")
        else:
            ready.append(name)
    return ready


def _without_boards(config: RunConfig, emulated: Sequence[str]) -> RunConfig:
    """Return the configuration for this machine and the emulated boards that there are."""
    matrix = config.file.matrix.model_copy(update={"boards": (HOST, *emulated)})
    return replace(config, file=config.file.model_copy(update={"matrix": matrix}))


def _converts(lab: Lab, progress: Progress) -> bool:
    """Make the TensorFlow Lite converter ready; return whether it can be used."""
    from flatsat.compressors.converter_env import ensure_converter

    try:
        ensure_converter(lab.cache_dir, progress)
    except InfrastructureError as error:
        progress.log(f"going on without TensorFlow Lite files: {error}")
        return False
    return True


def _is_tflite(recipe: RecipeSpec) -> bool:
    return any(lower.to == "tflite" for lower in recipe.lowers)


def _on(search: SearchFile, board: str) -> SearchFile:
    """Return the same search on another board."""
    section = search.search
    budget = section.budget.model_copy(update={"board": board})
    return search.model_copy(update={"search": section.model_copy(update={"budget": budget})})


def _search_forms(
    forms: SearchFile,
    boards: Sequence[str],
    lab: Lab,
    store: Store,
    run_id: str,
    progress: Progress,
) -> None:
    """Run the small search on each board, a run of its own each; note them in the demo's run."""
    done = store.notes(run_id).get(SIBLINGS)
    found: dict[str, str] = dict(done) if isinstance(done, dict) else {}
    for board in boards:
        if board not in found:
            progress.log(f"searching over float and int8 on {board}")
            try:
                found[board] = run_search(_on(forms, board), lab, progress=progress).run_id
            except UsageError as error:
                progress.log(f"no search over element types on {board}: {error}")
                continue
            store.put_note(run_id, SIBLINGS, found)


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
