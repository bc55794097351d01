"""How much accuracy each layer costs when it alone is compressed: a scan's figure and its page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatsat.reports import words
from flatsat.reports.figures import Figure, axis, base_layout

if TYPE_CHECKING:
    from pathlib import Path

_DASHES = ("solid", "dash", "dot", "dashdot")
_SERIES = 8


@dataclass(frozen=True)
class SensitivityCurve:
    """One layer's curve.

    Attributes:
        layer: its name.
        weights: how many it has.
        points: (share pruned in [0, 1], accuracy in [0, 1]) with all other layers dense, by rising
            share.
    """

    layer: str
    weights: int
    points: tuple[tuple[float, float], ...]


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
    """

    network: str
    method: str
    split: str
    images: int
    dense: float
    curves: tuple[SensitivityCurve, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def sensitivity(scan: SensitivityScan) -> Figure | None:
    """Return accuracy over the share pruned, a line a layer; None without any point."""
    shown = [curve for curve in scan.curves if curve.points]
    if not shown:
        return None
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": html.escape(curve.layer),
            "x": [100 * share for share, _ in curve.points],
            "y": [100 * accuracy for _, accuracy in curve.points],
            "line": {
                "color": f"var(--series-{i % _SERIES})",
                "width": 2,
                # More layers than colours: the next eight are told apart by their dashes.
                "dash": _DASHES[i // _SERIES % len(_DASHES)],
            },
            "marker": {"size": 6},
            "hovertemplate": f"<b>{html.escape(curve.layer)}</b>, {words.count(curve.weights)} "
            "weights<br>%{x:.0f} % pruned: %{y:.2f} %<extra></extra>",
        }
        for i, curve in enumerate(shown)
    ]
    last = 100 * max(share for curve in shown for share, _ in curve.points)
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "dense network",
            "x": [0, last],
            "y": [100 * scan.dense] * 2,
            "line": {"color": "var(--ink-3)", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    )
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis("weights of the layer pruned (%)", rangemode="tozero"),
            yaxis=axis(f"accuracy on {scan.split} (%)"),
            height=460,
        ),
        "alt": f"Accuracy over the share pruned of each of {len(shown)} layers, the others dense; "
        "the table has the figures.",
    }


def tolerated(curve: SensitivityCurve, dense: float, loss: float) -> float | None:
    """Return the largest share pruned up to which accuracy never fell more than `loss`.

    Args:
        curve: of a layer.
        dense: accuracy of the dense network, in [0, 1].
        loss: in [0, 1].

    Returns:
        A share in [0, 1] that was tried, None where none holds.
    """
    held: float | None = None
    for share, accuracy in curve.points:
        if dense - accuracy > loss:
            break
        held = share
    return held


def sensitivity_html(scan: SensitivityScan) -> str:
    """Return a scan as a page that needs nothing else."""
    from flatsat.reports.pages import page_html

    figure = sensitivity(scan)
    shares = sorted({share for curve in scan.curves for share, _ in curve.points})
    rows = [
        (curve, [dict(curve.points).get(share) for share in shares], [
            tolerated(curve, scan.dense, loss) for loss in _LOSSES
        ])
        for curve in scan.curves
    ]  # fmt: skip
    return page_html(
        "sensitivity.html",
        {} if figure is None else {"sensitivity": {"": figure}},
        scan=scan,
        shares=shares,
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
