"""Examine a board: whether it can measure, and what would spoil what it measures."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flatsat.canonical import sha256_file
from flatsat.errors import InfrastructureError
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Failed, Measured, Outcome
from flatsat.targets.pool import LocalPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from flatsat.progress import Progress
    from flatsat.targets.board import Board, Lease, Session

_LOW_MEMORY_BYTES = 128 << 20
_COARSE_CLOCK_NS = 1000
_BUSY_NS = 200_000
_SPREAD = 1.2


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was looked at.
        ok: nothing to mend.
        detail: what was found.
        fix: how to mend it, "" where all is well or nothing can be done.
    """

    check: str
    ok: bool
    detail: str
    fix: str = ""


async def examine(
    board: Board, lease: Lease | None = None, progress: Progress | None = None  # noqa: ARG001
) -> list[Finding]:
    """Open the board, run two small jobs on it, and return what there is to say.

    Args:
        board: any board.
        lease: the right to use it; without one a lease of a temporary lab is taken, which a board
            that keeps its own epoch (any but `host`) refuses.
        progress: is told what takes long.
    """
    findings: list[Finding] = []
    with contextlib.ExitStack() as stack:
        if lease is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flatsat-")))
            lease = stack.enter_context(LocalPool(folder).acquire(board.name))
        try:
            async with _opened(board, lease) as session:
                findings.append(_agent(session))
                findings.extend(_state(session))
                findings.append(await _runtime(session, board.name))
                findings.append(await _timing(session, board.name))
        except InfrastructureError as error:
            findings.append(Finding("link and agent", False, error.message, error.hint or ""))
    return findings


@contextlib.asynccontextmanager
async def _opened(board: Board, lease: Lease) -> AsyncIterator[Session]:
    session = await board.open(lease)
    try:
        yield session
    finally:
        await session.close()


def _agent(session: Session) -> Finding:
    facts = session.identity.facts
    detail = f"{facts.get('cpu_model')}, {facts.get('cores')} cores, {facts.get('os')}, kernel "
    return Finding("link and agent", True, f"{detail}{facts.get('kernel')}")


def _state(session: Session) -> list[Finding]:
    health, facts = session.health, session.identity.facts
    governor = health.governor
    findings = [
        Finding(
            "governor",
            governor in (None, "performance"),
            governor or "the system tells none (a virtual machine?)",
            "" if governor in (None, "performance") else "cpupower frequency-set -g performance",
        )
    ]
    cores = cast("int", facts.get("cores") or 1)
    if health.load1 is not None:
        busy = health.load1 > cores
        findings.append(
            Finding(
                "load",
                not busy,
                f"{health.load1:.2f} on {cores} cores",
                "end what else runs there, latencies will not hold still" if busy else "",
            )
        )
    if health.free_bytes is not None:
        low = health.free_bytes < _LOW_MEMORY_BYTES
        findings.append(
            Finding(
                "free memory",
                not low,
                f"{health.free_bytes / 2**20:.0f} MiB",
                "end what else runs there" if low else "",
            )
        )
    if health.temp_c is not None:
        findings.append(Finding("temperature", True, f"{health.temp_c:.0f} degrees C"))
    if health.throttle_bits is not None:
        bad = health.throttle_bits & 0xF
        findings.append(
            Finding(
                "throttling",
                not bad,
                f"bits {health.throttle_bits:#x}",
                "check power supply and cooling" if bad else "",
            )
        )
    return findings


async def _probe(session: Session, board: str, kind: JobKind, runtime: str) -> Outcome:
    """Run a job on a model that spins for a fixed time; return its outcome."""
    with tempfile.TemporaryDirectory(prefix="flatsat-") as folder:
        path = Path(folder) / "probe.json"
        path.write_text(json.dumps({"fault": "none", "busy_ns": _BUSY_NS}))
        sha256 = sha256_file(path)
        await session.put(sha256, path)
    plan = MeasurePlan(processes=1, min_inferences=200, min_s=0.05)
    spec = JobSpec(kind, sha256, "fault", board, runtime=runtime, plan=plan)
    return await session.run(f"doctor-{kind.value}", spec)


async def _runtime(session: Session, board: str) -> Finding:
    outcome = await _probe(session, board, JobKind.CAPABILITY, "onnxruntime")
    if isinstance(outcome, Measured):
        found = cast("Mapping[str, Any]", outcome.evidence["capability"])
        runtime = found["runtime"]
        detail = f"{runtime['version']} ({', '.join(runtime['providers'])}), NumPy {found['numpy']}"
        return Finding("onnxruntime", True, detail)
    if isinstance(outcome, Failed):
        return Finding("onnxruntime", False, outcome.fault.message, outcome.fault.hint)
    return Finding("onnxruntime", False, outcome.why)


async def _timing(session: Session, board: str) -> Finding:
    """Time a loop of known length: a board that is disturbed shows it in the upper quantiles."""
    outcome = await _probe(session, board, JobKind.FAULTS, "fault")
    if not isinstance(outcome, Measured):
        return Finding("clock", False, "a trial measurement gave nothing")
    values = sorted(
        value
        for sample in outcome.samples
        if sample.quantity == "latency_ns" and sample.warm
        for value in sample.values
    )
    resolution = cast("int", outcome.evidence["clock_resolution_ns"])
    p50, p90 = values[len(values) // 2], values[len(values) * 9 // 10]
    steady = p90 <= _SPREAD * p50 and resolution <= _COARSE_CLOCK_NS
    detail = f"{outcome.evidence['clock']}, {resolution} ns; a loop of {_BUSY_NS // 1000} us took "
    detail += f"{p50 / 1000:.0f} us (p50), {p90 / 1000:.0f} us (p90)"
    return Finding("clock", steady, detail, "" if steady else "end what else runs there")
