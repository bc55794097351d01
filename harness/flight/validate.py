"""Validate one model on one board: measure what the mission asks for, then judge."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import flatsat
from flatsat.canonical import sha256_file
from flatsat.errors import UsageError
from flatsat.harness import publish
from flatsat.harness.flight.evidence import Evidence
from flatsat.harness.flight.matrix import Matrix, Subject, untraced_evidence
from flatsat.harness.flight.requirements import Mission, load_mission
from flatsat.harness.flight.verdict import judge_mission
from flatsat.harness.lab import write_atomically
from flatsat.harness.plan import Settings
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, MeasurePlan
from flatsat.outcome import Failed, Measured

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab
    from flatsat.progress import Progress
    from flatsat.reports.rows import OutcomeRow

LEAST_PROCESSES = 6


@dataclass(frozen=True)
class Validation:
    """A matrix and the files that show it."""

    matrix: Matrix
    folder: Path
    html: Path
    csv: Path
    json: Path


def validate(
    lab: Lab,
    candidate: Candidate,
    mission_file: Path,
    *,
    board: str,
    role: str | None,
    progress: Progress,
) -> Validation:
    """Measure a candidate's model on `board` and judge it against a mission file.

    Args:
        lab: the lab.
        candidate: whose artifact is validated.
        mission_file: requirements (TOML).
        board: board name.
        role: the artifact's role; needed when the candidate has several.
        progress: is told what goes on.

    Raises:
        ConfigError: the mission file is wrong.
        UsageError: no or several artifacts fit.
    """
    from flatsat.harness.run import begin_run, end_run, measure_candidates

    mission = load_mission(mission_file)
    artifact = _artifact(candidate, role)
    store = lab.store()
    config = {
        "mission": mission.model_dump(mode="json", by_alias=True),
        "candidate": candidate.candidate_id,
        "artifact": artifact.sha256,
        "board": board,
    }
    run_id = begin_run(lab, store, kind="validate", config=config, seed=0)
    store.put_note(run_id, "title", f"{candidate.name} for {mission.mission.id}")
    try:
        rows = measure_candidates(
            lab,
            run_id,
            [replace(candidate, artifacts=(artifact,))],
            boards=[board],
            settings=_settings(mission),
            progress=progress,
        )
    except BaseException:
        publish.quietly_mark(lab, store, run_id, "interrupted")
        raise
    end_run(lab, store, run_id, "done")
    evidence = gather(rows, artifact, candidate.workload, board)
    found = store.boards(run_id)
    subject = Subject(
        candidate_id=candidate.candidate_id,
        candidate_name=candidate.name,
        artifact=artifact.sha256,
        role=artifact.role,
        size_bytes=artifact.size_bytes,
        board=board,
        board_id=found[0].board_id if found else "",
        board_kind=found[0].kind if found else "",
        runtime=evidence.runtime,
        clock=evidence.clock,
        run_id=run_id,
        date_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=flatsat.__version__,
        mission_sha=sha256_file(mission_file),
    )
    today = datetime.datetime.now(datetime.UTC).date()
    matrix = Matrix(
        mission,
        subject,
        tuple(judge_mission(mission, evidence, today)),
        untraced_evidence(mission, evidence),
    )
    folder = lab.run_dir(run_id)
    paths = {
        "html": (folder / "matrix.html", matrix.to_html()),
        "csv": (folder / "matrix.csv", matrix.to_csv()),
        "json": (folder / "matrix.json", matrix.to_json()),
    }
    for path, text in paths.values():
        write_atomically(path, text.encode())
    return Validation(matrix, folder, paths["html"][0], paths["csv"][0], paths["json"][0])


def gather(rows: Sequence[OutcomeRow], artifact: Artifact, workload: str, board: str) -> Evidence:
    """Return what the outcomes of one artifact on one board say."""
    latency: list[tuple[int, ...]] = []
    load: list[int] = []
    rss: list[int] = []
    rss_method, clock, runtime = "", "wall", "onnxruntime"
    agreement: list[tuple[float, float, int]] = []
    correct: tuple[bool, ...] | None = None
    failure: str | None = None
    jobs: dict[str, list[str]] = {}
    for row in rows:
        runtime = row.job.spec.runtime
        if isinstance(row.outcome, Failed):
            failure = f"{row.outcome.fault.code}: {row.outcome.fault.message}"
        if not isinstance(row.outcome, Measured):
            continue
        if row.job.kind == JobKind.LATENCY:
            for samples in row.outcome.samples:
                if samples.quantity == "latency_ns" and samples.warm:
                    latency.append(samples.values)
                    clock = samples.kind
                elif samples.quantity == "load_ns":
                    load += samples.values
                elif samples.quantity == "rss_bytes" and samples.kind == "ru_maxrss":
                    rss += samples.values
                    rss_method = samples.kind
            if row.outcome.agreement is not None:
                a = row.outcome.agreement
                agreement.append((a.max_rel, a.top1_agree, a.n))
            for quantity in ("latency", "load_time", "memory", "agreement"):
                jobs.setdefault(quantity, []).append(row.job.job_id)
        elif row.accuracy is not None:
            correct = row.accuracy.correct
            jobs.setdefault("accuracy", []).append(row.job.job_id)
    return Evidence(
        latency_ns=tuple(latency),
        clock=clock,
        load_ns=tuple(load),
        rss_bytes=tuple(rss),
        rss_method=rss_method,
        size_bytes=artifact.size_bytes,
        correct=correct,
        agreement=tuple(agreement),
        failure=failure,
        jobs={quantity: tuple(ids) for quantity, ids in jobs.items()},
        board=board,
        runtime=runtime,
        workload=workload,
    )


def _artifact(candidate: Candidate, role: str | None) -> Artifact:
    fitting = [a for a in candidate.artifacts if role in (None, a.role)]
    if len(fitting) == 1:
        return fitting[0]
    roles = ", ".join(a.role for a in candidate.artifacts)
    if not fitting:
        raise UsageError(
            f"candidate {candidate.name!r} has no {role!r} artifact", hint=f"it has: {roles}"
        )
    raise UsageError(
        f"candidate {candidate.name!r} has several artifacts", hint=f"choose --role from: {roles}"
    )


def _settings(mission: Mission) -> Settings:
    """Return a plan that gives enough samples for every percentile that the mission names."""
    samples, processes, threads = 100, LEAST_PROCESSES, 1
    for requirement in mission.requirement:
        processes = max(processes, requirement.min_repeats)
        samples = max(samples, requirement.min_samples)
        threads = requirement.scope.threads
        if requirement.quantity == "latency" and requirement.statistic.startswith("p"):
            q = float(requirement.statistic[1:]) / 100
            least = math.log(1 - requirement.confidence) / math.log(q)
            # Twice the least: at the least itself the bound is the largest sample.
            samples = max(samples, math.ceil(2 * least))
    rounds = math.ceil(processes / 2)
    plan = MeasurePlan(processes=2, min_inferences=math.ceil(samples / (2 * rounds)), min_s=0.2)
    return Settings(
        kinds=(JobKind.LATENCY, JobKind.ACCURACY),
        threads=(threads,),
        plan=plan,
        rounds=rounds,
        virtual_plan=replace(VIRTUAL_PLAN, processes=2, min_inferences=plan.min_inferences),
        virtual_rounds=rounds,
        comparison="validate",
    )
