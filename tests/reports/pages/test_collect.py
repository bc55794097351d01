"""From a record with known outcomes to the values of its page."""

import json
import tomllib

import numpy as np
import pytest

from flatsat.artifact import Artifact
from flatsat.canonical import canonical_json, sha256_bytes
from flatsat.errors import DataError
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import (
    AgreementResult,
    Failed,
    Fault,
    Health,
    Inconclusive,
    Measured,
    Owner,
    Samples,
)
from flatsat.reports import pages_results
from flatsat.reports.collect import collect
from flatsat.reports.pages import run_html
from flatsat.reports.rows import AccuracyRow, CandidateRow, JobRow, RunRow
from flatsat.reports.store import SqlStore
from flatsat.tensors import TensorSpec

ROUNDS, PROCESSES, IMAGES = 4, 2, 1000
WORKLOAD = "mnist-mini/lenet5"
LAYERS = ("conv1", "fc1")


def _sha(name):
    return sha256_bytes(name.encode())


class Record:
    """Fills a record the way a run does."""

    def __init__(self, url):
        self.store = SqlStore(url)
        self.rng = np.random.default_rng(3)
        config = {
            "file": {
                "run": {"name": "nightly", "seed": 7, "include": ["recipes.toml"]},
                "matrix": {"boards": ["host"]},
                "gate": {"accuracy": {"non_inferior": 0.02}},
            },
            "recipes": {"deep": {"workload": WORKLOAD, "step": [{"use": "x", "ratio": 0.5}]}},
        }
        text = canonical_json(config)
        run = RunRow("r1", "run", text, _sha(text), "0.1.0", "2026-11-24T23:10:00+00:00", "h", 7)
        self.store.begin_run(run)
        self.store.put_note("r1", "title", "nightly")
        self.count = 0

    def board(self, name, **facts):
        self.store.put_board(f"id-{name}", name, "host", {"cpu_model": "Z80", "cores": 2, **facts})

    def candidate(self, name, role, *, macs=1000, kept=1.0, roles=("float",), workload=WORKLOAD):
        layers = [
            {
                "name": layer,
                "kind": "fc",
                "params": 100,
                "nonzeros": int(100 * kept),
                "macs": macs // 100,
            }
            for layer in LAYERS
        ]
        row = CandidateRow(
            _sha(name), None, name, role, workload, 0, None, 200, int(200 * kept), macs,
            {"train_steps": 5.0}, {"validation": 0.9}, layers,
        )  # fmt: skip
        self.store.put_candidate(row, "r1")
        spec = TensorSpec("image", "float32", ("batch", 4))
        for precision in roles:
            sha = _sha(name + precision)
            size = 4000 if precision == "float" else 1000
            self.store.put_artifact(
                Artifact(sha, "onnx", precision, size, f"{sha}.onnx", 17, 8, "", (spec,), (spec,)),
                row.candidate_id,
            )

    def _job(self, sha, kind, board, index, **spec):
        self.count += 1
        job_id = f"j{self.count}"
        value = JobSpec(kind, sha, "onnx", board, plan=MeasurePlan(processes=PROCESSES), **spec)
        row = JobRow(
            job_id,
            sha,
            board,
            kind.value,
            canonical_json(value.to_json()),
            index,
            self.count,
            "all",
        )
        self.store.add_jobs("r1", [row])
        self.store.start_job(job_id, f"id-{board}")
        return job_id

    def _end(self, job_id, board, outcome, accuracy=None):
        self.store.put_outcome(
            job_id, f"id-{board}", outcome, "2026-11-24T23:11:00+00:00", 1.0, accuracy
        )

    def latency(
        self, name, us, *, precision="float", board="host", clock="wall", n=200, steady=True, **spec
    ):
        for index in range(ROUNDS):
            samples = []
            for process in range(PROCESSES):
                level = us * 1000 * np.exp(self.rng.normal(0, 0.003))
                values = (level * (1 + self.rng.gamma(1, 0.01, n))).astype(int)
                samples += [
                    Samples("latency_ns", clock, process, False, (9_999_999,)),
                    Samples("latency_ns", clock, process, True, tuple(values.tolist())),
                    Samples("rss_bytes", "VmHWM", process, True, (60_000_000,)),
                    Samples("rss_bytes", "ru_maxrss", process, True, (61_000_000 + process,)),
                    Samples("load_ns", clock, process, True, (5_000_000,)),
                ]
            evidence = {
                "runtime": {"name": "onnxruntime", "version": "1.32.0"},
                "processes": [{"steady": steady or p > 0} for p in range(PROCESSES)],
            }
            health = (
                Health("before", load1=0.2, governor="performance"),
                Health("after", load1=0.9),
            )
            agreement = AgreementResult("tol", 1e-6, 1e-7, 1e-7, 1.0, 32, True)
            job = self._job(_sha(name + precision), JobKind.LATENCY, board, index, **spec)
            self._end(job, board, Measured(tuple(samples), agreement, None, health, evidence))

    def accuracy(self, name, wrong, *, precision="float", board="host", split="test"):
        correct = tuple(i not in wrong for i in range(IMAGES))
        row = AccuracyRow(_sha(split), "accuracy", IMAGES, sum(correct) / IMAGES, correct)
        job = self._job(_sha(name + precision), JobKind.ACCURACY, board, 0, dataset=_sha("data"))
        self._end(job, board, Measured((), evidence={}), row)

    def broken(self, name, outcome, precision="float"):
        for index in range(2):
            job = self._job(_sha(name + precision), JobKind.LATENCY, "host", index)
            self._end(job, "host", outcome)


@pytest.fixture
def record(tmp_path):
    made = Record(f"sqlite:///{tmp_path}/record.db")
    made.board("host")
    made.candidate("reference", "reference")
    made.latency("reference", 100)
    yield made
    made.store.close()


def _find(report, label):
    return next(m for s in report.sections for m in s.measurements if m.label == label)


def test_a_run_that_does_not_exist_is_refused(record):
    with pytest.raises(DataError):
        collect(record.store, "r9")


def test_latency_is_pooled_over_processes_without_warm_up(record):
    found = _find(collect(record.store, "r1"), "reference")
    assert found.processes == ROUNDS * PROCESSES == len(found.traces)
    assert found.rounds == ROUNDS
    assert found.n == 200 * ROUNDS * PROCESSES
    assert found.p50_ns.low < found.p50_ns.value < found.p50_ns.high
    assert found.p50_ns.value == pytest.approx(100_700, rel=0.01)
    assert found.p99_ns.value is not None
    assert max(t.quantiles_ns[-1] for t in found.traces) < 1_000_000


def test_a_percentile_with_too_few_samples_says_how_many_it_needs(record):
    record.candidate("few", "compressed")
    record.latency("few", 50, n=5)
    found = _find(collect(record.store, "r1"), "few")
    assert (found.p99_ns.value, found.p99_ns.n, found.p99_ns.needs) == (None, 40, 662)
    assert found.p90_ns.needs == 64
    assert found.p50_ns.value is not None


def test_memory_is_told_by_the_method_that_every_system_has(record):
    memory = _find(collect(record.store, "r1"), "reference").memory
    assert (memory.method, memory.min_bytes, memory.max_bytes) == (
        "ru_maxrss", 61_000_000, 61_000_001,
    )  # fmt: skip


def test_a_candidate_is_held_against_the_reference_and_the_narrow_network(record):
    record.candidate("half", "compressed", macs=500, kept=0.5)
    record.candidate("narrow", "equal-macs", macs=520)
    record.candidate("far", "equal-macs", macs=900)
    for name, us in (("half", 50), ("narrow", 40), ("far", 90)):
        record.latency(name, us)
    report = collect(record.store, "r1")
    half = _find(report, "half")
    assert half.versus_reference.against == "reference"
    assert half.versus_reference.verdict == "faster"
    assert half.versus_reference.value == pytest.approx(2, rel=0.02)
    assert half.versus_equal_macs.against == "narrow"
    assert half.versus_equal_macs.verdict == "slower"
    assert half.versus_equal_macs.value == pytest.approx(0.8, rel=0.02)
    assert _find(report, "reference").versus_reference is None
    assert _find(report, "narrow").versus_equal_macs is None
    assert [m.label for m in report.sections[0].measurements] == [
        "narrow", "half", "far", "reference",
    ]  # fmt: skip


def test_a_file_without_zeros_is_held_against_the_dense_one_of_its_own_runtime(record):
    record.candidate("dense", "reference", roles=("float", "sparse"))
    record.candidate("pruned", "compressed", kept=0.1, roles=("float", "sparse"))
    for name, us in (("dense", 90), ("pruned", 30)):
        record.latency(name, us, precision="sparse", runtime="sparse-c")
        record.latency(name, 100)
    report = collect(record.store, "r1")
    sparse = _find(report, "pruned sparse")
    assert sparse.versus_reference.against == "dense sparse"
    assert sparse.versus_reference.value == pytest.approx(3, rel=0.02)
    assert _find(report, "pruned float").versus_reference.verdict == "equal"
    assert _find(report, "dense sparse").versus_reference is None
    (table,) = pages_results.results(report)
    row = next(row for row in table.rows if row.label == "pruned")
    assert [column.runtime for column in table.columns] == ["onnxruntime", "sparse-c"]
    dense, skipping = row.cells
    assert dense.idle == "nothing"
    assert skipping.idle == ""
    assert skipping.ratio.verdict == "faster"
    assert skipping.across.runtime == "onnxruntime"
    assert skipping.across.value == pytest.approx(100 / 30, rel=0.02)
    idle, gains = table.idle
    assert idle.startswith("onnxruntime on host multiplies zeros like any other weight")
    assert gains.startswith("sparse-c on host leaves zeros out: pruned (90\u00a0% zeros) runs 3.3")
    assert "as fast as the dense network in onnxruntime (" in gains
    assert "no gain" not in gains


def test_zeros_that_are_left_out_at_a_loss_are_said_to_bring_no_gain(record):
    record.candidate("dense", "reference", roles=("float", "sparse"))
    record.candidate("pruned", "compressed", kept=0.5, roles=("float", "sparse"))
    for name, us in (("dense", 180), ("pruned", 120)):
        record.latency(name, us, precision="sparse", runtime="sparse-c")
        record.latency(name, 100)
    (table,) = pages_results.results(collect(record.store, "r1"))
    assert table.idle[-1].startswith("sparse-c on host leaves zeros out: pruned")
    assert table.idle[-1].endswith(", no gain.")


def test_where_zeros_are_left_out_the_narrow_network_has_as_many_useful_macs(record):
    record.candidate("dense", "reference", roles=("float", "sparse"))
    record.candidate("pruned", "compressed", kept=0.5, roles=("float", "sparse"))
    record.candidate("half", "equal-macs", macs=500, roles=("float", "sparse"))
    for name, us in (("dense", 90), ("pruned", 60), ("half", 50)):
        record.latency(name, us, precision="sparse", runtime="sparse-c")
        record.latency(name, 100)
    record.accuracy("half", range(100))
    record.accuracy("pruned", range(100))
    report = collect(record.store, "r1")
    assert _find(report, "pruned float").versus_equal_macs is None
    assert _find(report, "pruned sparse").versus_equal_macs.against == "half sparse"
    (table,) = pages_results.results(report)
    (row,) = (row for row in table.rows if row.label == "pruned")
    assert (row.narrow.label, row.narrow.where) == ("half", "sparse-c, host")
    assert row.narrow.ratio.value == pytest.approx(50 / 60, rel=0.02)
    assert row.narrow.accuracy.value == 0.9


def test_accuracy_is_paired_on_the_same_images(record):
    record.candidate("half", "compressed")
    record.latency("half", 50)
    record.accuracy("reference", set(range(30)))
    record.accuracy("half", set(range(35)))
    report = collect(record.store, "r1")
    half = _find(report, "half")
    assert half.accuracy.value == 0.965
    assert half.accuracy.low < 0.965 < half.accuracy.high
    assert half.accuracy.loss.value == pytest.approx(0.005)
    assert half.accuracy.loss.low < 0.005 < half.accuracy.loss.high
    assert _find(report, "reference").accuracy.loss is None
    assert half.pareto
    assert _find(report, "reference").pareto


def test_accuracies_on_different_images_are_not_paired(record):
    record.candidate("half", "compressed")
    record.latency("half", 50)
    record.accuracy("reference", set(range(30)))
    record.accuracy("half", set(range(35)), split="another")
    assert _find(collect(record.store, "r1"), "half").accuracy.loss is None


def test_the_best_is_the_fastest_whose_accuracy_is_shown_to_hold(record):
    record.accuracy("reference", set(range(30)))
    for name, us, wrong in (
        ("wild", 20, range(200)),
        ("good", 50, range(32)),
        ("safe", 60, range(30)),
    ):
        record.candidate(name, "compressed")
        record.latency(name, us)
        record.accuracy(name, set(wrong))
    section = collect(record.store, "r1").sections[0]
    assert section.margin == 0.02
    assert (section.headline.label, section.headline.shown) == ("good", True)
    assert section.headline.smaller == 1.0
    assert "2.0 points" in section.headline.rule


def test_a_loss_that_the_images_cannot_settle_is_not_called_shown(record):
    record.accuracy("reference", set(range(30)))
    record.candidate("close", "compressed")
    record.latency("close", 50)
    record.accuracy("close", set(range(10, 58)))
    headline = collect(record.store, "r1").sections[0].headline
    assert (headline.label, headline.shown) == ("close", False)


def test_without_a_candidate_that_holds_its_accuracy_there_is_no_winner(record):
    record.accuracy("reference", set(range(30)))
    record.candidate("wild", "compressed")
    record.latency("wild", 20)
    record.accuracy("wild", set(range(200)))
    headline = collect(record.store, "r1").sections[0].headline
    assert headline.label is None
    assert "No candidate kept" in headline.rule


def test_clocks_never_share_a_section(record):
    record.board("qemu")
    record.latency("reference", 4000, board="qemu", clock="virtual")
    sections = collect(record.store, "r1").sections
    assert [(s.board, s.clock.value) for s in sections] == [("host", "wall"), ("qemu", "virtual")]


def test_workloads_never_share_a_section_but_imports_join_the_only_one(record):
    record.candidate("theirs", "imported", workload="")
    record.latency("theirs", 70)
    assert len(collect(record.store, "r1").sections) == 1
    record.candidate("other", "reference", workload="mnist-mini/lenet300")
    record.latency("other", 30)
    sections = collect(record.store, "r1").sections
    assert {s.workload for s in sections} == {WORKLOAD, "", "mnist-mini/lenet300"}
    assert len(sections) == 3


def test_artifacts_and_thread_counts_of_a_candidate_have_labels_of_their_own(record):
    record.candidate("both", "compressed", roles=("float", "int8"))
    record.latency("both", 50)
    record.latency("both", 30, precision="int8")
    record.latency("both", 20, precision="int8", threads=4)
    labels = [m.label for m in collect(record.store, "r1").sections[0].measurements]
    assert labels == [
        "both int8, 4 threads",
        "both int8, 1 thread",
        "both float",
        "reference",
    ]


def test_another_thread_count_is_not_held_against_the_reference(record):
    record.latency("reference", 30, threads=4)
    record.candidate("half", "compressed")
    record.latency("half", 50, threads=2)
    assert _find(collect(record.store, "r1"), "half").versus_reference is None


def test_proxies_are_judged_against_the_clock(record):
    for index, (name, us) in enumerate((("a", 90), ("b", 60), ("c", 40), ("d", 95))):
        record.candidate(name, "compressed", macs=900 - 100 * index)
        record.latency(name, us)
    proxies = {p.proxy: p for p in collect(record.store, "r1").sections[0].proxies}
    macs = proxies["MACs"]
    assert macs.rho.value == pytest.approx(0.4)
    assert macs.rho.low < 0 < macs.rho.high
    assert macs.worst[:2] == ("d", "c")
    assert proxies["file size"].rho.value is None


def test_trust_counts_steady_processes_and_the_highest_load(record):
    record.candidate("shaky", "compressed")
    record.latency("shaky", 50, steady=False)
    trust = collect(record.store, "r1").sections[0].trust
    assert (trust.steady, trust.processes) == (12, 16)
    assert (trust.load1_max, trust.cores, trust.crowded) == (0.9, 2, False)
    assert trust.governors == ("performance",)
    found = _find(collect(record.store, "r1"), "shaky")
    assert found.steady == 4
    assert sorted(t.steady for t in found.traces) == [False] * 4 + [True] * 4


def test_failures_are_told_once_with_how_often(record):
    record.candidate("bad", "compressed")
    fault = Fault(Owner.CANDIDATE, False, "out-of-memory", "it was killed", "give it more")
    record.broken("bad", Failed(fault))
    record.candidate("odd", "compressed")
    record.broken("odd", Inconclusive("the board throttled"))
    record.store.put_note("r1", "unbuilt", {"deep, seed 0": "the step needs a conv layer"})
    failures = {f.label: f for f in collect(record.store, "r1").failures}
    assert (failures["bad"].code, failures["bad"].times) == ("out-of-memory", 2)
    assert failures["odd"].status == "inconclusive"
    assert failures["odd"].message == "the board throttled"
    assert failures["deep, seed 0"].job == "compress"


def test_layers_are_told_beside_the_dense_reference(record):
    record.candidate("half", "compressed", kept=0.25)
    half = next(c for c in collect(record.store, "r1").candidates if c.label == "half")
    assert [layer.kept for layer in half.layers] == [0.25, 0.25]
    assert half.cost == {"train_steps": 5.0}


def test_the_configuration_can_be_run_again(record):
    report = collect(record.store, "r1")
    config = tomllib.loads(report.config)
    assert config["run"] == {"name": "nightly", "seed": 7}
    assert config["recipe"]["deep"]["step"] == [{"use": "x", "ratio": 0.5}]
    assert "flatsat run run-again.toml" in report.commands
    assert "flatsat report r1" in report.commands


def test_a_note_of_a_search_that_cannot_be_read_costs_only_its_picture(record):
    record.store.put_note("r1", "search", {"schema": "flatsat.search/9"})
    report = collect(record.store, "r1")
    assert report.search == ()
    assert any(f.code == "bad-note" for f in report.failures)


def test_notes_of_a_run_are_told(record):
    record.store.put_note("r1", "regressions", ["half: slower"])
    assert collect(record.store, "r1").regressions == ("half: slower",)


def test_versions_of_runtimes_are_told(record):
    assert ("onnxruntime", "1.32.0") in collect(record.store, "r1").versions


def test_a_run_without_outcomes_is_still_a_page(tmp_path):
    record = Record(f"sqlite:///{tmp_path}/empty.db")
    report = collect(record.store, "r1")
    assert report.sections == ()
    assert "Nothing measured yet" in run_html(report)
    record.store.close()


def test_what_was_collected_is_drawn(record):
    record.candidate("half", "compressed", macs=500, kept=0.5)
    record.latency("half", 50)
    for name, wrong in (("reference", 30), ("half", 32)):
        record.accuracy(name, set(range(wrong)))
    text = run_html(collect(record.store, "r1"))
    found = json.loads(text.split('id="figures">')[1].split("</script>")[0])
    assert set(found) == {"pareto0", "latency0"}
    assert "Best on host: half" in text
