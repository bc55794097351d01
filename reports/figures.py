"""The trade-off plot, and what all figures share, as plain Plotly JSON: {"data", "layout", "alt"}.

Colours are tokens such as "var(--fam-int8)" that the page resolves from its style sheet, so that a
figure follows the page from light to dark. Names are escaped: Plotly reads markup in texts.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any, TypeAlias

from flatsat.reports import ranks, words
from flatsat.reports.techniques import numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.model import BoardSection, Estimate, MeasurementReport

Figure: TypeAlias = dict[str, Any]

# Family -> (words, Plotly's symbol). Colour and shape both tell them apart.
FAMILIES = {
    "reference": ("dense reference", "diamond"),
    "equal-macs": ("narrow network at equal MACs", "square"),
    "float": ("compressed, float", "circle"),
    "int8": ("compressed, int8", "triangle-up"),
    "sparse": ("compressed, zeros left out", "hexagon"),
    "other": ("compressed, other", "pentagon"),
    "imported": ("imported", "star"),
}
AXES = {
    "latency": "Latency",
    "size": "File size",
    "macs": "MACs",
    "memory": "Memory",
    "energy": "Energy",
}
_LOG_FROM = 6.0


def family(measurement: MeasurementReport) -> str:
    """Return the family by which a measurement is drawn, a key of `FAMILIES`."""
    if measurement.role == "reference" and numbers(measurement.precision) != "float":
        return _compressed(measurement.precision)
    if measurement.role in ("reference", "equal-macs", "imported"):
        return measurement.role
    return _compressed(measurement.precision)


def _compressed(precision: str) -> str:
    return precision if precision in ("float", "int8", "sparse") else "other"


def base_layout(**more: Any) -> dict[str, Any]:
    """Return the layout that all figures share, with `more` on top."""
    layout: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink-2)"},
        "margin": {"l": 58, "r": 16, "t": 16, "b": 52},
        "hoverlabel": {
            "bgcolor": "var(--raised)",
            "bordercolor": "var(--line-strong)",
            "font": {"color": "var(--ink)", "size": 13},
            "align": "left",
        },
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "xaxis": axis(),
        "yaxis": axis(),
    }
    layout.update(more)
    return layout


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """Return an axis in the page's colours."""
    return {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line-strong)",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "var(--line-strong)",
        "ticklen": 4,
        "automargin": True,
        **more,
    }


def scale_of(values: Sequence[float]) -> dict[str, Any]:
    """Return how an axis of these positive values is laid out: logarithmic where they span much."""
    if not values or min(values) <= 0 or max(values) / min(values) < _LOG_FROM:
        return {"rangemode": "tozero"}
    return log_scale(values)


def log_scale(values: Sequence[float], room: float = 0.06) -> dict[str, Any]:
    """Return a logarithmic axis of positive values with some room on either side."""
    low, high = math.log10(min(values)), math.log10(max(values))
    # Values without any spread still need an axis that is longer than nothing.
    pad = room * (high - low) or (0.1 if high == low else 0.0)
    low, high = low - pad, high + pad
    ticks = log_ticks(10**low, 10**high)
    return {
        "type": "log",
        "range": [low, high],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" for tick in ticks],
    }


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return at most so many round values between two positive ends."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{s * 10.0**d:.3g}") for d in decades for s in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _cost(measurement: MeasurementReport, name: str) -> float | None:
    if name == "latency":
        return measurement.p50_ns.value
    if name == "memory":
        return None if measurement.memory is None else measurement.memory.median_bytes
    if name == "energy":
        return None if measurement.energy is None else measurement.energy.p50_nj.value
    return measurement.size_bytes if name == "size" else measurement.macs


def _unit(name: str, values: Sequence[float], section: BoardSection) -> tuple[float, str]:
    middle = sorted(values)[len(values) // 2]
    if name == "latency":
        scale, unit = words.time_unit(middle)
        return scale, f"median latency ({unit}, {section.clock_name})"
    if name == "energy":
        scale, unit = words.energy_unit(middle)
        classes = {m.energy.class_ for m in section.measurements if m.energy is not None}
        return scale, f"{' or '.join(sorted(classes))} energy of one inference ({unit})"
    scale, label = (1e6, "M") if middle >= 1e6 else (1e3, "k")
    if name == "macs":
        return scale, f"multiply-accumulates ({'millions' if label == 'M' else 'thousands'})"
    unit = "MB" if label == "M" else "kB"
    if name == "memory":
        method = next(m.memory.method for m in section.measurements if m.memory is not None)
        return scale, f"peak memory of the process ({unit}, {method})"
    return scale, f"model file ({unit})"


def describe(measurement: MeasurementReport) -> str:
    """Return what hovering over a measurement says, as Plotly's markup."""
    p50 = measurement.p50_ns
    lines = [f"<b>{html.escape(measurement.label)}</b>", FAMILIES[family(measurement)][0]]
    spread = words.interval_ns(p50)
    lines.append(f"median {words.duration(p50.value)}" + (f" [{spread}]" if spread else ""))
    lines.append(f"minimum {words.duration(measurement.min_ns)}")
    if (accuracy := measurement.accuracy) is not None:
        text = f"{accuracy.metric} {words.percent(accuracy.value)}"
        if accuracy.low is not None and accuracy.high is not None:
            text += f" [{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}]"
        lines.append(f"{html.escape(text)}, n={accuracy.n:,}")
    ratio = measurement.versus_reference
    if ratio is not None and ratio.value is not None:
        lines.append(f"{words.times(ratio.value)} as fast as {html.escape(ratio.against)}")
    lines.append(f"file {words.size(measurement.size_bytes)}, MACs {words.count(measurement.macs)}")
    if measurement.energy is not None:
        energy = measurement.energy
        lines.append(f"energy {words.energy(energy.p50_nj.value)}, {html.escape(energy.class_)}")
    if measurement.memory is not None:
        lines.append(
            f"memory {words.size(measurement.memory.median_bytes)} "
            f"({html.escape(measurement.memory.method)})"
        )
    return "<br>".join(lines)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of (cost, gain) points that no other beats, cheapest first."""
    held = ranks.pareto_front(points, ("minimise", "maximise"))
    return sorted((i for i in range(len(points)) if held[i]), key=lambda i: points[i])


def _around(estimate: Estimate, scale: float) -> tuple[float, float]:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return 0.0, 0.0
    return (estimate.high - estimate.value) / scale, (estimate.value - estimate.low) / scale


def pareto(section: BoardSection, name: str) -> Figure | None:
    """Return accuracy against a cost, a key of `AXES`; None with fewer than two such points."""
    shown = [
        (m, cost, m.accuracy)
        for m in section.measurements
        if (cost := _cost(m, name)) and m.accuracy is not None
    ]
    if len(shown) < 2:
        return None
    scale, title = _unit(name, [cost for _, cost, _ in shown], section)
    front = pareto_front([(cost, accuracy.value) for _, cost, accuracy in shown])
    steps = [(shown[i][1] / scale, 100 * shown[i][2].value) for i in front]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best trade-offs",
            "x": [x for x, _ in steps],
            "y": [y for _, y in steps],
            "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": "var(--ink-3)"},
            "hoverinfo": "skip",
        }
    ]
    named = {shown[i][0].label for i in front} | {section.headline.label}
    for key, (said, symbol) in FAMILIES.items():
        part = [(m, c, a) for m, c, a in shown if family(m) == key]
        if not part:
            continue
        colour = f"var(--fam-{key})"
        sides = [_around(m.p50_ns, scale) if name == "latency" else (0, 0) for m, _, _ in part]
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers+text",
            "name": said,
            "x": [c / scale for _, c, _ in part],
            "y": [100 * a.value for _, _, a in part],
            "text": [short(m.label) if m.label in named else "" for m, _, _ in part],
            "textposition": [_beside(c, [cost for _, cost, _ in shown]) for _, c, _ in part],
            "textfont": {"size": 12, "color": "var(--ink)"},
            "cliponaxis": False,
            "customdata": [describe(m) for m, _, _ in part],
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {
                "size": 12,
                "symbol": symbol,
                "color": colour,
                "line": {"color": "var(--surface)", "width": 1.5},
            },
            "error_y": _bars(
                [100 * ((a.high or a.value) - a.value) for _, _, a in part],
                [100 * (a.value - (a.low or a.value)) for _, _, a in part],
                colour,
            ),
        }
        if name == "latency":
            trace["error_x"] = _bars([up for up, _ in sides], [down for _, down in sides], colour)
        data.append(trace)
    best = next(((c, a) for m, c, a in shown if m.label == section.headline.label), None)
    if best is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "best by the stated rule",
                "x": [best[0] / scale],
                "y": [100 * best[1].value],
                "hoverinfo": "skip",
                "marker": {
                    "size": 24,
                    "symbol": "circle-open",
                    "color": "var(--ink)",
                    "line": {"width": 2},
                },
            }
        )
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis(title, **scale_of([cost / scale for _, cost, _ in shown])),
            yaxis=axis("accuracy on the board (%)"),
            height=460,
        ),
        "alt": f"Accuracy against {title} of {len(shown)} candidates; the table has the figures.",
    }


def _beside(value: float, values: Sequence[float]) -> str:
    """Return where a point's name stands so that it stays inside the figure."""
    if scale_of(values).get("type") == "log":
        low, high = math.log(min(values)), math.log(max(values))
        share = (math.log(value) - low) / (high - low)
    else:
        share = value / max(values)
    return "top right" if share < 0.3 else "top left" if share > 0.7 else "top center"


def _bars(up: Sequence[float], down: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": list(up),
        "arrayminus": list(down),
        "color": colour,
        "thickness": 1,
        "width": 0,
    }


def short(label: str, most: int = 26) -> str:
    """Return a label cut to a length and escaped for Plotly."""
    return html.escape(label if len(label) <= most else label[: most - 1] + "…")
