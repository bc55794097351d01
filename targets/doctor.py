"""Examine a board: whether it can measure, and what would spoil what it measures."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flatsat.canonical import sha256_file
from flatsat.errors import InfrastructureError
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Failed, Measured, Outcome
from flatsat.runtimes import FORMATS
from flatsat.targets.board import BoardRefused, Prepared
from flatsat.targets.pool import LocalPool
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from flatsat.progress import Progress
    from flatsat.targets.board import Board, Lease, Session

_LOW_MEMORY_BYTES = 128 << 20
_LOW_DISK_BYTES = 128 << 20
_SKEW_S = 300.0
_TRIPS = 5
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
    board: Board, lease: Lease | None = None, progress: Progress | None = None
) -> list[Finding]:
    """Open the board, run a few small jobs on it, and return what there is to say.

    Args:
        board: any board.
        lease: the right to use it; without one a lease of a temporary lab is taken, which a board
            that keeps its own epoch (any but `host`) refuses.
        progress: is told what takes long, such as building a board's image.
    """
    findings: list[Finding] = []
    with contextlib.ExitStack() as stack:
        if lease is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flatsat-")))
            lease = stack.enter_context(LocalPool(folder).acquire(board.name))
        try:
            if isinstance(board, Prepared):
                await board.prepare(progress)
            async with _opened(board, lease) as session:
                skew_s = _told(session).get("calendar_s", time.time()) - time.time()
                findings.append(await _link(session))
                findings.append(_agent(session))
                runtimes = _runtimes(board, session)
                findings += [await _runtime(session, board.name, each) for each in runtimes]
                findings.append(await _timing(session, board))
                findings.append(_calendar(skew_s))
                findings.append(await _meter(session, board))
                findings.extend(_disk(session))
                findings.extend(_state(session))
        except BoardRefused as error:
            findings.append(Finding("agent", False, error.message, error.hint or ""))
        except InfrastructureError as error:
            findings.append(Finding("link", False, error.message, error.hint or ""))
    return findings


@contextlib.asynccontextmanager
async def _opened(board: Board, lease: Lease) -> AsyncIterator[Session]:
    session = await board.open(lease)
    try:
        yield session
    finally:
        await session.close()


def _told(session: Session) -> Mapping[str, Any]:
    """Return the agent's greeting."""
    return cast("Mapping[str, Any]", getattr(session, "welcome", {}))


async def _link(session: Session) -> Finding:
    """Ask for a file that the board has: a question and an answer, and nothing in between."""
    with tempfile.TemporaryDirectory(prefix="flatsat-") as folder:
        path = Path(folder) / "echo"
        path.write_bytes(b"flatsat")
        sha256 = sha256_file(path)
        await session.put(sha256, path)
        trips_s = []
        for _ in range(_TRIPS):
            begin = time.monotonic()
            await session.put(sha256, path)
            trips_s.append(time.monotonic() - begin)
    return Finding("link", True, f"a question and its answer take {min(trips_s) * 1e3:.1f} ms")


def _agent(session: Session) -> Finding:
    facts, told = session.identity.facts, _told(session)
    detail = f"Python {told.get('python')}; {facts.get('cpu_model')}, {facts.get('cores')} cores, "
    return Finding("agent", True, f"{detail}{facts.get('os')}, kernel {facts.get('kernel')}")


def _runtimes(board: Board, session: Session) -> list[str]:
    """Return the runtimes to look at: the default one, and whatever is there already."""
    names = [*getattr(board, "sites", {}), *_told(session).get("sites", ())]
    # FlatSat's own environment holds it.
    names += ["litert"] if board.kind == "host" else []
    others = [r for r in FORMATS if any(name.startswith(r) for name in names)]
    return list(dict.fromkeys(["onnxruntime", *others]))


def _calendar(skew_s: float) -> Finding:
    """Compare the board's date with this machine's: by it files are called old."""
    near = abs(skew_s) < _SKEW_S
    fix = "" if near else f"set it on the board: date -s @$(date +%s) (it is off by {skew_s:.0f} s)"
    return Finding("calendar", near, f"{skew_s:+.1f} s from this machine's", fix)


def _disk(session: Session) -> list[Finding]:
    free = _told(session).get("disk_free_bytes")
    if free is None:
        return []
    low = free < _LOW_DISK_BYTES
    fix = "free some room in the agent's folder, or name another as store" if low else ""
    return [Finding("disk", not low, f"{free / 2**20:.0f} MiB free for models and runtimes", fix)]


async def _meter(session: Session, board: Board) -> Finding:
    """Let a product of a row and a matrix be counted: at least an instruction for each weight."""
    if board.meter == "none":
        return Finding("meter", True, "none: this board can't do energy jobs")
    from flatsat.targets.probes import SIDE, probe_zip

    with tempfile.TemporaryDirectory(prefix="flatsat-") as folder:
        path = Path(folder) / "probe.onnx"
        with zipfile.ZipFile(io.BytesIO(probe_zip())) as models:
            path.write_bytes(models.read("float32.onnx"))
        sha256 = sha256_file(path)
        await session.put(sha256, path)
        plan = MeasurePlan(processes=1, min_inferences=3, min_s=0.0, warmup="fixed", max_warmup=2)
        spec = JobSpec(JobKind.ENERGY, sha256, "onnx", board.name, axes={"rows": 1}, plan=plan)
        outcome = await session.run("doctor-energy", spec)
    if isinstance(outcome, Failed):
        return Finding("meter", False, outcome.fault.message, outcome.fault.hint)
    if not isinstance(outcome, Measured):
        return Finding("meter", False, outcome.why, "try again")
    values = {s.quantity: min(s.values) for s in outcome.samples if s.quantity == "instructions"}
    counted = values.get("instructions", 0)
    # A vector instruction multiplies at most 16 pairs.
    right = counted >= SIDE * SIDE / 16
    detail = f"{board.meter}: {counted} instructions for {SIDE * SIDE} multiplications"
    fix = "" if right else "remove the folder plugins of the cache: the meter is then built anew"
    return Finding("meter", right, detail, fix)


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
    return await session.run(f"doctor-{kind.value}-{runtime}", spec)


async def _runtime(session: Session, board: str, runtime: str) -> Finding:
    outcome = await _probe(session, board, JobKind.CAPABILITY, runtime)
    if isinstance(outcome, Measured):
        found = cast("Mapping[str, Any]", outcome.evidence["capability"])
        told = found["runtime"]
        ways = f" ({', '.join(told['providers'])})" if told.get("providers") else ""
        return Finding(runtime, True, f"{told['version']}{ways}, NumPy {found['numpy']}")
    if isinstance(outcome, Failed):
        return Finding(runtime, False, outcome.fault.message, outcome.fault.hint)
    return Finding(runtime, False, outcome.why)


async def _timing(session: Session, board: Board) -> Finding:
    """Time a loop of known length: a board that is disturbed shows it in the upper quantiles."""
    outcome = await _probe(session, board.name, JobKind.FAULTS, "fault")
    if isinstance(outcome, Failed):
        return Finding("clock", False, outcome.fault.message, outcome.fault.hint)
    if not isinstance(outcome, Measured):
        return Finding("clock", False, "a trial measurement gave nothing", "try again")
    values = sorted(
        value
        for sample in outcome.samples
        if sample.quantity == "latency_ns" and sample.warm
        for value in sample.values
    )
    resolution = cast("int", outcome.evidence["clock_resolution_ns"])
    p50, p90 = values[len(values) // 2], values[len(values) * 9 // 10]
    steady = p90 <= _SPREAD * p50 and resolution <= _COARSE_CLOCK_NS
    detail = f"{board.time_kind.value}, {resolution} ns; a loop of {_BUSY_NS // 1000} us took "
    detail += f"{p50 / 1000:.0f} us (p50), {p90 / 1000:.0f} us (p90)"
    if "emulator" in session.identity.facts and board.time_kind is TimeKind.WALL:
        detail += "; an emulator's wall clock ranks nothing"
    return Finding("clock", steady, detail, "" if steady else "end what else runs there")
