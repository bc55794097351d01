"""Counted events and energies of one inference, from the outcomes of energy jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from flatsat.reports import stats, words
from flatsat.reports.context import counted
from flatsat.reports.model import Estimate
from flatsat.reports.model_board import EnergyReport, EventsReport

if TYPE_CHECKING:
    from flatsat.outcome import Samples
    from flatsat.reports.rows import OutcomeRow

Key: TypeAlias = tuple[str, str, str, int, int]
"""Artifact, board_id, runtime, threads, batch: what an inference is the same under."""


@dataclass(frozen=True)
class Spent:
    """What one inference takes; either part is None where it wasn't had."""

    energy: EnergyReport | None = None
    events: EventsReport | None = None


def key_of(row: OutcomeRow) -> Key:
    """Return under what an outcome's inferences ran."""
    spec = row.job.spec
    return row.job.artifact, row.board_id or "", spec.runtime, spec.threads, spec.batch


def spent(rows: Iterable[OutcomeRow]) -> dict[Key, Spent]:
    """Return energy and events by what they were counted under; `rows` are energy jobs."""
    groups: dict[Key, list[OutcomeRow]] = {}
    for row in rows:
        groups.setdefault(key_of(row), []).append(row)
    return {key: Spent(_energy(group), _events(group)) for key, group in groups.items()}


def _taken(rows: Sequence[OutcomeRow], quantity: str) -> list[tuple[OutcomeRow, Samples]]:
    found: list[tuple[OutcomeRow, Samples]] = []
    seen: set[str] = set()
    for row in rows:
        source = row.job.reused_from or row.job.job_id
        if source not in seen:
            seen.add(source)
            found += [(row, samples) for samples in counted(row, quantity)]
    return found


def _energy(rows: Sequence[OutcomeRow]) -> EnergyReport | None:
    taken = _taken(rows, "energy_nj")
    # A metered energy, where there is one, tells more than one that was worked out.
    for class_ in ("metered", "estimated", "modelled"):
        mine = [(row, samples) for row, samples in taken if samples.kind == class_]
        if not mine:
            continue
        interval = stats.bootstrap_ci([samples.values for _, samples in mine], 0.5)
        assert interval is not None
        told = mine[-1][0].outcome.evidence.get("energy")
        told = told if isinstance(told, Mapping) else {}
        return EnergyReport(
            class_,
            Estimate(interval.value, interval.low, interval.high, interval.n),
            str(told.get("model") or ""),
            str(told.get("source") or ""),
        )
    return None


def _events(rows: Sequence[OutcomeRow]) -> EventsReport | None:
    values = {
        quantity: np.concatenate([np.asarray(s.values, np.float64) for _, s in taken])
        for quantity in ("instructions", "load_bytes", "store_bytes", "cache_misses", "dram_bytes")
        if (taken := _taken(rows, quantity))
    }
    if not values:
        return None
    middle = {quantity: float(np.median(held)) for quantity, held in values.items()}
    instructions = values.get("instructions")
    spread = None
    if instructions is not None and instructions.size > 1 and middle["instructions"]:
        spread = float(np.ptp(instructions)) / middle["instructions"]
    told = next((e for row in rows if (e := row.outcome.evidence.get("energy"))), None)
    return EventsReport(
        middle.get("instructions"),
        middle.get("load_bytes"),
        middle.get("store_bytes"),
        middle.get("cache_misses"),
        middle.get("dram_bytes"),
        max(held.size for held in values.values()),
        spread,
        _cache(told.get("cache") if isinstance(told, Mapping) else None),
    )


def _cache(told: object) -> str:
    """Return the modelled caches in words, as far as they are told."""
    if not isinstance(told, Mapping):
        return str(told or "")
    parts: list[str] = []
    for level in ("l1", "l2"):
        size, ways = told.get(f"{level}_size"), told.get(f"{level}_ways")
        if isinstance(size, int):
            way = f", {ways}-way" if isinstance(ways, int) else ""
            parts.append(f"{level.upper()} of {words.memory(size)}{way}")
    if isinstance(line := told.get("line"), int):
        parts.append(f"lines of {line} bytes")
    return "; ".join(parts)
