"""`flatsat search`: a search in the record, from its file to its page; resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.harness.search.history import Verdict
from flatsat.harness.search.settings import SearchFile, load_search
from flatsat.progress import NoProgress, Progress

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.harness.run import RunResult
    from flatsat.harness.search.finish import Ending
    from flatsat.harness.search.loop import SearchLoop
    from flatsat.harness.search.settings import SearchSection
    from flatsat.reports.rows import Store

__all__ = ["load_search", "run_search", "search_into"]

CHECKPOINT = "search.state"
_EXIT_CODES = {Verdict.MET: 0, Verdict.UNCLEAR: 4, Verdict.OVER: 1, Verdict.FAILED: 1}


def run_search(
    file: SearchFile, lab: Lab, *, resume: bool = False, progress: Progress | None = None
) -> RunResult:
    """Search, measure, choose; everything is in the record under the run of the result.

    After each batch a checkpoint is written whole. A search that was stopped and resumed makes
    the same evaluations, to the bit, as one that was not: strategies go on from their states, and
    what a batch had measured already is taken from the record.

    Args:
        file: as `load_search` reads it.
        lab: record, candidates and boards.
        resume: go on with the newest unfinished search of this very file.
        progress: is told what goes on.

    Returns:
        The run, with exit code 0 if the chosen candidate meets the budget by measurement, 4 if
        that is unclear, 1 if none does.

    Raises:
        UsageError: nothing to resume, an unknown board, a budget that no policy meets, or a
            network without channels to prune.
        DataError: the checkpoint is damaged.
        InfrastructureError: the board gave nothing, or the record can't be written.
    """
    from flatsat.harness.run import begin_run, end_run

    progress = progress or NoProgress()
    section = file.search
    if section.budget.board:
        lab.board(section.budget.board)
    lab.prepare()
    store = lab.store()
    config: dict[str, object] = {"file": file.model_dump(mode="json", by_alias=True)}
    if resume:
        run_id = _unfinished(store, config)
    else:
        run_id = begin_run(lab, store, kind="search", config=config, seed=section.seeds[0])
    store.put_note(run_id, "title", section.name)
    progress.log(f"search {run_id}")
    ending = search_into(section, lab, store, run_id, progress)
    report = end_run(lab, store, run_id, "done")
    return _result(store, run_id, ending, report)


def search_into(
    section: SearchSection, lab: Lab, store: Store, run_id: str, progress: Progress
) -> Ending:
    """Search within a run that has begun, from its checkpoint if it has one; the run stays open.

    Raises:
        As `run_search`; the run is marked as failed or interrupted then.
    """
    from flatsat.harness import publish

    try:
        publish.status(lab, store, run_id)
        loop = _loop(section, lab, run_id, progress)
        return _carry_on(loop, lab, store, run_id, progress)
    except BaseException as error:
        state = "failed" if isinstance(error, UsageError) else "interrupted"
        publish.quietly_mark(lab, store, run_id, state)
        raise


def _loop(section: SearchSection, lab: Lab, run_id: str, progress: Progress) -> SearchLoop:
    """Put the search together: network, space, estimator, bench."""
    from flatsat.compressors.graph import layers
    from flatsat.datasets.workload import parse_ref
    from flatsat.harness.search.bench import LabBench
    from flatsat.harness.search.costs import MacsModel
    from flatsat.harness.search.domain import Graph
    from flatsat.harness.search.estimate import estimator_of, held_out, pruner_of
    from flatsat.harness.search.loop import SearchLoop
    from flatsat.harness.search.spaces import ChannelSpace
    from flatsat.harness.search.whole import one_torch_thread

    workload, network = parse_ref(section.workload)
    with one_torch_thread():
        pruner = pruner_of(section, workload, network, lab.cache_dir, progress)
        found = layers(pruner.network.module, workload.image_shape)
    space = ChannelSpace(
        workload=section.workload,
        seed=section.network_seed,
        lower=section.space.lower,
        round_to=section.space.round_to,
        batches=section.estimate.calibration_batches,
        points=section.estimate.points,
        dtypes=section.space.dtypes,
    )
    domain = space.domain(Graph(found, pruner.groups, workload.image_shape))
    split = held_out(workload, lab.cache_dir)
    estimator = estimator_of(pruner, split, MacsModel(domain))
    bench = LabBench(lab, run_id, section, progress)
    return SearchLoop(section, domain, space, estimator, bench, progress)


def _carry_on(loop: SearchLoop, lab: Lab, store: Store, run_id: str, progress: Progress) -> Ending:
    """Take up the checkpoint if there is one, and bring the search to its end."""
    from flatsat.harness import publish
    from flatsat.harness.lab import write_atomically
    from flatsat.harness.search.finish import finish
    from flatsat.harness.search.note import detail_note, search_note

    checkpoint = lab.run_dir(run_id) / CHECKPOINT

    def save(ending: Ending | None = None) -> None:
        if ending is None:
            write_atomically(checkpoint, loop.state())
        store.put_note(run_id, "search", search_note(loop, ending))
        store.put_note(run_id, "search-detail", detail_note(loop, ending))
        publish.status(lab, store, run_id)

    if checkpoint.is_file():
        loop.restore(checkpoint.read_bytes())
        progress.log(f"resumed after {loop.evaluations} evaluations of each strategy")
    else:
        loop.prepare()
        save()
    while not loop.finished:
        loop.batch()
        save()
    total = len(loop.tracks) * loop.section.episodes
    progress.update("search", total, total)
    ending = finish(loop, progress)
    save(ending)
    return ending


def _unfinished(store: Store, config: dict[str, object]) -> str:
    """Return the newest search of this configuration that isn't done, set back to running."""
    from flatsat.canonical import canonical_json, sha256_bytes

    sha256 = sha256_bytes(canonical_json(config).encode())
    open_runs = [
        run
        for run in store.runs()
        if run.kind == "search" and run.config_sha == sha256 and run.state != "done"
    ]
    if not open_runs:
        raise UsageError(
            "no unfinished search of this file as it is now",
            hint="start it without --resume; see: flatsat runs list",
        )
    store.begin_run(open_runs[-1])
    return open_runs[-1].run_id


def _result(store: Store, run_id: str, ending: Ending, report: Path) -> RunResult:
    from flatsat.harness.execute import Tally
    from flatsat.harness.run import RunResult

    tally = Tally.of_run(store, run_id)
    regressions: tuple[str, ...] = ()
    if ending.chosen is None:
        regressions = ("no candidate was shown by measurement to meet the budget",)
    return RunResult(run_id, tally, {}, regressions, _EXIT_CODES[ending.verdict], report)
