import json
import re
from dataclasses import replace

import pytest

from flatsat.reports.figures_sensitivity import (
    render_sensitivity,
    sensitivity,
    sensitivity_html,
    tolerated,
)


def test_a_layer_is_a_line_over_the_share_pruned(scan):
    import plotly.graph_objects as go

    figure = sensitivity(scan)
    first = figure["data"][0]
    assert first["x"] == pytest.approx([0, 50, 90])
    assert first["y"] == pytest.approx([97, 96.6, 60])
    assert figure["data"][-1]["y"] == pytest.approx([97, 97])
    plain = json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", json.dumps(figure)))
    go.Figure(data=plain["data"], layout=plain["layout"])


def layers(scan, count):
    """The scan's first layer so many times."""
    return replace(scan, curves=tuple(replace(scan.curves[0], layer=f"l{i}") for i in range(count)))


def test_layers_beyond_the_colours_are_told_apart_by_dashes(scan):
    lines = [t["line"] for t in sensitivity(layers(scan, 12))["data"][:-1]]
    assert len({(line["color"], line["dash"]) for line in lines}) == 12


def test_layers_too_many_for_lines_are_rows_of_a_map(scan):
    import plotly.graph_objects as go

    many = layers(scan, 30)
    many = replace(many, curves=(*many.curves, scan.curves[2]))
    figure = sensitivity(many)
    (drawn,) = figure["data"]
    assert drawn["x"] == ["0", "50", "90"]
    assert drawn["y"][:2] == ["l0", "l1"]
    assert drawn["z"][0] == pytest.approx([97, 96.6, 60])
    assert drawn["z"][-1] == [None, 90, None]
    assert "&lt;script&gt;" in drawn["y"][-1]
    assert "Each row is one layer" in sensitivity_html(many)
    plain = json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", json.dumps(figure)))
    go.Figure(data=plain["data"], layout=plain["layout"])


# 0.97 - 0.966 is a little more than 0.004 in binary.
@pytest.mark.parametrize(
    ("loss", "share"), [(0.003, 0.0), (0.004, 0.5), (0.005, 0.5), (0.37, 0.9), (0.5, 0.9)]
)
def test_room_ends_where_accuracy_first_falls_too_far(scan, loss, share):
    assert tolerated(scan.curves[0], scan.dense, loss) == share


def test_room_is_not_found_again_beyond_a_fall(scan):
    dips = replace(scan.curves[0], points=((0.3, 0.5), (0.6, 0.97)))
    assert tolerated(dips, 0.97, 0.01) is None


def test_the_page_holds_the_figures_and_says_what_was_left_alone(scan, tmp_path):
    out = tmp_path / "scan.html"
    render_sensitivity(scan, out)
    text = out.read_text(encoding="utf-8")
    assert text == sensitivity_html(scan)
    for said in ("96.6", "<b>gate</b> was left alone: it has no weights", "&lt;script&gt;"):
        assert said in text, said
    assert "<script>alert" not in text


def test_a_scan_without_points_has_a_page_without_a_figure(scan):
    bare = replace(scan, curves=())
    assert sensitivity(bare) is None
    assert 'id="plotly"' not in sensitivity_html(bare)


def test_bits_run_from_many_to_few(scan):
    curves = (replace(scan.curves[0], points=((8, 0.97), (4, 0.968), (1, 0.5)), coupled=("c2",)),)
    bits = replace(scan, curves=curves, unit="bits", method="min/max quantisation")
    figure = sensitivity(bits)
    assert figure["data"][0]["x"] == [8, 4, 1]
    assert figure["layout"]["xaxis"]["autorange"] == "reversed"
    assert [tolerated(curves[0], 0.97, loss) for loss in (0.001, 0.002, 0.5)] == [8, 4, 1]
    text = sensitivity_html(bits)
    for said in ("How few bits", "8 bits", "1 bit<", "with c2"):
        assert said in text, said


def test_a_page_ends_with_the_step_that_gives_each_layer_its_room(scan):
    assert "As a step of a recipe" not in sensitivity_html(scan)
    advised = replace(scan, together=(0.01, 0.953), recipe='sparsity = { "a.b" = 0.5 }')
    text = sensitivity_html(advised)
    for said in ("As a step of a recipe", "{ &#34;a.b&#34; = 0.5 }"):
        assert said in text, said


def test_agreement_is_not_called_accuracy(scan):
    agreement = replace(scan, metric="agreement")
    assert (
        sensitivity(agreement)["layout"]["yaxis"]["title"]["text"] == "agreement on validation (%)"
    )
    assert "accuracy on" not in sensitivity_html(agreement)
