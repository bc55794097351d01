"""What became of a job: measured, failed with a typed fault, or inconclusive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias


class Owner(StrEnum):
    """Whose fault it is."""

    BOARD = "board"
    HARNESS = "harness"
    CANDIDATE = "candidate"
    CONFIG = "config"


@dataclass(frozen=True)
class Fault:
    """Why something failed.

    Attributes:
        owner: whose fault it is.
        transient: trying again may help; only a transient board fault is retried.
        code: a short stable name such as "out-of-memory", "timeout", "crash", "disagrees",
            "unsupported", "link-down".
        message: what happened, in one line.
        hint: what the reader can do, in one line.
    """

    owner: Owner
    transient: bool
    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Samples:
    """Raw values of one quantity from one process, in the order in which they were taken.

    Attributes:
        quantity: "latency_ns", "rss_bytes", "load_ns", "energy_nj" or "layer_ns:NODE".
        kind: "wall" or "virtual" for times; the method for memory ("ru_maxrss", "VmHWM");
            "metered", "estimated" or "modelled" for energies.
        process: the process within the job, from 0.
        warm: False for warm-up values, which are kept but never counted.
        values: int64.
    """

    quantity: str
    kind: str
    process: int
    warm: bool
    values: tuple[int, ...]


@dataclass(frozen=True)
class AgreementResult:
    """Outputs on the board against the goldens, from the process that measured speed.

    Attributes:
        kind: the policy's kind ("bit", "tol", "decision").
        max_abs: max|d| over all outputs.
        max_rel: max|d| / max|ref|.
        p99_abs: 99th percentile of |d|.
        top1_agree: share of goldens with the same argmax, in [0, 1].
        n: number of goldens.
        ok: within the policy.
    """

    kind: str
    max_abs: float
    max_rel: float
    p99_abs: float
    top1_agree: float
    n: int
    ok: bool


@dataclass(frozen=True)
class Logits:
    """Raw outputs of an accuracy job: C-ordered bytes of the first output.

    Attributes:
        dtype: NumPy name.
        shape: (n, ...).
        data: little-endian bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Health:
    """The board's state at one moment; a field that the board doesn't tell is None."""

    phase: str
    freq_khz: int | None = None
    temp_c: float | None = None
    throttle_bits: int | None = None
    governor: str | None = None
    load1: float | None = None
    free_bytes: int | None = None


@dataclass(frozen=True)
class Measured:
    """A job that gave what was asked.

    Attributes:
        samples: raw values.
        agreement: None where there were no goldens.
        logits: of an accuracy job, else None.
        health: before and after.
        evidence: JSON-able facts beside the samples: environment (CPU model, kernel, versions),
            per process {"pid", "warmup_n", "steady": bool, "steady_reason"}, layers, capability.
    """

    samples: tuple[Samples, ...]
    agreement: AgreementResult | None = None
    logits: Logits | None = None
    health: tuple[Health, ...] = ()
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A job that gave nothing, and why; `health` and `evidence` as far as they were had."""

    fault: Fault
    health: tuple[Health, ...] = ()
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Inconclusive:
    """A job that ran, but whose values can't be trusted, and why."""

    why: str
    samples: tuple[Samples, ...] = ()
    health: tuple[Health, ...] = ()
    evidence: Mapping[str, object] = field(default_factory=dict)


Outcome: TypeAlias = Measured | Failed | Inconclusive
