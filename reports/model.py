"""What a report shows, as plain values: `collect` makes them, pages and figures only draw them.

Durations are nanoseconds and stand in a `BoardSection`, which has one clock: wall and virtual time
never meet in one ranking or on one axis. A quantity that could not be had is None, with the reason
beside it.

What a search writes as the run's note "search" stands in `model_search`, what is known of a board
and of counted events in `model_board`, what candidates' folders tell in `model_survey`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from flatsat.reports.model_survey import StepReport, Survey
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.reports.comparison import Comparison
    from flatsat.reports.model_board import (
        BoardsReport,
        CapabilityReport,
        EnergyReport,
        EventsReport,
        RooflinePoint,
        RuntimesReport,
        WeightsFit,
    )
    from flatsat.reports.model_search import SearchReport

# The cumulative shares at which a process's latencies are kept for drawing.
DRAWN_QUANTILES = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0),
)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, or the reason why there is none.

    Attributes:
        value: None where it is not available.
        low, high: of the interval, None where there is none.
        n: samples behind it.
        needs: the samples that it would need; said where `value` is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    needs: int | None = None


@dataclass(frozen=True)
class RatioReport:
    """How many times faster than something else on the same board, clock, runtime and threads.

    Attributes:
        against: label of the other.
        value: its latency / this latency; above 1 this one is faster. None: refused.
        low, high: 95 % interval.
        verdict: "faster", "slower", "equal", "inconclusive" or "refused".
        why: in one line, where the verdict needs it.
    """

    against: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class AccuracyReport:
    """The workload's metric on the board.

    Attributes:
        metric: "accuracy", or "agreement" with the dense network.
        value: in [0, 1], with interval.
        n: test images.
        split_sha: of the split.
        loss: reference minus this one on the same images, in [-1, 1] (0.01 = one point), with
            interval; None for the reference itself or where the two can't be paired.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    split_sha: str
    loss: Estimate | None = None


@dataclass(frozen=True)
class MemoryReport:
    """Peak resident memory of the measuring processes: median, least and most, and the method."""

    method: str
    median_bytes: float
    min_bytes: int
    max_bytes: int
    n: int


@dataclass(frozen=True)
class AgreementReport:
    """Outputs on the board against the goldens."""

    kind: str
    max_rel: float
    top1_agree: float
    n: int
    ok: bool


@dataclass(frozen=True)
class ProcessTrace:
    """One measuring process: its latencies at `DRAWN_QUANTILES`.

    Attributes:
        label: "round 1, process 0".
        n: counted inferences.
        quantiles_ns: same length as `DRAWN_QUANTILES`, rising.
        steady: whether the steady-state test passed; None where it was not asked for.
    """

    label: str
    n: int
    quantiles_ns: tuple[float, ...]
    steady: bool | None


@dataclass(frozen=True)
class MeasurementReport:
    """One artifact as measured on one board with one runtime and thread count.

    Attributes:
        label: of the candidate with, where they differ, seed, the artifact's role, runtime and
            threads; unique in its section.
        role: "reference", "equal-macs", "compressed" or "imported".
        artifact: sha256; `format`, `precision` ("float", "int8", ...) and `size_bytes` are its.
        rounds, processes, n: jobs, fresh processes and counted inferences behind the latencies.
        p10_ns ... p99_ns: pooled over processes, interval by hierarchical bootstrap.
        steady: processes that reached the steady state, of `processes`; None: not asked for.
        load_ns: median time to load the model.
        versus_float: of an int8 file, against the float file of the same network.
        pareto: no other of the section is both as accurate and as fast, and better in one.
    """

    candidate_id: str
    label: str
    role: str
    artifact: str
    format: str
    precision: str
    size_bytes: int
    runtime: str
    threads: int
    batch: int
    rounds: int
    processes: int
    n: int
    min_ns: float
    p10_ns: Estimate
    p50_ns: Estimate
    p90_ns: Estimate
    p99_ns: Estimate
    load_ns: float | None
    steady: int | None
    traces: tuple[ProcessTrace, ...]
    params: int | None
    nonzeros: int | None
    macs: int | None
    accuracy: AccuracyReport | None = None
    memory: MemoryReport | None = None
    agreement: AgreementReport | None = None
    versus_reference: RatioReport | None = None
    versus_equal_macs: RatioReport | None = None
    versus_float: RatioReport | None = None
    energy: EnergyReport | None = None
    events: EventsReport | None = None
    fit: WeightsFit | None = None
    roofline: RooflinePoint | None = None
    pareto: bool = False

    @property
    def spread(self) -> float | None:
        """(Highest - lowest) / middle of the processes' medians; None below two processes."""
        medians = sorted(t.quantiles_ns[DRAWN_QUANTILES.index(0.5)] for t in self.traces)
        middle = median(medians) if medians else 0.0
        if len(medians) < 2 or middle == 0:
            return None
        return (medians[-1] - medians[0]) / middle


@dataclass(frozen=True)
class ProxyReport:
    """How well a figure from the drawing board ranks candidates as the board's clock does.

    Attributes:
        proxy: "parameters", "non-zeros", "MACs", "file size", "memory traffic", "modelled energy".
        rho: Spearman's rank correlation with median latency, with interval.
        points: (label, proxy value, p50 ns) of each measurement.
        worst: (label that the proxy prefers, label that is faster, how many times the proxy
            prefers the first, how many times faster the second is), or None.
    """

    proxy: str
    rho: Estimate
    points: tuple[tuple[str, float, float], ...]
    worst: tuple[str, str, float, float] | None = None


@dataclass(frozen=True)
class TrustReport:
    """What speaks for and against a section's timings.

    Attributes:
        steady, processes: processes that reached the steady state, and all that were asked to.
        load1_max: highest 1-minute load seen before or after a job, None where not told.
        cores: of the board, None where not told.
        governors, throttled, temp_c_max: as the board tells.
        spread: on a virtual clock the widest of the measurements' `spread`, which is the evidence
            that values repeat there; None on other clocks, and below two processes.
    """

    steady: int
    processes: int
    load1_max: float | None
    cores: int | None
    governors: tuple[str, ...] = ()
    throttled: bool = False
    temp_c_max: float | None = None
    spread: float | None = None

    @property
    def crowded(self) -> bool | None:
        """Whether more processes wanted to run than there are cores; None where not told."""
        if self.load1_max is None or self.cores is None:
            return None
        return self.load1_max > self.cores


@dataclass(frozen=True)
class Headline:
    """The best candidate of a section by a stated rule.

    Attributes:
        rule: the rule in words, with its margin.
        label: the winner, or None where the rule finds none.
        shown: True where the interval shows that the accuracy is held; False where it only might.
        smaller, faster: against the dense reference (file size, median latency), or None.
    """

    rule: str
    label: str | None
    shown: bool
    smaller: float | None = None
    faster: RatioReport | None = None


@dataclass(frozen=True)
class BoardSection:
    """All that was measured of one workload on one board by one clock.

    Attributes:
        workload: "mnist-mini/lenet5"; "" for imported models.
        facts: (what, value) of the board: CPU, kernel, versions, ...
        measurements: fastest first.
        margin: accuracy loss, in [0, 1], that counts as none.
        smoke: timed by the real clock of an emulator: shows that it runs, measures no board, and
            ranks nothing.
        capability: what the board can do, None where it was not asked.
        runtimes: networks that several runtimes ran, None without any.
    """

    workload: str
    board: str
    board_id: str
    kind: str
    clock: TimeKind
    facts: tuple[tuple[str, str], ...]
    measurements: tuple[MeasurementReport, ...]
    proxies: tuple[ProxyReport, ...]
    trust: TrustReport
    headline: Headline
    margin: float
    smoke: bool = False
    capability: CapabilityReport | None = None
    runtimes: RuntimesReport | None = None

    @property
    def virtual(self) -> bool:
        """Whether its durations are counted instructions."""
        return self.clock is TimeKind.VIRTUAL

    @property
    def clock_name(self) -> str:
        """The clock in words, as axes and headings name it."""
        return "wall clock of an emulator" if self.smoke else f"{self.clock.value} clock"

    @property
    def several_dtypes(self) -> bool:
        """Whether float and narrower files stand side by side."""
        return len({m.precision for m in self.measurements}) > 1

    def find(self, label: str | None) -> MeasurementReport | None:
        """Return the measurement of that label, or None."""
        return next((m for m in self.measurements if m.label == label), None)


@dataclass(frozen=True)
class LayerReport:
    """A layer of a candidate beside the same layer of the dense reference.

    Attributes:
        kept: non-zero weights / weights of the dense reference's layer, in [0, 1]; None where
            the reference has no layer of that name.
    """

    name: str
    kind: str
    params: int
    nonzeros: int
    macs: int
    kept: float | None


@dataclass(frozen=True)
class CandidateReport:
    """A candidate as compressed, before any board."""

    candidate_id: str
    recipe_id: str
    label: str
    role: str
    workload: str
    seed: int | None
    parent: str | None
    params: int | None
    nonzeros: int | None
    macs: int | None
    cost: Mapping[str, float]
    accuracy_host: Mapping[str, float]
    layers: tuple[LayerReport, ...]
    recipe: str
    artifacts: tuple[tuple[str, str, str, int], ...]
    """(sha256, format, precision, bytes) of each."""
    steps: tuple[StepReport, ...] = ()


@dataclass(frozen=True)
class FailureReport:
    """A job that gave no value, and why."""

    label: str
    board: str
    job: str
    status: str
    owner: str
    code: str
    message: str
    hint: str
    transient: bool
    attempts: int
    times: int = 1


@dataclass(frozen=True)
class MaskPicture:
    """Which weights of a dense layer are kept.

    Attributes:
        name: of the layer.
        rows, cols: outputs and inputs.
        packed: rows x cols bits, row by row, first bit highest, as `numpy.packbits` of the whole
            mask writes them; 1 is kept.
        image: (height, width) of the input image whose pixels are the columns, or None.
    """

    name: str
    rows: int
    cols: int
    packed: bytes
    image: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse bits that can't be a mask of this shape."""
        if len(self.packed) != (self.rows * self.cols + 7) // 8:
            raise ValueError(
                f"mask {self.name!r}: {len(self.packed)} bytes can't hold {self.rows} x {self.cols}"
            )


@dataclass(frozen=True)
class JobCounts:
    """Jobs of a run by what became of them."""

    planned: int
    measured: int
    failed: int
    inconclusive: int
    reused: int = 0

    @property
    def waiting(self) -> int:
        """Jobs without an outcome yet."""
        return self.planned - self.measured - self.failed - self.inconclusive


@dataclass(frozen=True)
class RunReport:
    """Everything that a run's page shows.

    Attributes:
        state: "running", "done", "incomplete", "interrupted" or "failed".
        config: the configuration as text.
        versions: (name, version) of FlatSat and of what it stands on.
        commands: what to type to do it again.
        boards: the same files on several boards, one clock and workload each.
        regressions: what the run's gate found worse than its baseline, one line each.
        siblings: the same search on several boards, each a run of its own.
        masks: by candidate_id.
        survey: what the candidates' folders tell of the methods.
    """

    run_id: str
    kind: str
    name: str
    state: str
    started_utc: str
    finished_utc: str | None
    generated_utc: str
    seed: int | None
    code_version: str
    config: str
    config_sha: str
    host_fp: str
    jobs: JobCounts
    candidates: tuple[CandidateReport, ...]
    sections: tuple[BoardSection, ...]
    failures: tuple[FailureReport, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    search: tuple[SearchReport, ...] = ()
    siblings: tuple[SearchReport, ...] = ()
    boards: tuple[BoardsReport, ...] = ()
    regressions: tuple[str, ...] = ()
    masks: Mapping[str, MaskPicture] = field(default_factory=dict)
    survey: Survey = field(default_factory=Survey)
    versions: tuple[tuple[str, str], ...] = ()
    commands: tuple[str, ...] = ()

    def candidate(self, candidate_id: str) -> CandidateReport | None:
        """Return the candidate of that id, or None."""
        return next((c for c in self.candidates if c.candidate_id == candidate_id), None)
