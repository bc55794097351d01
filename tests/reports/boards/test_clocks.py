"""Wall, virtual and an emulator's real clock: shown apart, never ranked or drawn together."""

import json
import re

import pytest

from flatsat.reports import caveats
from flatsat.reports.collect import collect
from flatsat.reports.compare import Verdict, compare_all, subjects
from flatsat.reports.exports import export_run, to_frame
from flatsat.reports.index import write_index, write_status
from flatsat.reports.pages import headline_text, render_run, run_html

BODY = "never on one axis"


def test_sections_stand_clock_by_clock(record):
    record.small("qemu-plain", "qemu-arm64-a76", "host", "qemu-arm64")
    sections = collect(record.store, "r1").sections
    assert [(s.board, s.clock.value, s.smoke) for s in sections] == [
        ("host", "wall", False),
        ("qemu-arm64-a76", "virtual", False),
        ("qemu-arm64", "virtual", False),
        ("qemu-plain", "wall", True),
    ]


def test_each_clock_has_a_head_with_its_boards_and_what_must_be_said_of_it(html, look):
    said = look(html)
    body = said[said.index(BODY) - 100 :]
    heads = (
        "On wall clocks: host",
        "On virtual clocks: qemu-arm64 and qemu-arm64-a76",
        "On the wall clock of an emulator: qemu-plain",
    )
    places = [body.index(head) for head in heads]
    assert places == sorted(places)
    assert said.count(caveats.VIRTUAL) == 1
    virtual = body[places[1] : places[2]]
    assert virtual.index(caveats.VIRTUAL) < virtual.index("Candidates on qemu-arm64")
    assert "measured on host, qemu-arm64, qemu-arm64-a76 and qemu-plain" in said


def test_every_figure_is_of_one_clock(html):
    figures = json.loads(html.split('id="figures">')[1].split("</script>")[0])
    found = {}
    for name, views in figures.items():
        axes = json.dumps(
            [v["layout"][a]["title"] for v in views.values() for a in ("xaxis", "yaxis")]
        )
        found[name] = set(re.findall(r"wall clock of an emulator|wall clock|virtual clock", axes))
    assert found == {
        **{f"{part}0": {"wall clock"} for part in ("pareto", "latency", "roofline")},
        **{
            f"{part}{i}": {"virtual clock"}
            for part in ("pareto", "latency", "roofline")
            for i in (1, 2)
        },
        "latency3": {"wall clock of an emulator"},
    }


def test_a_run_on_a_real_board_says_nothing_of_other_clocks(record, look):
    record.small("host")
    said = look(run_html(collect(record.store, "r1")))
    assert "Candidates on host" in said
    for word in ("On wall clocks", caveats.VIRTUAL, caveats.DTYPES, caveats.SMOKE, "Minimum"):
        assert word not in said


def test_the_caveat_stands_wherever_element_types_are_compared_on_a_virtual_clock(html):
    parts = re.split(r'<section aria-labelledby="', html)
    said = {
        name.split('"')[0]: caveats.DTYPES in name
        for name in parts
        if re.match(r"[a-z]+\d|boards-", name)
    }
    virtual = {name: s for name, s in said.items() if name.endswith(("1", "2", "virtual0"))}
    assert {n.rstrip("12") for n in virtual} == {
        *("candidates", "tradeoff", "latency", "proxies", "roofline", "runtimes"),
        "boards-virtual0",
    }
    assert all(virtual.values())
    assert not any(s for name, s in said.items() if name not in virtual)


def test_without_a_second_element_type_there_is_nothing_to_warn_of(record, look):
    record.board("qemu-arm64")
    for net in ("cnn-magnitude", "cnn-narrow"):
        record.named(net)
        record.latency(net, 30.0, "qemu-arm64")
    said = look(run_html(collect(record.store, "r1")))
    assert caveats.VIRTUAL in said
    assert caveats.DTYPES not in said


def test_an_emulators_real_clock_is_called_a_smoke_test_and_ranks_nothing(record, look):
    record.small("qemu-plain")
    record.accuracy("cnn", 90, "qemu-plain")
    record.accuracy("cnn-filters", 91, "qemu-plain")
    report = collect(record.store, "r1")
    section = report.sections[0]
    assert section.smoke
    assert section.headline.label is None
    assert section.proxies == ()
    assert not any(m.pareto or m.versus_reference or m.versus_float for m in section.measurements)
    page = run_html(report)
    said = look(page)
    assert said.count(caveats.SMOKE) >= 3
    assert "Smoke test on qemu-plain" in said
    assert "Best on" not in said
    assert set(json.loads(page.split('id="figures">')[1].split("</script>")[0])) == {"latency0"}
    assert headline_text(report) == ""


def test_the_headline_and_the_index_name_the_clock(report, full, tmp_path):
    told = headline_text(report).replace("\u00a0", " ")
    assert re.fullmatch(
        r"cnn-filters int8 on host \(wall clock\): .* smaller, .* faster, .* accuracy; "
        r"cnn-filters int8 on qemu-arm64 \(virtual clock\): .* smaller, 3.19\u00d7 faster, "
        r".* accuracy",
        told,
    )
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    render_run(report, folder / "report.html")
    status = write_status(full.store, folder, "r1")
    assert status.headline.replace("\u00a0", " ") == told
    assert "(virtual clock)" in write_index(full.store, tmp_path).read_text()


def test_a_ratio_is_made_on_one_board_only(record):
    record.small("host", "qemu-arm64", "qemu-arm64-a76")
    side = subjects(record.store, "r1")
    report = compare_all(side["cnn float"], [side["cnn-filters"]], quantities=("latency",))
    assert [(r.context.board, r.context.class_) for r in report.rows] == [
        ("host", "wall"),
        ("qemu-arm64", "virtual"),
        ("qemu-arm64-a76", "virtual"),
    ]
    assert [r.ratio.value for r in report.rows[1:]] == pytest.approx([2.8214] * 2, rel=1e-4)
    assert {r["class"] for r in report.to_json()["rows"]} == {"wall", "virtual"}


def test_files_of_two_boards_or_clocks_are_not_compared(record):
    record.small()
    for board in ("host", "qemu-arm64"):
        record.board(board)
    record.latency("cnn", 31.6, "host")
    record.latency("cnn-filters", 11.2, "qemu-arm64")
    side = subjects(record.store, "r1")
    found = compare_all(side["cnn"], [side["cnn-filters"]], quantities=("latency",)).rows
    assert [r.verdict for r in found] == [Verdict.REFUSED]
    assert "board host and qemu-arm64" in found[0].why
    assert "wall and virtual" in found[0].why


def test_comparisons_carry_clock_and_caveats(record, look):
    record.small("qemu-arm64", "qemu-plain")
    side = subjects(record.store, "r1")
    found = compare_all(side["cnn float"], [side["cnn int8"]], quantities=("latency",)).rows
    said = look(run_html(collect(record.store, "r1", comparisons=found)))
    part = said[said.index("Comparisons Above 1") : said.index("Failures None")]
    assert "qemu-arm64 virtual, onnxruntime" in part
    assert "qemu-plain smoke test wall, onnxruntime" in part
    assert caveats.DTYPES in part


def test_exports_name_the_clock(record, tmp_path):
    record.small("host", "qemu-arm64", "qemu-plain")
    record.accuracy("cnn", 90, "qemu-arm64")
    frame = to_frame(record.store, "r1").set_index("board")
    latency = frame[frame.job_kind == "latency"]
    told = latency[["latency_clock", "emulator_clock"]].fillna("").drop_duplicates()
    assert told.loc["host"].tolist() == ["wall", ""]
    assert told.loc["qemu-arm64"].tolist() == ["virtual", "virtual"]
    assert told.loc["qemu-plain"].tolist() == ["wall", "wall"]
    csv, text, _ = export_run(record.store, "r1", tmp_path)
    assert "latency_clock" in csv.read_text().splitlines()[0]
    assert {row["latency_clock"] for row in json.loads(text.read_text())["rows"]} >= {
        "wall",
        "virtual",
    }


def test_a_page_of_four_boards_is_still_small_and_links_lead_somewhere(html):
    assert len(html.encode()) < 3_000_000
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_a_hostile_board_name_stays_text(record, look):
    record.small("qemu-arm64", "qemu-arm64-a76")
    record.store.put_board("id-qemu-arm64-a76", "a76", "qemu-arm64", {"emulator": {"cpu": "<b>x"}})
    page = run_html(collect(record.store, "r1"))
    assert "<b>x" not in page
    assert "<b>x (emulated)" in look(page)


def test_a_best_that_is_slower_than_the_reference_is_marked(record, look):
    record.board("qemu-arm64")
    record.named("cnn-tiny")
    record.named("cnn")
    record.latency("cnn", 0.5, "qemu-arm64")
    record.latency("cnn", 0.7, "qemu-arm64", precision="int8")
    for precision in ("float", "int8"):
        record.accuracy("cnn", 90, "qemu-arm64", precision)
    assert "Best on qemu-arm64: cnn int8 slower than the dense reference" in look(
        run_html(collect(record.store, "r1"))
    )


def test_sections_of_a_clock_go_by_workload_and_then_by_board(record):
    record.small("qemu-arm64-a76", "qemu-arm64")
    record.named("cnn-tiny", called="other", workload="fashion/other")
    for board in ("qemu-arm64", "qemu-arm64-a76"):
        record.latency("other", 0.6, board)
    found = [(s.workload, s.board) for s in collect(record.store, "r1").sections]
    assert found == [
        ("fashion/cnn", "qemu-arm64-a76"),
        ("fashion/cnn", "qemu-arm64"),
        ("fashion/other", "qemu-arm64-a76"),
        ("fashion/other", "qemu-arm64"),
    ]


def test_a_rule_that_holds_for_several_boards_is_said_once_a_clock(html, look):
    said = look(html)
    first = said[: said.index(BODY)]
    assert first.count("Best means the lowest median latency") == 2
    assert first.count("Virtual time is counted instructions") == 1


def test_a_file_measured_in_two_ways_says_in_which(record):
    record.small("qemu-arm64")
    record.latency("cnn", 31.7, "qemu-arm64", isolation="fork")
    labels = {m.label for m in collect(record.store, "r1").sections[0].measurements}
    assert labels == {
        "cnn float, fresh processes",
        "cnn float, copied processes",
        "cnn int8",
        "cnn-filters",
    }
