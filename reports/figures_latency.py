"""Interactive figures of latencies, every process visible; conventions as in `figures`."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from flatsat.reports import words
from flatsat.reports.figures import Figure, axis, base_layout, family, scale_of, short
from flatsat.reports.model import DRAWN_QUANTILES

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsat.reports.model import BoardSection, MeasurementReport, ProcessTrace

_SERIES = 8
_STRIP_PX = 58


def _at(trace: ProcessTrace, share: float) -> float:
    return trace.quantiles_ns[DRAWN_QUANTILES.index(share)]


def _unit(shown: list[MeasurementReport]) -> tuple[float, str]:
    """Return the unit that suits most of what is shown."""
    return words.time_unit(_at(shown[len(shown) // 2].traces[0], 0.5))


def latency_by_process(section: BoardSection) -> Figure | None:
    """Return a strip a candidate: each process from p10 to p90 with its median, in run order."""
    shown = [m for m in section.measurements if m.traces]
    if not shown:
        return None
    scale, unit = _unit(shown)
    figure = _strips(shown, lambda _, ns: ns / scale)
    ends = [_at(t, q) / scale for m in shown for t in m.traces for q in (0.1, 0.9)]
    title = f"latency ({unit}, {section.clock_name})"
    scale_on = scale_of(ends)
    if scale_on.get("type") != "log":
        # Strips are places and not lengths: no need to begin at zero.
        room = 0.05 * (max(ends) - min(ends)) or 0.05 * max(ends) or 1.0
        scale_on = {"range": [max(0.0, min(ends) - room), max(ends) + room]}
    figure["layout"]["xaxis"] = axis(title, **scale_on)
    return figure


def latency_spread(section: BoardSection) -> Figure | None:
    """Return the same strips, each around its candidate's own median, in per cent."""
    shown = [m for m in section.measurements if m.traces and m.p50_ns.value]
    if not shown:
        return None

    def around(measurement: MeasurementReport, ns: float) -> float:
        return 100 * (ns / (measurement.p50_ns.value or ns) - 1)

    figure = _strips(shown, around)
    ends = [around(m, _at(t, q)) for m in shown for t in m.traces for q in (0.1, 0.9)]
    room = 0.05 * (max(ends) - min(ends)) or 1.0
    figure["layout"]["xaxis"] = axis(
        "from the candidate's own median (%)",
        range=[min(ends) - room, max(ends) + room],
        ticksuffix=" %",
    )
    return figure


def _strips(
    shown: list[MeasurementReport], lay: Callable[[MeasurementReport, float], float]
) -> Figure:
    """Return a strip a measurement, with `lay` giving the place of a latency in ns."""
    data: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for row, measurement in enumerate(shown):
        data += _strip(row, measurement, lay)
        notes.append(
            {
                "text": f"{short(measurement.label, 40)}  <span style='color:var(--ink-3)'>"
                f"{words.duration(measurement.p50_ns.value)}</span>",
                "xref": "paper",
                "x": 0,
                "xanchor": "left",
                "y": row - 0.32,
                "showarrow": False,
                "bgcolor": "var(--surface)",
                "font": {"size": 12.5, "color": "var(--ink)"},
            }
        )
    return {
        "data": data,
        "layout": base_layout(
            yaxis=axis(
                range=[len(shown) - 0.45, -0.6], showgrid=False, showticklabels=False, ticks=""
            ),
            margin={"l": 12, "r": 16, "t": 4, "b": 52},
            annotations=notes,
            height=_STRIP_PX * len(shown) + 70,
        ),
        "alt": f"Latencies of {sum(len(m.traces) for m in shown)} processes by candidate.",
    }


def _strip(
    row: int, measurement: MeasurementReport, lay: Callable[[MeasurementReport, float], float]
) -> list[dict[str, Any]]:
    traces = measurement.traces
    colour = f"var(--fam-{family(measurement)})"
    places = [row - 0.14 + 0.5 * (i + 0.5) / len(traces) for i in range(len(traces))]
    common = {"type": "scatter", "showlegend": False}
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for place, trace in zip(places, traces, strict=True):
        lines_x += [lay(measurement, _at(trace, q)) for q in (0.1, 0.9)]
        lines_x.append(None)
        lines_y += [place, place, None]
    parts = [
        {
            **common,
            "mode": "lines",
            "x": lines_x,
            "y": lines_y,
            "line": {"color": colour, "width": 2},
            "opacity": 0.45,
            "hoverinfo": "skip",
        },
        {
            **common,
            "mode": "markers",
            "x": [lay(measurement, _at(t, 0.5)) for t in traces],
            "y": places,
            "customdata": [_process(measurement, t) for t in traces],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "size": [6 if t.steady is not False else 8 for t in traces],
                "color": [colour if t.steady is not False else "var(--bad)" for t in traces],
                "symbol": ["circle" if t.steady is not False else "x" for t in traces],
            },
        },
    ]
    if measurement.p50_ns.value is not None:
        pooled = lay(measurement, measurement.p50_ns.value)
        parts.append(
            {
                **common,
                "mode": "lines",
                "x": [pooled, pooled],
                "y": [row - 0.18, row + 0.4],
                "line": {"color": "var(--ink)", "width": 1.5},
                "hoverinfo": "skip",
            }
        )
    return parts


def _process(measurement: MeasurementReport, trace: ProcessTrace) -> str:
    steady = {True: "steady", False: "steady state not reached", None: "steadiness not asked for"}
    return "<br>".join(
        (
            f"<b>{html.escape(measurement.label)}</b>",
            html.escape(trace.label),
            f"median {words.duration(_at(trace, 0.5))}",
            f"p10 {words.duration(_at(trace, 0.1))}, p90 {words.duration(_at(trace, 0.9))}",
            f"n={trace.n:,}, {steady[trace.steady]}",
        )
    )


def latency_cumulative(section: BoardSection) -> Figure | None:
    """Return the share of inferences that were at least so fast, a curve a process."""
    shown = [m for m in section.measurements if m.traces]
    if not shown:
        return None
    scale, unit = _unit(shown)
    data: list[dict[str, Any]] = []
    for row, measurement in enumerate(shown):
        x: list[float | None] = []
        y: list[float | None] = []
        for trace in measurement.traces:
            x += [value / scale for value in trace.quantiles_ns] + [None]
            y += [100 * share for share in DRAWN_QUANTILES] + [None]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": short(measurement.label),
                "x": x,
                "y": y,
                "line": {
                    "color": f"var(--series-{row % _SERIES})",
                    "width": 1.4,
                    "dash": ("solid", "dash", "dot")[row // _SERIES % 3],
                },
                "opacity": 0.8,
                "hovertemplate": f"<b>{short(measurement.label)}</b><br>%{{y:.0f}} % within "
                f"%{{x:.4g}} {unit}<extra></extra>",
            }
        )
    # The slowest few inferences are often a hundred times slower: the axis ends where nearly all
    # are done, and the reader can zoom out.
    ends = [_at(t, q) / scale for m in shown for t in m.traces for q in (0.0, 0.99)]
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis(f"latency ({unit}, {section.clock_name})", **scale_of(ends)),
            yaxis=axis("share of inferences (%)", range=[0, 101]),
            legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
            height=480,
        ),
        "alt": "Cumulative latencies of every process of every candidate.",
    }
