"""Interactive figures of a search, as plain Plotly JSON; conventions as in `figures`."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from flatsat.reports import words
from flatsat.reports.figures import Figure, axis, base_layout, pareto_front

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.model_search import SearchReport, StrategyReport

_MEAN_OVER = 20


def quantity(search: SearchReport, value: float | None) -> str:
    """Return a value of the budget's quantity in words."""
    if search.unit == "ns":
        return words.duration(value)
    if search.unit == "B":
        return words.size(value)
    if search.unit == "nJ":
        return words.energy(value)
    text = words.count(value)
    return text if value is None or not search.unit else f"{text} {search.unit}"


def colours(search: SearchReport) -> dict[str, str]:
    """Return the colour token of each strategy: searches first, baselines after."""
    ordered = sorted(search.strategies, key=lambda s: s.role != "search")
    names = list(dict.fromkeys(s.strategy for s in ordered))
    return {name: f"var(--series-{i % 8})" for i, name in enumerate(names)}


def running_mean(values: Sequence[float | None], over: int) -> list[float | None]:
    """Return at each place the mean of the last `over` values that are not None."""
    means: list[float | None] = []
    for end in range(1, len(values) + 1):
        window = [v for v in values[max(0, end - over) : end] if v is not None]
        means.append(sum(window) / len(window) if window else None)
    return means


def best_of_each(search: SearchReport) -> list[StrategyReport]:
    """Return for each strategy the seed with the best reward; searches first."""
    best: dict[str, StrategyReport] = {}
    for strategy in sorted(search.strategies, key=lambda s: s.role != "search"):
        held = best.get(strategy.strategy)
        if strategy.best_reward is not None and (
            held is None or held.best_reward is None or strategy.best_reward > held.best_reward
        ):
            best[strategy.strategy] = strategy
    return list(best.values())


def reward(search: SearchReport) -> Figure | None:
    """Return reward over evaluations: a dot each, a line for the mean of the last few."""
    shown = [s for s in search.strategies if s.reward]
    if not shown:
        return None
    colour = colours(search)
    data: list[dict[str, Any]] = []
    seen: set[str] = set()
    for strategy in shown:
        first = strategy.strategy not in seen
        seen.add(strategy.strategy)
        said = html.escape(strategy.label)
        common = {
            "type": "scatter",
            "legendgroup": strategy.strategy,
            "name": said,
            "x": list(range(1, len(strategy.reward) + 1)),
        }
        data.append(
            {
                **common,
                "mode": "markers",
                "showlegend": False,
                "y": list(strategy.reward),
                "marker": {"size": 3.5, "color": colour[strategy.strategy]},
                "opacity": 0.28,
                "hoverinfo": "skip",
            }
        )
        if len(strategy.reward) > 1:
            data.append(
                {
                    **common,
                    "mode": "lines",
                    "showlegend": first,
                    "y": running_mean(strategy.reward, _MEAN_OVER),
                    "line": {
                        "color": colour[strategy.strategy],
                        "width": 2,
                        "dash": "solid" if strategy.role == "search" else "dash",
                    },
                    "hovertemplate": f"<b>{said}</b>, seed {strategy.seed}<br>evaluation %{{x}}: "
                    f"mean of the last {_MEAN_OVER} %{{y:.4f}}<extra></extra>",
                }
            )
    warm = max(s.warmup for s in shown)
    marks: dict[str, Any] = {}
    if warm:
        marks = {
            "shapes": [
                {
                    "type": "line",
                    "xref": "x",
                    "yref": "paper",
                    "x0": warm,
                    "x1": warm,
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": "var(--ink-3)", "width": 1, "dash": "dot"},
                }
            ],
            "annotations": [
                {
                    "text": "learning begins",
                    "x": warm,
                    "y": 0,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "xanchor": "left",
                    "xshift": 4,
                    "showarrow": False,
                    "font": {"size": 12, "color": "var(--ink-3)"},
                }
            ],
        }
    return {
        "data": data,
        "layout": base_layout(xaxis=axis("evaluation"), yaxis=axis("reward"), height=400, **marks),
        "alt": f"Reward over evaluations of {len(shown)} searches.",
    }


def ratios(search: SearchReport) -> Figure | None:
    """Return the share of channels that the best policy of each strategy keeps in each layer."""
    shown = [s for s in best_of_each(search) if len(s.best_ratios) == len(search.layers)]
    if not shown or not search.layers:
        return None
    colour = colours(search)
    names = [html.escape(name) for name, _, _, _ in search.layers]
    data = [
        {
            "type": "bar",
            "name": f"{html.escape(s.label)}, seed {s.seed}",
            "x": names,
            "y": [100 * ratio for ratio in s.best_ratios],
            "marker": {"color": colour[s.strategy], "cornerradius": 2},
            "hovertemplate": "%{x}: %{y:.0f} % kept<extra>%{fullData.name}</extra>",
        }
        for s in shown
    ]
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis(type="category", showgrid=False),
            yaxis=axis("channels kept (%)", range=[0, 104]),
            barmode="group",
            bargap=0.28,
            bargroupgap=0.06,
            height=360,
        ),
        "alt": "Preserve ratio of each layer in the best policy of each strategy.",
    }


def prediction(search: SearchReport) -> Figure | None:
    """Return what the estimator predicted against what the board measured."""
    pairs = [
        (m, m.predicted, m.measured.value)
        for m in search.measured
        if m.predicted is not None and m.measured.value is not None
    ]
    if not pairs:
        return None
    colour = colours(search)
    values = [v for _, p, m in pairs for v in (p, m)]
    scale, unit = _unit(search, max(values))
    low, high = 0.95 * min(values) / scale, 1.05 * max(values) / scale
    said = {s.strategy: s.label for s in search.strategies}
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "predicted = measured",
            "x": [low, high],
            "y": [low, high],
            "line": {"color": "var(--ink-3)", "width": 1, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for name in dict.fromkeys(m.strategy for m, _, _ in pairs):
        part = [(m, p, v) for m, p, v in pairs if m.strategy == name]
        token = colour.get(name, "var(--ink-2)")
        highs = [((m.measured.high or v) - v) / scale for m, _, v in part]
        lows = [(v - (m.measured.low or v)) / scale for m, _, v in part]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(said.get(name, name)),
                "x": [p / scale for _, p, _ in part],
                "y": [v / scale for _, _, v in part],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": highs,
                    "arrayminus": lows,
                    "color": token,
                    "thickness": 1,
                    "width": 0,
                },
                "customdata": [
                    f"<b>{html.escape(m.label)}</b><br>predicted {quantity(search, p)}<br>"
                    f"{_found(search)} {quantity(search, v)} ({100 * (v / p - 1):+.1f} %)"
                    for m, p, v in part
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {
                    "size": 10,
                    "color": token,
                    "line": {"color": "var(--surface)", "width": 1},
                },
            }
        )
    return {
        "data": data,
        "layout": base_layout(
            xaxis=axis(f"predicted ({unit})", range=[low, high]),
            yaxis=axis(f"{_found(search)} ({unit})", range=[low, high]),
            height=400,
        ),
        "alt": f"Predicted against {_measured(search)} of {len(pairs)} candidates.",
    }


def front(search: SearchReport) -> Figure | None:
    """Return accuracy against the measured cost of the candidates measured whole."""
    points = [
        (m, m.measured.value, m.accuracy)
        for m in search.measured
        if m.measured.value is not None and m.accuracy is not None
    ]
    if not points:
        return None
    colour = colours(search)
    scale, unit = _unit(search, max(cost for _, cost, _ in points))
    best = pareto_front([(cost, accuracy) for _, cost, accuracy in points])
    said = {s.strategy: s.label for s in search.strategies}
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best trade-offs",
            "x": [points[i][1] / scale for i in best],
            "y": [100 * points[i][2] for i in best],
            "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": "var(--ink-3)"},
            "hoverinfo": "skip",
        }
    ]
    for name in dict.fromkeys(m.strategy for m, _, _ in points):
        part = [(m, c, a) for m, c, a in points if m.strategy == name]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(said.get(name, name)),
                "x": [c / scale for _, c, _ in part],
                "y": [100 * a for _, _, a in part],
                "customdata": [
                    f"<b>{html.escape(m.label)}</b><br>{words.percent(a)} on validation<br>"
                    f"{_found(search)} {quantity(search, c)}"
                    for m, c, a in part
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {
                    "size": [14 if m.candidate_id == search.chosen else 10 for m, _, _ in part],
                    "symbol": [
                        "star" if m.candidate_id == search.chosen else "circle" for m, _, _ in part
                    ],
                    "color": colour.get(name, "var(--ink-2)"),
                    "line": {"color": "var(--surface)", "width": 1},
                },
            }
        )
    layout = base_layout(
        xaxis=axis(f"{_measured(search)} ({unit})", rangemode="tozero"),
        yaxis=axis("accuracy on validation (%)"),
        height=400,
    )
    if search.limit is not None:
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": search.limit / scale,
                "x1": search.limit / scale,
                "y0": 0,
                "y1": 1,
                "line": {"color": "var(--bad)", "width": 1.5, "dash": "dash"},
            }
        ]
    return {
        "data": data,
        "layout": layout,
        "alt": f"Accuracy against {_measured(search)} of {len(points)} candidates.",
    }


def _found(search: SearchReport) -> str:
    """Return what was done to have a candidate's cost: an energy is never called measured."""
    return "modelled" if search.quantity == "energy" else "measured"


def _measured(search: SearchReport) -> str:
    return f"{_found(search)} {search.quantity}"


def _unit(search: SearchReport, value: float) -> tuple[float, str]:
    clock = "" if search.clock is None else f", {search.clock.value} clock"
    if search.unit == "ns":
        scale, unit = words.time_unit(value)
        return scale, unit + clock
    if search.unit == "B":
        return (1e6, "MB") if value >= 1e6 else (1e3, "kB")
    if search.unit == "nJ":
        return words.energy_unit(value)
    scale, prefix = (1e6, "M ") if value >= 1e6 else (1e3, "k ") if value >= 1e3 else (1.0, "")
    return scale, (prefix + search.unit).strip()
