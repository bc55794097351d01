import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from flatsat.reports import figures, pages
from flatsat.reports.model import Headline, JobCounts
from flatsat.units import TimeKind


class _Page(HTMLParser):
    """What a browser would fetch, run and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched, self.scripts, self.words = [], [], [], []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        for name in ("src", "href", "data", "poster", "action"):
            value = dict(attrs).get(name)
            if value and not value.startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1][1] += data
        elif self._in != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def text(report):
    return pages.run_html(report)


@pytest.fixture(scope="module")
def page(text):
    return _Page(text)


def test_the_page_fetches_nothing(page, text):
    assert page.fetched == []
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_only_its_own_scripts_may_run(page):
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]
    run = [code for attrs, code in page.scripts if "type" not in attrs]
    for code in run:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(run) == 2


def test_a_hostile_name_or_configuration_stays_text(page):
    assert len(page.scripts) == 4
    assert not any("alert" in code for attrs, code in page.scripts if "type" not in attrs)
    assert "<script>alert(1)</script>" in page.text
    assert "</script><script>alert(2)</script>" in page.text


def test_plotly_is_carried_whole(page):
    from plotly.offline import get_plotlyjs

    packed = next(code for attrs, code in page.scripts if attrs.get("id") == "plotly")
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()


def test_the_page_is_small_enough_to_mail(text):
    assert len(text.encode()) < 3_000_000


def test_the_first_screen_says_what_a_manager_asks(page):
    first = page.text.split("What the columns mean")[0]
    for said in (
        "10 networks for mnist-mini (lenet5), measured on host and qemu1",
        "Best on host: filters-50 int8",
        "14.3\u00d7 smaller",
        "3.71\u00d7 faster",
        "96.5 % accuracy",
        "\u22120.4 points (\u22121.0 to +0.2) against the dense reference",
        "faster than narrow-50",
        "2 failed",
        "117 of 120 processes reached a steady state",
        "wall clock",
        "24 Nov 2026, 23:10 UTC",
    ):
        assert said in first.replace("\u00a0", " "), said


def test_a_percentile_that_cannot_be_had_says_why(page):
    assert "not available (n=40 < 64)" in page.text
    assert "not available (n=40 < 662)" in page.text


def test_virtual_time_is_told_apart(page):
    assert "virtual clock" in page.text
    assert "Virtual time is counted instructions" in page.text


def test_failures_stand_with_reason_and_remedy(page):
    for said in ("out-of-memory", "candidate\u2019s fault", "give plan.wall.memory_limit_bytes"):
        assert said in page.text


def test_every_sort_button_stands_in_a_heading_that_tells_the_order(text):
    heads = re.findall(r"<th[^>]*>(?=<button)", text)
    assert heads
    assert all("aria-sort=" in head and 'scope="col"' in head for head in heads)


def test_every_picture_and_box_has_a_name(page):
    for tag, attrs in page.tags:
        if tag == "img":
            assert attrs.get("alt")
        if attrs.get("role") == "region":
            assert attrs.get("aria-label")
            assert attrs.get("tabindex") == "0"


def test_identifiers_are_unique_and_links_lead_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for t, a in page.tags if t == "a" and a["href"].startswith("#")]
    assert set(links) <= set(ids)


def test_figures_are_json_without_anything_that_ends_a_script(page):
    code = next(code for attrs, code in page.scripts if attrs.get("id") == "figures")
    assert "<" not in code
    assert set(json.loads(code)) == {
        *("pareto0", "pareto1", "latency0", "latency1"),
        *("reward0", "ratios0", "prediction0", "front0"),
    }


def test_views_of_a_figure_share_what_they_have_in_common(page, report):
    code = next(code for attrs, code in page.scripts if attrs.get("id") == "figures")
    kept = json.loads(code)["pareto0"]
    whole = {name: figures.pareto(report.sections[0], name) for name in kept}
    first = next(iter(kept.values()))["data"]
    for name, view in kept.items():
        traces = [
            {**first[t["of"]], **{k: v for k, v in t.items() if k != "of"}} if "of" in t else t
            for t in view["data"]
        ]
        traces = [{k: v for k, v in t.items() if v is not None} for t in traces]
        assert [(t["name"], t.get("customdata")) for t in traces] == [
            (t["name"], t.get("customdata")) for t in whole[name]["data"]
        ]
        for found, wanted in zip(traces, whole[name]["data"], strict=True):
            assert found.keys() == wanted.keys()
            assert found["x"] == pytest.approx(wanted["x"], rel=1e-5)
    assert len(json.dumps(kept)) < 0.7 * len(json.dumps(whole))


@pytest.mark.parametrize("value", ["</script>", "\u2028", "a&b", "<!--"])
def test_json_in_a_script_comes_back(value):
    packed = pages.script_json({"v": value})
    assert json.loads(packed) == {"v": value}
    assert not set("<>&\u2028") & set(packed)


def test_the_headline_is_one_line(report):
    said = pages.headline_text(report).replace("\u00a0", " ")
    tiles = "14.3\u00d7 smaller, 3.71\u00d7 faster, 96.5 % accuracy"
    assert said == (
        f"filters-50 int8 on host (wall clock): {tiles}; "
        f"filters-50 int8 on qemu1 (virtual clock): {tiles}"
    )
    said = pages.headline_text(replace(report, sections=report.sections[:1]))
    assert said.replace("\u00a0", " ") == f"filters-50 int8 on host: {tiles}"
    assert pages.headline_text(replace(report, sections=())) == ""


def test_regressions_stand_on_the_first_screen(report):
    page = _Page(pages.run_html(replace(report, regressions=("deep: 4 % slower on host",))))
    assert page.text.index("deep: 4 % slower on host") < page.text.index("Best on host")
    assert "1 regression against the baseline" in page.text


def test_a_run_that_goes_on_says_so(report):
    jobs = JobCounts(planned=86, measured=40, failed=0, inconclusive=0)
    page = _Page(pages.run_html(replace(report, state="running", jobs=jobs)))
    assert "46 of 86 jobs wait" in page.text


def test_a_run_without_any_measurement_is_still_a_page(report):
    page = _Page(pages.run_html(replace(report, sections=(), search=(), masks={})))
    assert "Nothing measured yet" in page.text
    assert not any(attrs.get("id") == "plotly" for attrs, _ in page.scripts)


def test_a_winner_that_is_not_shown_to_hold_its_accuracy_is_marked(report):
    section = report.sections[0]
    unsure = replace(section, headline=replace(section.headline, shown=False))
    page = _Page(pages.run_html(replace(report, sections=(unsure,))))
    assert "accuracy not settled" in page.text


def test_where_no_candidate_wins_the_page_says_why(report):
    section = report.sections[0]
    lost = replace(section, headline=Headline("No candidate kept its accuracy", None, shown=False))
    page = _Page(pages.run_html(replace(report, sections=(lost,))))
    assert "No winner on host" in page.text
    assert "No candidate kept its accuracy." in page.text


def test_a_narrow_network_that_wins_is_no_compression(report):
    section = report.sections[0]
    won = replace(section, headline=replace(section.headline, label="narrow-50"))
    page = _Page(pages.run_html(replace(report, sections=(won,))))
    assert "no compression: a narrow network" in page.text


def test_two_workloads_on_a_board_are_told_apart(report):
    section = report.sections[0]
    other = replace(section, workload="mnist-mini/lenet300")
    page = _Page(pages.run_html(replace(report, sections=(section, other))))
    assert "Best for lenet5 on host: filters-50 int8" in page.text
    assert "Best for lenet300 on host: filters-50 int8" in page.text


def test_a_crowded_board_is_called_so(report):
    section = report.sections[0]
    busy = replace(section, trust=replace(section.trust, load1_max=5.3))
    page = _Page(pages.run_html(replace(report, sections=(busy,))))
    assert "load up to 5.3 on 2 cores: crowded, timings are rough" in page.text


def test_a_page_that_cannot_be_written_leaves_the_old_one(report, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        pages.render_run(report, out)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_search_for_less_energy_calls_it_modelled_throughout(report):
    search = replace(report.search[0], quantity="energy", unit="nJ", clock=None, board="qemu1")
    text = pages.run_html(replace(report, sections=(), search=(search,)))
    page = _Page(text)
    assert "Budget: modelled energy of at most 61.0\u00a0µJ" in page.text.replace(" µ", "\u00a0µ")
    assert "Predicted against modelled" in page.text
    figures = next(code for attrs, code in page.scripts if attrs.get("id") == "figures")
    assert "modelled energy (µJ)" in figures
    assert "measured energy" not in (page.text + figures).lower()
    assert "Modelled energy is counted events" in page.text


def test_a_search_on_a_virtual_clock_says_what_that_is_not(report):
    search = replace(report.search[0], clock=TimeKind.VIRTUAL)
    page = _Page(pages.run_html(replace(report, sections=(), search=(search,))))
    assert "(virtual clock)" in page.text
    assert "is not the latency of a real board" in page.text


def test_agreement_is_not_called_accuracy_in_its_cells(report):
    def renamed(m):
        if m.accuracy is None:
            return m
        return replace(m, accuracy=replace(m.accuracy, metric="agreement"))

    sections = tuple(
        replace(section, measurements=tuple(renamed(m) for m in section.measurements))
        for section in report.sections
    )
    assert "<small>agreement</small>" not in pages.run_html(report)
    text = pages.run_html(replace(report, sections=sections))
    held = sum(m.accuracy is not None for section in sections for m in section.measurements)
    assert text.count("<small>agreement</small>") >= held > 0
