"""From the record to what a page shows: the one place where a report asks the store."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flatsat.errors import DataError
from flatsat.outcome import Failed, Inconclusive
from flatsat.reports.collect_across import across_boards
from flatsat.reports.collect_board import capability
from flatsat.reports.collect_energy import spent
from flatsat.reports.collect_search import search_from_note, siblings
from flatsat.reports.collect_sections import Beside, sections
from flatsat.reports.known import Known, known, seeds_of_names
from flatsat.reports.model import (
    CandidateReport,
    FailureReport,
    JobCounts,
    LayerReport,
    MaskPicture,
    RunReport,
)
from flatsat.reports.model_survey import StepReport, Survey
from flatsat.reports.rows import RunCounts
from flatsat.reports.toml_text import to_toml
from flatsat.units import SystemClock

if TYPE_CHECKING:
    from flatsat.reports.comparison import Comparison
    from flatsat.reports.model_board import CapabilityReport
    from flatsat.reports.model_search import SearchReport
    from flatsat.reports.rows import CandidateRow, OutcomeRow, RunRow, Store
    from flatsat.units import Clock

_MARGIN = 0.01
_THRESHOLD = 0.02
_NOBODY = "unknown artifact"
_WITHOUT = {"capability": "the board itself", "faults": "the board itself"}
"""Whom a failed job of a kind is about that belongs to no candidate."""


def collect(
    store: Store,
    run_id: str,
    *,
    masks: Mapping[str, MaskPicture] | None = None,
    survey: Survey | None = None,
    comparisons: Sequence[Comparison] = (),
    clock: Clock | None = None,
) -> RunReport:
    """Return everything that a run's page shows.

    Args:
        store: the record.
        run_id: of the run.
        masks: sparsity pictures by candidate_id.
        survey: what the candidates' folders tell beside the record.
        comparisons: to be shown besides those with the baselines, which are always made.
        clock: tells when the page was made.

    Raises:
        DataError: there is no such run.
        InfrastructureError: the record can't be read.
    """
    run = store.run(run_id)
    notes = store.notes(run_id)
    candidates = store.candidates(run_id)
    latencies = store.outcomes(run_id, kind="latency")
    energies = store.outcomes(run_id, kind="energy")
    others = [
        row for row in store.outcomes(run_id, with_samples=False) if row.job.kind != "latency"
    ]
    rows = [*latencies, *others]
    artifacts = known(store, candidates, {row.job.artifact for row in rows})
    config = _config(run)
    margin = _number(config, ("file", "gate", "accuracy", "non_inferior"), _MARGIN)
    threshold = _number(config, ("file", "gate", "latency", "slower_than"), _THRESHOLD)
    failures = _failures(rows, artifacts, notes)
    searches: list[SearchReport] = []
    for key, note in notes.items():
        if key == "search" or key.startswith("search:"):
            try:
                found = search_from_note(note)
                detail = notes.get(key.replace("search", "search-detail", 1))
                searches.append(replace(found, messages=_lines(detail, "messages")))
            except DataError as error:
                failures.append(_note_failure(key, error))
    title = notes.get("title")
    beside = Beside(others, store.boards(run_id), spent(energies), _capabilities(store, latencies))
    measured = sections(artifacts, latencies, beside, margin=margin, threshold=threshold)
    return RunReport(
        run_id=run_id,
        kind=run.kind,
        name=str(title) if title else run_id,
        state=run.state,
        started_utc=run.started_utc,
        finished_utc=run.finished_utc,
        generated_utc=(clock or SystemClock()).utc(),
        seed=run.seed,
        code_version=run.code_version,
        config=_config_text(run.kind, config),
        config_sha=run.config_sha,
        host_fp=run.host_fp,
        jobs=_jobs(store.counts(run_id).get(run_id, RunCounts())),
        candidates=_candidates(store, candidates),
        sections=measured,
        failures=tuple(failures),
        comparisons=tuple(comparisons),
        search=tuple(searches),
        siblings=siblings(store, notes.get("searches")),
        boards=across_boards(measured, artifacts),
        regressions=_lines(notes, "regressions"),
        masks=dict(masks or {}),
        survey=survey or Survey(),
        versions=_versions(run, rows),
        commands=_commands(run, config),
    )


def _capabilities(store: Store, rows: Sequence[OutcomeRow]) -> dict[str, CapabilityReport]:
    """Return what each board of these outcomes can do, from any run: a board stays the same."""
    found: dict[str, CapabilityReport] = {}
    for board_id in dict.fromkeys(row.board_id for row in rows if row.board_id):
        told = capability(store.outcomes(board=board_id, kind="capability", with_samples=False))
        if told is not None:
            found[board_id] = told
    return found


def _jobs(counts: RunCounts) -> JobCounts:
    return JobCounts(
        planned=counts.jobs,
        measured=counts.measured,
        failed=counts.failed,
        inconclusive=counts.inconclusive,
        reused=counts.reused,
    )


# Candidates


def _candidates(store: Store, rows: Sequence[CandidateRow]) -> tuple[CandidateReport, ...]:
    names = seeds_of_names(rows)
    found: list[CandidateReport] = []
    for row in rows:
        seeded = names[row.name] > 1 and row.seed is not None
        artifacts = store.artifacts(row.candidate_id)
        found.append(
            CandidateReport(
                candidate_id=row.candidate_id,
                recipe_id=row.recipe_id or "",
                label=f"{row.name} seed {row.seed}" if seeded else row.name,
                role=row.role,
                workload=row.workload,
                seed=row.seed,
                parent=row.parent,
                params=row.params,
                nonzeros=row.nonzeros,
                macs=row.macs,
                cost=dict(row.cost),
                accuracy_host=dict(row.accuracy_host),
                layers=_layers(row, _reference(row, rows)),
                recipe=json.dumps(row.recipe, indent=1, ensure_ascii=False) if row.recipe else "",
                artifacts=tuple((a.sha256, a.format, a.role, a.size_bytes) for a in artifacts),
                steps=_steps(row),
            )
        )
    return tuple(found)


def _steps(row: CandidateRow) -> tuple[StepReport, ...]:
    """Return the transforms of a candidate's recipe, as far as they are told."""
    steps = row.recipe.get("steps")
    return tuple(
        StepReport(str(step["use"]), dict(params) if isinstance(params, Mapping) else {})
        for step in (steps if isinstance(steps, Sequence) else ())
        if isinstance(step, Mapping) and "use" in step
        for params in (step.get("params"),)
    )


def _reference(row: CandidateRow, rows: Sequence[CandidateRow]) -> CandidateRow | None:
    """Return the dense reference of a candidate's workload, of its own seed where there is one."""
    fitting = [r for r in rows if r.role == "reference" and r.workload == row.workload]
    return next((r for r in fitting if r.seed == row.seed), fitting[0] if fitting else None)


def _layers(row: CandidateRow, reference: CandidateRow | None) -> tuple[LayerReport, ...]:
    dense = {str(la["name"]): _int(la, "params") for la in (reference or row).layers}
    found: list[LayerReport] = []
    for layer in row.layers:
        name, nonzeros = str(layer["name"]), _int(layer, "nonzeros")
        full = dense.get(name, 0)
        found.append(
            LayerReport(
                name=name,
                kind=str(layer.get("kind", "")),
                params=_int(layer, "params"),
                nonzeros=nonzeros,
                macs=_int(layer, "macs"),
                kept=nonzeros / full if full else None,
            )
        )
    return tuple(found)


def _int(value: Mapping[str, object], key: str) -> int:
    found = value.get(key)
    return found if isinstance(found, int) else 0


# Failures


def _failures(
    rows: Sequence[OutcomeRow], artifacts: Mapping[str, Known], notes: Mapping[str, object]
) -> list[FailureReport]:
    """Return what gave no value; jobs that ended alike stand together."""
    found: Counter[FailureReport] = Counter()
    for row in rows:
        held = artifacts.get(row.job.artifact)
        label = held.label if held is not None else _WITHOUT.get(row.job.kind, _NOBODY)
        where = (label, row.job.board_name, row.job.kind)
        if isinstance(row.outcome, Failed):
            fault = row.outcome.fault
            found[
                FailureReport(
                    *where,
                    status="failed",
                    owner=fault.owner.value,
                    code=fault.code,
                    message=fault.message,
                    hint=fault.hint,
                    transient=fault.transient,
                    attempts=row.job.attempt,
                )
            ] += 1
        elif isinstance(row.outcome, Inconclusive):
            why = row.outcome.why
            found[
                FailureReport(*where, "inconclusive", "", "", why, "", False, row.job.attempt)
            ] += 1
    listed = [
        FailureReport(**{**vars(failure), "times": times}) for failure, times in found.items()
    ]
    unbuilt = notes.get("unbuilt")
    if isinstance(unbuilt, Mapping):
        listed += [
            FailureReport(
                str(label), "\u2013", "compress", "failed", "config", "not built", str(why), "",
                False, 1,
            )
            for label, why in unbuilt.items()
        ]  # fmt: skip
    return listed


def _lines(holder: object, key: str) -> tuple[str, ...]:
    """Return the lines that a note holds under a key, () where there are none."""
    lines = holder.get(key) if isinstance(holder, Mapping) else None
    return tuple(str(line) for line in lines) if isinstance(lines, (list, tuple)) else ()


def _note_failure(key: str, error: DataError) -> FailureReport:
    return FailureReport(
        f"note {key!r}", "\u2013", "report", "failed", "harness", "bad-note", error.message,
        error.hint or "", False, 1,
    )  # fmt: skip


# Provenance


def _config(run: RunRow) -> dict[str, object]:
    value = json.loads(run.config_json) if run.config_json else {}
    return value if isinstance(value, dict) else {}


def _number(config: Mapping[str, object], path: Sequence[str], default: float) -> float:
    value: object = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return float(value)
    return default


def _config_text(kind: str, config: Mapping[str, object]) -> str:
    """Return the configuration as a file that can be run again, else as it was recorded."""
    file = config.get("file")
    if kind not in ("run", "search") or not isinstance(file, Mapping):
        return to_toml(config)
    tables = dict(file)
    recipes = config.get("recipes")
    if isinstance(recipes, Mapping):
        # The recipes stand below in full: what they were included from isn't needed.
        tables["recipe"] = recipes
        run = tables.get("run")
        if isinstance(run, Mapping):
            tables["run"] = {key: value for key, value in run.items() if key != "include"}
    return to_toml(tables)


def _commands(run: RunRow, config: Mapping[str, object]) -> tuple[str, ...]:
    """Return what to type to do it again, and to draw the page anew."""
    anew = ("# draw this page anew from the record", f"flatsat report {run.run_id}")
    again = f"{run.kind}-again.toml"
    if run.kind in ("run", "search") and "file" in config:
        first = (f"# save the configuration below as {again}", f"flatsat {run.kind} {again}")
        return (*first, *anew)
    if run.kind == "measure" and "model" in config:
        model, board = shlex.quote(str(config["model"])), config.get("board", "host")
        threads = config.get("threads", 1)
        return (f"flatsat measure {model} --board {board} --threads {threads}", *anew)
    return ("flatsat demo", *anew) if run.kind == "demo" else anew


def _versions(run: RunRow, rows: Sequence[OutcomeRow]) -> tuple[tuple[str, str], ...]:
    found: dict[str, set[str]] = {}
    for row in rows:
        evidence = row.outcome.evidence
        runtime, environment = evidence.get("runtime"), evidence.get("environment")
        if isinstance(runtime, Mapping) and runtime.get("version"):
            name = str(runtime.get("name") or row.job.spec.runtime)
            found.setdefault(name, set()).add(str(runtime["version"]))
        if isinstance(environment, Mapping) and environment.get("python"):
            found.setdefault("Python on the board", set()).add(str(environment["python"]))
    listed = [(name, ", ".join(sorted(values))) for name, values in sorted(found.items())]
    return (("FlatSat", run.code_version), *listed)
