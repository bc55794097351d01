"""What every kind of board must do. A new kind adds itself to `BOARDS`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

from flatsat.canonical import canonical_json, sha256_file
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan, reuse_key
from flatsat.outcome import Failed, Measured, Owner
from flatsat.targets.boards import KINDS, make_board
from flatsat.targets.doctor import examine
from flatsat.targets.pool import LocalPool

if TYPE_CHECKING:
    from flatsat.targets.board import Board, Lease, Session


def linux(request: pytest.FixtureRequest) -> Board:
    """Return this machine as a board behind a real SSH server."""
    return make_board("linux", "linux", request.getfixturevalue("make_sshd")().board_settings())


def emulated(request: pytest.FixtureRequest) -> Board:
    return request.getfixturevalue("booted_board").board


BOARDS: dict[str, Callable[[pytest.FixtureRequest], Board]] = {
    "host": lambda _: make_board("host", "host"),
    "linux": linux,
    "qemu-arm64": emulated,
}
MARKS = {"qemu-arm64": [pytest.mark.qemu, pytest.mark.slow]}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in BOARDS])
def board(request: pytest.FixtureRequest) -> Board:
    return BOARDS[request.param](request)


@pytest.fixture
def lease(request: pytest.FixtureRequest, board: Board, tmp_path: Path):
    # The emulated board is up already, in a lab of its own.
    up = board.kind == "qemu-arm64"
    locks = request.getfixturevalue("qemu_lab") / "locks" if up else tmp_path / "locks"
    with LocalPool(locks).acquire(board.name, 60.0) as lease:
        yield lease


@pytest.fixture
async def session(board: Board, lease: Lease) -> AsyncIterator[Session]:
    session = await board.open(lease)
    yield session
    await session.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
    )
    path = tmp_path / "relu.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def job(board: Board, artifact: str) -> JobSpec:
    plan = MeasurePlan(processes=2, min_inferences=10, min_s=0.0, max_warmup=20)
    return JobSpec(JobKind.LATENCY, artifact, "onnx", board.name, plan=plan)


async def test_the_identity_is_the_same_each_time(board: Board, lease: Lease) -> None:
    identities = []
    for _ in range(2):
        session = await board.open(lease)
        identities.append(session.identity)
        await session.close()
    assert identities[0] == identities[1]
    assert (identities[0].name, identities[0].kind) == (board.name, board.kind)
    assert len(identities[0].board_id) == 64
    for fact in ("cpu_model", "cpu_flags", "os", "kernel", "cores", "memory_bytes"):
        assert identities[0].facts[fact]
    canonical_json(dict(identities[0].facts))


async def test_a_latency_job_is_measured_on_the_declared_clock(
    board: Board, session: Session, model: Path
) -> None:
    sha256 = sha256_file(model)
    await session.put(sha256, model)
    await session.put(sha256, model)
    outcome = await session.run("job", job(board, sha256))
    assert isinstance(outcome, Measured), outcome
    counted = [s for s in outcome.samples if s.quantity == "latency_ns" and s.warm]
    assert [s.process for s in counted] == [0, 1]
    assert all(len(s.values) >= 10 and s.kind == board.time_kind.value for s in counted)
    assert [state.phase for state in outcome.health] == ["before", "after"]
    canonical_json(dict(outcome.evidence))
    assert await session.run("job", job(board, sha256)) == outcome


async def test_a_candidates_fault_is_an_outcome_and_spares_the_next_job(
    board: Board, session: Session, model: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    await session.put(sha256_file(bad), bad)
    outcome = await session.run("bad", job(board, sha256_file(bad)))
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.transient) == (Owner.CANDIDATE, False)
    await session.put(sha256_file(model), model)
    assert isinstance(await session.run("good", job(board, sha256_file(model))), Measured)


async def test_a_kind_of_job_it_cannot_do_is_refused_politely(
    board: Board, session: Session, model: Path
) -> None:
    await session.put(sha256_file(model), model)
    energy = replace(job(board, sha256_file(model)), kind=JobKind.ENERGY)
    outcome = await session.run("energy", energy)
    assert isinstance(outcome, Failed)
    assert outcome.fault.owner == Owner.CONFIG


async def test_the_reuse_key_follows_the_board(board: Board, session: Session) -> None:
    spec = job(board, "0" * 64)
    assert reuse_key(spec, session.identity.board_id) != reuse_key(spec, "1" * 64)


async def test_closing_twice_is_allowed(session: Session) -> None:
    await session.close()


async def test_the_doctor_finds_the_agent_and_its_runtime(board: Board, lease: Lease) -> None:
    findings = {finding.check: finding for finding in await examine(board, lease)}
    for check in ("link", "agent", "onnxruntime", "clock", "calendar", "meter", "disk"):
        assert check in findings
    assert findings["link"].ok
    assert findings["agent"].ok
    assert findings["onnxruntime"].ok
    assert all(finding.ok or finding.fix for finding in findings.values())


def test_every_kind_is_under_contract() -> None:
    assert set(BOARDS) == set(KINDS)
