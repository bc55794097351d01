"""Counted events and modelled energy: called what they are, and kept out of the latencies."""

import json

import pytest

from flatsat.jobspec import JobKind
from flatsat.outcome import Measured, Samples
from flatsat.reports import caveats, words
from flatsat.reports.collect import collect
from flatsat.reports.compare import Verdict, compare, compare_all, subjects
from flatsat.reports.exports import export_run, to_frame
from flatsat.reports.pages import run_html


@pytest.fixture
def counted(record):
    """A network in float and int8 whose events were counted."""
    record.small("qemu-arm64")
    record.energy("cnn", 14_000_000, "qemu-arm64")
    record.energy("cnn", 7_000_000, "qemu-arm64", "int8")
    return record


def _find(record, label):
    return collect(record.store, "r1").sections[0].find(label)


def test_events_are_medians_of_one_inference(counted):
    events = _find(counted, "cnn float").events
    assert events.instructions == 14_000_000
    assert (events.load_bytes, events.store_bytes) == (42_000_000, 14_000_000)
    assert events.traffic_bytes == 56_000_000
    assert events.cache_misses == 155_555
    assert events.dram_bytes == 64 * 155_555
    assert events.n == 3
    assert events.spread == pytest.approx(0.0005)


def test_energy_tells_its_class_and_where_its_table_comes_from(counted):
    energy = _find(counted, "cnn float").energy
    assert (energy.class_, energy.p50_nj.value) == ("modelled", 1_000_000)
    assert (energy.model, energy.source) == ("horowitz-45nm", "Horowitz, ISSCC 2014")
    assert _find(counted, "cnn-filters").energy is None


def test_the_table_has_energy_and_counts_with_their_footnotes(counted, look):
    said = look(run_html(collect(counted.store, "r1")))
    row = said[said.index("cnn float onnx float") :]
    assert "1.00 mJ modelled" in row
    assert "14.0 M n=3" in row
    assert "56.0 MB 42.0 MB loaded" in row
    assert "156 k 9.96 MB to memory" in row
    assert caveats.MODELLED in said
    assert "L1 of 32 KiB, 2-way; L2 of 1 MiB, 16-way; lines of 64 bytes" in said
    assert "horowitz-45nm; Horowitz, ISSCC 2014" in said
    assert "differ by at most 0.05 % between inferences" in said
    assert "not counted" in said


def test_nothing_calls_it_a_measured_energy(html, look, counted):
    pages = (html, run_html(collect(counted.store, "r1")))
    for page in pages:
        low = look(page).lower() + page.split('id="figures">')[1].split("</script>")[0].lower()
        assert "modelled energy" in low
        assert "measured energy" not in low
        assert "energy measured" not in low
        assert "metered" not in low


def test_a_metered_energy_is_called_so(record, look):
    record.small("host")
    samples = (Samples("energy_nj", "metered", 0, True, (5000, 5200)),)
    record.put_energy("cnn", "host", Measured(samples))
    report = collect(record.store, "r1")
    assert report.sections[0].find("cnn float").energy.class_ == "metered"
    said = look(run_html(report))
    assert "5.10 µJ metered" in said
    assert caveats.MODELLED not in said


def test_proxies_gain_memory_traffic_and_modelled_energy(report, look, html):
    for section in report.sections[1:3]:
        proxies = {p.proxy: p for p in section.proxies}
        assert list(proxies) == [
            *("MACs", "parameters", "non-zeros", "file size"),
            *("memory traffic", "modelled energy"),
        ]
        # Counts and times of this record are one multiple of the other.
        assert proxies["modelled energy"].rho.value == pytest.approx(1)
        assert proxies["MACs"].rho.value < 1
    assert "modelled energy" not in {p.proxy for p in report.sections[0].proxies}
    assert caveats.SAME_COUNTS in look(html)


def test_a_proxy_that_misses_says_by_what(report, html, look):
    assert "Widest miss: cnn-tiny int8 is 2.30\u00d7 smaller, yet cnn-tiny float" in look(html)


def test_the_trade_off_can_be_seen_against_energy(html):
    figures = json.loads(html.split('id="figures">')[1].split("</script>")[0])
    assert "energy" not in figures["pareto0"]
    title = figures["pareto1"]["energy"]["layout"]["xaxis"]["title"]["text"]
    assert title == "modelled energy of one inference (µJ)"


def test_jobs_that_count_or_break_do_not_disturb_latencies(counted):
    before = [(m.label, m.p50_ns, m.n, m.memory) for m in _measured(counted)]
    counted.latency("cnn", 0.5, "qemu-arm64", kind=JobKind.FAULTS)
    counted.latency("cnn", 0.5, "qemu-arm64", kind=JobKind.LAYERS)
    counted.capability("qemu-arm64")
    counted.energy("cnn", 14_000_000, "qemu-arm64")
    assert [(m.label, m.p50_ns, m.n, m.memory) for m in _measured(counted)] == before
    side = subjects(counted.store, "r1")
    found = compare(side["cnn int8"].rows, side["cnn float"].rows)
    assert found.ratio.value == pytest.approx(25.9 / 31.6, rel=1e-5)
    frame = to_frame(counted.store, "r1")
    others = frame[frame.job_kind != "latency"]
    assert others.latency_p50_ns.isna().all()
    assert len(others) > 3


def _measured(record):
    return collect(record.store, "r1").sections[0].measurements


def test_energy_is_compared_in_one_class_on_one_board(counted):
    counted.energy("cnn", 14_000_000, "qemu-arm64")
    counted.energy("cnn", 7_000_000, "qemu-arm64", "int8")
    side = subjects(counted.store, "r1")
    report = compare_all(side["cnn float"], [side["cnn int8"]], quantities=("energy",))
    (row,) = report.rows
    assert (row.verdict, row.context.class_) == (Verdict.LESS, "modelled")
    assert row.ratio.value == pytest.approx(2)
    alone = compare_all(side["cnn float"], [side["cnn-filters"]], quantities=("energy",)).rows[0]
    assert alone.verdict is Verdict.REFUSED


def test_exports_have_the_modelled_energy_and_the_counts(counted, tmp_path):
    frame = to_frame(counted.store, "r1")
    row = frame[(frame.job_kind == "energy") & (frame.precision == "float")].iloc[0]
    assert row.energy_nj_modelled_p50 == 1_000_000
    assert row.energy_class == "modelled"
    assert row.instructions_p50 == 14_000_000
    assert row.load_bytes_p50 + row.store_bytes_p50 == 56_000_000
    assert row.dram_bytes_p50 == 64 * row.cache_misses_p50
    csv, text, parquet = export_run(counted.store, "r1", tmp_path)
    assert "energy_nj_modelled_p50" in csv.read_text().splitlines()[0]
    units = {c["name"]: c["unit"] for c in json.loads(text.read_text())["columns"]}
    assert units["energy_nj_modelled_p50"] == "nJ"
    import pyarrow.parquet as pq

    column = pq.read_table(parquet)["energy_nj_modelled_p50"].to_pylist()
    assert sorted(v for v in column if v is not None) == [500_000, 1_000_000]


def test_a_metered_energy_is_not_exported_as_modelled(record):
    record.small("host")
    samples = (Samples("energy_nj", "metered", 0, True, (5000,)),)
    record.put_energy("cnn", "host", Measured(samples))
    frame = to_frame(record.store, "r1")
    row = frame[frame.job_kind == "energy"].iloc[0]
    assert row.energy_class == "metered"
    assert row.isna().energy_nj_modelled_p50


def test_energy_of_another_board_or_setting_is_not_borrowed(record):
    record.small("qemu-arm64", "qemu-arm64-a76")
    record.energy("cnn", 14_000_000, "qemu-arm64-a76")
    record.energy("cnn", 14_000_000, "qemu-arm64", threads=2)
    a72, a76 = collect(record.store, "r1").sections
    assert a72.find("cnn float").energy is None
    assert a76.find("cnn float").energy is not None


def test_counts_of_nothing_divide_nothing(record):
    record.small("qemu-arm64")
    record.energy("cnn", 0, "qemu-arm64")
    found = _find(record, "cnn float")
    assert (found.events.instructions, found.events.spread) == (0, None)
    assert found.energy.p50_nj.value == 0
    assert "Candidates" in run_html(collect(record.store, "r1"))


def test_the_outputs_agreement_shows_on_every_board(html, look):
    assert look(html).count("agree top-1 100.0 %, max rel. 1.0e-07") == 10 + 14 + 10 + 10


@pytest.mark.parametrize(
    ("nj", "said"),
    [
        (None, "\u2013"),
        (0.042, "42.0 pJ"),
        (431, "431 nJ"),
        (22_800, "22.8 µJ"),
        (3.1e6, "3.10 mJ"),
    ],
)
def test_energies_are_read_in_their_unit(nj, said):
    assert words.energy(nj).replace("\u00a0", " ") == said
