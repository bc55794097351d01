"""Board sections by clock, as values that the run's page only lays out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flatsat.reports import (
    caveats,
    figures,
    figures_latency,
    figures_roofline,
    pages_boards,
    pages_parts,
    pages_views,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.figures import Figure
    from flatsat.reports.model import BoardSection, RunReport


@dataclass(frozen=True)
class SectionView:
    """One section; `index` tells its parts from those of the others."""

    index: int
    section: BoardSection
    where: str
    best_role: str
    first_of_board: bool
    cpu: str
    facts: list[tuple[str, str]]
    tiles: list[pages_parts.Tile]
    trust: list[pages_parts.Chip]
    speeds: pages_views.Spans | None
    proxies: pages_views.Spans | None
    minis: list[pages_views.Mini]
    blind: str
    same_counts: bool
    several_runtimes: bool
    unsteady: bool
    dtypes: bool
    counts: pages_boards.Counts
    roofs: list[pages_boards.RoofRow]
    counted: bool
    least: bool
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClockView:
    """All sections of one clock: they stand together, and apart from those of other clocks.

    Attributes:
        key: "wall", "virtual" or "smoke".
        title: with the boards' names.
        caveat: what must be said of this clock, "" for real ones.
    """

    key: str
    title: str
    caveat: str
    views: list[SectionView]
    boards: list[pages_boards.BoardsView]


_CLOCKS = (
    ("wall", "wall clocks", ""),
    ("virtual", "virtual clocks", caveats.VIRTUAL),
    ("smoke", "the wall clock of an emulator", caveats.SMOKE),
)


def clock_views(report: RunReport) -> list[ClockView]:
    """Return the sections of a run clock by clock."""
    views = [
        _section_view(i, section, where_of(section, report), report.sections[:i])
        for i, section in enumerate(report.sections)
    ]
    found: list[ClockView] = []
    for key, said, caveat in _CLOCKS:
        mine = [view for view in views if clock_key(view.section) == key]
        if not mine:
            continue
        names = words.listed(list(dict.fromkeys(view.section.board for view in mine)))
        # An emulator's real clock compares no boards.
        across = [
            pages_boards.boards_view(b, report)
            for b in report.boards
            if key != "smoke" and b.clock.value == key
        ]
        found.append(ClockView(key, f"On {said}: {names}", caveat, mine, across))
    return found


def clock_key(section: BoardSection) -> str:
    """Return which clock a section stands under: "wall", "virtual" or "smoke"."""
    return "smoke" if section.smoke else section.clock.value


def where_of(section: BoardSection, report: RunReport) -> str:
    """Return where a section was measured, with what tells it from the others."""
    others = [s for s in report.sections if s is not section and s.board == section.board]
    board = f"on {section.board}"
    if any(s.workload == section.workload and s.clock != section.clock for s in others):
        board += f", {section.clock.value} clock"
    elif any(s.workload == section.workload for s in others):
        board += f" ({section.board_id[:8]})"
    if all(s.workload == section.workload for s in report.sections):
        return board
    return f"for {network(section.workload)} {board}"


def network(workload: str) -> str:
    """Return what a workload's networks are called."""
    return workload.rpartition("/")[2] or "imported models"


def _section_view(
    index: int, section: BoardSection, where: str, earlier: Sequence[BoardSection]
) -> SectionView:
    measured = section.measurements
    proxies = {proxy.proxy for proxy in section.proxies}
    under_roof = [point for _, point in figures_roofline.points(section)]
    return SectionView(
        index=index,
        section=section,
        where=where,
        best_role=best.role if (best := section.find(section.headline.label)) else "",
        first_of_board=all(s.board_id != section.board_id for s in earlier),
        cpu=next((value for what, value in section.facts if what.lower() == "cpu"), ""),
        facts=[*section.facts, *pages_boards.capability_facts(section)],
        tiles=pages_parts.tiles(section),
        trust=pages_parts.trust_chips(section),
        speeds=pages_views.speed_spans(section),
        proxies=pages_views.proxy_spans(section),
        minis=pages_views.minis(section),
        blind=pages_views.blind(section),
        same_counts=section.virtual and bool(proxies & {"modelled energy", "memory traffic"}),
        several_runtimes=len({(m.runtime, m.threads) for m in measured}) > 1,
        unsteady=any(t.steady is False for m in measured for t in m.traces),
        dtypes=section.virtual and section.several_dtypes,
        counts=pages_boards.counts(section),
        roofs=pages_boards.roof_rows(section),
        counted=any(p.counted for p in under_roof),
        least=any(not p.counted for p in under_roof),
        figures=_figures(section),
    )


def _figures(section: BoardSection) -> dict[str, Any]:
    # An emulator's real clock ranks nothing: no trade-off is drawn of it.
    pareto: dict[str, Figure] = {
        name: figure
        for name in (() if section.smoke else figures.AXES)
        if (figure := figures.pareto(section, name)) is not None
    }
    latency = {
        name: figure
        for name, draw in (
            ("process", figures_latency.latency_by_process),
            ("spread", figures_latency.latency_spread),
            ("cumulative", figures_latency.latency_cumulative),
        )
        if (figure := draw(section)) is not None
    }
    roofline = figures_roofline.roofline(section)
    return {
        "pareto": pareto,
        "pareto_choices": [(name, figures.AXES[name]) for name in pareto],
        "latency": latency,
        "roofline": {} if roofline is None else {"": roofline},
    }
