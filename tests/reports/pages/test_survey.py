"""Pictures and tables of methods: what a run's candidates and their folders tell."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.reports import (
    figures_survey,
    judged,
    pages,
    pages_agents,
    pages_results,
    pages_survey,
    pages_views,
    sizes,
    techniques,
)
from flatsat.reports.figures_survey import LayerLine
from flatsat.reports.model import CandidateReport, LayerReport
from flatsat.reports.model_survey import (
    FiltersPicture,
    ImageAtBits,
    Kept,
    StepReport,
    Survey,
    WeightsPicture,
)
from flatsat.reports.pruned_filters import pruned_filters


def _candidate(label, *steps, role="compressed", params=1000, macs=None, seed=0, **rest):
    return CandidateReport(
        f"c-{label}", "", label, role, "digits/net", seed, None, params, params, macs,
        {"train_steps": 5.0}, {"validation": rest.pop("validation", 0.9)}, (), "",
        rest.pop("artifacts", ((f"sha-{label}", "onnx", "float", 4 * params),)),
        tuple(StepReport(use, given) for use, given in steps),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ("magnitude-prune", "prune"),
        ("gradual-prune", "prune"),
        ("neuron-prune", "prune"),
        ("agent-prune", "prune"),
        ("linear-quantise", "quantise"),
        ("quantise-aware-train", "quantise"),
        ("share-weights", "quantise"),
        ("svd", "low rank"),
        ("tucker", "low rank"),
        ("fine-tune", ""),
        ("equalise", ""),
        ("narrow", ""),
    ],
)
def test_a_step_is_told_by_its_name(step, kind):
    assert techniques.technique(step) == kind


def test_a_method_in_words_names_bits_and_precision_but_not_what_comes_after():
    chain = _candidate(
        "x", ("magnitude-prune", {}), ("linear-quantise", {"bits": 4}), ("fine-tune", {})
    )
    assert techniques.method(chain) == "magnitude-prune, linear-quantise (4 bits)"
    assert techniques.method(_candidate("r", role="reference"), "int8") == "dense, int8"
    assert techniques.techniques(chain, "int8") == ("prune", "quantise")


def test_a_coded_file_goes_before_what_a_form_would_take():
    candidate = _candidate("x")
    plain = Kept(bytes_by_coding={"dense_fp32": 4000, "bitmap_fp32": 700})
    coded = replace(plain, coded={"sha-x": ("context", 900)})
    assert sizes.sized(candidate, plain, "float") == sizes.Sized(700, "bitmap, float32", False)
    assert sizes.sized(candidate, coded, "float") == sizes.Sized(900, "coded: context", True)
    assert sizes.sized(candidate, Kept(), "float") == sizes.Sized(4000, "float file", True)
    assert sizes.sized(candidate, plain, "int8") is None


@pytest.fixture
def chains(report):
    """A run whose candidates differ in what was done, none of it measured on a board."""
    candidates = (
        _candidate("dense", role="reference", validation=0.95),
        _candidate("pruned", ("magnitude-prune", {}), validation=0.94),
        _candidate("pruned more", ("magnitude-prune", {}), validation=0.90),
        _candidate("4 bit", ("linear-quantise", {"bits": 4, "per": "layer"}), validation=0.93),
        _candidate("2 bit", ("linear-quantise", {"bits": 2, "per": "layer"}), validation=0.60),
        _candidate(
            "both", ("magnitude-prune", {}), ("share-weights", {"bits": 5}), validation=0.92
        ),
        _candidate("narrow", ("narrow", {}), role="equal-macs", params=250, validation=0.91),
    )
    kept = {
        "c-pruned": Kept(bytes_by_coding={"dense_fp32": 4000, "bitmap_fp32": 800}),
        "c-pruned more": Kept(bytes_by_coding={"dense_fp32": 4000, "bitmap_fp32": 400}),
        "c-4 bit": Kept(bytes_by_coding={"dense_fp32": 4000, "linear": 510}),
        "c-2 bit": Kept(bytes_by_coding={"dense_fp32": 4000, "linear": 260}),
        "c-both": Kept(bytes_by_coding={"linear": 300}, coded={"sha-both": ("huffman", 100)}),
    }
    images = tuple(
        ImageAtBits(b, 4, 4, 1, bytes(range(0, 256, 16))) for b in (None, *range(8, 0, -1))
    )
    survey = Survey(kept, {"digits/net": images})
    return replace(report, candidates=candidates, survey=survey, sections=(), search=(), masks={})


def test_files_stand_in_the_series_of_what_was_done_to_them(chains):
    points = figures_survey.size_points(chains, "digits/net")
    assert {p.label: (p.series, p.share) for p in points} == {
        "pruned": ("prune", 0.2),
        "pruned more": ("prune", 0.1),
        "4 bit": ("quantise", 510 / 4000),
        "2 bit": ("quantise", 260 / 4000),
        "both": ("prune+quantise", 100 / 4000),
        "narrow": ("narrow", 0.25),
    }
    assert {p.accuracy.where for p in points} == {judged.ON_HOST}


def test_the_plot_of_sizes_draws_each_series_by_size_and_its_loss_downwards(chains):
    import plotly.graph_objects as go

    figure = figures_survey.ratio(figures_survey.size_points(chains, "digits/net"))
    traces = {t["name"]: t for t in figure["data"] if "name" in t}
    assert traces["pruning only"]["x"] == pytest.approx([10, 20])
    assert traces["pruning only"]["y"] == pytest.approx([-5, -1])
    assert traces["pruning and quantisation"]["y"] == pytest.approx([-3])
    text = re.sub(r"var\(--[\w-]+\)", "#123456", json.dumps(figure))
    plain = json.loads(text)
    go.Figure(data=plain["data"], layout=plain["layout"])


def test_lines_join_only_what_no_smaller_file_of_the_kind_matches(chains):
    worse = _candidate("worse", ("magnitude-prune", {}), validation=0.85)
    kept = {**chains.survey.kept, "c-worse": Kept(bytes_by_coding={"bitmap_fp32": 600})}
    more = replace(
        chains,
        candidates=(*chains.candidates, worse),
        survey=replace(chains.survey, kept=kept),
    )
    figure = figures_survey.ratio(figures_survey.size_points(more, "digits/net"))
    of_kind = [t for t in figure["data"] if t["legendgroup"] == "prune"]
    assert {t["mode"]: t["x"] for t in of_kind} == {
        "lines": pytest.approx([10, 20]),
        "markers": pytest.approx([10, 15, 20]),
    }


def test_accuracies_of_board_and_host_never_share_the_plot(report, chains):
    section = report.sections[0]
    m = section.find("magnitude")
    one = replace(section, measurements=(replace(m, artifact="sha-pruned"),))
    # A single one on the board compares nothing: all are told by the host.
    mixed = figures_survey.size_points(replace(chains, sections=(one,)), "digits/net")
    assert {p.accuracy.where for p in mixed} == {judged.ON_HOST}
    shas = [c.artifacts[0][0] for c in chains.candidates[1:]]
    all_there = replace(section, measurements=tuple(replace(m, artifact=s) for s in shas))
    measured = figures_survey.size_points(replace(chains, sections=(all_there,)), "digits/net")
    assert {p.accuracy.where for p in measured} == {"test split, on host"}
    assert measured[0].accuracy.loss == m.accuracy.loss.value


def test_too_few_files_or_one_series_alone_give_no_plot(chains):
    points = figures_survey.size_points(chains, "digits/net")
    assert figures_survey.ratio(points[:2]) is None
    assert figures_survey.ratio([p for p in points if p.series == "prune"] * 2) is None


def test_bits_stand_beside_the_image_that_has_as_many(chains):
    (view,) = pages_survey.bits_views(chains)
    assert [said for said, _ in view.columns] == ["float32", "4 bits", "2 bits"]
    assert all(url.startswith("data:image/png") for _, url in view.columns)
    (row,) = view.rows
    assert row.label == "linear-quantise (per layer)"
    assert [cell[0] for cell in row.cells] == [0.95, 0.93, 0.60]


def test_seeds_of_the_same_bits_are_told_with_their_spread(chains):
    more = _candidate(
        "2 bit again", ("linear-quantise", {"bits": 2, "per": "layer"}), seed=1, validation=0.5
    )
    (view,) = pages_survey.bits_views(replace(chains, candidates=(*chains.candidates, more)))
    value, spread = view.rows[0].cells[2]
    assert value == pytest.approx(0.55)
    assert spread == "2 seeds, 50.0 to 60.0"


def test_other_parameters_make_another_row_and_a_single_number_of_bits_none(chains):
    sided = [
        _candidate(f"s{b}", ("linear-quantise", {"bits": b, "per": "channel"})) for b in (8, 1)
    ]
    lone = _candidate("lone", ("linear-quantise", {"bits": 3, "per": "layer", "n": 5}))
    changed = replace(chains, candidates=(*chains.candidates, *sided, lone))
    (view,) = pages_survey.bits_views(changed)
    assert [said for said, _ in view.columns] == ["float32", "8 bits", "4 bits", "2 bits", "1 bit"]
    assert [[cell is not None for cell in row.cells] for row in view.rows] == [
        [True, False, True, True, False],
        [True, True, False, False, True],
    ]


def _heights(path, bins, base):
    """Read a histogram's outline back: how far each column reaches from its base."""
    found, now = [], float(base)
    for what, value in re.findall(r"([hV])(-?[\d.]+)", path):
        if what == "h":
            found += [abs(now - base)] * int(value)
        else:
            now = float(value)
    assert len(found) == bins
    return found


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=64).filter(any))
def test_an_outline_is_as_high_as_its_counts(counts):
    picture = WeightsPicture("fc", -1.0, 1.0, tuple(counts), 3, tuple(reversed(counts)))
    drawn = pages_survey.histogram(picture)
    half = drawn.height / 2 - 1
    wanted = [half * count / max(counts) for count in counts]
    assert _heights(drawn.after, len(counts), half + 2) == pytest.approx(wanted, abs=0.06)
    assert _heights(drawn.before, len(counts), half) == pytest.approx(wanted[::-1], abs=0.06)


def test_levels_are_drawn_where_they_lie_unless_there_are_too_many():
    few = WeightsPicture("fc", -1.0, 1.0, (1,) * 64, 0, None, (-1.0, 0.0, 1.0))
    assert re.findall(r"M([\d.]+)", pages_survey.histogram(few).levels) == ["0", "32", "64"]
    many = replace(few, codebook=tuple(np.linspace(-1, 1, 100)))
    assert pages_survey.histogram(many).levels == ""
    assert pages_survey.histogram(few).before == ""


@pytest.mark.parametrize(
    ("low", "high", "after", "before"), [(1.0, 1.0, (1,), None), (0, 1, (), None), (0, 1, (1,), ())]
)
def test_bins_that_cannot_be_drawn_are_refused(low, high, after, before):
    with pytest.raises(ValueError, match="histogram of 'fc'"):
        WeightsPicture("fc", low, high, after, 0, before)


@pytest.mark.parametrize(("channels", "count"), [(2, 32), (1, 15), (3, 16)])
def test_pixels_that_cannot_be_an_image_are_refused(channels, count):
    with pytest.raises(ValueError, match=r"channels|pixels"):
        ImageAtBits(8, 4, 4, channels, bytes(count))


def test_histograms_are_shown_of_pruned_and_quantised_networks_codebooks_first(chains):
    plain = WeightsPicture("fc", 0, 1, (5, 5), 90)
    shared = replace(plain, codebook=(0.5,))
    kept = {
        "c-dense": Kept(weights=(plain,)),
        "c-pruned": Kept(weights=(plain, replace(plain, layer="fc2"))),
        "c-both": Kept(weights=(shared,)),
        "c-4 bit": Kept(weights=(replace(plain, zeros=0),)),
    }
    views, more = pages_survey.weights_views(replace(chains, survey=Survey(kept)))
    assert [(v.label, [h.picture.layer for h in v.layers]) for v in views] == [
        ("both", ["fc"]),
        ("pruned", ["fc", "fc2"]),
    ]
    assert more == 0
    assert views[0].layers[0].zeros == pytest.approx(0.9)


def test_filters_are_shown_before_and_after_once_a_chain_where_they_changed(chains):
    was, now = (ImageAtBits(None, 2, 2, 1, bytes(4 * [value])) for value in (10, 90))
    changed = FiltersPicture("conv1", now, was, (5, 20), 64)
    same = FiltersPicture("conv1", was, was, (20, 20), 64)
    kept = {
        "c-dense": Kept(filters=changed),
        "c-pruned": Kept(filters=changed),
        "c-pruned more": Kept(filters=changed),
        "c-4 bit": Kept(filters=same),
        "c-both": Kept(filters=replace(changed, filters=(1, 20))),
    }
    (view,) = pages_survey.filters_views(replace(chains, survey=Survey(kept)))
    assert [(one.label, one.method) for one in view.shown] == [
        ("before", "20 filters"),
        ("pruned", "magnitude-prune: 5 filters"),
        ("both", "magnitude-prune, share-weights (5 bits): 1 filter"),
    ]
    assert pages_survey.filters_views(chains) == []


# The table of methods


@pytest.fixture
def methods(report):
    """The hand-made run with recipes told."""
    steps = {
        "magnitude": (StepReport("magnitude-prune"),),
        "filters-50": (StepReport("l1-filter-prune"), StepReport("fine-tune")),
        "minmax 4 bit": (StepReport("linear-quantise", {"bits": 4}),),
        "narrow-50": (StepReport("narrow"),),
    }
    candidates = tuple(replace(c, steps=steps.get(c.label, ())) for c in report.candidates)
    kept = {
        "c-magnitude": Kept(
            bytes_by_coding={"dense_fp32": 1_724_320, "bitmap_fp32": 199_485},
            weights=(WeightsPicture("fc1", -1, 1, (3, 9, 2), 368_000, (90, 400, 80)),),
        ),
    }
    return replace(report, candidates=candidates, survey=Survey(kept))


def _row(table, label):
    return next(row for row in table.rows if row.label == label)


def test_the_table_of_methods_stands_beside_dense_and_narrow(methods):
    (table,) = pages_results.results(methods)
    assert [row.candidate.role for row in table.rows][:3] == [
        "reference",
        "equal-macs",
        "equal-macs",
    ]
    assert [(c.board, c.clock, c.runtime) for c in table.columns] == [
        ("host", "wall", "onnxruntime"),
        ("qemu1", "virtual", "onnxruntime"),
    ]
    row = _row(table, "filters-50")
    assert row.method == "l1-filter-prune"
    assert row.by_macs == pytest.approx(2_293_000 / 1_116_000)
    assert row.by_nonzeros is None
    assert row.cells[0].ratio.verdict == "faster"
    assert (row.narrow.label, row.narrow.where) == ("narrow-50", "onnxruntime, host")
    assert row.narrow.accuracy.value == 0.958
    assert row.accuracy.n == 1000
    reference = _row(table, "reference")
    assert reference.by_macs is None
    assert reference.cells[0].ratio is None


def test_zeros_that_a_dense_runtime_multiplies_are_said_to_bring_nothing(methods):
    (table,) = pages_results.results(methods)
    row = _row(table, "magnitude")
    assert row.zeros == pytest.approx(1 - 36_400 / 431_080)
    assert row.by_macs == pytest.approx(1.0)
    assert row.by_nonzeros > 3
    assert row.cells[0].idle == "nothing"
    assert row.smallest.size_bytes == 199_485
    assert row.smaller == pytest.approx(4 * 431_080 / 199_485)
    (said,) = table.idle
    assert "onnxruntime on host multiplies zeros like any other weight" in said
    assert "magnitude (92\u00a0% zeros) runs 1.01\u00d7 as fast (0.985 to 1.03)" in said


def test_a_gain_that_is_not_settled_is_not_called_nothing(methods):
    section = methods.sections[0]
    m = section.find("magnitude")
    rough = replace(m.versus_reference, value=0.92, low=0.71, high=1.2, verdict="inconclusive")
    measured = tuple(
        replace(m, versus_reference=rough) if one is m else one for one in section.measurements
    )
    (table,) = pages_results.results(
        replace(methods, sections=(replace(section, measurements=measured),))
    )
    assert _row(table, "magnitude").cells[0].idle == "unsettled"
    (said,) = table.idle
    assert said.startswith("No gain from zeros is shown in onnxruntime on host: magnitude")


def test_zeros_are_not_called_idle_where_they_are_seen_to_help(methods):
    section = methods.sections[0]
    m = section.find("magnitude")
    faster = replace(m.versus_reference, value=3.0, low=2.9, high=3.1, verdict="faster")
    sparse = replace(m, runtime="sparse-c", versus_reference=None)
    for changed in (replace(m, versus_reference=faster), sparse):
        measured = tuple(changed if one is m else one for one in section.measurements)
        (table,) = pages_results.results(
            replace(methods, sections=(replace(section, measurements=measured),))
        )
        assert not any(cell is not None and cell.idle for r in table.rows for cell in r.cells)
        assert not any("multiplies zeros" in said for said in table.idle)


def test_a_row_has_no_cost_of_passes_that_made_files_of_another_precision(methods):
    first = next(c for c in methods.candidates if c.label == "filters-50")
    both = replace(
        first,
        artifacts=(*first.artifacts, ("sha-8", "onnx", "int8", 5)),
        cost={"cpu_s": 10.0, "train_steps": 70.0, "forward_passes": 256.0},
    )
    history = (
        {"step": "fine-tune", "cost": {"train_steps": 70, "forward_passes": 0}, "cpu_s": 7.0},
        {"step": "int8", "role": "int8", "cost": {"forward_passes": 256}, "cpu_s": 2.5},
    )
    section = methods.sections[0]
    eight = replace(section.find("filters-50"), artifact="sha-8", precision="int8")
    (table,) = pages_results.results(
        replace(
            methods,
            candidates=tuple(both if c is first else c for c in methods.candidates),
            survey=Survey({both.candidate_id: Kept(history=history)}),
            sections=(replace(section, measurements=(*section.measurements, eight)),),
        )
    )
    assert _row(table, "filters-50").cost == {
        "cpu_s": 7.5,
        "train_steps": 70.0,
        "forward_passes": 0.0,
    }
    assert _row(table, "filters-50 int8").cost == both.cost


def test_a_runtime_without_the_dense_network_is_held_against_it_elsewhere(methods):
    section = methods.sections[0]
    m = section.find("magnitude")
    sparse = replace(m, runtime="sparse-c", versus_reference=None)
    measured = (*section.measurements, sparse)
    (table,) = pages_results.results(
        replace(methods, sections=(replace(section, measurements=measured),))
    )
    column = [c.runtime for c in table.columns].index("sparse-c")
    cell = _row(table, "magnitude").cells[column]
    dense = section.find("reference").p50_ns.value
    assert cell.across.runtime == "onnxruntime"
    assert cell.across.value == pytest.approx(dense / m.p50_ns.value)
    assert cell.across.low < 0.99 * cell.across.value < 1.01 * cell.across.value < cell.across.high
    assert _row(table, "filters-50").cells[column] is None


def test_networks_that_were_only_timed_are_counted_and_left_out(methods):
    section = methods.sections[0]
    timed = tuple(
        replace(m, accuracy=None) if m.label.startswith("filters") else m
        for m in section.measurements
    )
    (table,) = pages_results.results(
        replace(methods, sections=(replace(section, measurements=timed),))
    )
    assert table.more == 2
    assert not any(row.label.startswith("filters") for row in table.rows)


def test_a_network_whose_file_two_candidates_share_stands_once(methods):
    first = next(c for c in methods.candidates if c.label == "filters-50")
    twin = replace(first, candidate_id="c-twin", label="twin")
    more = replace(
        first,
        candidate_id="c-more",
        label="more",
        artifacts=(*first.artifacts, ("x", "onnx", "int8", 5)),
    )
    (table,) = pages_results.results(replace(methods, candidates=(twin, *methods.candidates, more)))
    labels = [row.label for row in table.rows]
    assert "more" in labels
    assert not {"twin", "filters-50"} & set(labels)


def test_of_twins_the_coded_one_stands_for_its_size(chains):
    twin = next(c for c in chains.candidates if c.label == "both")
    plain = replace(twin, candidate_id="c-plain", label="plain")
    for both in ((plain, *chains.candidates), (*chains.candidates, plain)):
        points = figures_survey.size_points(replace(chains, candidates=both), "digits/net")
        (point,) = (p for p in points if p.label in ("both", "plain"))
        assert (point.label, point.size.size_bytes) == ("both", 100)


def test_without_a_compressed_network_there_is_no_table(methods):
    dense = tuple(c for c in methods.candidates if c.role != "compressed")
    assert pages_results.results(replace(methods, candidates=dense)) == []
    assert pages_results.results(replace(methods, sections=())) == []


# Pruning agents


@pytest.fixture
def agents(chains):
    """Two networks that agents pruned, one of them beside filters by norm at its ratio."""
    mine = (
        _candidate("tight", ("agent-prune", {"b": 0.5}), params=700, validation=0.945),
        _candidate("loose", ("agent-prune", {"b": 4.0}), params=300, validation=0.92),
        _candidate("norm", ("l1-filter-prune", {}), params=310, validation=0.91),
        _candidate("other norm", ("l1-filter-prune", {}), params=500, validation=0.93),
    )
    told = {
        f"c-{label}": Kept(
            history=(
                {"step": "reference", "layers": []},
                {
                    "step": "agent-prune",
                    "layers": [
                        {"name": "conv1", "kept": kept, "total": 20},
                        {"name": "conv2", "kept": 2 * kept, "total": 50},
                    ],
                },
            )
        )
        for label, kept in (("tight", 18), ("loose", 5))
    }
    survey = replace(chains.survey, kept={**chains.survey.kept, **told})
    return replace(chains, candidates=(*chains.candidates, *mine[::-1]), survey=survey)


def test_the_table_over_the_drop_bound_has_magnitude_in_brackets_at_its_ratio_only(agents):
    (view,) = pages_agents.agents_views(agents)
    assert [(row.label, row.bound) for row in view.rows] == [("tight", 0.5), ("loose", 4.0)]
    tight, loose = view.rows
    assert tight.magnitude is None
    assert loose.magnitude[0] == "norm"
    assert loose.magnitude[2].value == 0.91
    assert loose.smaller == pytest.approx(1000 / 300)
    assert loose.filters == pytest.approx(15 / 70)
    assert view.dense.value == 0.95
    lines = {t["name"]: t["y"] for t in view.figure["data"]}
    assert lines["b = 0.5"] == pytest.approx([10, 28])
    assert lines["b = 4"] == pytest.approx([75, 80])


def test_without_agents_there_is_no_table_over_the_bound(chains):
    assert pages_agents.agents_views(chains) == []


def test_filters_and_neurons_that_went_as_a_whole_have_a_plot_of_their_own(agents):
    (figure,) = pages_survey.filter_figures(agents).values()
    assert {t["name"]: t["y"] for t in figure["data"]} == {
        "tight": pytest.approx([10, 28]),
        "loose": pytest.approx([75, 80]),
    }
    assert pages_survey.filter_figures(replace(agents, survey=Survey())) == {}


def test_filters_cut_again_and_again_are_told_once():
    history = (
        {"step": "magnitude-prune", "layers": [{"name": "a", "kept": 5, "weights": 50}]},
        {"step": "l1-filter-prune", "layers": [{"name": "a", "channels": 20, "kept": 15}]},
        {
            "step": "neuron-prune",
            "rounds": [{"layers": [{"name": "b", "neurons": 100, "kept": 50}]}, {"round": 2}],
            "layers": [{"name": "b", "neurons": 50, "kept": 25}],
        },
        {"step": "channel-prune", "layers": [{"name": "a", "channels": 15, "kept": 10}]},
    )
    assert pruned_filters(history) == (("a", 10, 20), ("b", 25, 100))
    assert pruned_filters(history, "l1-filter-prune") == (("a", 15, 20),)


def test_no_more_lines_are_drawn_than_there_are_colours():
    lines = [LayerLine(f"n{i}", (("fc", i / 20),)) for i in range(20)]
    assert len(figures_survey.pruned_by_layer(lines, "weights")["data"]) == 8
    assert figures_survey.pruned_by_layer([LayerLine("n", ())], "weights") is None


def test_lines_show_each_chain_of_steps_before_a_second_of_any(chains):
    def layered(candidate, share):
        layer = LayerReport("fc", "fc", 100, round(100 * share), 100, share)
        return replace(candidate, layers=(layer,))

    many = [_candidate(f"m{i}", ("magnitude-prune", {"sparsity": i})) for i in range(9)]
    candidates = (*many, _candidate("g", ("gradual-prune", {})))
    told = tuple(layered(c, i / 20) for i, c in enumerate(candidates))
    (figure,) = pages_survey.pruning_figures(replace(chains, candidates=told)).values()
    assert [trace["name"] for trace in figure["data"]] == [
        "m0",
        "g",
        *(f"m{i}" for i in range(1, 7)),
    ]
    assert figure["more"] == 2


def test_networks_that_lost_no_weight_have_no_row_of_their_own(chains):
    def layered(candidate):
        share = 0.2 if "pruned" in candidate.label else 1.0
        return replace(
            candidate, layers=(LayerReport("fc", "fc", 100, round(100 * share), 100, share),)
        )

    told = tuple(layered(c) for c in chains.candidates)
    (heat,) = pages_views.heats(replace(chains, candidates=told))
    assert [row.candidate.label for row in heat.rows] == [
        "dense",
        "pruned",
        "pruned more",
        "narrow",
    ]
    assert heat.whole == 3
    assert "Not shown: 3 networks that lost no weight." in pages.run_html(
        replace(chains, candidates=told)
    )


def test_bits_of_activations_that_the_network_does_not_round_are_not_told(chains):
    aware = {"per": "layer", "activations": 8}
    both = [
        _candidate(f"{b}{on}", ("quantise-aware-train", {**aware, "bits": b, "simulate": on}))
        for b in (3, 2)
        for on in (True, False)
    ]
    changed = replace(chains, candidates=(*chains.candidates, *both))
    (view,) = pages_survey.bits_views(changed)
    assert [row.label for row in view.rows[1:]] == [
        "quantise-aware-train (per layer, activations 8)",
        "quantise-aware-train (per layer)",
    ]


def test_networks_that_are_pruned_alike_are_one_line():
    lines = [
        LayerLine(said, (("fc", share),)) for said, share in (("a", 0.5), ("b", 0.2), ("c", 0.5))
    ]
    figure = figures_survey.pruned_by_layer(lines, "weights")
    assert [trace["name"] for trace in figure["data"]] == ["a and c", "b"]


# The page


class _Ids(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if "id" in told:
            self.ids.append(told["id"])
        if tag == "a":
            self.links.append(told.get("href", ""))
        if tag in ("img", "svg"):
            self.images.append(told.get("alt") or told.get("aria-label"))


def test_a_page_with_all_of_it_is_whole(surveyed):
    text = pages.run_html(surveyed)
    found = _Ids(text)
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    for part in ("results", "sizes", "agents", "sparsity", "weights", "filters", "bits"):
        assert part in found.ids
        assert f"#{part}" in found.links
    assert all(found.images)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])
    assert {"sizes0", "agents0", "pruned0", "filters0"} <= set(figures)
    assert "<script>alert" not in text.replace("\\u003c", "<").split('id="figures"')[0]
    assert len(text.encode()) < 3_000_000


def test_the_pattern_of_a_first_layer_on_pixels_names_its_bands(surveyed):
    text = pages.run_html(surveyed)
    assert "the 28 bands are the image\u2019s rows" in text
