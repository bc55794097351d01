"""What a comparison says: verdicts, intervals and the exit code that follows, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.reports.context import Context
    from flatsat.reports.interval import Interval
    from flatsat.reports.rows import OutcomeRow


class Verdict(StrEnum):
    """What a comparison says of the candidate, seen from the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    LESS = "less"
    MORE = "more"
    EQUAL = "equal"
    BETTER = "better"
    NON_INFERIOR = "non-inferior"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"

    @property
    def is_regression(self) -> bool:
        """Whether the candidate was shown to be worse."""
        return self in (Verdict.SLOWER, Verdict.MORE, Verdict.WORSE)


@dataclass(frozen=True)
class Subject:
    """One side of a comparison: what people call it, and its outcomes.

    Attributes:
        label: unique among the subjects compared.
        rows: of one artifact, with samples; jobs of any kind and outcome.
    """

    label: str
    rows: tuple[OutcomeRow, ...]


@dataclass(frozen=True)
class Comparison:
    """What one quantity under one context says of a candidate against a baseline.

    Attributes:
        quantity: "latency", "memory", "energy" or "accuracy".
        statistic: of a process ("p50", "p10", "mean"), or the metric's name.
        baseline, candidate: labels.
        context: under which both were measured; None where they can't be compared.
        ratio: baseline / candidate: above 1 the candidate is faster, or needs less. None for
            accuracy, and where refused.
        difference: candidate - baseline on the same images, in [-1, 1]; for accuracy only.
        verdict: equal: the interval lies within +-threshold. Faster, slower: not equal, and it
            leaves out 1. Non-inferior: it lies above -margin; better: above 0; worse: below
            -margin.
        why: one line where the verdict needs one.
        paired: by interleaved rounds; False: by the processes of either side.
        rounds: pairs, or processes of both sides together.
    """

    quantity: str
    statistic: str
    baseline: str
    candidate: str
    context: Context | None
    ratio: Interval | None
    difference: Interval | None
    verdict: Verdict
    why: str = ""
    paired: bool = False
    rounds: int = 0

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able mapping for machines."""
        interval = self.ratio or self.difference
        where = self.context
        return {
            "quantity": self.quantity,
            "statistic": self.statistic,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "board": None if where is None else where.board,
            "runtime": None if where is None else where.runtime,
            "threads": None if where is None else where.threads,
            "class": None if where is None else where.class_,
            "is": "difference" if self.difference is not None else "ratio",
            "value": None if interval is None else interval.value,
            "low": None if interval is None else interval.low,
            "high": None if interval is None else interval.high,
            "level": None if interval is None else interval.level,
            "verdict": self.verdict.value,
            "why": self.why,
            "paired": self.paired,
            "rounds": self.rounds,
        }


@dataclass(frozen=True)
class ComparisonReport:
    """Several candidates against one baseline.

    Attributes:
        baseline: its label.
        rows: by candidate, quantity and context.
        threshold: relative difference that still counts as equal.
        margin: accuracy loss that still counts as none, in [0, 1].
        notes: what was left out, one line each.
    """

    baseline: str
    rows: tuple[Comparison, ...]
    threshold: float
    margin: float
    notes: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether any candidate was shown to be worse in any quantity."""
        return any(row.verdict.is_regression for row in self.rows)

    @property
    def exit_code(self) -> int:
        """1 for a regression; 2 if nothing could be compared; 4 if something stays open; else 0."""
        if self.regression:
            return 1
        verdicts = {row.verdict for row in self.rows}
        if verdicts <= {Verdict.REFUSED}:
            return 2
        return 4 if verdicts & {Verdict.REFUSED, Verdict.INCONCLUSIVE} else 0

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able mapping for machines."""
        return {
            "schema": "flatsat.compare/1",
            "baseline": self.baseline,
            "threshold": self.threshold,
            "margin": self.margin,
            "regression": self.regression,
            "rows": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }
