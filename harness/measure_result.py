"""What a measurement says: typed values for Python, the document "flatsat.measure/1" for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from flatsat.harness import measure_json
from flatsat.outcome import AgreementResult, Failed, Fault, Health, Inconclusive, Measured, Owner

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.outcome import Samples
    from flatsat.reports.rows import BoardRow, OutcomeRow
    from flatsat.reports.stats import Interval

REFUSED = ("unsupported", "invalid-model")
"""Codes of faults that say of the file, not of a run of it, that the runtime doesn't take it."""


@dataclass(frozen=True)
class LatencySummary:
    """Latency of one inference in nanoseconds, over all processes; warm-up never counts.

    Attributes:
        clock: "wall" or "virtual".
        n: counted inferences.
        processes: fresh processes.
        min, mean: over all samples.
        p10, p50, p90, p99: None where there are too few samples for the percentile.
        p10_ci, p50_ci, p90_ci, p99_ci: 95 % by hierarchical bootstrap over processes, or None.
        steady: processes that reached the steady state; None where it wasn't asked for.
        warmup: fewest and most uncounted inferences of a process.
        load_ns: median time to load the model, or None.
    """

    clock: Literal["wall", "virtual"]
    n: int
    processes: int
    min: int
    mean: float
    p10: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p10_ci: tuple[float, float] | None = None
    p50_ci: tuple[float, float] | None = None
    p90_ci: tuple[float, float] | None = None
    p99_ci: tuple[float, float] | None = None
    steady: int | None = None
    warmup: tuple[int, int] | None = None
    load_ns: float | None = None


@dataclass(frozen=True)
class MemorySummary:
    """Peak resident bytes: the highest of the processes; `model_file` is the file's size."""

    method: str
    peak_rss: int
    model_file: int


@dataclass(frozen=True)
class EnergySummary:
    """Energy of one inference, and the counts that it rests on.

    Attributes:
        class_: "modelled" (counted events x joules per event), "metered" or "estimated".
        model, source: whose joules per event.
        p50_nj, min_nj, max_nj, n: over the counted inferences.
        instructions, memory_bytes, dram_bytes: medians; bytes loaded and stored, and bytes that
            the modelled caches moved to and from memory.
    """

    class_: str
    model: str
    source: str
    p50_nj: int
    min_nj: int
    max_nj: int
    n: int
    instructions: int | None
    memory_bytes: int | None
    dram_bytes: int | None

    def to_json(self) -> dict[str, object]:
        """Return the object of the measure document, in joules."""
        return {
            "class": self.class_,
            "model": self.model,
            "source": self.source,
            "p50": self.p50_nj / 1e9,
            "min": self.min_nj / 1e9,
            "max": self.max_nj / 1e9,
            "n": self.n,
            "instructions": self.instructions,
            "memory_bytes": self.memory_bytes,
            "dram_bytes": self.dram_bytes,
        }


@dataclass(frozen=True)
class MeasureResult:
    """What became of one artifact on one board.

    Attributes:
        status: "measured", "failed" or "inconclusive".
        fault: why there is no value; None when measured.
        name: what people call the model.
        artifact: the model file.
        board: name; `board_id` and `board_kind` are None where it was never reached.
        latency_ns, memory_bytes, agreement, energy: None where there is no value.
        health: of the board, before and after each job.
        environment: facts of the board.
        runtime_version: "" where nothing ran.
        cores: of the board, None where not told.
        samples: raw values, in order.
        run_id: where the record keeps it all.
    """

    status: Literal["measured", "failed", "inconclusive"]
    fault: Fault | None
    name: str
    artifact: Artifact
    board: str
    board_id: str | None
    board_kind: str | None
    runtime: str
    threads: int
    batch: int
    latency_ns: LatencySummary | None
    memory_bytes: MemorySummary | None
    agreement: AgreementResult | None
    energy: EnergySummary | None
    health: tuple[Health, ...] = field(repr=False)
    environment: Mapping[str, object] = field(repr=False)
    runtime_version: str
    cores: int | None
    samples: tuple[Samples, ...] = field(repr=False)
    run_id: str

    @property
    def busiest_load(self) -> float | None:
        """Highest one-minute load of the board beside the measurement, None where not told."""
        return max((h.load1 for h in self.health if h.load1 is not None), default=None)

    @property
    def crowded(self) -> bool:
        """More processes wanted to run than there are cores: no timing holds then."""
        load = self.busiest_load
        return load is not None and self.cores is not None and load > self.cores

    @property
    def exit_code(self) -> int:
        """0 measured, 1 the model failed, 2 can't be run as asked, 3 board, 4 inconclusive.

        A file that the runtime refuses to load, such as one of a newer opset, is 2.
        """
        if self.fault is None:
            return 0
        if self.status == "inconclusive":
            return 4
        if self.fault.code in REFUSED:
            return 2
        return {Owner.CANDIDATE: 1, Owner.CONFIG: 2}.get(self.fault.owner, 3)

    def to_json(self) -> dict[str, object]:
        """Return one entry of "outcomes" in a flatsat.measure/1 document."""
        latency = self.latency_ns
        return {
            "job": "latency",
            "status": self.status,
            "fault": None
            if self.fault is None
            else {**asdict(self.fault), "owner": self.fault.owner.value},
            "artifact": {
                "sha256": self.artifact.sha256,
                "format": self.artifact.format,
                "bytes": self.artifact.size_bytes,
            },
            "board": {"name": self.board, "id": self.board_id, "kind": self.board_kind},
            "runtime": self.runtime,
            "threads": self.threads,
            "latency_ns": None
            if latency is None
            else {
                "clock": latency.clock,
                "n": latency.n,
                "processes": latency.processes,
                "min": latency.min,
                "mean": latency.mean,
                "p10": _whole(latency.p10),
                "p50": _whole(latency.p50),
                "p50_ci": latency.p50_ci and [round(bound) for bound in latency.p50_ci],
                "p90": _whole(latency.p90),
                "p99": _whole(latency.p99),
            },
            "memory_bytes": None if self.memory_bytes is None else asdict(self.memory_bytes),
            "energy_j": None if self.energy is None else self.energy.to_json(),
            "agreement": None if self.agreement is None else asdict(self.agreement),
        }


def document(results: Sequence[MeasureResult]) -> dict[str, object]:
    """Return the flatsat.measure/1 document of some results, checked against its model."""
    value = {"schema": measure_json.SCHEMA, "outcomes": [result.to_json() for result in results]}
    checked = measure_json.MeasureDocument.model_validate(value)
    return checked.model_dump(mode="json", by_alias=True)


def exit_code(results: Sequence[MeasureResult]) -> int:
    """Return the gravest exit code: 2, then 1, 3, 4, 0."""
    codes = {result.exit_code for result in results}
    return next((code for code in (2, 1, 3, 4) if code in codes), 0)


def summarise(
    row: OutcomeRow,
    artifact: Artifact,
    name: str,
    board: BoardRow | None,
    run_id: str,
    energy: OutcomeRow | None = None,
) -> MeasureResult:
    """Return what one latency job says, and an energy job beside it."""
    outcome, spec = row.outcome, row.job.spec
    fault: Fault | None = None
    status: Literal["measured", "failed", "inconclusive"] = "measured"
    if isinstance(outcome, Failed):
        status, fault = "failed", outcome.fault
    elif isinstance(outcome, Inconclusive):
        status = "inconclusive"
        fault = Fault(Owner.HARNESS, transient=True, code="inconclusive", message=outcome.why)
    samples = () if isinstance(outcome, Failed) else outcome.samples
    measured = isinstance(outcome, Measured)
    tested = spec.plan.warmup == "steady"
    facts = {} if board is None else dict(board.facts)
    environment = outcome.evidence.get("environment")
    runtime = outcome.evidence.get("runtime")
    return MeasureResult(
        status=status,
        fault=fault,
        name=name,
        artifact=artifact,
        board=row.job.board_name,
        board_id=row.board_id,
        board_kind=None if board is None else board.kind,
        runtime=spec.runtime,
        threads=spec.threads,
        batch=spec.batch,
        latency_ns=_latency(samples, outcome.evidence, tested=tested) if measured else None,
        memory_bytes=_memory(samples, artifact) if measured else None,
        agreement=outcome.agreement if isinstance(outcome, Measured) else None,
        energy=_energy(energy),
        health=outcome.health,
        environment={**facts, **(environment if isinstance(environment, Mapping) else {})},
        runtime_version=str(runtime.get("version", "")) if isinstance(runtime, Mapping) else "",
        cores=_cores(facts),
        samples=samples,
        run_id=run_id,
    )


def _energy(row: OutcomeRow | None) -> EnergySummary | None:
    """Return what an energy job says; None without one, or where it gave nothing."""
    if row is None or not isinstance(row.outcome, Measured):
        return None
    taken = {s.quantity: s for s in row.outcome.samples if s.warm and s.values}
    if "energy_nj" not in taken:
        return None
    told = row.outcome.evidence.get("energy")
    told = told if isinstance(told, Mapping) else {}

    def median(*quantities: str) -> int | None:
        if not all(quantity in taken for quantity in quantities):
            return None
        rows = zip(*(taken[quantity].values for quantity in quantities), strict=True)
        sums: list[int] = sorted(sum(values) for values in rows)
        return sums[len(sums) // 2]

    values = sorted(taken["energy_nj"].values)
    return EnergySummary(
        class_=taken["energy_nj"].kind,
        model=str(told.get("model", "")),
        source=str(told.get("source", "")),
        p50_nj=values[len(values) // 2],
        min_nj=values[0],
        max_nj=values[-1],
        n=len(values),
        instructions=median("instructions"),
        memory_bytes=median("load_bytes", "store_bytes"),
        dram_bytes=median("dram_bytes"),
    )


def _latency(
    samples: Sequence[Samples], evidence: Mapping[str, object], *, tested: bool
) -> LatencySummary | None:
    """Return what the samples say; `tested` if warm-up was to end by the steady-state test."""
    from flatsat.reports import stats

    counted = [s for s in samples if s.quantity == "latency_ns" and s.warm]
    groups = [s.values for s in counted if s.values]
    if not groups:
        return None
    values = [value for group in groups for value in group]
    clock: Literal["wall", "virtual"] = "virtual" if counted[0].kind == "virtual" else "wall"
    p10, p50, p90, p99 = stats.bootstrap_cis(groups, (0.1, 0.5, 0.9, 0.99))
    loads = sorted(v for s in samples if s.quantity == "load_ns" for v in s.values)
    processes = _processes(evidence)
    told = [bool(p["steady"]) for p in processes if isinstance(p.get("steady"), bool)]
    warmups = [int(str(p["warmup_n"])) for p in processes if "warmup_n" in p]
    return LatencySummary(
        clock=clock,
        n=len(values),
        processes=len(groups),
        min=min(values),
        mean=sum(values) / len(values),
        p10=_value(p10),
        p50=_value(p50),
        p90=_value(p90),
        p99=_value(p99),
        p10_ci=_ends(p10),
        p50_ci=_ends(p50),
        p90_ci=_ends(p90),
        p99_ci=_ends(p99),
        steady=sum(told) if told and tested else None,
        warmup=(min(warmups), max(warmups)) if warmups else None,
        load_ns=float(loads[len(loads) // 2]) if loads else None,
    )


def _value(interval: Interval | None) -> float | None:
    return None if interval is None else interval.value


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    if interval is None or interval.low is None or interval.high is None:
        return None
    return interval.low, interval.high


def _memory(samples: Sequence[Samples], artifact: Artifact) -> MemorySummary | None:
    peaks = [(v, s.kind) for s in samples if s.quantity == "rss_bytes" for v in s.values]
    preferred = [p for p in peaks if p[1] == "ru_maxrss"] or peaks
    if not preferred:
        return None
    peak, method = max(preferred)
    return MemorySummary(method, peak, artifact.size_bytes)


def _processes(evidence: Mapping[str, object]) -> list[Mapping[str, object]]:
    told = evidence.get("processes")
    return [p for p in told if isinstance(p, Mapping)] if isinstance(told, Sequence) else []


def _cores(facts: Mapping[str, object]) -> int | None:
    cores = facts.get("cores")
    return cores if isinstance(cores, int) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
