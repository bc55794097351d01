"""`flatsat measure`: any ONNX file, its JSON contract, and what a model that can't run is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from flatsat.artifact import Artifact
from flatsat.errors import FlatSatError, ModelError, UsageError
from flatsat.harness.measure import open_axes
from flatsat.harness.measure_json import MeasureDocument
from flatsat.harness.measure_result import MeasureResult, document, exit_code, summarise
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import (
    AgreementResult,
    Failed,
    Fault,
    Health,
    Inconclusive,
    Measured,
    Outcome,
    Owner,
    Samples,
)
from flatsat.reports.rows import BoardRow, JobRow, OutcomeRow
from flatsat.tensors import TensorSpec

Flatsat = Callable[..., Any]
Onnx = Callable[..., Path]
QUICK = ("--processes", "2", "--min-inferences", "20", "--min-s", "0")


def artifact(*inputs: TensorSpec) -> Artifact:
    specs = inputs or (TensorSpec("x", "float32", ("batch", 8)),)
    return Artifact("a" * 64, "onnx", "float", 1234, "a.onnx", 17, 8, "", specs, ())


def result(outcome: Outcome, cores: int | None = 2) -> MeasureResult:
    spec = JobSpec(JobKind.LATENCY, "a" * 64, "onnx", "host", plan=MeasurePlan())
    job = JobRow("j", "a" * 64, "host", "latency", json.dumps(spec.to_json()))
    facts = {} if cores is None else {"cores": cores}
    row = OutcomeRow(job, outcome, "b" * 64, "2026-01-01T00:00:00+00:00", 1.0)
    board = BoardRow("b" * 64, "host", "host", facts)
    return summarise(row, artifact(), "net", board, "run-1")


def measured(*groups: tuple[int, ...], load: float = 0.5, **rest: Any) -> Measured:
    samples = [Samples("latency_ns", "wall", i, True, group) for i, group in enumerate(groups)]
    samples += [Samples("latency_ns", "wall", 0, False, (10**9,) * 20)]
    samples += [Samples("rss_bytes", "ru_maxrss", i, True, (1000 + i,)) for i in range(len(groups))]
    samples += [Samples("rss_bytes", "VmHWM", 0, True, (9999,))]
    return Measured(tuple(samples), health=(Health("before", load1=load),), **rest)


def failed(owner: Owner, code: str) -> Failed:
    return Failed(Fault(owner, transient=False, code=code, message="why", hint="how"))


# Summary


def test_warm_up_never_counts_and_percentiles_have_floors() -> None:
    few = result(measured(tuple(range(100, 130)), tuple(range(100, 133)))).latency_ns
    assert few is not None
    assert (few.n, few.processes, few.min) == (63, 2, 100)
    assert few.p50 is not None
    assert (few.p10, few.p90, few.p99) == (None, None, None)
    many = result(measured(*[tuple(range(1000, 1400))] * 2)).latency_ns
    assert many is not None
    assert many.p99 == pytest.approx(np.quantile(list(range(1000, 1400)) * 2, 0.99))
    assert many.p99_ci is not None


def test_one_process_gives_no_interval() -> None:
    latency = result(measured(tuple(range(100, 200)))).latency_ns
    assert latency is not None
    assert (latency.p50 is None, latency.p50_ci) == (False, None)


def test_the_highest_peak_of_the_processes_is_the_memory() -> None:
    memory = result(measured((1,), (2,), (3,))).memory_bytes
    assert memory is not None
    assert (memory.method, memory.peak_rss, memory.model_file) == ("ru_maxrss", 1002, 1234)


@pytest.mark.parametrize(
    ("load", "cores", "crowded"), [(2.1, 2, True), (2.0, 2, False), (9.0, None, False)]
)
def test_a_busy_board_is_noticed(load: float, cores: int | None, crowded: bool) -> None:
    assert result(measured((1, 2), load=load), cores).crowded is crowded


# The JSON contract

EXAMPLE = """{"schema": "flatsat.measure/1", "outcomes": [{"job": "latency", "status": "measured",
  "fault": null,
  "artifact": {"sha256": "...", "format": "onnx", "bytes": 1},
  "board": {"name": "host", "id": "...", "kind": "host"}, "runtime": "onnxruntime", "threads": 1,
  "latency_ns": {"clock": "wall", "n": 2400, "processes": 12, "min": 1, "mean": 1.0, "p10": 1,
     "p50": 1, "p50_ci": [1, 1], "p90": 1, "p99": null},
  "memory_bytes": {"method": "ru_maxrss", "peak_rss": 1, "model_file": 1},
  "energy_j": null, "agreement": null}]}"""


def test_the_published_example_is_valid_and_complete() -> None:
    example = json.loads(EXAMPLE)
    MeasureDocument.model_validate(example)
    made = document([result(measured((1, 2, 3), (4, 5)))])
    assert list(made) == list(example)
    ours, theirs = made["outcomes"][0], example["outcomes"][0]  # type: ignore[index]
    assert list(ours) == list(theirs)
    for key in ("artifact", "board", "latency_ns", "memory_bytes"):
        assert list(ours[key]) == list(theirs[key])


@pytest.mark.parametrize("key", ["status", "latency_ns", "agreement", "energy_j"])
def test_a_document_without_a_key_or_with_another_is_invalid(key: str) -> None:
    example = json.loads(EXAMPLE)
    example["outcomes"][0]["other"] = 1
    with pytest.raises(ValidationError):
        MeasureDocument.model_validate(example)
    example = json.loads(EXAMPLE)
    del example["outcomes"][0][key]
    with pytest.raises(ValidationError):
        MeasureDocument.model_validate(example)


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (measured((1, 2), (3, 4)), "measured", 0),
        (failed(Owner.CANDIDATE, "out-of-memory"), "failed", 1),
        (failed(Owner.CANDIDATE, "disagrees"), "failed", 1),
        (failed(Owner.CANDIDATE, "unsupported"), "failed", 2),
        (failed(Owner.CONFIG, "open-axis"), "failed", 2),
        (failed(Owner.BOARD, "link-down"), "failed", 3),
        (failed(Owner.HARNESS, "cancelled"), "failed", 3),
        (Inconclusive("throttled", measured((1, 2)).samples), "inconclusive", 4),
    ],
)
def test_every_outcome_has_a_document_and_an_exit_code(
    outcome: Outcome, status: str, code: int
) -> None:
    found = result(outcome)
    entry = document([found])["outcomes"][0]  # type: ignore[index]
    assert entry["status"] == status
    assert (entry["latency_ns"] is None) == (status != "measured")
    assert (entry["fault"] is None) == (status == "measured")
    assert found.exit_code == code
    assert json.loads(json.dumps(entry)) == entry


def test_the_gravest_outcome_gives_the_exit_code() -> None:
    good = result(measured((1, 2)))
    bad = [result(failed(owner, "x")) for owner in (Owner.CONFIG, Owner.CANDIDATE, Owner.BOARD)]
    open_ = result(Inconclusive("why"))
    assert exit_code([good, *bad, open_]) == 2
    assert exit_code([good, *bad[1:], open_]) == 1
    assert exit_code([good, bad[2], open_]) == 3
    assert exit_code([good, open_]) == 4
    assert exit_code([good]) == 0


def test_agreement_is_told() -> None:
    agreement = AgreementResult("tol", 1e-5, 1e-6, 1e-6, 1.0, 256, ok=True)
    found = result(measured((1, 2), agreement=agreement))
    entry = document([found])["outcomes"][0]  # type: ignore[index]
    assert entry["agreement"]["max_abs"] == 1e-5


# Open axes


def test_a_first_axis_that_counts_examples_takes_the_batch() -> None:
    for name in ("batch", "batch_size", "N", "x_axis0"):
        spec = TensorSpec("x", "float32", (name, 8))
        assert open_axes([artifact(spec)], 4, {}) == {}


def test_other_axes_are_asked_for_by_name() -> None:
    spec = TensorSpec("ids", "int64", ("batch", "sequence", "ids_axis2"))
    with pytest.raises(ModelError) as caught:
        open_axes([artifact(spec)], 1, {})
    assert "'sequence'" in caught.value.message
    assert caught.value.hint == "give it: --axis sequence=N --axis ids:2=N"
    given = {"sequence": 7, "ids:2": 3}
    assert open_axes([artifact(spec)], 1, given) == given
    assert open_axes([artifact(spec)], 1, {"sequence": 7, "ids_axis2": 3}) == given


def test_a_first_axis_of_another_kind_is_not_taken_for_the_batch() -> None:
    with pytest.raises(ModelError, match="'sequence'"):
        open_axes([artifact(TensorSpec("x", "float32", ("sequence", 8)))], 1, {})


def test_an_axis_that_there_is_not_is_refused() -> None:
    spec = TensorSpec("x", "float32", ("batch", "sequence"))
    with pytest.raises(UsageError, match="did you mean 'sequence'"):
        open_axes([artifact(spec)], 1, {"sequense": 7})
    with pytest.raises(FlatSatError, match="every axis of this model has a fixed length"):
        open_axes([artifact(TensorSpec("x", "float32", (1, 8)))], 1, {"batch": 7})


# End to end, on this machine


@pytest.fixture
def odd_file(onnx_file: Onnx) -> Path:
    """A model of every element type, a scalar, names with slashes, and three open axes."""
    inputs = {
        "ids/a:0": (TensorProto.INT64, ["batch", "sequence"]),
        "mask": (TensorProto.BOOL, ["batch", "sequence"]),
        "scale": (TensorProto.FLOAT16, []),
        "k/32": (TensorProto.INT32, [None, 3]),
        "bytes": (TensorProto.UINT8, [2]),
    }
    nodes = [
        helper.make_node("Cast", ["ids/a:0"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["mask"], ["b"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["c", "scale"], ["y"]),
        helper.make_node("Identity", ["k/32"], ["z"]),
        helper.make_node("Identity", ["bytes"], ["w"]),
    ]
    outputs = {
        "y": (TensorProto.FLOAT16, ["batch", "sequence"]),
        "z": (TensorProto.INT32, [None, 3]),
        "w": (TensorProto.UINT8, [2]),
    }
    return onnx_file("odd.onnx", inputs, nodes, outputs)


def test_any_signature_is_measured_and_only_json_goes_to_standard_output(
    flatsat: Flatsat, odd_file: Path
) -> None:
    said = flatsat(
        "measure", str(odd_file), "--axis", "sequence=5", "--batch", "3", "--json", *QUICK
    )
    assert said.code == 0, said.err
    found = MeasureDocument.model_validate_json(said.out).outcomes[0]
    assert found.latency_ns is not None
    assert (found.latency_ns.processes, found.latency_ns.p99) == (2, None)
    assert found.latency_ns.n >= 40
    assert found.memory_bytes is not None
    assert found.memory_bytes.model_file == odd_file.stat().st_size
    # The measurement is an ordinary run of the record.
    runs = json.loads(flatsat("runs", "list", "--json").out)["runs"]
    assert [(run["kind"], run["state"], run["jobs"]["measured"]) for run in runs] == [
        ("measure", "done", 1)
    ]


def test_an_axis_without_a_length_stops_before_anything_runs(
    flatsat: Flatsat, odd_file: Path
) -> None:
    said = flatsat("measure", str(odd_file))
    assert said.code == 2
    assert "axis 'sequence' has no fixed length" in said.error
    assert "--axis sequence=N" in said.error
    assert flatsat("runs", "list").code == 2


def test_people_see_percentiles_memory_and_agreement(
    flatsat: Flatsat, dense_file: Onnx, tmp_path: Path
) -> None:
    path = dense_file()
    import onnxruntime

    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"in/x:0": x})
    np.savez(tmp_path / "goldens.npz", **{"in:in/x:0": x, "out:y": y})
    assert flatsat("candidates", "import", str(path), "--goldens", "goldens.npz").code == 0
    shown = flatsat("measure", "dense", *QUICK)
    assert shown.code == 0, shown.err
    for word in ("p50", "too few samples", "peak resident (ru_maxrss)", "agreement  ok", "2 proc"):
        assert word in shown.out
    # The file's own path finds the same candidate, goldens and all.
    assert "agreement  ok" in flatsat("measure", str(path), *QUICK).out


def test_wrong_goldens_fail_the_candidate(
    flatsat: Flatsat, dense_file: Onnx, tmp_path: Path
) -> None:
    path = dense_file()
    arrays = {"in:in/x:0": np.ones((4, 8), np.float32), "out:y": np.full((4, 4), 7.0, np.float32)}
    np.savez(tmp_path / "goldens.npz", **arrays)
    assert flatsat("candidates", "import", str(path), "--goldens", "goldens.npz").code == 0
    said = flatsat("measure", "dense", "--quiet", *QUICK)
    assert (said.code, said.out) == (1, "")
    assert said.error.startswith("error: dense on host: ")


def test_bad_models_are_one_line_and_leave_nothing(
    flatsat: Flatsat, dense_file: Onnx, onnx_file: Onnx, tmp_path: Path
) -> None:
    whole = dense_file().read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[:-40])
    (tmp_path / "text.onnx").write_bytes(b"this is no model\n" * 20)
    (tmp_path / "empty.onnx").write_bytes(b"")
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    four = (TensorProto.FLOAT, [1, 4])
    onnx_file("future.onnx", {"x": four}, relu, {"y": four}, opset=99)
    for name, words in [
        ("cut.onnx", "corrupt"),
        ("text.onnx", "no ONNX file"),
        ("empty.onnx", "empty"),
        ("future.onnx", "opset 99"),
        ("dens.onnx", "did you mean dense.onnx?"),
        ("nothing-like-it", "no candidate"),
        (".", "folder"),
    ]:
        said = flatsat("measure", name)
        assert (said.code, said.out) == (2, ""), name
        assert words in said.error, name
    found = sorted(path.name for path in (tmp_path / "lab" / "candidates").glob("*"))
    assert found in ([], ["building"])
    assert list((tmp_path / "lab" / "runs").iterdir()) == []
    assert flatsat("measure", "dense.onnx", "--board", "hots").code == 2


def test_a_model_that_fails_while_it_runs_is_its_own_fault(
    flatsat: Flatsat, onnx_file: Onnx
) -> None:
    # The generated indices are 0 or 1; the table has no row at all for them.
    path = onnx_file(
        "gather.onnx",
        {"i": (TensorProto.INT64, [64])},
        [helper.make_node("Gather", ["t", "i"], ["y"], axis=0)],
        {"y": (TensorProto.FLOAT, [64, 2])},
        {"t": np.zeros((1, 2), np.float32)},
    )
    said = flatsat("measure", str(path), "--json", *QUICK)
    assert said.code == 1
    outcome = MeasureDocument.model_validate_json(said.out).outcomes[0]
    assert outcome.status == "failed"
    assert outcome.fault is not None
    assert outcome.fault.owner == "candidate"


def test_a_lab_that_cannot_be_written_is_told_at_once(
    flatsat: Flatsat, dense_file: Onnx, tmp_path: Path
) -> None:
    path = dense_file()
    (tmp_path / "file").write_text("")
    for lab in (tmp_path / "file", tmp_path / "file" / "lab", Path("/proc/lab")):
        said = flatsat("measure", str(path), "--lab", str(lab))
        assert (said.code, said.out) == (2, "")
        assert "can't be written" in said.error
        assert "--lab" in said.error


def test_a_result_that_is_changed_by_hand_stays_checked() -> None:
    good = result(measured((1, 2), (3, 4)))
    assert good.latency_ns is not None
    with pytest.raises(ValidationError):
        document([replace(good, latency_ns=replace(good.latency_ns, mean=float("nan")))])


def test_energy_is_refused_where_no_meter_is(flatsat: Flatsat, dense_file: Onnx) -> None:
    said = flatsat("measure", str(dense_file()), "--energy")
    assert said.code == 2
    assert "'host' has no meter" in said.error
