"""From candidates and boards to jobs: rounds, shuffled by seed, each comparison interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_json
from flatsat.jobspec import VIRTUAL_PLAN, VIRTUAL_ROUNDS, JobKind, JobSpec, MeasurePlan
from flatsat.runtimes import default_provider, default_runtime, takes
from flatsat.seeds import generator
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate

START_UP_S = 0.35
"""A guess at what a fresh process costs beside its inferences, until one has been timed."""
ACCURACY_GUESS_S = 1.5
ENERGY_GUESS_S = 6.0
CAPABILITY_GUESS_S = 8.0
VIRTUAL_START_UP_S = 2.5
"""Of a fresh process on an emulated board, in seconds of this machine."""


@dataclass(frozen=True)
class Traits:
    """What a plan must know of a board.

    Attributes:
        time_kind: its clock.
        metered: it can do energy jobs.
    """

    time_kind: TimeKind = TimeKind.WALL
    metered: bool = False


@dataclass(frozen=True)
class Settings:
    """What is common to the jobs of one plan.

    Attributes:
        kinds: job kinds for every artifact; "energy" for those on boards with a meter only,
            "capability" once a board.
        runtimes: names of runtimes, each for the artifacts whose format it takes; () for the
            default runtime of each format.
        threads: intra-op thread counts; each is a measurement of its own.
        affinity: CPU numbers to pin to; () leaves processes free.
        batch: batch length of latency jobs.
        axes: lengths of other open axes.
        plan, rounds: how one latency job measures, and how many of them each artifact gets, on
            boards with a real clock.
        virtual_plan, virtual_rounds: likewise on boards that count instructions.
        seed: of the shuffle.
        comparison: a name that jobs which were interleaved share.
    """

    kinds: tuple[JobKind, ...] = (JobKind.LATENCY,)
    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    affinity: tuple[int, ...] = ()
    batch: int = 1
    axes: Mapping[str, int] | None = None
    plan: MeasurePlan = field(default_factory=MeasurePlan)
    rounds: int = 5
    virtual_plan: MeasurePlan = VIRTUAL_PLAN
    virtual_rounds: int = VIRTUAL_ROUNDS
    seed: int = 0
    comparison: str = "run"

    @property
    def repeated(self) -> JobKind | None:
        """The kind that every round holds: latency, or energy where there is no latency."""
        wanted = [kind for kind in (JobKind.LATENCY, JobKind.ENERGY) if kind in self.kinds]
        return wanted[0] if wanted else None

    def on(self, traits: Traits) -> tuple[MeasurePlan, int]:
        """Return plan and rounds for a board."""
        if traits.time_kind is TimeKind.VIRTUAL:
            return self.virtual_plan, self.virtual_rounds
        return self.plan, self.rounds

    def runtimes_for(self, format_: str) -> tuple[str, ...]:
        """Return the runtimes that artifacts of a format are measured with."""
        return tuple(r for r in self.runtimes or (default_runtime(format_),) if takes(r, format_))


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
    traits: Mapping[str, Traits] | None = None,
    datasets: Mapping[str, str] | None = None,
    probes: str | None = None,
) -> list[PlannedJob]:
    """Return the jobs of a run, in the order in which each board takes them.

    A round holds every artifact once, in an order shuffled by seed, so that the drift of a machine
    favours none. Accuracy and energy jobs come after the first round: a candidate that can't run is
    known by then, and the boards' states differ least within the rounds.

    Args:
        run_id: of the run.
        candidates: whose artifacts are measured.
        boards: board names.
        settings: what is common.
        traits: of the boards; one that isn't here has a real clock and no meter.
        datasets: artifact sha256 -> sha256 of the test split's tensors as this artifact takes them;
            accuracy jobs are planned for the artifacts that are here.
        probes: sha256 of the probe models of capability jobs.
    """
    jobs: list[PlannedJob] = []
    for board in boards:
        mine = (traits or {}).get(board, Traits())
        plan, wanted = settings.on(mine)
        order: list[tuple[JobSpec, str, int]] = []
        rounds = 1 if settings.repeated is None else wanted
        for index in range(rounds):
            last = index == min(1, rounds - 1)
            block = _round(candidates, board, settings, mine, index, last, plan, datasets or {})
            draw = generator(settings.seed, f"order/{settings.comparison}/{board}/{index}")
            order += [block[i] for i in draw.permutation(len(block))]
        if probes is not None and JobKind.CAPABILITY in settings.kinds:
            order.append((_capability(board, probes, settings, plan), "", 0))
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
    plan = job.spec.plan
    if job.spec.kind is JobKind.LATENCY:
        # A plan without a least time is one for counted instructions.
        start_up_s = START_UP_S if plan.min_s else VIRTUAL_START_UP_S
        return plan.processes * (start_up_s + 1.3 * plan.min_s)
    if job.spec.kind is JobKind.ENERGY:
        return ENERGY_GUESS_S
    return CAPABILITY_GUESS_S if job.spec.kind is JobKind.CAPABILITY else ACCURACY_GUESS_S


def _round(
    candidates: Sequence[Candidate],
    board: str,
    settings: Settings,
    traits: Traits,
    index: int,
    with_once: bool,
    plan: MeasurePlan,
    datasets: Mapping[str, str],
) -> list[tuple[JobSpec, str, int]]:
    """Return one round; `with_once` adds the jobs that each artifact has one of."""
    block: list[tuple[JobSpec, str, int]] = []
    for candidate in candidates:
        for artifact in candidate.artifacts:
            for kind in settings.kinds:
                once = kind is not settings.repeated
                if (
                    (once and not with_once)
                    or kind is JobKind.CAPABILITY
                    or (kind is JobKind.ENERGY and not traits.metered)
                    or (kind is JobKind.ACCURACY and artifact.sha256 not in datasets)
                ):
                    continue
                for runtime in settings.runtimes_for(artifact.format):
                    for threads in settings.threads:
                        spec = _spec(artifact, board, runtime, threads, kind, plan, settings)
                        if kind is JobKind.ACCURACY:
                            spec = replace(spec, dataset=datasets[artifact.sha256])
                        block.append((spec, candidate.candidate_id, index))
    return block


def _spec(
    artifact: Artifact,
    board: str,
    runtime: str,
    threads: int,
    kind: JobKind,
    plan: MeasurePlan,
    settings: Settings,
) -> JobSpec:
    spec = JobSpec(
        kind=kind,
        artifact=artifact.sha256,
        format=artifact.format,
        board=board,
        runtime=runtime,
        provider=default_provider(runtime),
        threads=threads,
        affinity=settings.affinity,
        batch=settings.batch,
        axes=dict(settings.axes or {}),
        plan=plan,
    )
    if kind is JobKind.LATENCY:
        return replace(spec, goldens=artifact.goldens, agreement=artifact.agreement)
    if kind is JobKind.ACCURACY:
        return replace(spec, batch=ACCURACY_BATCH, plan=_once(plan))
    return replace(spec, plan=_once(plan))


def _capability(board: str, probes: str, settings: Settings, plan: MeasurePlan) -> JobSpec:
    runtime = settings.runtimes_for("onnx")[:1] or (default_runtime("onnx"),)
    return JobSpec(
        kind=JobKind.CAPABILITY,
        artifact=probes,
        format="probes",
        board=board,
        runtime=runtime[0],
        provider=default_provider(runtime[0]),
        plan=_once(plan),
    )


ACCURACY_BATCH = 100
"""Images a call in an accuracy job; it does not enter any latency."""


def _once(plan: MeasurePlan) -> MeasurePlan:
    return replace(plan, processes=1)
