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
    """Return accuracy over the share pruned or over bits, a line a layer; None without a point."""
    shown = [curve for curve in scan.curves if curve.points]
    if not shown:
        return None
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
        across = axis("bits a weight of the layer", autorange="reversed", dtick=1)
    else:
        across = axis(f"{scan.what} of the layer pruned (%)", rangemode="tozero")
    said = "bits a weight" if bits else "the share pruned"
    return {
        "data": data,
        "layout": base_layout(
            xaxis=across, yaxis=axis(f"{scan.metric} on {scan.split} (%)"), height=460
        ),
        "alt": f"{scan.metric.capitalize()} over {said} of each of {len(shown)} layers, the others "
        "dense; the table has the figures.",
    }


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
    values = sorted(
        {value for curve in scan.curves for value, _ in curve.points}, reverse=scan.unit == "bits"
    )
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
