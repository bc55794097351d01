"""How far the board decides, and what runtimes make of one network."""

from dataclasses import replace

import pytest

from flatsat.reports import caveats
from flatsat.reports.collect import collect
from flatsat.reports.pages import run_html
from flatsat.reports.pages_boards import boards_view, int8_over_float


def test_the_same_files_stand_side_by_side_on_boards_of_one_clock(report):
    (across,) = report.boards
    assert across.clock == "virtual"
    assert across.boards == ("qemu-arm64", "qemu-arm64-a76")
    found = {row.label: row for row in across.rows}
    assert list(found) == ["cnn-tiny", "cnn-small", "cnn-filters", "cnn"]
    first, second = found["cnn"].cells
    assert (first.float_ns, second.float_ns) == pytest.approx((31.57e6, 31.57e6), rel=1e-5)
    assert int8_over_float(first) == pytest.approx(25.93 / 31.57, rel=1e-4)
    assert int8_over_float(second) == pytest.approx(9.74 / 31.57, rel=1e-4)
    assert (first.gain.verdict, second.gain.verdict) == ("faster", "faster")
    assert [row.label for row in across.rows if row.turned] == ["cnn-small"]


def test_the_page_says_what_each_board_makes_of_int8(html, look):
    said = look(html)
    part = said[said.index("How far the board decides") :]
    assert (
        "faster form of 2 of 4 networks on qemu-arm64 and of 3 of 4 networks on qemu-arm64-a76"
        in part
    )
    assert "the boards disagree about 1 network" in part
    assert part.index(caveats.DTYPES) < part.index("Latency in int8 over latency in float")
    assert "cnn-small the board decides" in part
    assert "3.98 ms 4.61 ms 1.16 int8 is slower 3.98 ms 2.21 ms 0.555 int8 is faster" in part


def test_it_stands_under_its_clock(html, look):
    said = look(html)
    body = said[said.index("never on one axis") :]
    place = body.index("How far the board decides")
    assert body.index("On virtual clocks") < place < body.index("On the wall clock of an emulator")


def test_ranks_of_files_that_both_boards_ran_are_correlated(report, html, look):
    ((left, right, rho),) = report.boards[0].ranks
    assert (left, right, rho.n) == ("qemu-arm64", "qemu-arm64-a76", 10)
    assert rho.low < rho.value < rho.high
    said = look(html)
    assert "of 10 files on qemu-arm64 and on qemu-arm64-a76: \u03c1 = 0.95 (0.74 to 0.99)" in said


def test_boards_of_two_clocks_are_never_side_by_side(record):
    record.small("host", "qemu-arm64", "qemu-plain")
    report = collect(record.store, "r1")
    assert len(report.sections) == 3
    assert report.boards == ()


def test_two_real_boards_are_compared_without_the_caveat(record, look):
    record.small("host", "bench")
    report = collect(record.store, "r1")
    assert [b.clock.value for b in report.boards] == ["wall"]
    said = look(run_html(report))
    assert "How far the board decides" in said
    assert caveats.DTYPES not in said


def test_one_element_type_gives_ranks_only(record, look):
    record.small()
    for board in ("qemu-arm64", "qemu-arm64-a76"):
        record.board(board)
    for i, net in enumerate(("cnn-magnitude", "cnn-narrow", "cnn-tiny", "cnn-small")):
        record.named(net)
        for board in ("qemu-arm64", "qemu-arm64-a76"):
            record.latency(net, 1.0 + i, board)
    report = collect(record.store, "r1")
    (across,) = report.boards
    assert across.rows == ()
    assert across.ranks[0][2].value == pytest.approx(1)
    page = look(run_html(report))
    assert "of 4 files on qemu-arm64 and on qemu-arm64-a76: \u03c1 = 1.00" in page
    assert "Latency in int8 over latency in float" not in page


def test_too_little_to_compare_makes_no_section(record):
    record.board("qemu-arm64")
    record.board("qemu-arm64-a76")
    record.named("cnn-magnitude")
    for board in ("qemu-arm64", "qemu-arm64-a76"):
        record.latency("cnn-magnitude", 31.6, board)
    assert collect(record.store, "r1").boards == ()


def test_a_network_that_one_board_ran_in_float_only_has_a_gap(record, look):
    record.small("qemu-arm64", "qemu-arm64-a76", "qemu-arm64-third")
    record.named("cnn-tiny")
    for board in ("qemu-arm64", "qemu-arm64-a76"):
        record.latency("cnn-tiny", 0.6, board)
        record.latency("cnn-tiny", 1.1, board, precision="int8")
    record.latency("cnn-tiny", 0.6, "qemu-arm64-third")
    report = collect(record.store, "r1")
    row = next(r for r in report.boards[0].rows if r.label == "cnn-tiny")
    assert [cell is None for cell in row.cells] == [False, False, True]
    assert "not measured" in look(run_html(report)).split("How far the board decides")[1]


def test_a_float_file_that_belongs_to_another_candidate_is_found_by_its_hash(record):
    record.board("qemu-arm64")
    record.board("qemu-arm64-a76")
    record.named("cnn")
    record.shares_float("cnn-int8-only", "cnn")
    for board, ms in (("qemu-arm64", 25.9), ("qemu-arm64-a76", 9.7)):
        record.latency("cnn", 31.6, board)
        record.latency("cnn-int8-only", ms, board, precision="int8")
    report = collect(record.store, "r1")
    (row,) = report.boards[0].rows
    assert row.label == "cnn-int8-only"
    assert int8_over_float(row.cells[1]) == pytest.approx(9.7 / 31.6, rel=1e-4)


def test_the_figure_has_a_mark_a_board_on_one_scale(report):
    view = boards_view(report.boards[0], report)
    for bell, row in zip(view.bells, report.boards[0].rows, strict=True):
        places = [dot.at for dot in bell.dots]
        assert (min(places), max(places)) == (bell.low, bell.high)
        for dot, cell in zip(bell.dots, row.cells, strict=True):
            assert (dot.at < view.one) == (int8_over_float(cell) < 1)
    shapes = {(dot.series, dot.shape) for bell in view.bells for dot in bell.dots}
    assert len(shapes) == 2


def test_runtimes_stand_side_by_side_by_format(report, html, look):
    section = report.sections[1]
    assert section.runtimes.columns == (
        ("onnxruntime", "onnx"),
        ("litert", "tflite"),
        ("tflite-runtime", "tflite"),
    )
    found = {(row.label, row.precision): row.cells for row in section.runtimes.rows}
    assert set(found) == {("cnn", "float"), ("cnn", "int8")}
    onnx, litert, tflite = found["cnn", "float"]
    assert (onnx.times, tflite.times) == (pytest.approx(1 / 0.82, rel=1e-4), 1.0)
    assert litert.p50_ns == pytest.approx(1.51 * 31.57e6, rel=1e-4)
    said = look(html)
    part = said[said.index("Runtimes beside each other") :]
    assert "onnxruntime onnx litert tflite tflite-runtime tflite" in part
    assert (
        "cnn float 31.6 ms 1.22\u00d7 the fastest 47.7 ms 1.84\u00d7 the fastest 25.9 ms fastest"
        in part
    )
    assert "Each runtime runs its own file" in part


def test_files_of_two_formats_have_labels_of_their_own(report):
    labels = {m.label for m in report.sections[1].measurements}
    assert labels >= {
        "cnn float",
        "cnn int8",
        "cnn tflite float, litert",
        "cnn tflite int8, tflite-runtime",
    }


def test_a_file_is_held_against_the_reference_of_its_own_runtime(report):
    found = report.sections[1].find("cnn tflite int8, litert")
    assert found.versus_reference.against == "cnn tflite float, litert"
    assert found.versus_float == replace(found.versus_reference)


def test_one_runtime_has_nothing_beside_it(report, html):
    assert report.sections[2].runtimes is None
    assert "runtimes2" not in html


def test_dense_references_of_one_seed_are_one_network_whatever_they_are_called(record):
    record.board("qemu-arm64")
    record.named("cnn")
    record.named("cnn", ("tflite",), called="cnn-tflite")
    record.latency("cnn", 31.6, "qemu-arm64")
    record.latency("cnn-tflite", 26.0, "qemu-arm64", runtime="litert")
    (row,) = collect(record.store, "r1").sections[0].runtimes.rows
    assert (row.label, row.precision) == ("dense reference", "float")
    assert [cell.times for cell in row.cells] == [pytest.approx(31.6 / 26, rel=1e-5), 1.0]
