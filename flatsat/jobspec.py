"""What a board is asked to do, as a value that hashes; and the key under which it is reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import cast

from flatsat.artifact import Agreement
from flatsat.canonical import sha256_json

METHOD = "flatsat.latency"
METHOD_VERSION = 1


class JobKind(StrEnum):
    """The kinds of job; a board's agent refuses a kind that it doesn't know."""

    LATENCY = "latency"
    ACCURACY = "accuracy"
    LAYERS = "layers"
    CAPABILITY = "capability"
    ENERGY = "energy"
    FAULTS = "faults"


@dataclass(frozen=True)
class MeasurePlan:
    """How one job measures. One job is one round; `rounds` jobs make a comparison.

    Attributes:
        processes: fresh processes in one job.
        min_inferences, min_s: a process counts at least so many inferences *and* so much time.
        warmup: "steady" (until the steady-state test passes, or `max_warmup` is reached and said)
            or "fixed" (`max_warmup` inferences).
        max_warmup: the most uncounted inferences.
        isolation: "spawn" starts each process from the interpreter; "fork" copies one that has
            the runtime imported, so that processes share their memory layout (quicker; for
            searches).
        deadline_s: host-monotonic limit on one process.
        memory_limit_bytes: address space that a process may take, or None for a share of what is
            free on the board.
    """

    processes: int = 2
    min_inferences: int = 50
    min_s: float = 0.2
    warmup: str = "steady"
    max_warmup: int = 300
    isolation: str = "spawn"
    deadline_s: float = 120.0
    memory_limit_bytes: int | None = None


VIRTUAL_PLAN = MeasurePlan(
    processes=1, min_inferences=15, min_s=0.0, warmup="fixed", max_warmup=8, deadline_s=300.0
)
"""Where time is counted instructions, values repeat to a fraction of a percent: a few will do."""
VIRTUAL_ROUNDS = 2
"""Latency jobs of each artifact there; the second shows that the first repeats."""


@dataclass(frozen=True)
class JobSpec:
    """A job as canonical JSON: no local path, no time, no run in it.

    Attributes:
        kind: a `JobKind`.
        artifact: sha256 of the model file.
        format: the model file's format.
        board: the selector of the board (its name in `lab.toml`).
        runtime: what executes the artifact there.
        runtime_version: a version that the board must have, or None for any.
        provider: the runtime's execution provider.
        threads: intra-op threads.
        affinity: CPU numbers to pin the process to; () leaves it free.
        batch: length of the batch axis of generated inputs.
        axes: lengths of other open axes by name.
        power_mode: settings that the board must be in, by name.
        plan: how to measure.
        goldens: sha256 of the goldens' `.npz`, or None.
        agreement: how the goldens are judged, or None.
        dataset: for accuracy jobs, sha256 of the `.npz` whose "in:NAME" arrays are run.
        method, method_version: of the measurement; a new version is another measurement.
    """

    kind: JobKind
    artifact: str
    format: str
    board: str
    runtime: str = "onnxruntime"
    runtime_version: str | None = None
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    affinity: tuple[int, ...] = ()
    batch: int = 1
    axes: Mapping[str, int] = field(default_factory=dict)
    power_mode: Mapping[str, str] = field(default_factory=dict)
    plan: MeasurePlan = field(default_factory=MeasurePlan)
    goldens: str | None = None
    agreement: Agreement | None = None
    dataset: str | None = None
    method: str = METHOD
    method_version: int = METHOD_VERSION

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able mapping that `from_json` reads back."""
        value: dict[str, object] = {f.name: getattr(self, f.name) for f in fields(self)}
        value["kind"] = self.kind.value
        value["affinity"] = list(self.affinity)
        value["axes"] = dict(self.axes)
        value["power_mode"] = dict(self.power_mode)
        value["plan"] = asdict(self.plan)
        value["agreement"] = None if self.agreement is None else self.agreement.to_json()
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> JobSpec:
        """Read what `to_json` wrote."""
        read = dict(value)
        read["kind"] = JobKind(cast("str", read["kind"]))
        read["affinity"] = tuple(cast("list[int]", read["affinity"]))
        read["plan"] = MeasurePlan(**cast("dict[str, int]", read["plan"]))  # type: ignore[arg-type]
        agreement = cast("Mapping[str, object] | None", read.get("agreement"))
        read["agreement"] = None if agreement is None else Agreement.from_json(agreement)
        return cls(**read)  # type: ignore[arg-type]

    @property
    def blobs(self) -> tuple[str, ...]:
        """The sha256 of every file that the board needs for this job."""
        return tuple(sha for sha in (self.artifact, self.goldens, self.dataset) if sha)


def reuse_key(spec: JobSpec, board_id: str) -> str:
    """Return the key under which an outcome of `spec` on this very board may be used again."""
    return sha256_json({"spec": spec.to_json(), "board_id": board_id})
