"""From candidates and boards to jobs: rounds, shuffled by seed, each comparison interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_json
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.seeds import generator

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate

START_UP_S = 0.35
"""A guess at what a fresh process costs beside its inferences, until one has been timed."""
ACCURACY_GUESS_S = 1.5


@dataclass(frozen=True)
class Settings:
    """What is common to the jobs of one plan.

    Attributes:
        kinds: job kinds for every artifact.
        runtimes: names of runtimes.
        threads: intra-op thread counts; each is a measurement of its own.
        affinity: CPU numbers to pin to; () leaves processes free.
        batch: batch length of latency jobs.
        axes: lengths of other open axes.
        plan: how one latency job measures.
        rounds: latency jobs of each artifact.
        seed: of the shuffle.
        comparison: a name that jobs which were interleaved share.
    """

    kinds: tuple[JobKind, ...] = (JobKind.LATENCY,)
    runtimes: tuple[str, ...] = ("onnxruntime",)
    threads: tuple[int, ...] = (1,)
    affinity: tuple[int, ...] = ()
    batch: int = 1
    axes: Mapping[str, int] | None = None
    plan: MeasurePlan = field(default_factory=MeasurePlan)
    rounds: int = 5
    seed: int = 0
    comparison: str = "run"


@dataclass(frozen=True)
class PlannedJob:
    """One job: a JobSpec in one round.

    Attributes:
        job_id: hash of run, spec, round and candidate; the same plan gives the same identifiers.
        spec: what the board is asked.
        candidate_id: whose artifact.
        board: board name.
        round: from 0.
        position: order on that board.
        comparison: jobs of one name were interleaved.
    """

    job_id: str
    spec: JobSpec
    candidate_id: str
    board: str
    round: int
    position: int
    comparison: str


def plan_jobs(
    run_id: str,
    candidates: Sequence[Candidate],
    boards: Sequence[str],
    settings: Settings,
    *,
    datasets: Mapping[str, str] | None = None,
) -> list[PlannedJob]:
    """Return the jobs of a run, in the order in which each board takes them.

    A round holds every artifact once, in an order shuffled by seed, so that the drift of a machine
    favours none. Accuracy jobs come after the first round: a candidate that can't run is known by
    then, and the boards' states differ least within the rounds.

    Args:
        run_id: of the run.
        candidates: whose artifacts are measured.
        boards: board names.
        settings: what is common.
        datasets: workload name -> sha256 of the test split's tensors; accuracy jobs are planned
            for the candidates whose workload is here.
    """
    jobs: list[PlannedJob] = []
    for board in boards:
        order: list[tuple[JobSpec, str, int]] = []
        rounds = settings.rounds if JobKind.LATENCY in settings.kinds else 1
        for index in range(rounds):
            block = _round(candidates, board, settings, index, datasets or {})
            draw = generator(settings.seed, f"order/{settings.comparison}/{board}/{index}")
            order += [block[i] for i in draw.permutation(len(block))]
        for position, (spec, candidate_id, index) in enumerate(order):
            job_id = sha256_json([run_id, settings.comparison, spec.to_json(), candidate_id, index])
            jobs.append(
                PlannedJob(
                    job_id=job_id[:24],
                    spec=spec,
                    candidate_id=candidate_id,
                    board=board,
                    round=index,
                    position=position,
                    comparison=settings.comparison,
                )
            )
    return jobs


def expected_s(job: PlannedJob) -> float:
    """Return a guess at how long a job takes, in seconds, before anything was timed."""
    if job.spec.kind is JobKind.LATENCY:
        plan = job.spec.plan
        return plan.processes * (START_UP_S + 1.3 * plan.min_s)
    return ACCURACY_GUESS_S


def _round(
    candidates: Sequence[Candidate],
    board: str,
    settings: Settings,
    index: int,
    datasets: Mapping[str, str],
) -> list[tuple[JobSpec, str, int]]:
    block: list[tuple[JobSpec, str, int]] = []
    for candidate in candidates:
        for artifact in candidate.artifacts:
            for runtime in settings.runtimes:
                for threads in settings.threads:
                    for kind in settings.kinds:
                        if kind is not JobKind.LATENCY and index != min(1, settings.rounds - 1):
                            continue
                        dataset = None
                        if kind is JobKind.ACCURACY:
                            dataset = datasets.get(candidate.workload.partition("/")[0])
                            if dataset is None:
                                continue
                        spec = _spec(artifact, board, runtime, threads, kind, dataset, settings)
                        block.append((spec, candidate.candidate_id, index))
    return block


def _spec(
    artifact: Artifact,
    board: str,
    runtime: str,
    threads: int,
    kind: JobKind,
    dataset: str | None,
    settings: Settings,
) -> JobSpec:
    spec = JobSpec(
        kind=kind,
        artifact=artifact.sha256,
        format=artifact.format,
        board=board,
        runtime=runtime,
        threads=threads,
        affinity=settings.affinity,
        batch=settings.batch,
        axes=dict(settings.axes or {}),
        plan=settings.plan,
    )
    if kind is JobKind.LATENCY:
        return replace(spec, goldens=artifact.goldens, agreement=artifact.agreement)
    if kind is JobKind.ACCURACY:
        return replace(spec, dataset=dataset, batch=ACCURACY_BATCH, plan=_once(settings.plan))
    return replace(spec, plan=_once(settings.plan))


ACCURACY_BATCH = 100
"""Images a call in an accuracy job; it does not enter any latency."""


def _once(plan: MeasurePlan) -> MeasurePlan:
    return replace(plan, processes=1)
