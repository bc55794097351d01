"""Board `host` in real processes: what a measurement holds, and what each bad candidate becomes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from flatsat.artifact import Agreement
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Measured, Outcome, Owner, Samples
from flatsat.targets.board import Lease
from flatsat.targets.host import HostBoard

if TYPE_CHECKING:
    from pathlib import Path

MakeJob = Callable[..., JobSpec]


def of(outcome: Outcome, quantity: str, warm: bool = True) -> list[Samples]:
    assert isinstance(outcome, Measured), outcome
    return [s for s in outcome.samples if s.quantity == quantity and s.warm is warm]


def fault_of(outcome: Outcome) -> tuple[Owner, str]:
    assert isinstance(outcome, Failed), outcome
    assert outcome.fault.message
    assert "\n" not in outcome.fault.message
    return outcome.fault.owner, outcome.fault.code


@pytest.mark.parametrize("isolation", ["spawn", "fork"])
async def test_a_latency_job_keeps_its_plan(
    bench: Any, make_latency: MakeJob, isolation: str
) -> None:
    spec = make_latency(
        bench.files.dense(),
        plan={"processes": 3, "min_inferences": 50, "min_s": 0.02, "isolation": isolation},
    )
    outcome = await bench.run(spec)
    counted, warm = of(outcome, "latency_ns"), of(outcome, "latency_ns", warm=False)
    assert [s.process for s in counted] == [s.process for s in warm] == [0, 1, 2]
    for samples in counted:
        assert samples.kind == "wall"
        assert len(samples.values) >= 50
        assert min(samples.values) > 0
    processes = outcome.evidence["processes"]
    for process, counts, warms in zip(processes, counted, warm, strict=True):
        assert process["window_ns"] >= 20e6
        assert process["counted_n"] == len(counts.values)
        assert process["warmup_n"] == len(warms.values) <= 40
        assert isinstance(process["steady"], bool)
        assert process["steady_reason"]
    assert len({process["pid"] for process in processes}) == 3


async def test_load_and_memory_stand_beside_latency(bench: Any, make_latency: MakeJob) -> None:
    outcome = await bench.run(make_latency(bench.files.dense(), plan={"processes": 2}))
    assert [len(s.values) for s in of(outcome, "load_ns")] == [1, 1]
    peaks = {s.kind: s.values[0] for s in of(outcome, "rss_bytes") if s.process == 0}
    assert set(peaks) == {"ru_maxrss", "VmHWM"}
    assert all(20e6 < value < 400e6 for value in peaks.values())
    assert abs(peaks["ru_maxrss"] - peaks["VmHWM"]) < 5e6


async def test_the_environment_is_told_before_and_after(bench: Any, make_latency: MakeJob) -> None:
    outcome = await bench.run(make_latency(bench.files.dense()))
    assert isinstance(outcome, Measured)
    assert [state.phase for state in outcome.health] == ["before", "after"]
    assert outcome.health[0].load1 is not None
    assert outcome.health[0].free_bytes is not None
    environment: Any = outcome.evidence["environment"]
    assert environment["kernel"] == os.uname().release
    assert environment["cpu_model"]
    assert environment["before"]["phase"] == "before"
    assert environment["runtime"]["name"] == "onnxruntime"
    assert outcome.evidence["clock"] == "perf_counter_ns"
    json.dumps(outcome.evidence)


async def test_a_job_id_measures_once(bench: Any, make_latency: MakeJob) -> None:
    spec = make_latency(bench.files.dense())
    first = await bench.run(spec, "same")
    assert await bench.run(spec, "same") == first
    assert await bench.run(spec, "other") != first


async def test_goldens_are_compared_where_speed_was_measured(
    bench: Any, make_latency: MakeJob
) -> None:
    files = bench.files
    x = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    right = files.arrays("right", {"in:image": x, "out:logits": x @ files.w + files.b})
    wrong = files.arrays("wrong", {"in:image": x, "out:logits": x @ files.w})
    policy = Agreement("tol", max_rel=1e-4)
    for batch in ("batch", 4):
        spec = make_latency(files.dense(batch=batch), goldens=right, agreement=policy)
        outcome = await bench.run(spec)
        assert isinstance(outcome, Measured), outcome
        assert outcome.agreement is not None
        assert (outcome.agreement.n, outcome.agreement.ok) == (10, True)
        assert 0 <= outcome.agreement.max_rel <= 1e-4
    failed = await bench.run(replace(spec, goldens=wrong))
    assert fault_of(failed) == (Owner.CANDIDATE, "disagrees")
    assert failed.evidence["agreement"]["max_abs"] == pytest.approx(0.5, abs=1e-4)


async def test_the_board_repeats_its_own_outputs_to_the_bit(
    bench: Any, make_latency: MakeJob
) -> None:
    files = bench.files
    model = files.dense(batch="batch")
    x = np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)
    data = files.arrays("data", {"in:image": x})
    outcome = await bench.run(make_latency(model, kind=JobKind.ACCURACY, dataset=data, batch=7))
    logits = outcome.logits
    outputs = np.frombuffer(logits.data, logits.dtype).reshape(logits.shape)
    goldens = files.arrays("goldens", {"in:image": x, "out:logits": outputs})
    spec = make_latency(model, goldens=goldens, agreement=Agreement("bit"), batch=7)
    assert isinstance(await bench.run(spec), Measured)


@pytest.mark.parametrize(("rows", "batch", "fixed"), [(23, 8, False), (23, 8, True), (4, 1, True)])
async def test_an_accuracy_job_returns_raw_outputs(
    bench: Any, make_latency: MakeJob, rows: int, batch: int, fixed: bool
) -> None:
    files = bench.files
    x = np.random.default_rng(2).standard_normal((rows, 6)).astype(np.float32)
    spec = make_latency(
        files.dense(batch=batch if fixed else "batch"),
        kind=JobKind.ACCURACY,
        batch=batch,
        dataset=files.arrays("data", {"in:image": x}),
    )
    outcome = await bench.run(spec)
    assert isinstance(outcome, Measured), outcome
    assert outcome.logits is not None
    got = np.frombuffer(outcome.logits.data, "<f4").reshape(outcome.logits.shape)
    assert outcome.logits.dtype == "float32"
    np.testing.assert_allclose(got, x @ files.w + files.b, rtol=1e-4, atol=1e-5)
    assert of(outcome, "latency_ns") == []


async def test_a_data_set_without_an_input_is_the_configurations_fault(
    bench: Any, make_latency: MakeJob
) -> None:
    data = bench.files.arrays("data", {"in:picture": np.zeros((2, 6), np.float32)})
    spec = make_latency(bench.files.dense(), kind=JobKind.ACCURACY, dataset=data)
    assert fault_of(await bench.run(spec)) == (Owner.CONFIG, "data-set")


async def test_a_layers_job_times_every_node(bench: Any, make_latency: MakeJob) -> None:
    spec = make_latency(bench.files.dense(), kind=JobKind.LAYERS, plan={"min_inferences": 30})
    outcome = await bench.run(spec)
    assert isinstance(outcome, Measured)
    layers: Any = outcome.evidence["layers"]
    timed = {s.quantity: s for s in outcome.samples if s.quantity.startswith("layer_ns:")}
    assert timed.keys() == {"layer_ns:" + layer["name"] for layer in layers}
    assert layers
    assert all(len(s.values) == 30 and s.kind == "wall" for s in timed.values())
    assert of(outcome, "latency_ns") == []


def typed_graph() -> Any:
    """Inputs of many types under names with slashes, one a scalar; each is passed through."""
    inputs = [
        ("a/half:0", TensorProto.FLOAT16, [1, 4]),
        ("b/ids", TensorProto.INT32, ["batch", "seq"]),
        ("c/long", TensorProto.INT64, [2]),
        ("d/mask", TensorProto.BOOL, ["batch"]),
        ("e/scale", TensorProto.FLOAT, []),
        ("f/double", TensorProto.DOUBLE, [1]),
        ("g/image", TensorProto.UINT8, [1, 2]),
    ]
    return helper.make_graph(
        [helper.make_node("Identity", [name], [name + "/out"]) for name, _, _ in inputs],
        "typed",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(name + "/out", *rest) for name, *rest in inputs],
    )


async def test_inputs_of_every_type_are_generated(bench: Any, make_latency: MakeJob) -> None:
    model = bench.files.graph(typed_graph(), "typed")
    outcome = await bench.run(make_latency(model, axes={"seq": 5}, batch=2))
    assert isinstance(outcome, Measured), outcome


async def test_an_open_axis_is_named(bench: Any, make_latency: MakeJob) -> None:
    outcome = await bench.run(make_latency(bench.files.graph(typed_graph(), "typed")))
    assert fault_of(outcome) == (Owner.CONFIG, "open-axis")
    assert "'seq'" in outcome.fault.message
    assert "--axis seq=" in outcome.fault.hint


async def test_files_that_are_no_models(bench: Any, make_latency: MakeJob) -> None:
    good = bench.files.paths[bench.files.dense()].read_bytes()
    for name, data in {"text": b"not a model", "cut": good[: len(good) // 2], "empty": b""}.items():
        spec = make_latency(bench.files.keep(f"{name}.onnx", data))
        assert fault_of(await bench.run(spec)) == (Owner.CANDIDATE, "invalid-model"), name


async def test_operators_and_formats_that_it_lacks_are_unsupported(
    bench: Any, make_latency: MakeJob
) -> None:
    for operator, element, ir in (
        ("Frobnicate", TensorProto.FLOAT, 8),
        ("Relu", TensorProto.BFLOAT16, 8),
        ("Relu", TensorProto.FLOAT, 99),
    ):
        info = [helper.make_tensor_value_info(name, element, [1, 8]) for name in "xy"]
        node = helper.make_node(operator, ["x"], ["y"])
        graph = helper.make_graph([node], "g", info[:1], info[1:])
        model = bench.files.graph(graph, f"{operator}-{element}-{ir}", ir=ir)
        outcome = await bench.run(make_latency(model))
        assert fault_of(outcome) == (Owner.CANDIDATE, "unsupported"), outcome


@pytest.mark.parametrize("depth", [1, 12])
async def test_an_opset_from_the_future_is_unsupported(
    files: Any, make_latency: MakeJob, tmp_path: Path, depth: int
) -> None:
    # However deep the board's folder lies: its name must not push the reason out of the message.
    folder = tmp_path.joinpath(*["a-rather-long-name"] * depth)
    session = await HostBoard().open(Lease("host", 1, folder))
    model = files.dense(opset=99)
    await session.put(model, files.paths[model])
    outcome = await session.run("j", make_latency(model))
    await session.close()
    assert fault_of(outcome) == (Owner.CANDIDATE, "unsupported")
    assert isinstance(outcome, Failed)
    assert "opset" in outcome.fault.message.lower()


@pytest.mark.parametrize(
    ("changes", "owner", "code"),
    [
        ({"runtime": "abacus"}, Owner.CONFIG, "unknown-runtime"),
        ({"runtime": "fault"}, Owner.CONFIG, "unknown-runtime"),
        ({"provider": "AbacusExecutionProvider"}, Owner.CONFIG, "no-provider"),
        ({"runtime_version": "0.0.1"}, Owner.BOARD, "runtime-version"),
        ({"affinity": (4096,)}, Owner.CONFIG, "affinity"),
        ({"kind": JobKind.ENERGY}, Owner.CONFIG, "no-meter"),
        ({"power_mode": {"warp": "9"}}, Owner.CONFIG, "power-mode"),
        ({"power_mode": {"governor": "none such"}}, Owner.BOARD, "power-mode"),
        ({"plan": {"isolation": "chroot"}}, Owner.CONFIG, "isolation"),
        ({"plan": {"processes": 0}}, Owner.CONFIG, "plan"),
        ({"plan": {"min_inferences": 0}}, Owner.CONFIG, "plan"),
        ({"kind": JobKind.ACCURACY}, Owner.CONFIG, "data-set"),
        ({"batch": 1 << 40}, Owner.CANDIDATE, "out-of-memory"),
        ({"plan": {"memory_limit_bytes": 1 << 20}}, Owner.CANDIDATE, "out-of-memory"),
    ],
)
async def test_jobs_that_cannot_be_done_say_why(
    bench: Any, make_latency: MakeJob, changes: dict[str, Any], owner: Owner, code: str
) -> None:
    outcome = await bench.run(make_latency(bench.files.dense(), **changes))
    assert fault_of(outcome) == (owner, code)


async def test_goldens_and_data_sets_that_are_no_arrays(bench: Any, make_latency: MakeJob) -> None:
    model = bench.files.dense()
    text = bench.files.keep("text.npz", b"no archive")
    goldens = make_latency(model, goldens=text, agreement=Agreement("bit"))
    assert fault_of(await bench.run(goldens)) == (Owner.CONFIG, "goldens")
    data = make_latency(model, kind=JobKind.ACCURACY, dataset=text)
    assert fault_of(await bench.run(data)) == (Owner.CONFIG, "data-set")
    with_objects = bench.files.folder / "objects.npz"
    np.savez(with_objects, **{"in:image": np.array([{"a": 1}], dtype=object)})
    data = make_latency(model, kind=JobKind.ACCURACY, dataset=bench.files.add(with_objects))
    assert fault_of(await bench.run(data)) == (Owner.CONFIG, "data-set")


async def test_a_process_is_pinned(bench: Any, make_latency: MakeJob) -> None:
    cpu = min(os.sched_getaffinity(0))
    assert isinstance(await bench.run(make_latency(bench.files.dense(), affinity=(cpu,))), Measured)


@pytest.mark.parametrize("isolation", ["spawn", "fork"])
async def test_every_fault_is_typed_and_the_next_job_works(
    bench: Any, make_latency: MakeJob, make_faulty: MakeJob, isolation: str
) -> None:
    files = bench.files
    faults = {
        files.fault("segfault", after=3): "crash",
        files.fault("segfault", at="load"): "crash",
        files.fault("abort"): "crash",
        files.fault("exit"): "crash",
        files.fault("eat-memory"): "out-of-memory",
        files.fault("kill"): "out-of-memory",
        files.fault("raise"): "runtime-error",
    }
    plan = {"isolation": isolation, "memory_limit_bytes": 1 << 30}
    for artifact, code in faults.items():
        outcome = await bench.run(make_faulty(artifact, plan=plan))
        assert fault_of(outcome) == (Owner.CANDIDATE, code), outcome
        assert not outcome.fault.transient
        assert [state.phase for state in outcome.health] == ["before", "after"]
    good = await bench.run(make_latency(files.dense(), plan={"isolation": isolation}))
    assert isinstance(good, Measured)


@pytest.mark.parametrize("isolation", ["spawn", "fork"])
async def test_a_hanging_candidate_is_ended_at_its_deadline(
    bench: Any, make_latency: MakeJob, make_faulty: MakeJob, isolation: str
) -> None:
    hang = make_faulty(bench.files.fault("hang"), plan={"deadline_s": 0.5, "isolation": isolation})
    assert fault_of(await bench.run(hang)) == (Owner.CANDIDATE, "timeout")
    good = make_latency(bench.files.dense(), plan={"isolation": isolation})
    assert isinstance(await bench.run(good), Measured)


async def test_a_fault_that_does_not_come_is_measured(bench: Any, make_faulty: MakeJob) -> None:
    outcome = await bench.run(make_faulty(bench.files.fault("none", busy_ns=50_000)))
    (counted,) = of(outcome, "latency_ns")
    assert min(counted.values) >= 50_000


async def test_a_steady_state_that_is_not_reached_is_reported(
    bench: Any, make_latency: MakeJob
) -> None:
    outcome = await bench.run(make_latency(bench.files.dense(), plan={"max_warmup": 5}))
    assert isinstance(outcome, Measured)
    (process,) = outcome.evidence["processes"]  # type: ignore[misc]
    assert process["steady"] is False
    assert "not reached in 5 inferences" in process["steady_reason"]


async def test_samples_of_a_long_job_arrive_whole(bench: Any, make_faulty: MakeJob) -> None:
    plan = {"min_inferences": 70_000, "min_s": 0.0}
    outcome = await bench.run(make_faulty(bench.files.fault("none"), plan=plan))
    (counted,) = of(outcome, "latency_ns")
    assert len(counted.values) == 70_000
