"""A run as one HTML file that needs nothing else: no network, no other file, any recent browser.

Plotly.js is carried gzipped (about 2 MB instead of 5) and unpacked by the browser. A content
security policy allows only the page's own scripts, named by their hashes, and no request at all:
even a name that slipped through the escaping could do nothing.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flatsat.reports import (
    figures,
    figures_latency,
    figures_search,
    pages_parts,
    pages_views,
    words,
)
from flatsat.reports.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.figures import Figure
    from flatsat.reports.model import BoardSection, RunReport
    from flatsat.reports.model_search import SearchReport

_TEMPLATES = Path(__file__).parent / "templates"
_SIGNIFICANT = 6


@dataclass(frozen=True)
class _SectionView:
    section: BoardSection
    where: str
    best_role: str
    first_of_board: bool
    cpu: str
    tiles: list[pages_parts.Tile]
    trust: list[pages_parts.Chip]
    speeds: pages_views.Spans | None
    proxies: pages_views.Spans | None
    minis: list[pages_views.Mini]
    blind: str
    several_runtimes: bool
    unsteady: bool
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _SearchView:
    search: SearchReport
    rows: list[pages_views.StrategyRow]
    limit: str
    reference: str
    error: str
    figures: dict[str, dict[str, Figure]]


def render_run(report: RunReport, out: Path) -> None:
    """Write a run's page; an older page stays whole until the new one is complete.

    Raises:
        OSError: the folder can't be written.
    """
    write_atomically(out, run_html(report))


def run_html(report: RunReport) -> str:
    """Return a run's page."""
    views = [
        _section_view(section, _where(section, report), report.sections[:i])
        for i, section in enumerate(report.sections)
    ]
    searches = [_search_view(search) for search in report.search]
    drawn: dict[str, dict[str, Figure]] = {}
    for i, view in enumerate(views):
        drawn |= {f"{k}{i}": view.figures[k] for k in ("pareto", "latency") if view.figures[k]}
    for i, searched in enumerate(searches):
        drawn |= {f"{name}{i}": views_of for name, views_of in searched.figures.items()}
    page_js, theme_js = _text("page.js"), _text("theme.js")
    heats, masks = pages_views.heats(report), pages_views.mask_views(report)
    return (
        environment()
        .get_template("run.html")
        .render(
            report=report,
            title=_title(report),
            headline=headline_text(report),
            links=_links(report, views, searches, bool(heats or masks)),
            views=views,
            searches=searches,
            heats=heats,
            masks=masks,
            job_chips=pages_parts.job_chips(report.jobs, report.state),
            css=_text("page.css"),
            theme_js=theme_js,
            page_js=page_js,
            figures_json=script_json(_rounded(drawn)),
            plotly=_packed_plotly() if drawn else "",
            policy=_policy(theme_js, page_js),
        )
    )


def headline_text(report: RunReport) -> str:
    """Return the outcome of a run in one line, "" where there is none."""
    for section in report.sections:
        tiles = pages_parts.tiles(section)
        if section.headline.label is not None and tiles:
            said = ", ".join(f"{tile.figure} {tile.said}" for tile in tiles[:3])
            return f"{section.headline.label} on {section.board}: {said}"
    return ""


def index_html(**values: object) -> str:
    """Return the page that lists runs; `write_index` says from what."""
    theme_js = _text("theme.js")
    return (
        environment()
        .get_template("index.html")
        .render(css=_text("page.css"), theme_js=theme_js, policy=_policy(theme_js), **values)
    )


@functools.cache
def environment() -> Environment:
    """Return the templates' environment; everything is escaped unless marked otherwise."""
    env = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for say in (
        words.duration,
        words.size,
        words.count,
        words.exact,
        words.percent,
        words.times,
        words.moment,
        words.seconds,
        words.missing,
        words.interval_ns,
        words.plural,
        words.points,
        figures.family,
        pages_parts.change,
    ):
        env.filters[say.__name__] = say
    env.filters["between_raw"] = lambda r: (
        ""
        if r.low is None or r.high is None
        else f"{words.figures(r.low)} to {words.figures(r.high)}"
    )
    env.globals["families"] = figures.FAMILIES
    return env


def script_json(value: object) -> str:
    """Return JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _where(section: BoardSection, report: RunReport) -> str:
    """Return where a section was measured, with what tells it from the others."""
    others = [s for s in report.sections if s is not section and s.board == section.board]
    board = f"on {section.board}"
    if any(s.workload == section.workload and s.clock != section.clock for s in others):
        board += f", {section.clock.value} clock"
    elif any(s.workload == section.workload for s in others):
        board += f" ({section.board_id[:8]})"
    if all(s.workload == section.workload for s in report.sections):
        return board
    return f"for {_network(section.workload)} {board}"


def _network(workload: str) -> str:
    return workload.rpartition("/")[2] or "imported models"


def _section_view(
    section: BoardSection, where: str, earlier: Sequence[BoardSection]
) -> _SectionView:
    pareto = {
        name: figure
        for name in figures.AXES
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
    measured = section.measurements
    return _SectionView(
        section=section,
        where=where,
        best_role=best.role if (best := section.find(section.headline.label)) else "",
        first_of_board=all(s.board_id != section.board_id for s in earlier),
        cpu=next((value for what, value in section.facts if what.lower() == "cpu"), ""),
        tiles=pages_parts.tiles(section),
        trust=pages_parts.trust_chips(section),
        speeds=pages_views.speed_spans(section),
        proxies=pages_views.proxy_spans(section),
        minis=pages_views.minis(section),
        blind=pages_views.blind(section),
        several_runtimes=len({(m.runtime, m.threads) for m in measured}) > 1,
        unsteady=any(t.steady is False for m in measured for t in m.traces),
        figures={
            "pareto": pareto,
            "pareto_choices": [(name, figures.AXES[name]) for name in pareto],
            "latency": latency,
        },
    )


def _search_view(search: SearchReport) -> _SearchView:
    drawn = {
        "reward": figures_search.reward(search),
        "ratios": figures_search.ratios(search),
        "prediction": figures_search.prediction(search),
        "front": figures_search.front(search),
    }
    return _SearchView(
        search=search,
        rows=pages_views.strategy_rows(search),
        limit=figures_search.quantity(search, search.limit),
        reference=figures_search.quantity(search, search.reference),
        error=pages_views.prediction_error(search),
        figures={name: {"": figure} if figure else {} for name, figure in drawn.items()},
    )


def _title(report: RunReport) -> str:
    tasks: dict[str, list[str]] = {}
    for workload in sorted({c.workload for c in report.candidates if c.workload}):
        task, _, network = workload.rpartition("/")
        tasks.setdefault(task, []).append(network)
    of = " and ".join(f"{task} ({', '.join(networks)})" for task, networks in tasks.items())
    boards = list(dict.fromkeys(section.board for section in report.sections))
    what = words.plural(len(report.candidates), "network")
    where = f", measured on {' and '.join(boards)}" if boards else ""
    return f"{what}{f' for {of}' if of else ''}{where}"


def _links(
    report: RunReport, views: list[_SectionView], searches: list[_SearchView], layers: bool
) -> list[tuple[str, str]]:
    links: list[tuple[str, str]] = []
    for i, view in enumerate(views):
        # Later sections bear the name of what is measured there, to spare room.
        other = view.where.removeprefix("for ").removeprefix("on ")
        links.append((f"candidates{i}", other if i else "Candidates"))
        if i == 0:
            parts = (("pareto", "tradeoff", "Trade-off"), ("latency", "latency", "Latency"))
            links += [(f"{href}{i}", text) for key, href, text in parts if view.figures[key]]
            links += [(f"proxies{i}", "Proxies")] if view.proxies else []
    links += [("sparsity", "Layers")] if layers else []
    links += [(f"search{i}", "Search") for i in range(len(searches))]
    links.append(("failures", f"Failures ({len(report.failures)})"))
    links.append(("reproduce", "Reproduce"))
    return links


def _rounded(value: Any) -> Any:
    """Shorten floats to what a picture can show; a NaN becomes null."""
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        short = float(f"{value:.{_SIGNIFICANT}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8").strip()


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    # strict-dynamic lets the page's own script start the unpacked plotly.js from a blob; plotly
    # writes style attributes.
    return (
        f"default-src 'none'; script-src {hashes} 'strict-dynamic'; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
