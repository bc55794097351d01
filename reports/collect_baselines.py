"""The dense reference, the narrow network and the float form that a measurement is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports.compare import compare
from flatsat.reports.model import RatioReport
from flatsat.reports.techniques import numbers
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.outcome import Samples
    from flatsat.reports.context import Context
    from flatsat.reports.known import Known
    from flatsat.reports.rows import OutcomeRow

# MACs that differ by less count as equal.
_EQUAL_MACS = 0.15


@dataclass(frozen=True)
class Taken:
    """The latencies of one artifact under one context.

    Attributes:
        label: unique among those of one section.
    """

    known: Known
    context: Context
    label: str
    taken: tuple[tuple[OutcomeRow, Samples], ...]

    @property
    def rows(self) -> tuple[OutcomeRow, ...]:
        """The outcomes, each once, in the order of the run."""
        return tuple({row.job.job_id: row for row, _ in self.taken}.values())

    @property
    def clock(self) -> TimeKind:
        """The clock of the latencies."""
        return TimeKind.VIRTUAL if self.context.class_ == "virtual" else TimeKind.WALL


def reference(one: Taken, group: Sequence[Taken]) -> Taken | None:
    """Return the float artifact of the dense reference, of the same seed where there is one.

    A runtime that leaves zeros out has a float form of its own, of role "sparse".
    """
    if one.known.candidate.role == "reference" and numbers(one.known.artifact.role) == "float":
        return None
    fitting = [
        other
        for other in group
        if other.context == one.context
        and other.known.candidate.role == "reference"
        and numbers(other.known.artifact.role) == "float"
    ]
    seed = one.known.candidate.seed
    own = [other for other in fitting if other.known.candidate.seed == seed]
    return next(iter(own or fitting), None)


def equal_macs(one: Taken, group: Sequence[Taken]) -> Taken | None:
    """Return the narrow network with about as many MACs, of the same precision if there is one.

    For a runtime that leaves zeros out, only products with a non-zero weight count as MACs.
    """
    macs = _macs(one)
    if one.known.candidate.role not in ("compressed", "imported") or not macs:
        return None
    near = [
        (abs(math.log(theirs / macs)), other)
        for other in group
        if other.context == one.context
        and other.known.candidate.role == "equal-macs"
        and (theirs := _macs(other))
    ]
    near = [pair for pair in near if pair[0] <= math.log1p(_EQUAL_MACS)]
    precision = one.known.artifact.role
    alike = [pair for pair in near if pair[1].known.artifact.role == precision]
    floats = [pair for pair in near if pair[1].known.artifact.role == "float"]
    fitting = alike or floats
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _macs(one: Taken) -> float | None:
    """Return the MACs that an artifact's runtime does, None where not known."""
    candidate = one.known.candidate
    if one.known.artifact.role != "sparse" or not candidate.layers:
        return candidate.macs
    return products(candidate.layers)


def products(layers: Sequence[Mapping[str, object]]) -> float:
    """Return the MACs of layers without those whose weight is zero."""
    told = [[layer.get(key) for key in ("macs", "nonzeros", "params")] for layer in layers]
    return sum(
        macs * nonzeros / params
        for macs, nonzeros, params in told
        if isinstance(macs, int)
        and isinstance(nonzeros, int)
        and isinstance(params, int)
        and params
    )


def float_form(one: Taken, group: Sequence[Taken]) -> Taken | None:
    """Return the float artifact of the same network and format that an int8 one stands beside."""
    artifact = one.known.artifact
    if artifact.role != "int8":
        return None
    fitting = [
        other
        for other in group
        if other.context == one.context
        and other.known.artifact.role == "float"
        and other.known.artifact.format == artifact.format
    ]
    # The float file may be shared with another candidate, under whose name it stands.
    source = [other for other in fitting if other.known.artifact.sha256 == artifact.lowered_from]
    mine = one.known.candidate.candidate_id
    own = [other for other in fitting if other.known.candidate.candidate_id == mine]
    return next(iter(source or own), None)


def versus(one: Taken, other: Taken | None, threshold: float) -> RatioReport | None:
    """Return how many times faster one is than the other; None without another."""
    if other is None:
        return None
    found = compare(other.rows, one.rows, threshold)
    ratio = found.ratio
    return RatioReport(
        against=other.label,
        value=None if ratio is None else ratio.value,
        low=None if ratio is None else ratio.low,
        high=None if ratio is None else ratio.high,
        verdict=found.verdict.value,
        why=found.why,
    )
