"""The roofline plot of a board: what its probes reached, and where each artifact stands below."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from flatsat.reports import words
from flatsat.reports.figures import FAMILIES, Figure, axis, base_layout, family, log_scale, short

if TYPE_CHECKING:
    from flatsat.reports.model import BoardSection, MeasurementReport
    from flatsat.reports.model_board import CapabilityReport, Peak, RooflinePoint

_ROOM = 2.0
"""How far the axes go beyond what is drawn, as a factor."""
_COLOURS = {"float32": "var(--fam-float)", "int8": "var(--fam-int8)"}
_DASHES = {"float32": "solid", "int8": "dash"}


def points(section: BoardSection) -> list[tuple[MeasurementReport, RooflinePoint]]:
    """Return the measurements that have a place in the plot; [] where the board told no peak."""
    if section.smoke or section.capability is None or not section.capability.peaks:
        return []
    return [(m, m.roofline) for m in section.measurements if m.roofline is not None]


def roofline(section: BoardSection) -> Figure | None:
    """Return GMAC/s against MACs per byte, both logarithmic, with a roof a dtype."""
    shown, board = points(section), section.capability
    if not shown or board is None:
        return None
    ridges = [
        peak.gmac_s / board.traffic_gb_s for peak in board.peaks if board.traffic_gb_s is not None
    ]
    x = [point.intensity for _, point in shown] + ridges
    left, right = min(x) / _ROOM, max(x) * _ROOM
    data = [_roof(peak, board, left, right) for peak in board.peaks]
    y = [point.gmac_s for _, point in shown] + [peak.gmac_s for peak in board.peaks]
    named = _named(shown)
    for key, (said, symbol) in FAMILIES.items():
        part = [(m, p) for m, p in shown if family(m) == key]
        if part:
            data.append(_series(part, key, said, symbol, named))
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis("multiply-accumulates per byte moved", **log_scale([left, right], 0.0)),
            yaxis=axis(
                f"GMAC/s ({section.clock_name})",
                **log_scale([min(y) / _ROOM, max(y) * _ROOM], 0.0),
            ),
            height=460,
        ),
        "alt": f"Arithmetic rate against intensity of {len(shown)} artifacts under the roof of "
        f"{section.board}; the table has the figures.",
    }


def _roof(peak: Peak, board: CapabilityReport, left: float, right: float) -> dict[str, Any]:
    """Return the roof of a dtype: slanted where bytes bind, flat where arithmetic does."""
    corners = [(left, peak.gmac_s), (right, peak.gmac_s)]
    if (rate := board.traffic_gb_s) is not None:
        ridge = peak.gmac_s / rate
        corners = [(left, left * rate), (ridge, peak.gmac_s), (right, peak.gmac_s)]
    said = f"{peak.dtype} peak {words.figures(peak.gmac_s)} GMAC/s"
    return {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(f"roof, {peak.dtype}"),
        "x": [x for x, _ in corners],
        "y": [y for _, y in corners],
        "line": {
            "width": 2,
            "color": _COLOURS.get(peak.dtype, "var(--fam-other)"),
            "dash": _DASHES.get(peak.dtype, "dot"),
        },
        "opacity": 0.75,
        "hovertemplate": f"{html.escape(said)}<br>{html.escape(peak.method)}<extra></extra>",
    }


def _named(shown: list[tuple[MeasurementReport, RooflinePoint]]) -> set[str]:
    """Return whom to name: who does arithmetic at the highest rate, and who at the lowest."""
    return {
        max(shown, key=lambda pair: pair[1].gmac_s)[0].label,
        min(shown, key=lambda pair: pair[1].gmac_s)[0].label,
    }


def _series(
    part: list[tuple[MeasurementReport, RooflinePoint]],
    key: str,
    said: str,
    symbol: str,
    named: set[str],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": said,
        "x": [p.intensity for _, p in part],
        "y": [p.gmac_s for _, p in part],
        "text": [short(m.label) if m.label in named else "" for m, _ in part],
        "textposition": "bottom center",
        "textfont": {"size": 12, "color": "var(--ink)"},
        "cliponaxis": False,
        "customdata": [_describe(m, p) for m, p in part],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "size": 11,
            "symbol": [symbol if p.counted else f"{symbol}-open" for _, p in part],
            "color": f"var(--fam-{key})",
            "line": {"color": f"var(--fam-{key})", "width": 1.5},
        },
    }


def _describe(m: MeasurementReport, p: RooflinePoint) -> str:
    lines = [
        f"<b>{html.escape(m.label)}</b>",
        f"{words.figures(p.gmac_s)} GMAC/s at {words.figures(p.intensity)} MACs per byte",
        f"{words.size(p.traffic_bytes)} {'counted' if p.counted else 'at least'} an inference",
    ]
    if p.roof_gmac_s is not None:
        share = words.percent(p.gmac_s / p.roof_gmac_s)
        lines.append(f"{share} of the {html.escape(p.dtype)} roof, bound by {p.bound}")
    return "<br>".join(lines)
