"""A run: compress what a configuration names, measure it in rounds, record, report; resumable."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flatsat
from flatsat.canonical import canonical_json, sha256_bytes, sha256_json
from flatsat.errors import FlatSatError, InfrastructureError, UsageError
from flatsat.harness import gate, publish
from flatsat.harness.config import RunConfig, RunFile
from flatsat.harness.execute import Labels, Supplies, Tally, execute, job_row
from flatsat.harness.plan import PlannedJob, Settings, Traits, expected_s, plan_jobs
from flatsat.harness.supply import probe_models, test_images
from flatsat.harness.workers import worker_pool
from flatsat.jobspec import JobKind, JobSpec
from flatsat.progress import NoProgress, Progress
from flatsat.reports.rows import CandidateRow, RunRow
from flatsat.units import Clock, SystemClock

if TYPE_CHECKING:
    from flatsat.compressors.candidate import Candidate
    from flatsat.compressors.recipe import RecipeSpec
    from flatsat.harness.lab import Lab
    from flatsat.jobspec import MeasurePlan
    from flatsat.reports.rows import OutcomeRow, Store

BUILD_WORKERS = 2
"""Processes that compress at once; they end before anything is measured on this machine."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_id: of the run.
        tally: jobs by what became of them.
        unbuilt: recipe and seed -> why no candidate came of it.
        regressions: what a gate found, in words.
        exit_code: 0 pass, 1 a gate failed, 3 a required board gave nothing.
        report: the page.
    """

    run_id: str
    tally: Tally
    unbuilt: Mapping[str, str]
    regressions: tuple[str, ...]
    exit_code: int
    report: Path


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        recipes: name -> number of candidates.
        known: how many of them are built already.
        jobs: by kind, for artifacts as far as they are known.
        expected_s: about how long measuring takes.
    """

    recipes: Mapping[str, int]
    known: int
    jobs: Mapping[str, int]
    expected_s: float


def begin_run(
    lab: Lab,
    store: Store,
    *,
    kind: str,
    config: Mapping[str, object],
    seed: int,
    clock: Clock | None = None,
) -> str:
    """Record a new run and make its folder; return its identifier."""
    clock = clock or SystemClock()
    run_id = clock.new_id(kind)
    text = canonical_json(config)
    lab.prepare()
    lab.run_dir(run_id).mkdir(parents=True, exist_ok=True)
    store.begin_run(
        RunRow(
            run_id=run_id,
            kind=kind,
            config_json=text,
            config_sha=sha256_bytes(text.encode()),
            code_version=flatsat.__version__,
            started_utc=clock.utc(),
            host_fp=sha256_json([platform.node(), platform.machine(), platform.release()])[:16],
            seed=seed,
        )
    )
    return run_id


def end_run(lab: Lab, store: Store, run_id: str, state: str, *, clock: Clock | None = None) -> Path:
    """Record how a run ended and write its pages; return the report's path."""
    store.finish_run(run_id, state, (clock or SystemClock()).utc())
    return publish.report(lab, store, run_id)


def measure_candidates(
    lab: Lab,
    run_id: str,
    candidates: Sequence[Candidate],
    *,
    boards: Sequence[str],
    settings: Settings,
    reuse: str = "never",
    progress: Progress | None = None,
    clock: Clock | None = None,
) -> list[OutcomeRow]:
    """Measure candidates as ordinary jobs of a run that has begun; return their outcomes.

    Jobs that the run has an outcome for already are not run again.

    Raises:
        UsageError: a board is unknown.
        InfrastructureError: the record can't be written.
    """
    store = lab.store()
    jobs, supplies = _prepare(lab, store, run_id, candidates, boards, settings)
    execute(
        lab,
        store,
        run_id,
        jobs,
        supplies,
        reuse=reuse,
        progress=progress,
        publish=lambda: publish.status(lab, store, run_id),
        clock=clock,
    )
    wanted = {job.job_id for job in jobs}
    return [row for row in store.outcomes(run_id=run_id) if row.job.job_id in wanted]


def start_run(config: RunConfig, lab: Lab, *, progress: Progress | None = None) -> RunResult:
    """Start a run of a configuration and bring it to its end."""
    lab.prepare()
    store = lab.store()
    run_id = begin_run(
        lab, store, kind="run", config=config_json(config), seed=config.file.run.seed
    )
    return _carry_on(lab, store, run_id, config.file, config.recipes, progress or NoProgress())


def resume_run(lab: Lab, run_id: str | None, *, progress: Progress | None = None) -> RunResult:
    """Finish a run that was stopped; None takes the newest that isn't done.

    Raises:
        UsageError: there is no such run, or it isn't one that a configuration started.
    """
    from flatsat.compressors.recipe import from_mapping

    lab.prepare()
    store = lab.store()
    runs = [r for r in store.runs() if r.kind == "run"]
    if run_id is None:
        open_runs = [r for r in runs if r.state != "done"]
        if not open_runs:
            raise UsageError("no run is left to resume", hint="list them with: flatsat runs list")
        run = open_runs[-1]
    else:
        found = [r for r in runs if r.run_id == run_id]
        if not found:
            raise UsageError(f"no run {run_id!r} to resume", hint="see: flatsat runs list")
        run = found[0]
    config: dict[str, Any] = json.loads(run.config_json)
    file = RunFile.model_validate(config["file"])
    recipes = [from_mapping(name, value) for name, value in config["recipes"].items()]
    store.begin_run(run)
    return _carry_on(lab, store, run.run_id, file, recipes, progress or NoProgress())


def dry_run(config: RunConfig, lab: Lab) -> DryRun:
    """Return what a run of this configuration would do; nothing is built or measured."""
    from flatsat.compressors.building import find_built
    from flatsat.compressors.recipe import recipe_id

    file = config.file
    known = 0
    recipes: dict[str, int] = {}
    settings = _settings(file)
    jobs = {kind.value: 0 for kind in settings.kinds}
    seconds = 0.0
    traits = board_traits(lab, file.matrix.boards)
    for spec in config.recipes:
        recipes[spec.name] = len(spec.seeds)
        for seed in spec.seeds:
            known += find_built(lab.candidates_dir, recipe_id(spec, seed)) is not None
    artifacts = [(spec, low) for spec in config.recipes for low in spec.lowers for _ in spec.seeds]
    for mine in traits.values():
        plan, rounds = settings.on(mine)
        for kind in settings.kinds:
            count = sum(
                len(settings.runtimes_for(lower.to)) * len(settings.threads)
                for _, lower in artifacts
            )
            if kind is JobKind.LATENCY:
                count *= rounds
            elif kind is JobKind.CAPABILITY:
                count = 1
            elif kind is JobKind.ENERGY and not mine.metered:
                count = 0
            jobs[kind.value] += count
            seconds += count * expected_s(_example_job(kind, plan))
    return DryRun(recipes, known, jobs, seconds)


def build_all(
    lab: Lab,
    recipes: Sequence[RecipeSpec],
    progress: Progress,
    *,
    workers: int = BUILD_WORKERS,
) -> tuple[list[Candidate], dict[str, str]]:
    """Build a candidate for each recipe and seed, in processes of their own.

    Returns:
        The candidates in the order of the recipes, and for each that couldn't be built why.
    """
    if not recipes:
        return [], {}
    from flatsat.compressors.building import find_built
    from flatsat.compressors.candidate import load_candidate
    from flatsat.compressors.recipe import build, recipe_id

    wanted = [(spec, seed) for spec in recipes for seed in spec.seeds]
    folders: dict[int, Path] = {}
    unbuilt: dict[str, str] = {}
    missing: list[int] = []
    for index, (spec, seed) in enumerate(wanted):
        folder = find_built(lab.candidates_dir, recipe_id(spec, seed))
        if folder is None:
            missing.append(index)
        else:
            folders[index] = folder
    done = len(folders)
    progress.update("compress", done, len(wanted), f"{done} built before" if done else "")
    if missing:
        with worker_pool(min(workers, len(missing))) as pool:
            futures = {
                pool.submit(
                    build,
                    wanted[index][0],
                    wanted[index][1],
                    candidates_dir=lab.candidates_dir,
                    cache_dir=lab.cache_dir,
                ): index
                for index in missing
            }
            for future in concurrent.futures.as_completed(futures):
                index = futures[future]
                spec, seed = wanted[index]
                label = f"{spec.name}, seed {seed}"
                try:
                    folders[index] = future.result()
                except concurrent.futures.process.BrokenProcessPool as error:
                    raise InfrastructureError(
                        f"a process that compressed {label} was killed",
                        hint="memory may be short; go on with: flatsat run --resume",
                    ) from error
                except FlatSatError as error:
                    unbuilt[label] = str(error)
                    progress.log(f"{label}: {error}")
                done += 1
                progress.update("compress", done, len(wanted), label)
    return [load_candidate(folders[index]) for index in sorted(folders)], unbuilt


def _carry_on(
    lab: Lab,
    store: Store,
    run_id: str,
    file: RunFile,
    recipes: Sequence[RecipeSpec],
    progress: Progress,
) -> RunResult:
    result = work(lab, store, run_id, file, recipes, progress)
    state = "done" if not result.tally.quarantined else "incomplete"
    return replace(result, report=end_run(lab, store, run_id, state))


def work(
    lab: Lab,
    store: Store,
    run_id: str,
    file: RunFile,
    recipes: Sequence[RecipeSpec],
    progress: Progress,
) -> RunResult:
    """Do what is left of a run that has begun: compress, measure, hold it to its gate.

    The run stays open: `end_run` ends it and writes its page, which `report` names already.
    """
    for name in file.matrix.boards:
        lab.board(name)
    progress.log(f"run {run_id}")
    store.put_note(run_id, "title", file.run.name)
    publish.status(lab, store, run_id)
    try:
        candidates, unbuilt = build_all(lab, recipes, progress)
        candidates += [lab.candidate(selector) for selector in file.matrix.candidates]
        store.put_note(run_id, "unbuilt", unbuilt)
        settings = _settings(file)
        jobs, supplies = _prepare(lab, store, run_id, candidates, file.matrix.boards, settings)
        tally = execute(
            lab,
            store,
            run_id,
            jobs,
            supplies,
            reuse=file.run.reuse,
            progress=progress,
            publish=lambda: publish.status(lab, store, run_id),
        )
    except BaseException:
        publish.quietly_mark(lab, store, run_id, "interrupted")
        raise
    found = gate.find(store, run_id, file.gate, file.run.baseline)
    store.put_note(run_id, "regressions", list(found.regressions))
    for alarm in found.alarms:
        progress.log(f"alarm: {alarm}")
    required = file.run.required if file.run.required is not None else file.matrix.boards
    dead = [name for name in required if name in tally.quarantined]
    code = 1 if found.regressions else 3 if dead else 0
    page = publish.page_of(lab, run_id)
    return RunResult(run_id, tally, unbuilt, found.regressions, code, page)


def _settings(file: RunFile) -> Settings:
    wall, virtual = file.plan.wall, file.plan.virtual
    return Settings(
        kinds=tuple(JobKind(kind) for kind in file.matrix.jobs),
        runtimes=file.matrix.runtimes,
        threads=file.matrix.threads,
        affinity=file.matrix.affinity,
        plan=wall.measure_plan(),
        rounds=wall.rounds,
        virtual_plan=virtual.measure_plan(),
        virtual_rounds=virtual.rounds,
        seed=file.run.seed,
    )


def board_traits(lab: Lab, boards: Sequence[str]) -> dict[str, Traits]:
    """Return what a plan must know of each board.

    Raises:
        UsageError: a board is unknown.
    """
    found = {name: lab.board(name) for name in boards}
    return {name: Traits(b.time_kind, b.meter != "none") for name, b in found.items()}


def _prepare(
    lab: Lab,
    store: Store,
    run_id: str,
    candidates: Sequence[Candidate],
    boards: Sequence[str],
    settings: Settings,
) -> tuple[list[PlannedJob], Supplies]:
    """Put candidates and their jobs into the record; return the jobs and what they need."""
    traits = board_traits(lab, boards)
    unique = list({c.candidate_id: c for c in candidates}.values())
    datasets: dict[str, str] = {}
    labels: dict[str, Labels] = {}
    if JobKind.ACCURACY in settings.kinds:
        datasets, labels = test_images(lab, unique)
    files: dict[str, Path] = {sha256: lab.data_file(sha256) for sha256 in datasets.values()}
    names: dict[str, str] = {}
    coded: dict[str, tuple[str, Path]] = {}
    store.put_candidates(run_id, [(candidate_row(c), c.artifacts) for c in unique])
    for candidate in unique:
        for artifact in candidate.artifacts:
            files[artifact.sha256] = candidate.folder / artifact.file
            if (path := candidate.coded_path(artifact)) is not None and artifact.coded is not None:
                coded.setdefault(artifact.sha256, (artifact.coded.sha256, path))
            several = len(candidate.artifacts) > 1
            names[artifact.sha256] = candidate.name + (f" {artifact.role}" if several else "")
            if artifact.goldens is not None:
                goldens = candidate.folder / "goldens" / f"{artifact.goldens}.npz"
                files[artifact.goldens] = goldens
    probes = None
    if JobKind.CAPABILITY in settings.kinds:
        probes, path = probe_models(lab)
        files[probes], names[probes] = path, "probe models"
    jobs = plan_jobs(
        run_id, unique, boards, settings, traits=traits, datasets=datasets, probes=probes
    )
    store.add_jobs(run_id, [job_row(run_id, job) for job in jobs])
    return jobs, Supplies(files, labels, names, coded)


def candidate_row(candidate: Candidate) -> CandidateRow:
    """Return what the record keeps of a candidate."""
    return CandidateRow(
        candidate_id=candidate.candidate_id,
        recipe_id=candidate.recipe_id,
        name=candidate.name,
        role=candidate.role,
        workload=candidate.workload,
        seed=candidate.seed,
        parent=candidate.parent,
        params=candidate.params,
        nonzeros=candidate.nonzeros,
        macs=candidate.macs,
        cost=candidate.cost,
        accuracy_host=candidate.accuracy_host,
        layers=candidate.layers,
        recipe=candidate.recipe,
    )


def config_sha(config: RunConfig) -> str:
    """Return the hash under which runs of this configuration are recorded."""
    return sha256_bytes(canonical_json(config_json(config)).encode())


def config_json(config: RunConfig) -> dict[str, object]:
    """Return all that a run needs to be resumed, as it is recorded."""
    return {
        "file": config.file.model_dump(mode="json", by_alias=True),
        "recipes": {spec.name: _recipe_mapping(spec) for spec in config.recipes},
    }


def _recipe_mapping(spec: RecipeSpec) -> dict[str, object]:
    """Return what `from_mapping` reads back as this recipe."""
    value: dict[str, object] = {
        "workload": spec.workload,
        "seeds": list(spec.seeds),
        "step": [{"use": step.use, **step.params} for step in spec.steps],
        "lower": [
            {
                "to": lower.to,
                **lower.params,
                **({} if lower.int8 is None else {"int8": dict(lower.int8)}),
            }
            for lower in spec.lowers
        ],
    }
    return value if spec.code is None else {**value, "code": dict(spec.code)}


def _example_job(kind: JobKind, plan: MeasurePlan) -> PlannedJob:
    return PlannedJob("", JobSpec(kind, "", "onnx", "", plan=plan), "", "", 0, 0, "")
