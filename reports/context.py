"""Under what a measurement was taken: what must be equal before two may be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from flatsat.outcome import Failed, Inconclusive, Measured, Samples

if TYPE_CHECKING:
    from flatsat.reports.rows import OutcomeRow


@dataclass(frozen=True)
class Context:
    """Everything but the artifact that a measured value depends on.

    Attributes:
        board_id, board: identity and name of the board.
        class_: clock kind of a latency, method of a memory figure, energy kind.
        runtime, runtime_version, provider: what ran the artifact; the version as the board told.
        threads, affinity, batch, axes, power_mode: as in the JobSpec.
        isolation, warmup: of the plan.
        method: name and version.
    """

    board_id: str
    board: str
    class_: str
    runtime: str
    runtime_version: str
    provider: str
    threads: int
    affinity: tuple[int, ...]
    batch: int
    axes: tuple[tuple[str, int], ...]
    power_mode: tuple[tuple[str, str], ...]
    isolation: str
    warmup: str
    method: str

    def differences(self, other: Context) -> tuple[str, ...]:
        """Return in words each thing in which the two differ, the weightiest first."""
        found: list[str] = []
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs and field.name != "board_id":
                word = _WORDS.get(field.name, field.name.replace("_", " "))
                found.append(f"{word} {_shown(mine)} and {_shown(theirs)}")
        if self.board_id != other.board_id and self.board == other.board:
            found.insert(0, f"{self.board} is no longer the same board (kernel, firmware or CPU)")
        return tuple(found)

    @property
    def label(self) -> str:
        """Name it where one side was measured under several."""
        return f"{self.board}, {self.runtime}, {self.threads} threads"


_WORDS = {"class_": "clock or method"}


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        parts = ("=".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
        return ", ".join(parts) or "none"
    return str(value) or "unknown"


def context(row: OutcomeRow, class_: str) -> Context:
    """Return what a value of class `class_` of this outcome was taken under."""
    spec = row.job.spec
    told = row.outcome.evidence.get("runtime")
    version = told.get("version") if isinstance(told, Mapping) else None
    return Context(
        board_id=row.board_id or "",
        board=row.job.board_name,
        class_=class_,
        runtime=spec.runtime,
        runtime_version=str(version or spec.runtime_version or ""),
        provider=spec.provider,
        threads=spec.threads,
        affinity=spec.affinity,
        batch=spec.batch,
        axes=tuple(sorted(spec.axes.items())),
        power_mode=tuple(sorted(spec.power_mode.items())),
        isolation=spec.plan.isolation,
        warmup=spec.plan.warmup,
        method=f"{spec.method} {spec.method_version}",
    )


def counted(row: OutcomeRow, quantity: str) -> tuple[Samples, ...]:
    """Return the values of a measured outcome that count: one entry a process, no warm-up."""
    if not isinstance(row.outcome, Measured):
        return ()
    return tuple(
        taken
        for taken in row.outcome.samples
        if taken.quantity == quantity and taken.warm and taken.values
    )


def by_context(
    rows: Iterable[OutcomeRow], quantity: str
) -> dict[Context, list[tuple[OutcomeRow, Samples]]]:
    """Return the counted values of a quantity by what they were taken under.

    An outcome that several jobs reuse counts once.
    """
    found: dict[Context, list[tuple[OutcomeRow, Samples]]] = {}
    seen: set[str] = set()
    for row in rows:
        source = row.job.reused_from or row.job.job_id
        if source not in seen:
            seen.add(source)
            for taken in counted(row, quantity):
                found.setdefault(context(row, taken.kind), []).append((row, taken))
    return found


def why_nothing(rows: Sequence[OutcomeRow], what: str) -> str:
    """Return in words why there are no values: never measured, or how the jobs ended."""
    reasons: dict[str, int] = {}
    for row in rows:
        if isinstance(row.outcome, Failed):
            fault = row.outcome.fault
            reason = f"failed: {fault.code}, {fault.message}"
        elif isinstance(row.outcome, Inconclusive):
            reason = f"inconclusive: {row.outcome.why}"
        else:
            continue
        reasons[reason] = reasons.get(reason, 0) + 1
    if not reasons:
        return f"no {what} was measured"
    said = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    return f"no {what} was measured ({said})"
