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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flatsat.reports import (
    caveats,
    figures,
    figures_search,
    pages_agents,
    pages_boards,
    pages_choices,
    pages_parts,
    pages_results,
    pages_sections,
    pages_survey,
    pages_views,
    words,
)
from flatsat.reports.files import write_atomically

if TYPE_CHECKING:
    from flatsat.reports.figures import Figure
    from flatsat.reports.model import RunReport
    from flatsat.reports.model_search import SearchReport

_TEMPLATES = Path(__file__).parent / "templates"
_SIGNIFICANT = 6
_PARTS = (
    ("results", "Methods"),
    ("sizes", "Size"),
    ("agents", "Agents"),
    ("sparsity", "Layers"),
    ("weights", "Weights"),
    ("filters", "Filters"),
    ("bits", "Bits"),
)


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
    clocks = pages_sections.clock_views(report)
    views = [view for clock in clocks for view in clock.views]
    searches = [_search_view(search) for search in report.search]
    drawn: dict[str, dict[str, Figure]] = {}
    for view in views:
        parts = ("pareto", "latency", "roofline")
        drawn |= {f"{part}{view.index}": view.figures[part] for part in parts if view.figures[part]}
    for i, searched in enumerate(searches):
        drawn |= {f"{name}{i}": views_of for name, views_of in searched.figures.items()}
    heats, (masks, more_masks) = pages_views.heats(report), pages_views.mask_views(report)
    results, sizes = pages_results.results(report), pages_survey.sizes_views(report)
    agents, bits = pages_agents.agents_views(report), pages_survey.bits_views(report)
    weights, more_weights = pages_survey.weights_views(report)
    pruning = pages_survey.pruning_figures(report)
    filters, sheets = pages_survey.filter_figures(report), pages_survey.filters_views(report)
    for name, by_workload in (("pruned", pruning), ("filters", filters)):
        drawn |= {
            f"{name}{i}": {"": by_workload[heat.workload]}
            for i, heat in enumerate(heats)
            if heat.workload in by_workload
        }
    drawn |= {view.name: {"": view.figure} for view in sizes}
    drawn |= {view.name: {"": view.figure} for view in agents if view.figure}
    parts_there = {
        "results": bool(results),
        "sizes": bool(sizes),
        "agents": bool(agents),
        "sparsity": bool(heats or masks),
        "weights": bool(weights),
        "filters": bool(sheets),
        "bits": bool(bits),
    }
    return page_html(
        "run.html",
        drawn,
        report=report,
        title=_title(report),
        headline=headline_text(report),
        links=_links(report, clocks, searches, parts_there),
        clocks=clocks,
        views=views,
        smoke_ids={section.board_id for section in report.sections if section.smoke},
        virtual_dtypes={view.section.board_id for view in views if view.dtypes},
        searches=searches,
        choices=pages_choices.choices_view(report.siblings),
        results=results,
        sizes=sizes,
        agents=agents,
        heats=heats,
        pruning=pruning,
        filters=filters,
        masks=masks,
        more_masks=more_masks,
        weights=weights,
        more_weights=more_weights,
        bits=bits,
        sheets=sheets,
        job_chips=pages_parts.job_chips(report.jobs, report.state),
    )


def page_html(template: str, drawn: dict[str, dict[str, Figure]], **values: object) -> str:
    """Return a page that carries its own style, scripts and figures.

    Args:
        template: its name.
        drawn: figures by name, each with its views by name; also given to the template as `drawn`.
        values: what else the template shows.
    """
    page_js, theme_js = _text("page.js"), _text("theme.js")
    return (
        environment()
        .get_template(template)
        .render(
            **values,
            drawn=drawn,
            css=_text("page.css"),
            theme_js=theme_js,
            page_js=page_js,
            figures_json=script_json({name: _shared(_rounded(v)) for name, v in drawn.items()}),
            plotly=_packed_plotly() if drawn else "",
            policy=_policy(theme_js, page_js),
        )
    )


def headline_text(report: RunReport) -> str:
    """Return the outcome of a run in one line, "" where there is none.

    Of each clock the first winner is told; a clock is named wherever it isn't the only, real one.
    """
    told: dict[str, str] = {}
    clocks = {pages_sections.clock_key(section) for section in report.sections}
    for section in report.sections:
        key = pages_sections.clock_key(section)
        tiles = pages_parts.tiles(section)
        if key not in told and section.headline.label is not None and tiles:
            said = ", ".join(f"{tile.figure} {tile.said}" for tile in tiles[:3])
            clock = "" if clocks == {"wall"} else f" ({key} clock)"
            told[key] = f"{section.headline.label} on {section.board}{clock}: {said}"
    return "; ".join(told.values())


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
        words.energy,
        words.figures,
        words.fine_percent,
        words.memory,
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
        pages_boards.int8_over_float,
        pages_parts.change,
    ):
        env.filters[say.__name__] = say
    env.filters["between_raw"] = lambda r: (
        "" if r.low is None or r.high is None else words.between(r.value, r.low, r.high)
    )
    env.globals["families"] = figures.FAMILIES
    env.globals["caveats"] = {
        name.lower(): said for name, said in vars(caveats).items() if name.isupper()
    }
    return env


def script_json(value: object) -> str:
    """Return JSON that can stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


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
    where = f", measured on {words.listed(boards)}" if boards else ""
    return f"{what}{f' for {of}' if of else ''}{where}"


def _links(
    report: RunReport,
    clocks: list[pages_sections.ClockView],
    searches: list[_SearchView],
    parts_there: dict[str, bool],
) -> list[tuple[str, str]]:
    links: list[tuple[str, str]] = []
    for clock in clocks:
        for view in clock.views:
            i = view.index
            # Later sections bear the name of what is measured there, to spare room.
            other = view.where.removeprefix("for ").removeprefix("on ")
            links.append((f"candidates{i}", other if i else "Candidates"))
            if i == 0:
                parts = (("pareto", "tradeoff", "Trade-off"), ("latency", "latency", "Latency"))
                links += [(f"{href}{i}", text) for key, href, text in parts if view.figures[key]]
                links += [(f"proxies{i}", "Proxies")] if view.minis else []
        links += [(f"boards-{clock.key}{n}", "Boards") for n in range(len(clock.boards))][:1]
    links += [("choices", "Choices")] if report.siblings else []
    links += [(href, text) for href, text in _PARTS if parts_there[href]]
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


def _shared(views: dict[str, Figure]) -> dict[str, Figure]:
    """Return the views of a figure without what their traces have in common with the first's.

    Each keeps what differs from one of the first view's, null for what it lacks; "of" is the index
    of that one.
    """
    first = next(iter(views.values()), None)
    return {
        name: view if view is first else {**view, "data": [_less(t, first) for t in view["data"]]}
        for name, view in views.items()
    }


def _less(trace: dict[str, Any], first: Figure | None) -> dict[str, Any]:
    nearest = trace
    for index, base in enumerate(first["data"] if first is not None else ()):
        keys = dict.fromkeys((*base, *trace))
        more = {key: trace.get(key) for key in keys if base.get(key) != trace.get(key)}
        nearest = min(nearest, {"of": index, **more}, key=lambda kept: len(json.dumps(kept)))
    return nearest


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
