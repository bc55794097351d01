"""Boards beside each other, counted events and roofs, as values that a template only lays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import caveats, figures_roofline, words
from flatsat.reports.figures import family
from flatsat.reports.figures_static import log_range, log_ticks, place

if TYPE_CHECKING:
    from flatsat.reports.model import BoardSection, RunReport
    from flatsat.reports.model_board import BoardsReport, DtypeCell, DtypeRow

_SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Counts:
    """What was counted of a section's inferences: which columns there are, and what they rest on.

    Attributes:
        energy: any energy is known; `classes` says how it was come by.
        notes: footnotes, one a line.
    """

    energy: bool
    classes: str
    instructions: bool
    traffic: bool
    misses: bool
    notes: list[str]


@dataclass(frozen=True)
class RoofRow:
    """One artifact under its roof, in words."""

    label: str
    family: str
    rate: str
    intensity: str
    traffic: str
    roof: str
    share: str
    bound: str


@dataclass(frozen=True)
class Dot:
    """A board's value of a row: its place in per cent, its colour and shape."""

    at: float
    series: int
    shape: str
    text: str


@dataclass(frozen=True)
class Dumbbell:
    """A network's ratio on each board; `low` and `high` are the ends of the line between them."""

    label: str
    detail: str
    dots: tuple[Dot, ...]
    low: float
    high: float
    turned: bool


@dataclass(frozen=True)
class BoardsView:
    """How far the board decides, ready to show."""

    report: BoardsReport
    where: str
    lead: str
    caveat: str
    keys: tuple[tuple[str, int, str], ...]
    bells: tuple[Dumbbell, ...]
    ticks: tuple[tuple[float, str], ...]
    one: float
    ranks: tuple[str, ...]


def capability_facts(section: BoardSection) -> list[tuple[str, str]]:
    """Return what the board's probes found as (what, value)."""
    board = section.capability
    if board is None:
        return []
    clock = f"{section.clock.value} clock"
    facts = [
        (f"peak {p.dtype}", f"{words.figures(p.gmac_s)} GMAC/s, {clock}{_by(p.method)}")
        for p in board.peaks
    ]
    facts += [(f"peak {dtype}", f"none: {why}") for dtype, why in board.absent]
    if board.native:
        facts.append(("native types", "; ".join(f"{name} ({by})" for name, by in board.native)))
    if board.copy_gb_s is not None:
        rate = f"{words.figures(board.copy_gb_s)} GB/s, {clock}{_by(board.copy_method)}"
        facts.append(("copying", rate))
    if board.caches:
        held = ", ".join(f"L{c.level} {words.memory(c.size_bytes)}" for c in board.caches)
        source = " (from the core's documentation)" if board.documented else ""
        facts.append(("data caches", held + source))
    return facts


def _by(method: str) -> str:
    return f" ({method})" if method else ""


def counts(section: BoardSection) -> Counts:
    """Return which counts a section has, and the footnotes that belong to them."""
    energies = [m.energy for m in section.measurements if m.energy is not None]
    events = [m.events for m in section.measurements if m.events is not None]
    notes: list[str] = []
    if any(e.class_ == "modelled" for e in energies):
        notes.append(caveats.MODELLED)
    for model, source in dict.fromkeys((e.model, e.source) for e in energies):
        if model or source:
            notes.append(f"Joules per event: {model or 'table'}{f'; {source}' if source else ''}.")
    caches = dict.fromkeys(e.cache for e in events if e.cache)
    notes += [
        f"Cache misses are of the first of two modelled caches ({cache}); bytes to memory are "
        "those behind the second."
        for cache in caches
    ]
    spreads = [e.spread for e in events if e.spread is not None]
    if spreads:
        notes.append(
            "Counts are medians of the inference alone, in user code; instructions of one artifact "
            f"differ by at most {words.fine_percent(max(spreads))} between inferences."
        )
    return Counts(
        energy=bool(energies),
        classes=" or ".join(sorted({e.class_ for e in energies})),
        instructions=any(e.instructions is not None for e in events),
        traffic=any(e.traffic_bytes is not None for e in events),
        misses=any(e.cache_misses is not None for e in events),
        notes=notes,
    )


def roof_rows(section: BoardSection) -> list[RoofRow]:
    """Return the roofline plot's figures, the highest rate first."""
    shown = figures_roofline.points(section)
    return [
        RoofRow(
            m.label,
            family(m),
            f"{words.figures(p.gmac_s)} GMAC/s",
            words.figures(p.intensity),
            f"{words.size(p.traffic_bytes)}{'' if p.counted else ' at least'}",
            f"{p.dtype}: {words.figures(p.roof_gmac_s)} GMAC/s"
            if p.roof_gmac_s is not None
            else words.NONE,
            words.percent(p.gmac_s / p.roof_gmac_s) if p.roof_gmac_s is not None else words.NONE,
            p.bound or words.NONE,
        )
        for m, p in sorted(shown, key=lambda pair: -pair[1].gmac_s)
    ]


# Boards beside each other


def boards_view(boards: BoardsReport, report: RunReport) -> BoardsView:
    """Return how far the board decides, ready to show."""
    ratios = [int8_over_float(c) for row in boards.rows for c in row.cells if c is not None]
    low, high = log_range([1.0, *ratios])
    several = len({b.workload for b in report.boards if b.clock == boards.clock}) > 1
    network = boards.workload.rpartition("/")[2] or "imported models"
    return BoardsView(
        boards,
        f"{f'for {network}, ' if several else ''}{boards.clock.value} clocks",
        _lead(boards),
        caveats.DTYPES if boards.clock.value == "virtual" and boards.rows else "",
        tuple((name, i % 8, _SHAPES[i % len(_SHAPES)]) for i, name in enumerate(boards.boards)),
        tuple(_bell(row, boards, low, high) for row in boards.rows),
        tuple((place(t, low, high, log=True), f"{t:g}") for t in log_ticks(low, high)),
        place(1.0, low, high, log=True),
        tuple(
            f"Rank correlation of the latencies of {rho.n} files on {left} and on {right}: "
            f"\u03c1 = {_signed(rho.value)}"
            + (
                f" ({_signed(rho.low)} to {_signed(rho.high)})"
                if rho.low is not None and rho.high is not None
                else ""
            )
            for left, right, rho in boards.ranks
            if rho.value is not None
        ),
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", words.MINUS)


def int8_over_float(cell: DtypeCell) -> float:
    """Return the int8 latency over the float latency of one network on one board."""
    return 1 / (cell.gain.value or 1.0)


def _bell(row: DtypeRow, boards: BoardsReport, low: float, high: float) -> Dumbbell:
    dots = tuple(
        Dot(
            place(int8_over_float(cell), low, high, log=True),
            i % 8,
            _SHAPES[i % len(_SHAPES)],
            f"{name}: {words.figures(int8_over_float(cell))}",
        )
        for i, (name, cell) in enumerate(zip(boards.boards, row.cells, strict=True))
        if cell is not None
    )
    places = [dot.at for dot in dots]
    return Dumbbell(row.label, row.detail, dots, min(places), max(places), row.turned)


def _lead(boards: BoardsReport) -> str:
    """Return in a sentence what the boards make of int8; "" without such networks."""
    if not boards.rows:
        return ""
    parts: list[str] = []
    for i, name in enumerate(boards.boards):
        cells = [cell for row in boards.rows if (cell := row.cells[i]) is not None]
        faster = sum(cell.gain.verdict == "faster" for cell in cells)
        parts.append(f"of {faster} of {words.plural(len(cells), 'network')} on {name}")
    said = f"Int8 is shown to be the faster form {words.listed(parts)}"
    turned = sum(row.turned for row in boards.rows)
    if turned:
        said += f"; the boards disagree about {words.plural(turned, 'network')}"
    return f"{said}."
