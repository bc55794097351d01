"""What the measurements of a section say together: front, proxies, trust, facts of the board."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flatsat.reports import stats, words
from flatsat.reports.model import Estimate, MeasurementReport, ProxyReport, TrustReport

if TYPE_CHECKING:
    from flatsat.reports.rows import OutcomeRow

# A wrong order within this share of latency is no lie: the next run may turn it round.
_TIE = 0.02
_FACTS = {
    "cpu_model": "CPU",
    "cores": "cores",
    "memory_bytes": "memory",
    "soc": "machine",
    "arch": "architecture",
    "os": "system",
    "kernel": "kernel",
    "firmware": "firmware",
}


def steady_by_process(row: OutcomeRow) -> dict[int, bool]:
    """Return whether each process of a job reached the steady state, as far as it is told."""
    told = row.outcome.evidence.get("processes")
    if not isinstance(told, Sequence):
        return {}
    return {
        i: bool(process["steady"])
        for i, process in enumerate(told)
        if isinstance(process, Mapping) and isinstance(process.get("steady"), bool)
    }


def on_front(measured: Sequence[MeasurementReport]) -> list[MeasurementReport]:
    """Mark those that no other beats in both accuracy and latency."""
    points = [
        (m.p50_ns.value or math.nan, math.nan if m.accuracy is None else m.accuracy.value)
        for m in measured
    ]
    front = stats.pareto_front(points, ("minimise", "maximise"))
    return [replace(m, pareto=bool(best)) for m, best in zip(measured, front, strict=True)]


def _proxy_values(m: MeasurementReport) -> dict[str, float | None]:
    """Return what could be asked instead of the clock."""
    values: dict[str, float | None] = {
        "MACs": m.macs,
        "parameters": m.params,
        "non-zeros": m.nonzeros,
        "file size": m.size_bytes,
    }
    if m.events is not None:
        values["memory traffic"] = m.events.traffic_bytes
    if m.energy is not None:
        values[f"{m.energy.class_} energy"] = m.energy.p50_nj.value
    return values


def proxies(measured: Sequence[MeasurementReport]) -> tuple[ProxyReport, ...]:
    """Return how each proxy ranks what ran with the same runtime, threads and batch."""
    settings = Counter((m.runtime, m.threads, m.batch) for m in measured)
    usual = settings.most_common(1)[0][0]
    alike = [m for m in measured if (m.runtime, m.threads, m.batch) == usual]
    found: list[ProxyReport] = []
    for proxy in dict.fromkeys(name for m in alike for name in _proxy_values(m)):
        points = tuple(
            (m.label, float(value), m.p50_ns.value)
            for m in alike
            if (value := _proxy_values(m).get(proxy)) and m.p50_ns.value
        )
        if len(points) < 2:
            continue
        rho = stats.spearman([p[1] for p in points], [p[2] for p in points])
        found.append(
            ProxyReport(
                proxy,
                Estimate(None, n=len(points), needs=4)
                if rho is None
                else Estimate(rho.value, rho.low, rho.high, len(points)),
                points,
                _worst(points),
            )
        )
    return tuple(found)


def _worst(
    points: Sequence[tuple[str, float, float]],
) -> tuple[str, str, float, float] | None:
    """Return the pair that the proxy puts most wrongly: it prefers the first, the second wins."""
    best: tuple[float, tuple[str, str, float, float]] | None = None
    for mine, cheap, slow in points:
        for other, dear, fast in points:
            if cheap < dear and slow > fast * (1 + _TIE):
                weight = math.log(dear / cheap) * math.log(slow / fast)
                if best is None or weight > best[0]:
                    best = (weight, (mine, other, dear / cheap, slow / fast))
    return None if best is None else best[1]


def trust(
    rows: Sequence[OutcomeRow],
    facts: Mapping[str, object],
    spreads: Sequence[float | None] | None = None,
) -> TrustReport:
    """Return what these outcomes of one board say of the state it was in.

    Args:
        rows: of latency jobs.
        facts: of the board.
        spreads: of the measurements on a virtual clock, which no load bends: there the load is
            left out, and how well values repeat stands in its place.
    """
    asked = [row for row in rows if row.job.spec.plan.warmup == "steady"]
    steady = [reached for row in asked for reached in steady_by_process(row).values()]
    states = [state for row in rows for state in row.outcome.health]
    virtual = spreads is not None
    loads = [] if virtual else [s.load1 for s in states if s.load1 is not None]
    temperatures = [s.temp_c for s in states if s.temp_c is not None]
    cores = facts.get("cores")
    return TrustReport(
        steady=sum(steady),
        processes=len(steady),
        load1_max=max(loads, default=None),
        cores=cores if isinstance(cores, int) else None,
        governors=tuple(sorted({s.governor for s in states if s.governor})),
        throttled=any(s.throttle_bits for s in states if s.phase == "after"),
        temp_c_max=max(temperatures, default=None),
        spread=max((s for s in spreads or () if s is not None), default=None),
    )


def is_smoke(facts: Mapping[str, object]) -> bool:
    """Whether a board is emulated and timed by the real clock."""
    emulator = facts.get("emulator")
    return isinstance(emulator, Mapping) and emulator.get("clock") == "wall"


def shown_facts(facts: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Return what a reader wants to know of a board as (what, value)."""
    found: list[tuple[str, str]] = []
    for key, name in _FACTS.items():
        value = facts.get(key)
        if key == "memory_bytes" and isinstance(value, int):
            found.append((name, words.size(value)))
        elif isinstance(value, (str, int)) and value != "":
            found.append((name, str(value)))
    emulator = facts.get("emulator")
    if isinstance(emulator, Mapping):
        if emulator.get("cpu"):
            # The kernel knows an emulated ARM core by numbers only.
            found = [pair for pair in found if pair[0] != "CPU"]
            found.insert(0, ("CPU", f"{emulator['cpu']} (emulated)"))
        found.append(("emulator", _emulator(emulator, facts.get("qemu_version"))))
    runtimes = facts.get("runtimes")
    if isinstance(runtimes, Mapping):
        found += [(str(k), str(v)) for k, v in runtimes.items() if isinstance(v, (str, int))]
    return tuple(found)


def _emulator(told: Mapping[str, object], version: object) -> str:
    parts = [f"QEMU {version}" if version else "QEMU"]
    parts += [str(told[key]) for key in ("machine", "cpu") if told.get(key)]
    said = {
        "clock": "{} clock",
        "shift": "shift {}",
        "memory_mb": "{} MB",
        "smp": "{} core",
        "image": "image {:.12}",
    }
    parts += [form.format(told[key]) for key, form in said.items() if told.get(key) is not None]
    return ", ".join(parts)
