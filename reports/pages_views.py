"""Small pictures and tables of a run's page as values that its template only lays out."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from flatsat.reports import words
from flatsat.reports.figures import family
from flatsat.reports.figures_search import quantity
from flatsat.reports.figures_static import (
    data_url,
    density_png,
    log_range,
    log_ticks,
    mask_bits,
    mask_png,
    pixel_density,
    place,
)
from flatsat.reports.techniques import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flatsat.reports.model import (
        BoardSection,
        CandidateReport,
        LayerReport,
        MaskPicture,
        ProxyReport,
        RunReport,
    )
    from flatsat.reports.model_search import SearchReport


_MOST_MASKS = 4
_ALL = 0.9995
_SPARSE = 0.98
"""A mask that keeps more shows a few weights that happen to be zero."""


@dataclass(frozen=True)
class Span:
    """A dot with its interval on a shared scale; places in per cent."""

    label: str
    family: str
    low: float
    dot: float
    high: float
    said: str
    verdict: str


@dataclass(frozen=True)
class Spans:
    """Rows on one scale; `ticks` are (place, text), `one` the place of no difference."""

    rows: tuple[Span, ...]
    ticks: tuple[tuple[float, str], ...]
    one: float


@dataclass(frozen=True)
class Mini:
    """A small scatter plot: (left, bottom, family, text) of each point, both axes logarithmic."""

    proxy: ProxyReport
    points: tuple[tuple[float, float, str, str], ...]
    least: str
    most: str
    flat: bool
    miss: str


@dataclass(frozen=True)
class HeatRow:
    """A candidate's layers in the order of the table's columns; None where it has no such one."""

    candidate: CandidateReport
    family: str
    cells: tuple[LayerReport | None, ...]
    kept: float | None


@dataclass(frozen=True)
class Heat:
    """Sparsity per layer of the candidates of one workload.

    Attributes:
        whole: compressed networks that hold every weight of the dense one, which have no row.
    """

    workload: str
    layers: tuple[tuple[str, str], ...]
    rows: tuple[HeatRow, ...]
    whole: int = 0


@dataclass(frozen=True)
class MaskView:
    """A mask ready to show."""

    label: str
    picture: MaskPicture
    kept: float
    url: str
    eye: str | None
    edge: float | None
    middle: float | None


@dataclass(frozen=True)
class StrategyRow:
    """A strategy over its seeds."""

    label: str
    role: str
    seeds: int
    evaluations: int
    best: str
    cost: str
    cpu: str


def speed_spans(section: BoardSection) -> Spans | None:
    """Return each measurement's speed against the dense reference, fastest first."""
    pairs = [
        (m, r, r.value)
        for m in section.measurements
        if (r := m.versus_reference) is not None and r.value is not None
    ]
    if not pairs:
        return None
    values = [1.0, *(v for _, _, v in pairs)]
    values += [edge for _, r, _ in pairs for edge in (r.low, r.high) if edge is not None]
    low, high = log_range(values)
    at = _placer(low, high)
    rows = tuple(
        Span(
            m.label,
            family(m),
            at(r.low or v),
            at(v),
            at(r.high or v),
            words.times(v),
            r.verdict,
        )
        for m, r, v in sorted(pairs, key=lambda p: -p[2])
    )
    ticks = tuple((at(t), f"{t:g}{words.CROSS}") for t in log_ticks(low, high))
    return Spans(rows, ticks, at(1.0))


def proxy_spans(section: BoardSection) -> Spans | None:
    """Return each proxy's rank correlation with the measured latency, best first."""
    rows = [
        Span(
            p.proxy,
            "float",
            place(p.rho.low if p.rho.low is not None else p.rho.value, -1, 1),
            place(p.rho.value, -1, 1),
            place(p.rho.high if p.rho.high is not None else p.rho.value, -1, 1),
            f"{p.rho.value:.2f}".replace("-", words.MINUS),
            "ranks them"
            if p.rho.low is not None and p.rho.low > 0
            else "may rank them or not"
            if p.rho.low is not None
            else "too few to say",
        )
        for p in sorted(section.proxies, key=lambda p: -(p.rho.value or -2))
        if p.rho.value is not None
    ]
    if not rows:
        return None
    ticks = tuple((place(t, -1, 1), s) for t, s in ((-1, "opposite"), (0, "none"), (1, "same")))
    return Spans(tuple(rows), ticks, 50.0)


def blind(section: BoardSection) -> str:
    """Return which proxies are equal for all that was measured, though the clock isn't."""
    same = [p for p in section.proxies if len({value for _, value, _ in p.points}) == 1]
    if not same:
        return ""
    times = [p50 for _, _, p50 in same[0].points if p50 > 0]
    if not times:
        return ""
    names = " and ".join(p.proxy for p in same)
    return (
        f"Nothing to rank by in {names}: the same for all {len(times)}, while the clock tells "
        f"fastest and slowest apart by {words.times(max(times) / min(times))}."
    )


def _placer(low: float, high: float) -> Callable[[float], float]:
    return lambda value: place(value, low, high, log=True)


def _say(proxy: str) -> Callable[[float | None], str]:
    if proxy in ("file size", "memory traffic"):
        return words.size
    return words.energy if proxy.endswith("energy") else words.count


def _miss(proxy: ProxyReport) -> str:
    """Return the pair that a proxy puts most wrongly, in a sentence; "" without one."""
    if proxy.worst is None:
        return ""
    preferred, faster, by, times = proxy.worst
    if proxy.proxy == "file size":
        said = f"is {words.times(by)} smaller"
    elif proxy.proxy == "memory traffic" or proxy.proxy.endswith("energy"):
        said = f"takes {words.times(by)} less"
    else:
        said = f"has {words.times(by)} fewer"
    return f"Widest miss: {preferred} {said}, yet {faster} is {words.times(times)} faster."


def minis(section: BoardSection) -> list[Mini]:
    """Return a scatter plot of each proxy against the measured latency."""
    kinds = {m.label: family(m) for m in section.measurements}
    found: list[Mini] = []
    for proxy in section.proxies:
        points = [p for p in proxy.points if p[1] > 0 and p[2] > 0]
        if len(points) < 2:
            continue
        x = log_range([p[1] for p in points])
        y = log_range([p[2] for p in points])
        say = _say(proxy.proxy)
        found.append(
            Mini(
                proxy,
                tuple(
                    (
                        place(value, *x, log=True),
                        place(p50, *y, log=True),
                        kinds.get(label, "other"),
                        f"{label}: {say(value)}, {words.duration(p50)}",
                    )
                    for label, value, p50 in points
                ),
                say(min(p[1] for p in points)),
                say(max(p[1] for p in points)),
                len({p[1] for p in points}) == 1,
                _miss(proxy),
            )
        )
    return found


def heats(report: RunReport) -> list[Heat]:
    """Return sparsity per layer, a table a workload, for candidates whose layers are known."""
    found: list[Heat] = []
    known = [c for c in report.candidates if any(layer.kept is not None for layer in c.layers)]
    for workload in dict.fromkeys(c.workload for c in known):
        group = [c for c in known if c.workload == workload]
        lead = next((c for c in group if c.role == "reference"), group[0])
        layers = dict.fromkeys((la.name, la.kind) for c in (lead, *group) for la in c.layers)
        dense = {la.name: la.params for la in lead.layers}
        rows = []
        for candidate in group:
            mine = {layer.name: layer for layer in candidate.layers}
            total = sum(dense.get(name, 0) for name in mine)
            kept = sum(layer.nonzeros for layer in candidate.layers)
            rows.append(
                HeatRow(
                    candidate,
                    candidate_family(candidate),
                    tuple(mine.get(name) for name, _ in layers),
                    kept / total if total else None,
                )
            )
        pruned = [row for row in rows if row.candidate.role != "compressed" or not _whole(row)]
        shown = pruned if len(pruned) > 1 else rows
        found.append(Heat(workload, tuple(layers), tuple(shown), len(rows) - len(shown)))
    return found


def _whole(row: HeatRow) -> bool:
    """Return whether it holds all weights, but for some that rounding put on zero."""
    kept = [layer.kept for layer in row.cells if layer is not None]
    return all(share is not None and _ALL <= share <= 1.0 for share in kept)


def candidate_family(candidate: CandidateReport) -> str:
    """Return the family of a candidate by its role, and whether it has a float file at all."""
    if candidate.role in ("reference", "equal-macs", "imported"):
        return candidate.role
    precisions = {numbers(form) for _, _, form, _ in candidate.artifacts} or {"float"}
    return next((form for form in ("float", "int8") if form in precisions), "other")


def mask_views(report: RunReport) -> tuple[list[MaskView], int]:
    """Return the masks of the run that leave weights out, ready to show, and how many more.

    Equal masks stand once; those over an input image come first.
    """
    alike: dict[tuple[str, bytes], list[str]] = {}
    pictures: dict[tuple[str, bytes], MaskPicture] = {}
    for candidate_id, picture in report.masks.items():
        if float(mask_bits(picture).mean()) > _SPARSE:
            continue
        candidate = report.candidate(candidate_id)
        key = (picture.name, picture.packed)
        pictures.setdefault(key, picture)
        label = candidate.label if candidate is not None else candidate_id[:12]
        alike.setdefault(key, []).append(label)
    ordered = sorted(pictures.items(), key=lambda item: item[1].image is None)
    found: list[MaskView] = []
    for key, picture in ordered[:_MOST_MASKS]:
        kept = float(mask_bits(picture).mean())
        density = pixel_density(picture)
        edge = middle = eye = None
        if density is not None:
            height, width = density.shape
            inner = density[height // 4 : -(height // 4), width // 4 : -(width // 4)]
            middle = float(inner.mean())
            edge = float((density.sum() - inner.sum()) / (density.size - inner.size))
            eye = data_url(density_png(density))
        found.append(
            MaskView(
                words.listed(alike[key]),
                picture,
                kept,
                data_url(mask_png(picture)),
                eye,
                edge,
                middle,
            )
        )
    return found, len(ordered) - len(found)


def _spread(values: Iterable[float], say: Callable[[float], str]) -> str:
    held = list(values)
    if not held:
        return words.NONE
    return say(fmean(held)) + (f" ± {say(stdev(held))}" if len(held) > 1 else "")


def strategy_rows(search: SearchReport) -> list[StrategyRow]:
    """Return each strategy over its seeds: mean and standard deviation of the best reward."""
    rows: list[StrategyRow] = []
    ordered = sorted(search.strategies, key=lambda s: s.role != "search")
    for name in dict.fromkeys(s.strategy for s in ordered):
        group = [s for s in ordered if s.strategy == name]
        costs = [s.best_cost for s in group if s.best_cost is not None]
        rows.append(
            StrategyRow(
                group[0].label,
                group[0].role,
                len({s.seed for s in group}),
                max(len(s.reward) for s in group),
                _spread(
                    (s.best_reward for s in group if s.best_reward is not None),
                    lambda v: f"{v:.4f}",
                ),
                quantity(search, fmean(costs)) if costs else words.NONE,
                words.seconds(sum(s.cpu_s or 0 for s in group)),
            )
        )
    return rows


def prediction_error(search: SearchReport) -> str:
    """Return how far predictions were off: "median 2.1 %, worst 4.0 % (n=6)"; "" without any."""
    errors = sorted(
        abs(m.predicted / m.measured.value - 1)
        for m in search.measured
        if m.predicted is not None and m.measured.value
    )
    if not errors:
        return ""
    middle = errors[len(errors) // 2]
    return f"median {100 * middle:.1f} %, worst {100 * errors[-1]:.1f} % (n={len(errors)})"
