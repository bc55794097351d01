"""TensorFlow Lite files on board `host`, in both packagings: what is fed, told, and refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flatsat.artifact import Agreement
from flatsat.errors import InfrastructureError
from flatsat.jobspec import JobKind
from flatsat.outcome import Failed, Measured, Outcome, Owner
from flatsat.targets.host import HostBoard
from flatsat.targets.wheels import host_interpreter, host_sites

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.targets.board import Lease

Run = Callable[..., Any]
WEIGHTS = np.arange(18, dtype=np.float32).reshape(3, 6) / 7 - 1
BIAS = np.array([0.5, -0.25, 0.125], np.float32)
EXACT = Agreement("tol", max_rel=1e-6)


@pytest.fixture(scope="session")
def tflite_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that several tests share, so that the runtime is unpacked once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(params=["litert", "tflite-runtime"])
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param == "tflite-runtime":
        try:
            host_sites().site("tflite-runtime", host_interpreter())
        except InfrastructureError as error:
            pytest.skip(f"no tflite-runtime here: {error.message}")
    return str(request.param)


@pytest.fixture
async def run(
    lease: Lease, files: Any, make_latency: Run, tflite_store: Path, monkeypatch: Any
) -> AsyncIterator[Run]:
    """Return a function that runs a job on a TensorFlow Lite file's bytes."""
    session = await HostBoard(store=tflite_store).open(replace(lease, epoch=_epoch(tflite_store)))
    count = iter(range(1000))

    async def _run(data: bytes, runtime: str, **changes: Any) -> Outcome:
        number = next(count)
        artifact = files.keep(f"{number}.tflite", data)
        provider = changes.pop("provider", "xnnpack")
        spec = make_latency(artifact, format="tflite", runtime=runtime, provider=provider)
        plan = replace(spec.plan, **changes.pop("plan", {}))
        spec = replace(spec, plan=plan, **changes)
        for sha256 in spec.blobs:
            await session.put(sha256, files.paths[sha256])
        return await session.run(f"job-{number}", spec)

    try:
        yield _run
    finally:
        await session.close()


def _epoch(store: Path) -> int:
    path = store / "epoch"
    return 1 + (int(path.read_text()) if path.exists() else 0)


def dense(graph: Any, rows: int = 1) -> bytes:
    """Return `logits = image @ WEIGHTS.T + BIAS`."""
    image = graph.tensor("image", "float32", [rows, 6])
    weights = graph.tensor("weights", "float32", [3, 6], WEIGHTS)
    bias = graph.tensor("bias", "float32", [3], BIAS)
    logits = graph.tensor("logits", "float32", [rows, 3])
    graph.node("FULLY_CONNECTED", [image, weights, bias], [logits])
    return bytes(graph.file([image], [logits]))


def images(rows: int) -> np.ndarray:
    return np.linspace(-1, 1, rows * 6, dtype=np.float32).reshape(rows, 6)


def fault_of(outcome: Outcome) -> tuple[Owner, str]:
    assert isinstance(outcome, Failed), outcome
    assert "\n" not in outcome.fault.message
    return outcome.fault.owner, outcome.fault.code


def logits_of(outcome: Outcome) -> np.ndarray:
    assert isinstance(outcome, Measured), outcome
    assert outcome.logits is not None
    values = np.frombuffer(outcome.logits.data, outcome.logits.dtype)
    return values.reshape(outcome.logits.shape)


async def test_a_float_file_is_measured_and_compared(
    run: Run, runtime: str, files: Any, tflite_graph: Any
) -> None:
    goldens = files.arrays(
        "goldens", {"in:image": images(5), "out:logits": images(5) @ WEIGHTS.T + BIAS}
    )
    outcome = await run(
        dense(tflite_graph()), runtime, goldens=goldens, agreement=EXACT, plan={"processes": 2}
    )
    assert isinstance(outcome, Measured), outcome
    assert outcome.agreement is not None
    assert outcome.agreement.n == 5
    counted = [s for s in outcome.samples if s.quantity == "latency_ns" and s.warm]
    assert [s.process for s in counted] == [0, 1]
    assert all(len(s.values) >= 20 and min(s.values) > 0 for s in counted)
    told: Any = outcome.evidence["runtime"]
    assert (told["name"], told["provider"]) == (runtime, "xnnpack")
    assert (told["operators"], told["delegated"]) == (1, 1)


async def test_without_its_delegate_nothing_is_delegated(
    run: Run, runtime: str, tflite_graph: Any
) -> None:
    outcome = await run(dense(tflite_graph()), runtime, provider="cpu", plan={"isolation": "fork"})
    assert isinstance(outcome, Measured), outcome
    told: Any = outcome.evidence["runtime"]
    assert (told["provider"], told["delegated"]) == ("cpu", 0)


async def test_integers_go_in_and_come_out_as_they_are_in_the_file(
    run: Run, runtime: str, files: Any, tflite_graph: Any
) -> None:
    graph = tflite_graph()
    image = graph.tensor("image", "int8", [1, 6], scale=0.5, zero_point=-1)
    weights = graph.tensor("weights", "int8", [3, 6], np.arange(18) - 9, scale=0.5)
    bias = graph.tensor("bias", "int32", [3], np.array([10, -20, 30]), scale=0.25)
    sums = graph.tensor("sums", "int8", [1, 3], scale=2.0, zero_point=3)
    logits = graph.tensor("logits", "uint8", [1, 3], scale=2.0, zero_point=131)
    graph.node("FULLY_CONNECTED", [image, weights, bias], [sums])
    graph.node("QUANTIZE", [sums], [logits])
    rows = np.random.default_rng(7).integers(-128, 128, (40, 6), np.int8)
    real = (rows + 1.0) * 0.5 @ ((np.arange(18) - 9).reshape(3, 6) * 0.5).T
    quanta = (real + np.array([10, -20, 30]) * 0.25) / 2.0 + 131
    expected = np.clip(np.round(quanta), 0, 255)
    dataset = files.arrays("rows", {"in:image": rows})
    outcome = await run(
        graph.file([image], [logits]), runtime, kind=JobKind.ACCURACY, dataset=dataset
    )
    got = logits_of(outcome)
    assert got.dtype == np.uint8
    # Which neighbour about half a quantum goes to is the runtime's choice: some round twice.
    clear = np.abs(quanta % 1 - 0.5) > 0.2
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(got[clear], expected[clear])
    assert np.abs(got - expected).max() <= 1


async def test_two_inputs_are_told_apart_by_name(
    run: Run, runtime: str, files: Any, tflite_graph: Any
) -> None:
    graph = tflite_graph()
    left, right = (graph.tensor(name, "float32", [2, 4]) for name in ("left", "right"))
    difference = graph.tensor("difference", "float32", [2, 4])
    graph.node("SUB", [left, right], [difference])
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.full((2, 4), 0.5, np.float32)
    goldens = files.arrays("goldens", {"in:right": b, "in:left": a, "out:difference": a - b})
    data = graph.file([left, right], [difference])
    outcome = await run(data, runtime, goldens=goldens, agreement=EXACT)
    assert isinstance(outcome, Measured), outcome


async def test_a_file_for_one_image_runs_a_data_set_row_by_row(
    run: Run, runtime: str, files: Any, tflite_graph: Any
) -> None:
    dataset = files.arrays("rows", {"in:image": images(37)})
    outcome = await run(dense(tflite_graph()), runtime, kind=JobKind.ACCURACY, dataset=dataset)
    np.testing.assert_allclose(logits_of(outcome), images(37) @ WEIGHTS.T + BIAS, atol=1e-5)


async def test_an_open_batch_takes_the_jobs_length(
    run: Run, runtime: str, files: Any, tflite_graph: Any
) -> None:
    dataset = files.arrays("rows", {"in:image": images(10)})
    open_batch = dense(tflite_graph(), rows=-1)
    outcome = await run(open_batch, runtime, kind=JobKind.ACCURACY, dataset=dataset, batch=4)
    np.testing.assert_allclose(logits_of(outcome), images(10) @ WEIGHTS.T + BIAS, atol=1e-5)
    assert isinstance(await run(open_batch, runtime, batch=4), Measured)


@pytest.mark.parametrize("dtype", ["int16", "float16", "bool", "int64", "uint8"])
async def test_inputs_of_every_type_are_made_up(run: Run, dtype: str, tflite_graph: Any) -> None:
    graph = tflite_graph()
    given, result = graph.tensor("given", dtype, [2, 4]), graph.tensor("result", "float32", [2, 4])
    graph.node("CAST", [given], [result])
    outcome = await run(graph.file([given], [result]), "litert")
    assert isinstance(outcome, Measured), outcome


async def test_tensors_without_names_of_their_own_are_named_by_place(
    run: Run, files: Any, tflite_graph: Any
) -> None:
    graph = tflite_graph()
    left, right = (graph.tensor("", "float32", [1, 4]) for _ in range(2))
    result = graph.tensor("", "float32", [1, 4])
    graph.node("SUB", [left, right], [result])
    ones = np.ones((1, 4), np.float32)
    goldens = files.arrays(
        "goldens", {"in:input:0": 3 * ones, "in:input:1": ones, "out:output:0": 2 * ones}
    )
    data = graph.file([left, right], [result])
    outcome = await run(data, "litert", goldens=goldens, agreement=EXACT)
    assert isinstance(outcome, Measured), outcome


@pytest.mark.parametrize("name", ["FlexErf", "Mine"])
async def test_an_operator_that_the_runtime_lacks_is_named(
    run: Run, runtime: str, name: str, tflite_graph: Any
) -> None:
    graph = tflite_graph()
    given, result = graph.tensor("given", "float32", [4]), graph.tensor("result", "float32", [4])
    graph.node("CUSTOM", [given], [result], custom=name)
    outcome = await run(graph.file([given], [result]), runtime)
    assert fault_of(outcome) == (Owner.CANDIDATE, "unsupported")
    assert name in outcome.fault.message
    assert len(outcome.fault.message) < 200


async def test_what_is_no_such_file_is_an_invalid_model(run: Run, runtime: str) -> None:
    for data in (b"", b"TFL3", b"\0" * 64, b"\x08\0\0\0ONNX" + b"\0" * 64):
        assert fault_of(await run(data, runtime)) == (Owner.CANDIDATE, "invalid-model")


async def test_a_damaged_file_is_the_candidates_fault_and_the_next_one_runs(
    run: Run, runtime: str, tflite_graph: Any
) -> None:
    whole = dense(tflite_graph())
    for data in (whole[:200], whole[:-60], whole[:8] + b"\xff" * (len(whole) - 8)):
        owner, code = fault_of(await run(data, runtime))
        assert owner is Owner.CANDIDATE
        assert code in ("invalid-model", "unsupported", "crash")
    assert isinstance(await run(whole, runtime), Measured)


async def test_what_no_memory_suffices_for_says_so(
    run: Run, runtime: str, tflite_graph: Any
) -> None:
    graph = tflite_graph()
    column = graph.tensor("column", "float32", [30000, 1])
    row = graph.tensor("row", "float32", [1, 30000])
    table = graph.tensor("table", "float32", [30000, 30000])
    graph.node("ADD", [column, row], [table])
    outcome = await run(
        graph.file([column, row], [table]), runtime, plan={"memory_limit_bytes": 2_000_000_000}
    )
    assert fault_of(outcome) == (Owner.CANDIDATE, "out-of-memory")


async def test_what_it_can_not_do_is_the_configurations_fault(run: Run, tflite_graph: Any) -> None:
    data = dense(tflite_graph())
    foreign = await run(data, "litert", provider="CPUExecutionProvider")
    assert fault_of(foreign) == (Owner.CONFIG, "no-provider")
    assert "xnnpack" in foreign.fault.hint
    layers = await run(data, "litert", kind=JobKind.LAYERS)
    assert fault_of(layers) == (Owner.CONFIG, "no-profiler")


def test_the_delegate_gets_the_jobs_threads(tmp_path: Path, tflite_graph: Any) -> None:
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense(tflite_graph()))
    code = (
        "import os, sys\n"
        "from flatsat.targets.agent.runtimes import make_runtime\n"
        "runtime = make_runtime('litert')\n"
        "spec = {'provider': 'xnnpack', 'threads': int(sys.argv[2])}\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "model = runtime.load(sys.argv[1], spec, None)\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    more = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(path), threads],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for threads in ("1", "3")
    ]
    assert more == [0, 2]
