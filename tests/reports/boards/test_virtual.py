"""What a clock without noise needs: the least first, spread as evidence, nothing divided by it."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.reports import figures, words
from flatsat.reports.collect import collect
from flatsat.reports.model import DRAWN_QUANTILES, ProcessTrace
from flatsat.reports.pages import run_html


def _heads(page, table):
    head = page.split(f'<table id="{table}"')[1].split("</thead>")[0]
    return [text.strip() for text in re.findall(r'class="sort"[^>]*>([^<]+)<', head)]


def test_median_minimum_and_spread_come_first_on_a_virtual_clock(html):
    assert _heads(html, "table0")[:5] == ["Candidate", "Median (p50)", "Accuracy", "p90", "p99"]
    virtual = _heads(html, "table1")
    assert virtual[:5] == ["Candidate", "Median (p50)", "Minimum", "Spread", "Accuracy"]
    assert virtual.index("p90") > virtual.index("Energy")


def test_spread_is_of_the_medians_of_processes(record, section_of):
    record.board("qemu-arm64")
    record.named("cnn")
    # The second process is two ticks longer throughout.
    record.latency("cnn", 1.0, "qemu-arm64", jitter=(2,))
    section = section_of(collect(record.store, "r1"), "qemu-arm64")
    found = section.measurements[0]
    assert found.processes == 2
    assert found.spread == pytest.approx(32 / 1_000_048, rel=1e-9)
    assert section.trust.spread == found.spread
    assert found.min_ns == 1_000_032


def test_spread_is_told_in_trust_and_load_is_not(html, look):
    said = look(html)
    hero = said[said.index("Best on qemu-arm64:") : said.index("Best on qemu-arm64-a76:")]
    assert "processes of one candidate differ by at most 0.0025 %" in hero
    assert "load" not in hero
    assert "load up to 1.4 on 2 cores" in said


def test_a_wider_spread_than_a_virtual_clock_has_is_a_warning(record, report, look):
    section = report.sections[1]
    wide = replace(section, trust=replace(section.trust, spread=0.004))
    page = run_html(replace(report, sections=(wide,), boards=()))
    assert re.search(r'chip warn">processes of one candidate differ by at most 0.4', page)


def test_one_process_has_no_spread(record, look):
    record.board("qemu-arm64")
    record.named("cnn")
    record.latency("cnn", 1.0, "qemu-arm64", rounds=1)
    report = collect(record.store, "r1")
    assert report.sections[0].measurements[0].spread is None
    assert report.sections[0].trust.spread is None
    assert "one process" in look(run_html(report))


def test_percentiles_keep_their_floors(report):
    for found in report.sections[1].measurements:
        assert (found.n, found.p50_ns.value is None) == (24, False)
        assert (found.p90_ns.value, found.p90_ns.needs) == (None, 64)
        assert (found.p99_ns.value, found.p99_ns.needs) == (None, 662)


def test_values_without_any_spread_divide_nothing(record, look):
    import plotly.graph_objects as go

    record.small("qemu-arm64", jitter=(0,))
    for net in ("cnn", "cnn-filters"):
        record.accuracy(net, 90, "qemu-arm64")
        record.energy(net, 1000, "qemu-arm64")
    record.capability("qemu-arm64")
    report = collect(record.store, "r1")
    for found in report.sections[0].measurements:
        assert found.spread == 0
        assert found.p50_ns.low == found.p50_ns.value == found.p50_ns.high == found.min_ns
    ratio = report.sections[0].find("cnn-filters").versus_reference
    assert ratio.low == pytest.approx(ratio.value) == pytest.approx(ratio.high)
    assert ratio.verdict == "faster"
    page = run_html(report)
    assert "differ by at most 0 %" in look(page)
    drawn = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert set(drawn) == {"pareto0", "latency0", "roofline0"}
    for views in drawn.values():
        for figure in views.values():
            for name in ("xaxis", "yaxis"):
                ends = figure["layout"][name].get("range")
                assert ends is None or ends[0] != ends[1]
            text = json.dumps(figure).replace("var(--", "").replace(")", "")
            assert "NaN" not in text
            go.Figure(layout={"xaxis": {"range": figure["layout"]["xaxis"].get("range")}})


def test_equal_candidates_are_equal_and_not_an_error(record):
    record.board("qemu-arm64")
    for net in ("cnn", "cnn-magnitude"):
        record.named(net)
        record.latency(net, 31.6, "qemu-arm64", jitter=(0,))
    section = collect(record.store, "r1").sections[0]
    ratio = section.find("cnn-magnitude").versus_reference
    assert (ratio.value, ratio.verdict) == (1.0, "equal")
    assert all(p.rho.value is None for p in section.proxies)


def test_a_latency_of_no_ticks_at_all_is_still_a_page(record, look):
    record.small()
    record.board("qemu-arm64")
    for net in ("cnn", "cnn-filters"):
        record.latency(net, 0.0, "qemu-arm64", jitter=(0,))
        record.accuracy(net, 90, "qemu-arm64")
    record.capability("qemu-arm64")
    report = collect(record.store, "r1")
    assert report.sections[0].proxies == ()
    assert "0 ns" in look(run_html(report))


@given(st.lists(st.floats(1, 1e12), min_size=2, max_size=9))
def test_spread_is_never_negative_and_blind_to_order(medians):
    def spread(values):
        traces = tuple(
            ProcessTrace(str(i), 1, (value,) * len(DRAWN_QUANTILES), None)
            for i, value in enumerate(values)
        )
        return replace(_measurement(), traces=traces).spread

    assert spread(medians) == spread(medians[::-1]) >= 0
    assert spread([medians[0]] * len(medians)) == 0


def _measurement():
    from flatsat.reports.model import Estimate, MeasurementReport

    none = Estimate(None)
    return MeasurementReport(
        "c", "c", "compressed", "a", "onnx", "float", 1, "onnxruntime", 1, 1, 1, 1, 1, 1.0,
        none, none, none, none, None, None, (), None, None, None,
    )  # fmt: skip


@given(st.floats(1e-3, 1e12), st.floats(0, 0.5))
def test_an_interval_reads_as_its_ends_or_as_its_half_width(value, half):
    said = words.between(value, value * (1 - half), value * (1 + half))
    if " to " in said:
        first, last = said.split(" to ")
        assert first != last
    else:
        assert said.startswith(("\u00b1", "within "))


@given(st.lists(st.floats(1e-6, 1e15), min_size=1, max_size=5))
def test_a_logarithmic_axis_is_longer_than_nothing(values):
    low, high = figures.log_scale(values)["range"]
    assert low < high


@pytest.mark.parametrize(
    ("share", "said"),
    [(None, "\u2013"), (0.0, "0 %"), (4e-9, "<0.0001 %"), (5.2e-5, "0.0052 %"), (1.35, "135 %")],
)
def test_small_shares_are_read_without_exponents(share, said):
    assert words.fine_percent(share).replace("\u00a0", " ") == said
