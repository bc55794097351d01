"""How much accuracy each layer costs when it alone is compressed: a scan's figure and its page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flatsat.reports import words
from flatsat.reports.figures import Figure, axis, base_layout

if TYPE_CHECKING:
    from pathlib import Path

_DASHES = ("solid", "dash", "dot", "dashdot")
_SERIES = 8
_ROUNDING = 1e-9
_MOST_LINES = 12
"""More layers are drawn as a map: so many lines can't be told apart."""


@dataclass(frozen=True)
class SensitivityCurve:
    """One layer's curve.

    Attributes:
        layer: its name.
        weights: how many it has.
        points: (value, accuracy in [0, 1]) with all other layers dense, from mild to hard: by
            rising share pruned, in [0, 1], or by falling bits.
        coupled: other layers that lose channels with it.
    """

    layer: str
    weights: int
    points: tuple[tuple[float, float], ...]
    coupled: tuple[str, ...] = ()


@dataclass(frozen=True)
class SensitivityScan:
    """A scan of one network.

    Attributes:
        network: "mnist-mini/lenet5".
        method: what was pruned by, as a heading says it: "magnitude", "L1 norm of filters".
        split: on which the accuracy was taken, never the test split; `images` of it.
        dense: accuracy of the dense network on the same images.
        curves: one a layer, in the order of execution.
        skipped: (layer, why) of those that the method can't treat.
        unit: what the values of the points are: the share of weights or channels that is pruned, or
            bits a weight.
        what: that is pruned: "weights" or "channels".
        metric: "accuracy", or "agreement" with the dense network.
        together: what is left with every layer at its room at once: (loss allowed each, accuracy).
        recipe: a step of a recipe that does that, as TOML, or "".
    """

    network: str
    method: str
    split: str
    images: int
    dense: float
    curves: tuple[SensitivityCurve, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    unit: Literal["share", "bits"] = "share"
    what: str = "weights"
    metric: str = "accuracy"
    together: tuple[float, float] | None = None
    recipe: str = ""


def sensitivity(scan: SensitivityScan) -> Figure | None:
    """Return accuracy over the share pruned or over bits; None without a point.

    A line a layer, or with many layers a map: a row a layer.
    """
    shown = [curve for curve in scan.curves if curve.points]
    if not shown:
        return None
    return _map(scan, shown) if len(shown) > _MOST_LINES else _lines(scan, shown)


def _map(scan: SensitivityScan, shown: list[SensitivityCurve]) -> Figure:
    bits = scan.unit == "bits"
    values = _values(scan)
    heads = [f"{value:g}" if bits else f"{100 * value:g}" for value in values]
    names = [html.escape(curve.layer) for curve in shown]
    z = [[_scaled(dict(curve.points).get(value)) for value in values] for curve in shown]
    what = "bits" if bits else "% pruned"
    return {
        "data": [
            {
                "type": "heatmap",
                "x": heads,
                "y": names,
                "z": z,
                "xgap": 1,
                "ygap": 1,
                "zmax": max(100 * scan.dense, *(v for row in z for v in row if v is not None)),
                "colorscale": [
                    [0, "var(--series-7)"],
                    [0.6, "var(--series-1)"],
                    [1, "var(--sunk)"],
                ],
                # Above the map, so that a phone has its whole width for it.
                "colorbar": {
                    "title": {"text": f"{scan.metric} (%)", "side": "top"},
                    "orientation": "h",
                    "yanchor": "bottom",
                    "y": 1,
                    "thickness": 12,
                    "outlinewidth": 0,
                },
                "hovertemplate": f"<b>%{{y}}</b><br>%{{x}} {what}: %{{z:.2f}} %<extra></extra>",
            }
        ],
        "layout": base_layout(
            xaxis=axis(_across(scan), type="category", showgrid=False),
            yaxis=axis(autorange="reversed", type="category", showgrid=False, dtick=1),
            height=170 + 18 * len(shown),
        ),
        "alt": f"{scan.metric.capitalize()} on {scan.split} by layer and {_said(scan)}, "
        f"{len(shown)} layers, each compressed alone; the table has the figures.",
    }


def _lines(scan: SensitivityScan, shown: list[SensitivityCurve]) -> Figure:
    bits = scan.unit == "bits"
    scale = 1 if bits else 100
    at = "%{x} bits" if bits else "%{x:.0f} % pruned"
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": html.escape(curve.layer),
            "x": [scale * value for value, _ in curve.points],
            "y": [100 * accuracy for _, accuracy in curve.points],
            "line": {
                "color": f"var(--series-{i % _SERIES})",
                "width": 2,
                # More layers than colours: the next eight are told apart by their dashes.
                "dash": _DASHES[i // _SERIES % len(_DASHES)],
            },
            "marker": {"size": 6},
            "hovertemplate": f"<b>{html.escape(curve.layer)}</b>, {words.count(curve.weights)} "
            f"weights<br>{at}: %{{y:.2f}} %<extra></extra>",
        }
        for i, curve in enumerate(shown)
    ]
    values = [scale * value for curve in shown for value, _ in curve.points]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "dense network",
            "x": [max(values), min(values)] if bits else [0, max(values)],
            "y": [100 * scan.dense] * 2,
            "line": {"color": "var(--ink-3)", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    )
    if bits:
        across = axis(_across(scan), autorange="reversed", dtick=1)
    else:
        across = axis(_across(scan), rangemode="tozero")
    return {
        "data": data,
        "layout": base_layout(
            xaxis=across, yaxis=axis(f"{scan.metric} on {scan.split} (%)"), height=460
        ),
        "alt": f"{scan.metric.capitalize()} over {_said(scan)} of each of {len(shown)} layers, the "
        "others dense; the table has the figures.",
    }


def _values(scan: SensitivityScan) -> list[float]:
    """Return all values that were tried, from mild to hard."""
    found = {value for curve in scan.curves for value, _ in curve.points}
    return sorted(found, reverse=scan.unit == "bits")


def _across(scan: SensitivityScan) -> str:
    bits = scan.unit == "bits"
    return "bits a weight of the layer" if bits else f"{scan.what} of the layer pruned (%)"


def _said(scan: SensitivityScan) -> str:
    return "bits a weight" if scan.unit == "bits" else "the share pruned"


def _scaled(share: float | None) -> float | None:
    return None if share is None else 100 * share


def tolerated(curve: SensitivityCurve, dense: float, loss: float) -> float | None:
    """Return the hardest value up to which accuracy never fell more than `loss`.

    Args:
        curve: of a layer.
        dense: accuracy of the dense network, in [0, 1].
        loss: in [0, 1]; a fall of just so much is within it.

    Returns:
        A value that was tried, None where none holds.
    """
    held: float | None = None
    for value, accuracy in curve.points:
        if dense - accuracy > loss + _ROUNDING:
            break
        held = value
    return held


def sensitivity_html(scan: SensitivityScan) -> str:
    """Return a scan as a page that needs nothing else."""
    from flatsat.reports.pages import page_html

    figure = sensitivity(scan)
    values = _values(scan)
    rows = [
        (
            curve,
            [dict(curve.points).get(value) for value in values],
            [tolerated(curve, scan.dense, loss) for loss in _LOSSES],
        )
        for curve in scan.curves
    ]
    return page_html(
        "sensitivity.html",
        {} if figure is None else {"sensitivity": {"": figure}},
        scan=scan,
        values=values,
        losses=_LOSSES,
        rows=rows,
    )


_LOSSES = (0.005, 0.01, 0.02)


def render_sensitivity(scan: SensitivityScan, out: Path) -> None:
    """Write a scan's page; an older one stays whole until the new one is complete.

    Raises:
        OSError: the folder can't be written.
    """
    from flatsat.reports.files import write_atomically

    write_atomically(out, sensitivity_html(scan))
