"""The document "flatsat.measure/1": what `flatsat measure --json` writes and other tools read.

A key is never removed or given another meaning under this name; a new one may be added.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Literal["flatsat.measure/1"] = "flatsat.measure/1"


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FaultObject(_Object):
    """Why there is no value; an inconclusive outcome has the code "inconclusive"."""

    owner: Literal["board", "harness", "candidate", "config"]
    transient: bool
    code: str
    message: str
    hint: str


class ArtifactObject(_Object):
    """The model file."""

    sha256: str
    format: str
    bytes: int


class BoardObject(_Object):
    """Where it ran; `id` is null where the board was never reached."""

    name: str
    id: str | None
    kind: str | None


class LatencyObject(_Object):
    """Nanoseconds of one inference over all processes; a percentile is null with too few samples.

    `p50_ci` is the 95 % interval by hierarchical bootstrap over processes, null with fewer than
    two of them.
    """

    clock: Literal["wall", "virtual"]
    n: int
    processes: int
    min: int
    mean: float
    p10: int | None
    p50: int | None
    p50_ci: tuple[int, int] | None
    p90: int | None
    p99: int | None


class MemoryObject(_Object):
    """Peak resident bytes of the measuring process, with the method; and the model file's size."""

    method: str
    peak_rss: int
    model_file: int


class EnergyObject(_Object):
    """Joules of one inference, and what they rest on; "modelled" is never measured."""

    class_: Literal["metered", "estimated", "modelled"] = Field(alias="class")
    model: str
    source: str
    p50: float
    min: float
    max: float
    n: int
    instructions: int | None
    memory_bytes: int | None
    dram_bytes: int | None


class AgreementObject(_Object):
    """Outputs on the board against the goldens."""

    kind: str
    max_abs: float
    max_rel: float
    p99_abs: float
    top1_agree: float
    n: int
    ok: bool


class OutcomeObject(_Object):
    """One artifact on one board with one runtime and thread count."""

    job: Literal["latency"]
    status: Literal["measured", "failed", "inconclusive"]
    fault: FaultObject | None
    artifact: ArtifactObject
    board: BoardObject
    runtime: str
    threads: int
    latency_ns: LatencyObject | None
    memory_bytes: MemoryObject | None
    energy_j: EnergyObject | None
    agreement: AgreementObject | None


class MeasureDocument(_Object):
    """The whole document."""

    schema_: Literal["flatsat.measure/1"] = Field(SCHEMA, alias="schema")
    outcomes: tuple[OutcomeObject, ...]
