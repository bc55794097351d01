import html
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.reports import (
    figures,
    figures_latency,
    figures_search,
    figures_static,
    pages_parts,
    pages_views,
)
from flatsat.reports.model import Estimate


def _drawn(report):
    yield from (figure for figure in _all(report) if figure is not None)


def _all(report):
    for section in report.sections:
        for name in figures.AXES:
            yield figures.pareto(section, name)
        yield figures_latency.latency_by_process(section)
        yield figures_latency.latency_spread(section)
        yield figures_latency.latency_cumulative(section)
    for search in report.search:
        for draw in ("reward", "ratios", "prediction", "front"):
            yield getattr(figures_search, draw)(search)


def _coloured(value):
    if isinstance(value, str):
        return "#123456" if value.startswith("var(--") else value
    if isinstance(value, list):
        return [_coloured(part) for part in value]
    if isinstance(value, dict):
        return {key: _coloured(part) for key, part in value.items()}
    return value


def test_plotly_knows_every_property_of_every_figure(report):
    import plotly.graph_objects as go

    for figure in _drawn(report):
        go.Figure(data=_coloured(figure["data"]), layout=_coloured(figure["layout"]))


def test_every_figure_has_words_for_those_who_cannot_see_it(report):
    assert all(figure["alt"] for figure in _drawn(report))


def test_names_are_escaped_for_plotly(report):
    text = json.dumps(list(_drawn(report)))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_no_figure_has_both_clocks(report):
    for section in report.sections:
        other = "virtual" if section.clock == "wall" else "wall"
        for draw in (figures_latency.latency_by_process, figures_latency.latency_cumulative):
            assert f"{section.clock} clock" in json.dumps(draw(section))
            assert f"{other} clock" not in json.dumps(draw(section))


def test_every_process_is_drawn_and_an_unsteady_one_is_marked(report):
    section = report.sections[0]
    figure = figures_latency.latency_by_process(section)
    dots = [t for t in figure["data"] if t["mode"] == "markers"]
    traces = [t for m in section.measurements for t in m.traces]
    assert sum(len(t["x"]) for t in dots) == len(traces)
    marked = sum(symbol == "x" for t in dots for symbol in t["marker"]["symbol"])
    assert marked == sum(t.steady is False for t in traces) > 0


def test_the_front_joins_exactly_what_no_other_beats(report):
    section = report.sections[0]
    figure = figures.pareto(section, "latency")
    joined = list(zip(figure["data"][0]["x"], figure["data"][0]["y"], strict=True))
    points = [(m.p50_ns.value / 1e3, 100 * m.accuracy.value) for m in section.measurements]
    best = [
        (x, y)
        for x, y in points
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    assert joined == sorted(best)


def test_names_stand_on_the_side_of_their_point_that_has_room(report):
    section = report.sections[0]
    near = tuple(
        replace(m, p50_ns=replace(m.p50_ns, value=350e3 + i), pareto=True)
        for i, m in enumerate(section.measurements[:3])
    )
    figure = figures.pareto(replace(section, measurements=near), "latency")
    places = {p for t in figure["data"] for p in t.get("textposition", ())}
    assert places == {"top left"}


def test_a_single_candidate_has_no_trade_off(report):
    section = report.sections[0]
    assert figures.pareto(replace(section, measurements=section.measurements[:1]), "macs") is None


def test_without_accuracy_there_is_no_trade_off(report):
    section = report.sections[0]
    bare = tuple(replace(m, accuracy=None) for m in section.measurements)
    assert figures.pareto(replace(section, measurements=bare), "latency") is None


@given(st.floats(-6, 9), st.floats(0.8, 9))
def test_ticks_of_a_logarithmic_axis_are_few_round_and_inside(start, span):
    low, high = 10.0**start, 10.0 ** (start + span)
    ticks = figures.log_ticks(low, high)
    assert 1 <= len(ticks) <= 7 or span < 1
    assert all(low <= tick <= high for tick in ticks)


def test_a_running_mean_passes_over_failed_evaluations():
    assert figures_search.running_mean([None, 1.0, None, 3.0], 3) == [None, 1.0, 1.0, 2.0]


def test_the_error_of_predictions_is_told(report):
    assert pages_views.prediction_error(report.search[0]).startswith("median 2.")


def test_pixels_of_a_mask_are_densest_in_the_middle(report):
    density = figures_static.pixel_density(report.masks["c-magnitude"])
    assert density.shape == (28, 28)
    assert density[10:18, 10:18].mean() > 5 * density[:3].mean()


def test_a_mask_as_png_has_a_pixel_a_weight(report):
    from io import BytesIO

    from PIL import Image

    picture = report.masks["c-magnitude"]
    image = Image.open(BytesIO(figures_static.mask_png(picture)))
    assert image.size == (784, 300)
    alpha = np.asarray(image.convert("RGBA"))[..., 3] > 0
    assert np.array_equal(alpha, figures_static.mask_bits(picture))


@pytest.mark.parametrize(
    ("ratio", "verdict", "said"),
    [
        (2.0, "faster", ("2.00\u00d7", "faster")),
        (0.5, "slower", ("2.00\u00d7", "slower")),
        (1.01, "equal", ("1.01\u00d7", "as fast")),
        (1.2, "inconclusive", ("1.20\u00d7", "faster, not settled")),
        (None, "refused", ("\u2013", "not comparable")),
    ],
)
def test_a_ratio_is_said_the_way_people_say_it(report, ratio, verdict, said):
    held = report.sections[0].headline.faster
    assert pages_parts.speed(replace(held, value=ratio, verdict=verdict)) == said


def test_the_interval_of_a_slower_one_is_turned_round(report):
    held = report.sections[0].headline.faster
    slower = replace(held, value=0.5, low=0.4, high=0.625, verdict="slower")
    assert pages_parts.between(slower) == "1.60 to 2.50"


def test_proxies_that_are_equal_for_all_are_named(report):
    section = report.sections[0]
    flat = tuple(
        replace(p, points=tuple((name, 7.0, ns) for name, _, ns in p.points), rho=Estimate(None))
        if p.proxy == "MACs"
        else p
        for p in section.proxies
    )
    assert "in MACs: the same for all 10" in pages_views.blind(replace(section, proxies=flat))
    assert pages_views.blind(section) == ""


def test_hover_texts_tell_the_label_once_unescaped(report):
    texts = [
        text
        for trace in figures.pareto(report.sections[0], "latency")["data"]
        for text in trace.get("customdata", ())
    ]
    assert {html.unescape(t.split("<br>")[0][3:-4]) for t in texts} == {
        m.label for m in report.sections[0].measurements
    }
