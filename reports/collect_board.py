"""What a board's own probes say of it, and where each artifact stands under its roof."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from flatsat.outcome import Measured
from flatsat.reports.model_board import (
    Cache,
    CapabilityReport,
    EventsReport,
    Peak,
    RooflinePoint,
    WeightsFit,
)
from flatsat.tensors import DTYPE_BYTES
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.reports.known import Known
    from flatsat.reports.rows import OutcomeRow
    from flatsat.tensors import TensorSpec

_DTYPES = {"float": "float32", "int8": "int8"}


def capability(rows: Iterable[OutcomeRow]) -> CapabilityReport | None:
    """Return what capability jobs of one board found; of each dtype the newest peak stands."""
    newest: Mapping[str, object] = {}
    measured_utc = ""
    peaks: dict[str, Peak] = {}
    for row in sorted(rows, key=lambda row: row.started_utc):
        told = row.outcome.evidence.get("capability")
        if isinstance(row.outcome, Measured) and isinstance(told, Mapping):
            newest, measured_utc = told, row.started_utc
            peaks |= {peak.dtype: peak for peak in _peaks(told.get("peaks"))}
    if not measured_utc:
        return None
    copy = newest.get("copy_gb_s")
    copy = copy if isinstance(copy, Mapping) else {}
    return CapabilityReport(
        clock=TimeKind.VIRTUAL if newest.get("clock") == "virtual" else TimeKind.WALL,
        peaks=tuple(peaks.values()),
        copy_gb_s=_positive(copy.get("value")),
        copy_method=str(copy.get("method") or ""),
        caches=_caches(newest.get("caches")),
        documented=newest.get("caches_source") == "documented",
        measured_utc=measured_utc,
        native=_named(newest.get("native")),
        absent=tuple(pair for pair in _named(newest.get("absent")) if pair[0] not in peaks),
    )


def _named(told: object) -> tuple[tuple[str, str], ...]:
    """Return (name, words) of what isn't empty."""
    entries = told.items() if isinstance(told, Mapping) else ()
    return tuple(
        (str(name), " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        for name, value in entries
        if value
    )


def _peaks(told: object) -> list[Peak]:
    entries = told if isinstance(told, (list, tuple)) else ()
    return [
        Peak(str(entry.get("dtype")), rate, str(entry.get("method") or ""))
        for entry in entries
        if isinstance(entry, Mapping) and (rate := _positive(entry.get("gmac_s"))) is not None
    ]


def _caches(told: object) -> tuple[Cache, ...]:
    """Return the caches that hold data, the smallest level first."""
    entries = told if isinstance(told, (list, tuple)) else ()
    found = {
        Cache(level, size)
        for entry in entries
        if isinstance(entry, Mapping)
        and str(entry.get("type", "")).lower() != "instruction"
        and isinstance(level := entry.get("level"), int)
        and isinstance(size := entry.get("size_bytes"), int)
        and size > 0
    }
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.size_bytes)))


def _positive(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) and value > 0 else None
    return None


# Weights and traffic


def weight_bytes(held: Known) -> int:
    """Return the bytes of all weights as a dense runtime holds them: zeros count.

    Of a file whose parameters or precision aren't known, its size, which holds them all.
    """
    width = DTYPE_BYTES.get(_DTYPES.get(held.artifact.role, ""))
    if held.candidate.params is None or width is None:
        return held.artifact.size_bytes
    return held.candidate.params * width


def least_traffic_bytes(held: Known, batch: int) -> float:
    """Return the bytes that one inference moves at the very least.

    Each weight is read once; the input of the network is read, its output written; what goes from
    layer to layer, as far as the layers are known, is written and read.
    """
    width = DTYPE_BYTES.get(_DTYPES.get(held.artifact.role, ""), 4)
    between = sum(_elements(layer.get("in_shape")) for layer in held.candidate.layers[1:])
    ends = sum(_spec_bytes(spec) for spec in (*held.artifact.inputs, *held.artifact.outputs))
    return weight_bytes(held) + batch * (ends + 2 * between * width)


def _elements(shape: object) -> int:
    if isinstance(shape, (list, tuple)) and all(isinstance(n, int) for n in shape):
        return math.prod(shape)
    return 0


def _spec_bytes(spec: TensorSpec) -> int:
    """Return the bytes of one sample of a tensor; axes of open length count as 1."""
    lengths = [length if isinstance(length, int) else 1 for length in spec.shape]
    return math.prod(lengths) * DTYPE_BYTES.get(spec.dtype, 4)


def fit(held: Known, board: CapabilityReport | None) -> WeightsFit:
    """Return which cache of the board holds all weights of an artifact at once."""
    size = weight_bytes(held)
    if board is None or not board.caches:
        return WeightsFit("unknown", size)
    level = min((c.level for c in board.caches if size <= c.size_bytes), default=None)
    return WeightsFit("none" if level is None else f"L{level}", size, board.documented)


def dtype_of(artifact: Artifact) -> str:
    """Return the element type that most of an artifact's arithmetic is done in."""
    if artifact.role in _DTYPES:
        return _DTYPES[artifact.role]
    return artifact.inputs[0].dtype if artifact.inputs else "float32"


def roofline(
    held: Known,
    p50_ns: float | None,
    batch: int,
    events: EventsReport | None,
    board: CapabilityReport | None,
) -> RooflinePoint | None:
    """Return where an artifact stands; None without a latency or a count of MACs.

    A file that leaves zeros out has none: how many MACs it executes is not known here.
    """
    macs = held.candidate.macs
    if not macs or not p50_ns or held.artifact.role == "sparse":
        return None
    counted = None if events is None else events.traffic_bytes
    traffic = counted or least_traffic_bytes(held, batch)
    if not traffic:
        return None
    intensity = batch * macs / traffic
    dtype = dtype_of(held.artifact)
    peak = None if board is None else board.peak(dtype)
    roof, bound = None, ""
    if board is not None and peak is not None and board.traffic_gb_s is not None:
        by_memory = intensity * board.traffic_gb_s
        roof = min(peak.gmac_s, by_memory)
        bound = "memory" if by_memory < peak.gmac_s else "arithmetic"
    # Multiply-accumulates a nanosecond are billions of them a second.
    rate = batch * macs / p50_ns
    return RooflinePoint(rate, traffic, bool(counted), dtype, intensity, roof, bound)
