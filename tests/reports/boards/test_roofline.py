"""Where artifacts stand under their board's roof, and which cache holds their weights."""

import json

import pytest

from flatsat.jobspec import JobKind
from flatsat.outcome import Failed, Fault, Inconclusive, Owner
from flatsat.reports.collect import collect
from flatsat.reports.pages import run_html


def _section(record, board="qemu-arm64"):
    return next(s for s in collect(record.store, "r1").sections if s.board == board)


@pytest.fixture
def two(record):
    """Files of two networks on one board that told what it can do."""
    record.small("qemu-arm64")
    record.capability("qemu-arm64")
    return record


def test_the_rate_is_macs_over_the_median_and_the_intensity_macs_over_counted_bytes(two):
    two.energy("cnn", 15_000_000, "qemu-arm64")
    point = _section(two).find("cnn float").roofline
    assert point.gmac_s == pytest.approx(38_400_000 / 31_600_008)
    assert (point.counted, point.traffic_bytes) == (True, 60_000_000)
    assert point.intensity == pytest.approx(0.64)
    assert (point.dtype, point.roof_gmac_s, point.bound) == ("float32", 1.9, "arithmetic")


def test_without_counts_the_bytes_are_the_least_that_the_network_needs(two):
    point = _section(two).find("cnn float").roofline
    # Weights, image, answer, and what goes between four layers, written and read.
    least = 4 * 94_000 + 4 * (28 * 28 + 10) + 2 * 4 * 3 * 16 * 28 * 28
    assert (point.counted, point.traffic_bytes) == (False, least)
    int8 = _section(two).find("cnn int8").roofline
    assert int8.traffic_bytes == 94_000 + 4 * (28 * 28 + 10) + 2 * 3 * 16 * 28 * 28
    assert (int8.dtype, int8.roof_gmac_s) == ("int8", 2.4)


def test_where_little_is_done_with_each_byte_memory_is_the_roof(two):
    two.energy("cnn", 192_000_000, "qemu-arm64")
    point = _section(two).find("cnn float").roofline
    # 0.05 MACs a byte; a copy of 3.2 GB/s reads and writes 6.4.
    assert point.intensity == pytest.approx(0.05)
    assert (point.bound, point.roof_gmac_s) == ("memory", pytest.approx(0.05 * 6.4))


def test_the_roof_is_slanted_up_to_the_ridge_and_flat_from_there(two):
    figures = run_html(collect(two.store, "r1")).split('id="figures">')[1].split("</script>")[0]
    figure = json.loads(figures)["roofline0"][""]
    roofs = {t["name"]: t for t in figure["data"] if t["mode"] == "lines"}
    assert set(roofs) == {"roof, float32", "roof, int8"}
    x, y = roofs["roof, int8"]["x"], roofs["roof, int8"]["y"]
    assert x[1] == pytest.approx(2.4 / 6.4)
    assert y == pytest.approx([6.4 * x[0], 2.4, 2.4], rel=1e-4)
    assert all(figure["layout"][axis]["type"] == "log" for axis in ("xaxis", "yaxis"))
    assert "virtual clock" in figure["layout"]["yaxis"]["title"]["text"]
    symbols = {s for t in figure["data"] if "marker" in t for s in t["marker"]["symbol"]}
    assert symbols == {"diamond-open", "circle-open", "triangle-up-open"}


def test_the_table_has_the_figures_of_the_plot(two, look):
    two.energy("cnn", 15_000_000, "qemu-arm64")
    said = look(run_html(collect(two.store, "r1")))
    part = said[said.index("Figures of the roofline Candidate") :]
    assert "cnn float 1.22 GMAC/s 0.64 60.0 MB float32: 1.90 GMAC/s 64.0 % arithmetic" in part
    assert "172 kB at least" in part
    assert "Filled points" in said
    assert "Open points" in said
    assert "a copied byte being one read and one written" in said


@pytest.mark.parametrize(
    ("caches", "where"),
    [
        ([("Data", 1, 512 << 10), ("Unified", 2, 1 << 20)], "L1"),
        ([("Data", 1, 32 << 10), ("Unified", 2, 512 << 10)], "L2"),
        ([("Data", 1, 32 << 10), ("Unified", 2, 256 << 10), ("Unified", 3, 2 << 20)], "L3"),
        ([("Data", 1, 32 << 10), ("Unified", 2, 256 << 10)], "none"),
        ([("Instruction", 1, 1 << 30), ("Data", 1, 32 << 10)], "none"),
        ([("Data", 1, 4 * 94_000)], "L1"),
        ([("Data", 1, 4 * 94_000 - 1)], "none"),
        ([], "unknown"),
    ],
)
def test_weights_fit_in_the_smallest_cache_that_holds_them_all(record, caches, where):
    record.small("qemu-arm64")
    told = [{"level": level, "type": kind, "size_bytes": size} for kind, level, size in caches]
    record.capability("qemu-arm64", caches=told)
    fit = _section(record).find("cnn float").fit
    assert (fit.where, fit.weight_bytes) == (where, 4 * 94_000)


def test_a_board_that_was_not_asked_has_no_roof_and_fits_nothing(record, look):
    record.small("qemu-arm64")
    section = _section(record)
    assert section.capability is None
    assert {m.fit.where for m in section.measurements} == {"unknown"}
    page = run_html(collect(record.store, "r1"))
    assert "roofline0" not in page
    assert "Weights fit" in look(page)


def test_caches_from_the_documentation_are_said_to_be(two, look):
    said = look(run_html(collect(two.store, "r1")))
    assert "none 367.2 KiB, documented" in said
    assert "L1 32 KiB, L2 256 KiB (from the core's documentation)" in said
    assert "A virtual clock has no caches" in said


def test_the_board_tells_its_peaks_with_method_and_clock(two, look):
    said = look(run_html(collect(two.store, "r1")))
    assert "2.40 GMAC/s, virtual clock (onnxruntime MatMul 256, 1 thread)" in said
    assert "3.20 GB/s, virtual clock (numpy copy 32 MiB)" in said


def test_native_types_and_peaks_that_could_not_be_had_are_told(record, look):
    record.small("qemu-arm64")
    record.capability(
        "qemu-arm64",
        native={"int8-dot": ["asimddp", "i8mm"], "bfloat16": []},
        absent={"float16": "onnxruntime casts it to another type", "int8": "stale"},
    )
    said = look(run_html(collect(record.store, "r1")))
    assert "peak float16 none: onnxruntime casts it to another type" in said
    assert "native types int8-dot (asimddp i8mm)" in said
    assert "stale" not in said
    assert "bfloat16" not in said


def test_rates_by_another_clock_are_no_roof(record):
    record.small("qemu-arm64")
    record.capability("qemu-arm64", clock="wall")
    section = _section(record)
    assert section.capability.peaks == ()
    assert section.find("cnn float").roofline.roof_gmac_s is None
    assert section.find("cnn int8").fit.where == "L2"


def test_what_a_board_can_do_is_known_from_an_earlier_run(two):
    two.begin("r2")
    two.latency("cnn", 31.6, "qemu-arm64")
    section = collect(two.store, "r2").sections[0]
    assert section.capability.peak("int8").gmac_s == 2.4


def test_the_newest_probe_stands(two):
    two.capability(
        "qemu-arm64", peaks=[{"dtype": "float32", "gmac_s": 2.1, "method": "newer"}], at="2027"
    )
    peaks = {p.dtype: p.gmac_s for p in _section(two).capability.peaks}
    assert peaks == {"float32": 2.1, "int8": 2.4}


@pytest.mark.parametrize(
    "odd",
    [
        {"peaks": None, "caches": None, "copy_gb_s": None},
        {"peaks": [{"dtype": "int8", "gmac_s": 0}, {"gmac_s": "x"}, 3], "caches": [3, {}]},
        {"peaks": [{"dtype": "int8", "gmac_s": True}], "copy_gb_s": {"value": float("inf")}},
        {"copy_gb_s": 3.2, "caches": {"L1": "32K"}},
    ],
)
def test_what_cannot_be_read_of_a_board_is_left_out(record, odd):
    record.small("qemu-arm64")
    record.capability("qemu-arm64", **odd)
    report = collect(record.store, "r1")
    assert report.sections[0].measurements[0].roofline.roof_gmac_s is None
    assert "Candidates" in run_html(report)


@pytest.mark.parametrize(
    "outcome",
    [Failed(Fault(Owner.BOARD, False, "crash", "the probe died")), Inconclusive("throttled")],
)
def test_probes_that_gave_nothing_are_a_failure_of_the_board_and_no_roof(record, outcome):
    record.small("qemu-arm64")
    record.put(JobKind.CAPABILITY, "qemu-arm64", "f" * 64, outcome)
    report = collect(record.store, "r1")
    assert report.sections[0].capability is None
    assert [(f.label, f.job) for f in report.failures] == [("the board itself", "capability")]
