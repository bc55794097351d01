"""What a report knows of a board itself, and of what a meter counted on it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.reports.model import Estimate, RatioReport
    from flatsat.units import TimeKind


@dataclass(frozen=True)
class EnergyReport:
    """Energy of one inference.

    Attributes:
        class_: "metered", "estimated" or "modelled": how it was come by, said wherever it is shown.
        p50_nj: median in nanojoules, interval by hierarchical bootstrap.
        model: of a modelled energy: name of its table of joules per event.
        source: where that table comes from.
    """

    class_: str
    p50_nj: Estimate
    model: str = ""
    source: str = ""


@dataclass(frozen=True)
class EventsReport:
    """Events counted in one inference, medians over all that were counted; None: not counted.

    Attributes:
        cache_misses: of the first of the modelled caches that `cache` describes.
        dram_bytes: moved between the last of them and memory.
        n: counted inferences.
        spread: (most - least) / median of the instructions, None where they weren't counted.
    """

    instructions: float | None
    load_bytes: float | None
    store_bytes: float | None
    cache_misses: float | None
    dram_bytes: float | None
    n: int
    spread: float | None = None
    cache: str = ""

    @property
    def traffic_bytes(self) -> float | None:
        """Bytes that were loaded and stored together; None unless both were counted."""
        if self.load_bytes is None or self.store_bytes is None:
            return None
        return self.load_bytes + self.store_bytes


@dataclass(frozen=True)
class Peak:
    """The highest rate of multiply-accumulates that a probe reached with an element type."""

    dtype: str
    gmac_s: float
    method: str


@dataclass(frozen=True)
class Cache:
    """A cache for data of one core, or one that it shares."""

    level: int
    size_bytes: int


@dataclass(frozen=True)
class CapabilityReport:
    """What a board can do, as its own probes found.

    Attributes:
        clock: that the rates were timed by.
        peaks: one a dtype.
        copy_gb_s: gigabytes copied a second: a copied byte is one loaded and one stored.
        caches: those that hold data, level by level.
        documented: the caches are the core's documentation's, not told by the system.
        measured_utc: when.
        native: (narrow type, CPU flags by which it is computed at full speed).
        absent: (dtype, why it has no peak).
    """

    clock: TimeKind
    peaks: tuple[Peak, ...]
    copy_gb_s: float | None
    copy_method: str
    caches: tuple[Cache, ...]
    documented: bool
    measured_utc: str
    native: tuple[tuple[str, str], ...] = ()
    absent: tuple[tuple[str, str], ...] = ()

    def peak(self, dtype: str) -> Peak | None:
        """Return the peak of a dtype, or None."""
        return next((peak for peak in self.peaks if peak.dtype == dtype), None)

    @property
    def traffic_gb_s(self) -> float | None:
        """Gigabytes a second loaded and stored together while copying."""
        return None if self.copy_gb_s is None else 2 * self.copy_gb_s


@dataclass(frozen=True)
class WeightsFit:
    """The smallest cache that holds all weights at once.

    Attributes:
        where: "L1", "L2", "L3", "none", or "unknown" where the board doesn't tell its caches.
        weight_bytes: of all weights as the runtime holds them.
        documented: see `CapabilityReport`.
    """

    where: str
    weight_bytes: int
    documented: bool = False


@dataclass(frozen=True)
class RooflinePoint:
    """One artifact under its board's roof.

    Attributes:
        gmac_s: billions of multiply-accumulates a second that the median inference reaches.
        traffic_bytes: of one inference.
        counted: the bytes were counted; False: they are the least that the network needs, so that
            the intensity is the highest that it can have.
        dtype: whose peak is the roof.
        roof_gmac_s: what the board could reach at this intensity; None where it isn't known.
        bound: "memory" or "arithmetic": which part of the roof is above the point; "" without one.
    """

    gmac_s: float
    traffic_bytes: float
    counted: bool
    dtype: str
    intensity: float
    roof_gmac_s: float | None = None
    bound: str = ""


@dataclass(frozen=True)
class DtypeCell:
    """One network in two element types on one board.

    Attributes:
        float_ns, int8_ns: median latencies.
        gain: how many times faster the int8 form is.
    """

    float_ns: float
    int8_ns: float
    gain: RatioReport


@dataclass(frozen=True)
class DtypeRow:
    """One network in two element types on several boards of one clock; None: not measured."""

    label: str
    detail: str
    cells: tuple[DtypeCell | None, ...]

    @property
    def turned(self) -> bool:
        """Whether int8 is shown to be faster on one board and slower on another."""
        verdicts = {cell.gain.verdict for cell in self.cells if cell is not None}
        return {"faster", "slower"} <= verdicts


@dataclass(frozen=True)
class BoardsReport:
    """How far the board decides: the same files on boards of one clock, one workload.

    Attributes:
        boards: their names, in the order of the rows' cells.
        ranks: (board, other board, Spearman's correlation of the latencies of all files that both
            ran).
    """

    workload: str
    clock: TimeKind
    boards: tuple[str, ...]
    rows: tuple[DtypeRow, ...]
    ranks: tuple[tuple[str, str, Estimate], ...] = ()


@dataclass(frozen=True)
class RuntimeCell:
    """A network as one runtime ran it: median latency, and that of the fastest over it."""

    p50_ns: float
    times: float


@dataclass(frozen=True)
class RuntimeRow:
    """A network, in one precision, by the section's runtimes; None: not measured by that one."""

    label: str
    precision: str
    cells: tuple[RuntimeCell | None, ...]


@dataclass(frozen=True)
class RuntimesReport:
    """One section's networks that more than one runtime ran.

    Attributes:
        columns: (runtime, format of its files).
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[RuntimeRow, ...]
