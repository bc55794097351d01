"""The survey's table of pruning agents over their drop bound, and how far layers are pruned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import figures_survey, judged, sizes, techniques, words
from flatsat.reports.figures_survey import LayerLine
from flatsat.reports.pruned_filters import pruned_filters

if TYPE_CHECKING:
    from flatsat.reports.figures import Figure
    from flatsat.reports.judged import Judged
    from flatsat.reports.model import CandidateReport, RatioReport, RunReport

STEP = "agent-prune"
_MAGNITUDE = "l1-filter-prune"
_NEAR = 0.1
"""Ratios of parameters that differ by less are compared."""


@dataclass(frozen=True)
class Latency:
    """Median latency of a network somewhere."""

    where: str
    p50_ns: float | None
    ratio: RatioReport | None


@dataclass(frozen=True)
class AgentRow:
    """A network that agents pruned.

    Attributes:
        bound: b, the drop of accuracy that was allowed, in points; None where not told.
        smaller: parameters of the dense network / its own.
        filters: share of the filters of the pruned layers that is left, None where not told.
        accuracy: its own.
        magnitude: (label, smaller, accuracy) of the network of about as many parameters whose
            filters were ranked by L1 norm, None where the run has none.
        cost: training steps, forward passes and CPU time, in words.
    """

    label: str
    bound: float | None
    smaller: float | None
    filters: float | None
    accuracy: Judged | None
    magnitude: tuple[str, float, Judged] | None
    cost: str
    latencies: tuple[Latency, ...]


@dataclass(frozen=True)
class AgentsView:
    """The table and the plot of one workload."""

    workload: str
    name: str
    rows: tuple[AgentRow, ...]
    dense: Judged | None
    where: str
    figure: Figure | None


def agents_views(report: RunReport) -> list[AgentsView]:
    """Return the table over b of each workload that has networks pruned by agents."""
    found: list[AgentsView] = []
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        mine = [
            c
            for c in report.candidates
            if c.workload == workload and any(step.use == STEP for step in c.steps)
        ]
        if not mine:
            continue
        mine.sort(key=lambda c: (_bound(c) is None, _bound(c) or 0.0, c.seed or 0))
        reference = sizes.reference_of(report, mine[0])
        judge = judged.on_board
        if any(judge(report, c, "float") is None for c in mine):
            judge = judged.on_host
        dense = None if reference is None else judge(report, reference, "float")
        rows = []
        for candidate in mine:
            partner = _partner(report, candidate)
            other = None if partner is None else judge(report, partner, "float")
            ratio = None if partner is None else _smaller(report, partner)
            rows.append(
                AgentRow(
                    label=candidate.label,
                    bound=_bound(candidate),
                    smaller=_smaller(report, candidate),
                    filters=_left(_layers(report, candidate)),
                    accuracy=judge(report, candidate, "float"),
                    magnitude=None
                    if partner is None or other is None or ratio is None
                    else (partner.label, ratio, other),
                    cost=_cost(candidate),
                    latencies=_latencies(report, candidate),
                )
            )
        where = next((row.accuracy.where for row in rows if row.accuracy is not None), "")
        lines = [
            LayerLine(
                _line_name(candidate, mine),
                tuple((n, 1 - kept / all_) for n, kept, all_ in _layers(report, candidate)),
            )
            for candidate in mine
        ]
        figure = figures_survey.pruned_by_layer(lines, "filters")
        name = f"agents{len(found)}"
        found.append(AgentsView(workload, name, tuple(rows), dense, where, figure))
    return found


def _line_name(candidate: CandidateReport, group: Sequence[CandidateReport]) -> str:
    bound = _bound(candidate)
    if bound is None:
        return candidate.label
    alone = sum(_bound(other) == bound for other in group) == 1
    return f"b = {bound:g}" + ("" if alone else f", {candidate.label}")


def _bound(candidate: CandidateReport) -> float | None:
    """Return the drop bound b of the first agent step, in points."""
    for step in candidate.steps:
        if step.use == STEP:
            value = step.params.get("b")
            return float(value) if isinstance(value, (int, float)) else None
    return None


def _smaller(report: RunReport, candidate: CandidateReport) -> float | None:
    reference = sizes.reference_of(report, candidate)
    if reference is None or not reference.params or not candidate.params:
        return None
    return reference.params / candidate.params


def _partner(report: RunReport, candidate: CandidateReport) -> CandidateReport | None:
    """Return the network pruned by filter norm whose number of parameters is nearest."""
    mine = candidate.params
    if not mine:
        return None
    near = [
        (abs(math.log(c.params / mine)), c.seed != candidate.seed, i, c)
        for i, c in enumerate(report.candidates)
        if c.workload == candidate.workload
        and c.params
        and any(step.use == _MAGNITUDE for step in c.steps)
        and not any(step.use == STEP for step in c.steps)
    ]
    near = [item for item in near if item[0] <= math.log1p(_NEAR)]
    return min(near)[3] if near else None


def _layers(report: RunReport, candidate: CandidateReport) -> tuple[tuple[str, int, int], ...]:
    """Return (layer, filters kept, filters before) as the agent step tells them."""
    return pruned_filters(report.survey.of(candidate.candidate_id).history, STEP)


def _left(layers: Sequence[tuple[str, int, int]]) -> float | None:
    total = sum(all_ for _, _, all_ in layers)
    return sum(kept for _, kept, _ in layers) / total if total else None


def _cost(candidate: CandidateReport) -> str:
    steps, passes = candidate.cost.get("train_steps"), candidate.cost.get("forward_passes")
    told = [
        f"{words.count(value)} {what}"
        for value, what in ((steps, "training steps"), (passes, "forward passes"))
        if value
    ]
    used_s = candidate.cost.get("cpu_s")
    told += [f"{words.seconds(used_s)} of CPU time"] if used_s else []
    return ", ".join(told) or words.NONE


def _latencies(report: RunReport, candidate: CandidateReport) -> tuple[Latency, ...]:
    shas = {s for s, _, form, _ in candidate.artifacts if techniques.numbers(form) == "float"}
    return tuple(
        Latency(
            f"{section.board}, {m.runtime}, {section.clock.value} clock",
            m.p50_ns.value,
            m.versus_reference,
        )
        for section in report.sections
        if not section.smoke
        for m in section.measurements
        if m.artifact in shas
    )
