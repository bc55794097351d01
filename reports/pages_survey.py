"""Pictures of methods on a run's page: weights on their levels, an image at so many bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import figures_survey, judged, techniques, words
from flatsat.reports.figures_static import data_url, image_png
from flatsat.reports.figures_survey import LayerLine
from flatsat.reports.pruned_filters import pruned_filters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.figures import Figure
    from flatsat.reports.judged import Judged
    from flatsat.reports.model import CandidateReport, RunReport
    from flatsat.reports.model_survey import ImageAtBits, WeightsPicture

MOST_SHOWN = 6
MOST_FILTERS_SHOWN = 8
_TELLING_LEVELS = 16
_MOST_LAYERS = 6
_MOST_LINES = 64
_HALF = 24
_MID = 26


@dataclass(frozen=True)
class Histogram:
    """A layer's histogram as paths of a drawing that is as many units wide as it has bins.

    Attributes:
        before, after: outlines, upwards and downwards from the middle; "" without.
        levels: upright lines of the codebook, "" where there are none or too many to draw.
    """

    picture: WeightsPicture
    bins: int
    height: int
    before: str
    after: str
    levels: str
    total: int

    @property
    def zeros(self) -> float:
        """Share of the layer's weights that are zero."""
        return self.picture.zeros / self.total if self.total else 0.0


@dataclass(frozen=True)
class WeightsView:
    """A candidate's histograms."""

    label: str
    method: str
    layers: tuple[Histogram, ...]
    more: int


@dataclass(frozen=True)
class FiltersShown:
    """A sheet of filters: picture as data: URL, (width, height) in pixels."""

    label: str
    method: str
    url: str
    size: tuple[int, int]


@dataclass(frozen=True)
class FiltersView:
    """The first convolution's filters of a workload: of the dense network, then compressed."""

    workload: str
    layer: str
    shown: tuple[FiltersShown, ...]


@dataclass(frozen=True)
class BitsRow:
    """A network's accuracy at each of the columns' bits, None where no candidate has them."""

    label: str
    cells: tuple[tuple[float, str] | None, ...]


@dataclass(frozen=True)
class BitsView:
    """An image at so many bits, and the accuracy of networks whose weights have as many.

    Attributes:
        columns: (words, picture as data: URL or "") of each number of bits, widest first.
        size: (width, height) of the picture in pixels.
    """

    workload: str
    columns: tuple[tuple[str, str], ...]
    size: tuple[int, int]
    rows: tuple[BitsRow, ...]
    where: str


@dataclass(frozen=True)
class SizesView:
    """Accuracy against size, of one workload; `below` says what the picture leaves out."""

    workload: str
    name: str
    figure: Figure
    below: str = ""


def weights_views(report: RunReport) -> tuple[list[WeightsView], int]:
    """Return histograms of pruned and quantised candidates, and how many more have some.

    Of each chain of steps one is shown, that whose codebooks are nearest to 16 levels; chains
    with a codebook come first.
    """
    chains: dict[tuple[str, ...], list[tuple[CandidateReport, tuple[WeightsPicture, ...]]]] = {}
    for candidate in report.candidates:
        kept = report.survey.of(candidate.candidate_id).weights
        if candidate.role == "compressed" and any(_changed(picture) for picture in kept):
            chain = (candidate.workload, *(step.use for step in candidate.steps))
            chains.setdefault(chain, []).append((candidate, kept))
    found = [min(chain, key=lambda item: _far(item[1])) for chain in chains.values()]
    found.sort(key=lambda item: not any(p.codebook for p in item[1]))
    views = []
    for candidate, kept in found[:MOST_SHOWN]:
        largest = sorted(kept, key=lambda p: -(sum(p.after) + p.zeros))[:_MOST_LAYERS]
        layers = tuple(histogram(p) for p in kept if p in largest)
        method = techniques.method(candidate)
        views.append(WeightsView(candidate.label, method, layers, len(kept) - len(layers)))
    return views, sum(len(chain) for chain in chains.values()) - len(views)


def filters_views(report: RunReport) -> list[FiltersView]:
    """Return, by workload, the filters of the first convolution before and after compression.

    Of each chain of steps the first candidate is shown, where its filters are others than before.
    """
    found: list[FiltersView] = []
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        chains: dict[tuple[str, ...], FiltersShown] = {}
        before: FiltersShown | None = None
        for candidate in report.candidates:
            picture = report.survey.of(candidate.candidate_id).filters
            if candidate.workload != workload or candidate.role != "compressed" or picture is None:
                continue
            if picture.before is None or picture.before.pixels == picture.after.pixels:
                continue
            was = picture.filters[1] or 0
            before = before or _shown("before", f"{was} filters", picture.before)
            kept = words.plural(picture.filters[0], "filter")
            method = f"{techniques.method(candidate)}: {kept}"
            chain = tuple(step.use for step in candidate.steps)
            chains.setdefault(chain, _shown(candidate.label, method, picture.after))
            layer = picture.layer
        if before is not None:
            shown = (before, *chains.values())[: MOST_FILTERS_SHOWN + 1]
            found.append(FiltersView(workload, layer, shown))
    return found


def _shown(label: str, method: str, image: ImageAtBits) -> FiltersShown:
    return FiltersShown(label, method, data_url(image_png(image)), (image.width, image.height))


def _far(kept: Sequence[WeightsPicture]) -> int:
    return abs(max((len(p.codebook) for p in kept), default=0) - _TELLING_LEVELS)


def _changed(picture: WeightsPicture) -> bool:
    return bool(picture.codebook) or picture.zeros > sum(picture.after) / 20


def histogram(picture: WeightsPicture) -> Histogram:
    """Return a histogram's outlines: what was before stands upright, what is now hangs below.

    Each half has a scale of its own: after pruning few weights are left.
    """
    bins = len(picture.after)
    lines = ""
    if 0 < len(picture.codebook) <= _MOST_LINES:
        width = picture.high - picture.low
        places = (bins * (level - picture.low) / width for level in picture.codebook)
        lines = "".join(f"M{x:.4g} {_MID}V{_MID + _HALF}" for x in places if 0 <= x <= bins)
    return Histogram(
        picture,
        bins,
        _MID + _HALF,
        _outline(picture.before or (), _HALF, -1),
        _outline(picture.after, _MID, 1),
        lines,
        sum(picture.after) + picture.zeros,
    )


def _outline(counts: Sequence[int], base: int, way: int) -> str:
    """Return the outline of columns that stand on (or hang from) a line."""
    most = max(counts, default=0)
    if not most:
        return ""
    path = f"M0 {base}"
    height: float = base
    run = 0
    for count in counts:
        # Tenths of a unit: finer than a screen shows.
        now = round(base + way * (_HALF * count / most), 1)
        if now != height:
            path += (f"h{run}" if run else "") + f"V{now:g}"
            height, run = now, 0
        run += 1
    return path + f"h{run}V{base}z"


def bits_views(report: RunReport) -> list[BitsView]:
    """Return, for each workload, accuracy over bits a weight of candidates alike but for them."""
    found: list[BitsView] = []
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        series: dict[str, dict[int, list[CandidateReport]]] = {}
        for candidate in report.candidates:
            bits = techniques.candidate_bits(candidate.steps)
            if candidate.workload == workload and bits is not None:
                key = techniques.but_for_bits(candidate.steps)
                series.setdefault(key, {}).setdefault(bits, []).append(candidate)
        several = [by_bits for by_bits in series.values() if len(by_bits) > 1]
        if several:
            found.append(_bits_view(report, workload, several))
    return found


def _bits_view(
    report: RunReport, workload: str, series: Sequence[dict[int, list[CandidateReport]]]
) -> BitsView:
    references = [c for c in report.candidates if c.role == "reference" and c.workload == workload][
        :1
    ]
    everyone = [c for by_bits in series for held in by_bits.values() for c in held]
    judge = judged.on_board
    if any(judge(report, c, "float") is None for c in (*everyone, *references)):
        judge = judged.on_host
    images = {image.bits: image for image in report.survey.images.get(workload, ())}
    bits = sorted({b for by_bits in series for b in by_bits}, reverse=True)
    columns = [("float32", images.get(None)), *((_bits(b), images.get(b)) for b in bits)]
    dense = _said([found for c in references if (found := judge(report, c, "float"))])
    rows = [
        BitsRow(
            _series_label(by_bits),
            (
                dense,
                *(
                    _said(
                        [f for c in by_bits.get(b, ()) if (f := judge(report, c, "float"))]
                    )
                    for b in bits
                ),
            ),
        )
        for by_bits in series
    ]  # fmt: skip
    sample = next((image for _, image in columns if image is not None), None)
    where = next((f.where for c in everyone if (f := judge(report, c, "float"))), "")
    return BitsView(
        workload,
        tuple((said, _url(image)) for said, image in columns),
        (sample.width, sample.height) if sample is not None else (0, 0),
        tuple(rows),
        where,
    )


def _bits(bits: int) -> str:
    return words.plural(bits, "bit")


def _url(image: ImageAtBits | None) -> str:
    return "" if image is None else data_url(image_png(image))


def _series_label(by_bits: dict[int, list[CandidateReport]]) -> str:
    steps = next(iter(by_bits.values()))[0].steps
    told = []
    for step in steps:
        more = [
            f"{key.replace('_', ' ')} {value}"
            for key, value in step.params.items()
            if key in ("per", "activations")
            and value is not None
            # Only ranges are taken: the network itself rounds no activations.
            and (key != "activations" or step.params.get("simulate") is not False)
        ]
        quantises = techniques.technique(step.use) == techniques.QUANTISE
        told.append(step.use + (f" ({', '.join(more)})" if more and quantises else ""))
    return ", ".join(told)


def _said(found: Sequence[Judged]) -> tuple[float, str] | None:
    """Return the mean accuracy with its interval, or the spread where there are several seeds."""
    if not found:
        return None
    values = [one.value for one in found]
    mean = sum(values) / len(values)
    if len(found) > 1:
        return mean, (
            f"{len(found)} seeds, {100 * min(values):.1f} to {100 * max(values):.1f}"
        )  # fmt: skip
    one = found[0]
    spread = "" if one.low is None or one.high is None else (
        f"{100 * one.low:.1f} to {100 * one.high:.1f}"
    )  # fmt: skip
    return mean, spread


def sizes_views(report: RunReport) -> list[SizesView]:
    """Return accuracy against size of each workload that has enough files for it."""
    found: list[SizesView] = []
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        points = figures_survey.size_points(report, workload)
        figure = figures_survey.ratio(points)
        if figure is not None:
            below = [
                f"{p.label} ({words.points(-(p.accuracy.loss or 0.0))} points)"
                for p in figures_survey.deep(points)
            ]
            found.append(SizesView(workload, f"sizes{len(found)}", figure, words.listed(below)))
    return found


def pruning_figures(report: RunReport) -> dict[str, Figure]:
    """Return, by workload, how far each layer of the pruned networks is pruned."""
    found: dict[str, Figure] = {}
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        lines = [
            LayerLine(candidate.label, _pruned(candidate))
            for candidate in _chains_in_turn(report.candidates)
            if candidate.workload == workload
            and techniques.PRUNE in techniques.techniques(candidate)
        ]
        figure = figures_survey.pruned_by_layer(lines, "weights")
        if figure is not None:
            found[workload] = figure
    return found


def filter_figures(report: RunReport) -> dict[str, Figure]:
    """Return, by workload, which share of filters and neurons each layer lost as a whole."""
    found: dict[str, Figure] = {}
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        lines = [
            LayerLine(
                candidate.label,
                tuple(
                    (name, 1 - kept / total)
                    for name, kept, total in pruned_filters(
                        report.survey.of(candidate.candidate_id).history
                    )
                ),
            )
            for candidate in _chains_in_turn(report.candidates)
            if candidate.workload == workload
        ]
        figure = figures_survey.pruned_by_layer(lines, "filters and neurons")
        if figure is not None:
            found[workload] = figure
    return found


def _chains_in_turn(candidates: Sequence[CandidateReport]) -> list[CandidateReport]:
    """Return the candidates so that the first of each chain of steps go before all second ones."""
    met: Counter[tuple[str, ...]] = Counter()
    turns: list[tuple[int, CandidateReport]] = []
    for candidate in candidates:
        chain = (candidate.workload, *(step.use for step in candidate.steps))
        turns.append((met[chain], candidate))
        met[chain] += 1
    return [candidate for _, candidate in sorted(turns, key=lambda turn: turn[0])]


def _pruned(candidate: CandidateReport) -> tuple[tuple[str, float], ...]:
    return tuple(
        (layer.name, max(0.0, 1 - layer.kept))
        for layer in candidate.layers
        if layer.kept is not None
    )
