"""Measure one model on one board: any ONNX or TFLite file, or a candidate of the lab.

The measurement is an ordinary run of one candidate: its raw samples are in the record, and
`flatsat report` shows it like any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import InfrastructureError, ModelError, UsageError
from flatsat.harness import publish
from flatsat.harness.measure_result import MeasureResult, summarise
from flatsat.harness.names import choice_error
from flatsat.harness.plan import Settings, expected_s, plan_jobs
from flatsat.harness.run import begin_run, board_traits, measure_candidates
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, MeasurePlan
from flatsat.progress import NoProgress, Progress
from flatsat.units import SystemClock

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate
    from flatsat.harness.lab import Lab
    from flatsat.tensors import TensorSpec

PLAN = MeasurePlan(processes=5, min_inferences=140, min_s=0.5)
"""Five processes, and samples enough for a 99th percentile."""
COUNTED_PLAN = replace(VIRTUAL_PLAN, processes=3)
"""On a board that counts instructions: three processes show that the first repeats."""


@dataclass(frozen=True)
class MeasureRequest:
    """What is measured, where and how.

    Attributes:
        model: an ONNX or TFLite file; or a candidate's folder, identifier, start of one, or name.
        board: name.
        role: of the artifact, where a candidate has several; None takes all.
        runtime: what executes the model; None takes the default of its format.
        threads, affinity: see `JobSpec`.
        batch: length of a first axis that counts examples and is open.
        axes: lengths of other open axes by name, or by "INPUT:POSITION".
        energy: count events and model their energy as well; the board must have a meter.
        overrides: fields of `MeasurePlan` that replace those of the default for the board's clock.
    """

    model: str
    board: str = "host"
    role: str | None = None
    runtime: str | None = None
    threads: int = 1
    affinity: tuple[int, ...] = ()
    batch: int = 1
    axes: Mapping[str, int] = field(default_factory=dict)
    energy: bool = False
    overrides: Mapping[str, int | float] = field(default_factory=dict)


def measure_model(
    lab: Lab,
    request: MeasureRequest,
    *,
    several: bool = True,
    progress: Progress | None = None,
) -> tuple[MeasureResult, ...]:
    """Measure a model; what it does on the board becomes a result, not an error.

    Args:
        lab: whose record keeps the measurement.
        request: what, where, how.
        several: take a candidate with several artifacts.
        progress: is told what goes on.

    A file that FlatSat did not make is imported into the lab first.

    Returns:
        One result an artifact.

    Raises:
        ModelError: the file is corrupt or of another kind, or an open axis has no length.
        UsageError: no such file, candidate, board, axis or role; or the lab can't be written.
        InfrastructureError: the record can't be written, or the board can't be reached.
    """
    progress = progress or NoProgress()
    lab.prepare()
    if request.energy and lab.board(request.board).meter == "none":
        raise UsageError(
            f"board {request.board!r} has no meter", hint="leave --energy out, or take qemu-arm64"
        )
    lab.board(request.board)
    candidate, name = resolve_model(lab, request.model)
    artifacts = _artifacts(candidate, request.role)
    if len(artifacts) > 1 and not several:
        roles = " or ".join(repr(artifact.role) for artifact in artifacts)
        raise UsageError(f"candidate {name!r} has several artifacts", hint=f"role={roles}")
    axes = open_axes(artifacts, request.batch, request.axes)
    settings = Settings(
        kinds=(JobKind.LATENCY, JobKind.ENERGY)[: 1 + request.energy],
        runtimes=() if request.runtime is None else (request.runtime,),
        threads=(request.threads,),
        affinity=request.affinity,
        batch=request.batch,
        axes=axes,
        plan=_overridden(PLAN, request.overrides),
        rounds=1,
        virtual_plan=_overridden(COUNTED_PLAN, request.overrides),
        virtual_rounds=1,
        comparison="measure",
    )
    store = lab.store()
    config = {**asdict(request), "model": name, "candidate_id": candidate.candidate_id}
    run_id = begin_run(lab, store, kind="measure", config=config, seed=0)
    # What goes wrong is told by the result, not line by line while it happens.
    sink = _Remembering(progress)
    chosen = replace(candidate, artifacts=tuple(artifacts))
    traits = board_traits(lab, [request.board])
    jobs = plan_jobs(run_id, [chosen], [request.board], settings, traits=traits)
    seconds = sum(expected_s(job) for job in jobs)
    try:
        progress.update("measure", 0.0, seconds, f"{name} on {request.board}")
        store.put_note(run_id, "title", f"measure {name} on {request.board}")
        rows = measure_candidates(
            lab,
            run_id,
            [chosen],
            boards=[request.board],
            settings=settings,
            progress=sink,
        )
    except BaseException:
        publish.quietly_mark(lab, store, run_id, "interrupted")
        raise
    store.finish_run(run_id, "done" if rows else "incomplete", SystemClock().utc())
    publish.status(lab, store, run_id)
    boards = {board.board_id: board for board in store.boards(run_id)}
    wanted = {artifact.sha256: artifact for artifact in artifacts}
    if not rows:
        raise InfrastructureError(
            sink.last or f"board {request.board!r} gave nothing",
            hint=f"examine it with: flatsat board doctor {request.board}",
        )
    energies = {row.job.artifact: row for row in rows if row.job.kind == JobKind.ENERGY}
    return tuple(
        summarise(
            row,
            wanted[row.job.artifact],
            name,
            boards.get(row.board_id or ""),
            run_id,
            energies.get(row.job.artifact),
        )
        for row in rows
        if row.job.artifact in wanted and row.job.kind == JobKind.LATENCY
    )


def _overridden(plan: MeasurePlan, overrides: Mapping[str, int | float]) -> MeasurePlan:
    return replace(plan, **overrides)  # type: ignore[arg-type]


class _Remembering:
    """Passes progress on, and keeps the last line instead of showing it."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self.last = ""

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        self._inner.update(task, done, total, note)

    def log(self, message: str) -> None:
        self.last = message


def resolve_model(lab: Lab, model: str) -> tuple[Candidate, str]:
    """Return the candidate that `model` means, importing a file; and its name for people.

    Raises:
        UsageError: there is neither such a file nor such a candidate.
        ModelError: the file can't be read.
    """
    path = Path(model)
    if path.is_dir() and (path / "candidate.json").is_file():
        candidate = lab.candidate(model)
        return candidate, candidate.name
    if path.exists():
        return _import(lab, path), path.name
    if path.suffix in (".onnx", ".tflite", ".sparse-c", ".fscw") or os.sep in model:
        raise UsageError(f"no such file: {path}", hint=_similar(path))
    candidate = lab.candidate(model)
    return candidate, candidate.name


def open_axes(artifacts: Sequence[Artifact], batch: int, axes: Mapping[str, int]) -> dict[str, int]:
    """Return the lengths that a board must be told for the open axes of the artifacts' inputs.

    An axis goes by its name in the file; one without a name by "INPUT:POSITION". A first axis
    that counts examples (by its name, or by having none) takes `batch` unless `axes` says more.

    Raises:
        ModelError: an open axis has no length; the message names it.
        UsageError: a length was given for an axis that there isn't.
    """
    from flatsat.targets.agent.inputs import TensorInfo, is_batch_axis

    inputs = [spec for artifact in artifacts for spec in artifact.inputs]
    named: dict[str, str] = {}
    known: dict[str, int] = {}
    for spec in inputs:
        for position, axis in enumerate(spec.shape):
            if isinstance(axis, int):
                continue
            nameless = axis == f"{spec.name}_axis{position}"
            key = f"{spec.name}:{position}" if nameless else axis
            named |= {axis: key, key: key}
            told = TensorInfo(spec.name, spec.dtype, ("" if nameless else axis,))
            if position == 0 and is_batch_axis(told):
                known[axis] = batch
    for name, length in axes.items():
        if name not in named:
            message, hint = choice_error("axis", name, sorted(set(named.values())))
            if not named:
                hint = "every axis of this model has a fixed length"
            raise UsageError(f"--axis: {message}", hint=hint)
        known |= {axis: length for axis, key in named.items() if key == named[name]}
    for spec in inputs:
        missing = [a for a in spec.shape if isinstance(a, str) and a not in known]
        if missing:
            options = " ".join(f"--axis {named[axis]}=N" for axis in dict.fromkeys(missing))
            raise ModelError(
                f"input {spec.name!r} of shape {_shape(spec)}: "
                f"axis {named[missing[0]]!r} has no fixed length",
                hint=f"give it: {options}",
            )
    return {named[name]: length for name, length in axes.items()}


def _shape(spec: TensorSpec) -> str:
    return f"({', '.join(str(axis) for axis in spec.shape)})"


def _artifacts(candidate: Candidate, role: str | None) -> list[Artifact]:
    fitting = [a for a in candidate.artifacts if role in (None, a.role)]
    if not fitting:
        roles = [a.role for a in candidate.artifacts]
        message, hint = choice_error(f"role of {candidate.name}", str(role), roles)
        raise UsageError(message, hint=hint)
    return fitting


def _import(lab: Lab, path: Path) -> Candidate:
    from onnx import defs

    from flatsat.compressors.importing import import_model
    from flatsat.compressors.onnx_model import load, opset

    if _is_no_onnx(path):
        return import_model(path, None, lab.candidates_dir)
    version, newest = opset(load(path)), defs.onnx_opset_version()
    if version > newest:
        raise ModelError(
            f"{path}: no runtime can take opset {version}: the newest is {newest}",
            hint="export it with opset 17, which the runtimes of older boards load, too",
        )
    return import_model(path, None, lab.candidates_dir)


def _is_no_onnx(path: Path) -> bool:
    """Return whether a file says of itself that it is another kind of model, or a coded one."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError:
        return False
    return head[4:] == b"TFL3" or head == b"FlatSprs" or head[:4] == b"FSCW"


def _similar(path: Path) -> str | None:
    from flatsat.harness.names import nearest

    try:
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        return f"there is no folder {path.parent} either"
    return None if near is None else f"did you mean {path.parent / near}?"
