"""The survey's plots: accuracy against size by method, and how far each layer is pruned."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatsat.reports import judged, sizes, techniques, words
from flatsat.reports.figures import Figure, axis, base_layout, log_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.judged import Judged
    from flatsat.reports.model import CandidateReport, RunReport
    from flatsat.reports.sizes import Sized

# What was done -> (words, colour, Plotly's symbol), in the order of the legend.
SERIES = {
    "prune+quantise": ("pruning and quantisation", "var(--series-3)", "triangle-up"),
    "prune": ("pruning only", "var(--series-0)", "circle"),
    "quantise": ("quantisation only", "var(--series-2)", "square"),
    "low rank": ("low rank (SVD, Tucker, ...)", "var(--series-5)", "diamond"),
    "other": ("other chains", "var(--series-4)", "pentagon"),
    "narrow": ("narrow network from scratch", "var(--fam-equal-macs)", "x"),
}
_FEWEST = 3
DEEP = 0.1
"""A loss above this would press all others into one line: it lies below the picture."""


@dataclass(frozen=True)
class SizePoint:
    """A file of a candidate in the plot of accuracy against size.

    Attributes:
        series: a key of `SERIES`.
        share: its bytes / those of the dense network in float32.
    """

    label: str
    method: str
    series: str
    size: Sized
    share: float
    accuracy: Judged


def size_points(report: RunReport, workload: str) -> tuple[SizePoint, ...]:
    """Return each compressed candidate's networks that have a size and an accuracy.

    Accuracy is that of the test split on a board where enough of them have it to be told apart,
    else that of the validation split on the host: the two are never mixed.
    """
    shown = [
        c
        for c in report.candidates
        if c.workload == workload and c.role in ("compressed", "equal-macs", "reference")
    ]
    mine = [
        (candidate, precision)
        for candidate, precision in sizes.networks(report, shown)
        if candidate.role != "reference" or precision != "float"
    ]
    measured = _points(report, [(*one, judged.on_board(report, *one)) for one in mine])
    if telling(measured):
        return measured
    return _points(report, [(*one, judged.on_host(report, *one)) for one in mine])


def telling(points: Sequence[SizePoint]) -> bool:
    """Return whether so many networks of several techniques are there that a picture compares."""
    return len(points) >= _FEWEST and len({p.series for p in points} - {"narrow", "other"}) > 1


def _points(
    report: RunReport, found: Sequence[tuple[CandidateReport, str, Judged | None]]
) -> tuple[SizePoint, ...]:
    points: list[SizePoint] = []
    for candidate, precision, accuracy in found:
        dense = sizes.dense_bytes(sizes.reference_of(report, candidate))
        size = sizes.sized(candidate, report.survey.of(candidate.candidate_id), precision)
        if accuracy is None or accuracy.loss is None or size is None or not dense:
            continue
        method = techniques.method(candidate, precision)
        label = candidate.label if precision == "float" else f"{candidate.label} {precision}"
        series, share = series_of(candidate, precision), size.size_bytes / dense
        points.append(SizePoint(label, method, series, size, share, accuracy))
    return tuple(points)


def series_of(candidate: CandidateReport, precision: str) -> str:
    """Return which series of the plot a candidate's files belong to."""
    if candidate.role == "equal-macs":
        return "narrow"
    done = set(techniques.techniques(candidate, precision))
    if done == {techniques.PRUNE, techniques.QUANTISE}:
        return "prune+quantise"
    return next(iter(done)) if len(done) == 1 else "other"


def ratio(points: Sequence[SizePoint]) -> Figure | None:
    """Return accuracy against size; None below three points or with one technique alone."""
    if not telling(points):
        return None
    data: list[dict[str, Any]] = []
    for key, (said, colour, symbol) in SERIES.items():
        part = sorted((p for p in points if p.series == key), key=lambda p: p.share)
        if not part:
            continue
        best = frontier(part)
        if len(best) > 1:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [100 * p.share for p in best],
                    "y": [-100 * (p.accuracy.loss or 0.0) for p in best],
                    "line": {
                        "color": colour,
                        "width": 1.5,
                        "dash": "dot" if key == "narrow" else "solid",
                    },
                    "legendgroup": key,
                    "showlegend": False,
                    "hoverinfo": "skip",
                }
            )
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": said,
            "legendgroup": key,
            "x": [100 * p.share for p in part],
            "y": [-100 * (p.accuracy.loss or 0.0) for p in part],
            "marker": {"size": 10, "symbol": symbol, "color": colour},
            "customdata": [_describe(p) for p in part],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        sides = [(_up(p.accuracy), _down(p.accuracy)) for p in part]
        if any(up or down for up, down in sides):
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [up for up, _ in sides],
                "arrayminus": [down for _, down in sides],
                "color": colour,
                "thickness": 1,
                "width": 0,
            }
        data.append(trace)
    places = list(dict.fromkeys(p.accuracy.where for p in points))
    where = places[0] if len(places) == 1 else "test split, on the boards"
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis(
                "size, % of the dense network in float32",
                **log_scale([100 * p.share for p in points]),
            ),
            yaxis=axis(f"accuracy against dense (points; {html.escape(where)})", **_range(points)),
            height=440,
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "yref": "y",
                    "x0": 0,
                    "x1": 1,
                    "y0": 0,
                    "y1": 0,
                    "line": {"color": "var(--ink-3)", "width": 1, "dash": "dot"},
                }
            ],
        ),
        "alt": f"Accuracy against size of {len(points)} compressed files, by method; the table of "
        "methods has the figures.",
    }


def frontier(points: Sequence[SizePoint]) -> list[SizePoint]:
    """Return, by rising size, those that no smaller or equally large one matches in accuracy."""
    best: list[SizePoint] = []
    for point in sorted(points, key=lambda p: (p.share, p.accuracy.loss or 0.0)):
        if not best or (point.accuracy.loss or 0.0) < (best[-1].accuracy.loss or 0.0):
            best.append(point)
    return best


def deep(points: Sequence[SizePoint]) -> list[SizePoint]:
    """Return those that lost so much that they lie below the picture; [] where all did."""
    found = [p for p in points if (p.accuracy.loss or 0.0) > DEEP]
    return found if len(found) < len(points) else []


def _range(points: Sequence[SizePoint]) -> dict[str, Any]:
    hidden = deep(points)
    if not hidden:
        return {}
    losses = [100 * (p.accuracy.loss or 0.0) for p in points if p not in hidden]
    return {"range": [-1.2 * max(*losses, 1.0) - 0.3, max(-min(losses), 0.0) + 1.0]}


def _up(accuracy: Judged) -> float:
    if accuracy.loss is None or accuracy.loss_low is None:
        return 0.0
    return 100 * (accuracy.loss - accuracy.loss_low)


def _down(accuracy: Judged) -> float:
    if accuracy.loss is None or accuracy.loss_high is None:
        return 0.0
    return 100 * (accuracy.loss_high - accuracy.loss)


def _describe(point: SizePoint) -> str:
    loss = point.accuracy.loss or 0.0
    return "<br>".join(
        (
            f"<b>{html.escape(point.label)}</b>",
            html.escape(point.method),
            f"{words.size(point.size.size_bytes)} ({html.escape(point.size.how)}), "
            f"{words.times(1 / point.share)} smaller",
            f"accuracy {words.percent(point.accuracy.value)}, {words.points(-loss)} points",
        )
    )


@dataclass(frozen=True)
class LayerLine:
    """One network's line in the plot of pruning by layer.

    Attributes:
        said: its name in the legend.
        pruned: (layer, share of its weights or filters that is gone, in [0, 1]).
    """

    said: str
    pruned: tuple[tuple[str, float], ...]


MOST_LINES = 8


def pruned_by_layer(lines: Sequence[LayerLine], what: str) -> Figure | None:
    """Return how far each layer is pruned, a line a network; None without any.

    Its "more" counts the lines that are not drawn.

    Args:
        lines: at most `MOST_LINES` are drawn.
        what: is counted, as the axis says it: "weights", "filters".
    """
    alike: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for line in lines:
        if line.pruned:
            alike.setdefault(line.pruned, []).append(line.said)
    # Networks that are pruned alike, as one before and after quantisation, are one line.
    every = [LayerLine(words.listed(said), pruned) for pruned, said in alike.items()]
    shown = every[:MOST_LINES]
    if not shown:
        return None
    layers = dict.fromkeys(html.escape(name) for line in shown for name, _ in line.pruned)
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": html.escape(line.said),
                "showlegend": True,
                "x": [html.escape(name) for name, _ in line.pruned],
                "y": [100 * share for _, share in line.pruned],
                "line": {"color": f"var(--series-{i})", "width": 2},
                "marker": {"size": 8},
                "hovertemplate": "%{x}: %{y:.1f} % pruned<extra>%{fullData.name}</extra>",
            }
            for i, line in enumerate(shown)
        ],
        "layout": base_layout(
            xaxis=axis(
                type="category",
                showgrid=False,
                categoryorder="array",
                categoryarray=list(layers),
            ),
            yaxis=axis(f"{what} pruned (%)", range=[-2, 102]),
            height=380,
        ),
        "alt": f"Share of {what} pruned in each layer of {len(shown)} networks.",
        "more": len(every) - len(shown),
    }
