"""The first screen of a run's page as values that its template only lays out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import words

if TYPE_CHECKING:
    from flatsat.reports.model import (
        AccuracyReport,
        BoardSection,
        JobCounts,
        MeasurementReport,
        RatioReport,
    )


_REPEATS = 0.0002
"""A virtual clock repeats itself to within this share."""
_MOST_TILES = 4


@dataclass(frozen=True)
class Chip:
    """A short statement: `tone` is "good", "warn", "bad" or ""."""

    tone: str
    text: str


@dataclass(frozen=True)
class Tile:
    """One of the large figures of the first screen."""

    figure: str
    said: str
    detail: str


def comparative(ratio: float, better: str, worse: str) -> tuple[str, str]:
    """Return ("2.10x", better) for a ratio above 1, ("1.30x", worse) for its inverse below 1."""
    if ratio >= 1:
        return words.times(ratio), better
    return words.times(1 / ratio), worse


def speed(ratio: RatioReport) -> tuple[str, str]:
    """Return how much faster in figure and words; an unsettled ratio says so."""
    if ratio.value is None:
        return words.NONE, "not comparable"
    figure, said = comparative(ratio.value, "faster", "slower")
    if ratio.verdict == "equal":
        return words.times(ratio.value), "as fast"
    return figure, said if ratio.verdict != "inconclusive" else f"{said}, not settled"


def between(ratio: RatioReport) -> str:
    """Return a ratio's interval, "3.62 to 3.80"; turned round where the words say "slower"."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return ""
    value, low, high = ratio.value, ratio.low, ratio.high
    if value < 1 and ratio.verdict != "equal":
        value, low, high = 1 / value, 1 / high, 1 / low
    return words.between(value, low, high)


def change(accuracy: AccuracyReport) -> str:
    """Return the change of accuracy against the reference: "-0.4 points (-1.0 to +0.2)"."""
    loss = accuracy.loss
    if loss is None or loss.value is None:
        return ""
    text = f"{words.points(-loss.value)} points"
    if loss.low is not None and loss.high is not None:
        text += f" ({words.points(-loss.high)} to {words.points(-loss.low)})"
    return text


def tiles(section: BoardSection) -> list[Tile]:
    """Return the large figures of a section's winner; [] without one."""
    headline = section.headline
    best = section.find(headline.label)
    if best is None:
        return []
    if headline.smaller is None or headline.faster is None:
        return _absolute(best)
    found: list[Tile] = []
    figure, said = comparative(headline.smaller, "smaller", "larger")
    size = words.size(best.size_bytes * headline.smaller)
    found.append(Tile(figure, said, f"{words.size(best.size_bytes)} file against {size}"))
    figure, said = speed(headline.faster)
    detail = f"median {words.duration(best.p50_ns.value)}"
    if (reference := section.find(headline.faster.against)) is not None:
        detail += f" against {words.duration(reference.p50_ns.value)}"
    found.append(Tile(figure, said, _with_interval(detail, headline.faster)))
    if best.accuracy is not None:
        detail = change(best.accuracy)
        detail = f"{detail} against the dense reference" if detail else f"n={best.accuracy.n:,}"
        found.append(Tile(words.percent(best.accuracy.value), best.accuracy.metric, detail))
    narrow = best.versus_equal_macs
    if narrow is not None:
        figure, said = speed(narrow)
        said, comma, unsettled = said.partition(",")
        said = f"{said} {'as' if said == 'as fast' else 'than'} {narrow.against}{comma}{unsettled}"
        detail = "dense, trained from scratch at equal MACs"
        found.append(Tile(figure, said, _with_interval(detail, narrow)))
    if len(found) < _MOST_TILES and (saved := _energy(best, reference)) is not None:
        found.append(saved)
    return found


def _energy(best: MeasurementReport, reference: MeasurementReport | None) -> Tile | None:
    """Return how much less energy an inference takes, where both are known in one class."""
    mine, theirs = best.energy, None if reference is None else reference.energy
    if mine is None or theirs is None or mine.class_ != theirs.class_:
        return None
    if not mine.p50_nj.value or not theirs.p50_nj.value:
        return None
    figure, said = comparative(theirs.p50_nj.value / mine.p50_nj.value, "less", "more")
    detail = f"{words.energy(mine.p50_nj.value)} against {words.energy(theirs.p50_nj.value)}"
    return Tile(figure, f"{said} {mine.class_} energy", detail)


def _with_interval(detail: str, ratio: RatioReport) -> str:
    spread = between(ratio)
    return f"{detail}; 95\u00a0% interval {spread}" if spread else detail


def _absolute(best: MeasurementReport) -> list[Tile]:
    """Return the figures of a network that has nothing to be held against."""
    spread = words.interval_ns(best.p50_ns)
    found = [
        Tile(
            words.duration(best.p50_ns.value),
            "median latency",
            f"95\u00a0% interval {spread}" if spread else f"n={best.n:,}",
        )
    ]
    if best.accuracy is not None:
        detail = f"n={best.accuracy.n:,}"
        found.append(Tile(words.percent(best.accuracy.value), best.accuracy.metric, detail))
    if best.memory is not None:
        found.append(Tile(words.size(best.memory.median_bytes), "peak memory", best.memory.method))
    found.append(Tile(words.size(best.size_bytes), "model file", f"{best.format} {best.precision}"))
    return found


def trust_chips(section: BoardSection) -> list[Chip]:
    """Return what speaks for and against a section's timings."""
    trust = section.trust
    chips: list[Chip] = []
    if trust.spread is not None:
        text = f"processes of one candidate differ by at most {words.fine_percent(trust.spread)}"
        chips.append(Chip("good" if trust.spread <= _REPEATS else "warn", text))
    if trust.processes:
        tone = "good" if trust.steady >= 0.95 * trust.processes else "warn"
        chips.append(
            Chip(tone, f"{trust.steady} of {trust.processes} processes reached a steady state")
        )
    if trust.load1_max is not None and trust.cores:
        load = (
            f"load up to {words.figures(trust.load1_max, 2)} on {words.plural(trust.cores, 'core')}"
        )
        if trust.crowded:
            chips.append(Chip("bad", f"{load}: crowded, timings are rough"))
        else:
            chips.append(Chip("good", f"{load}: never crowded"))
    if trust.throttled:
        chips.append(Chip("bad", "the board throttled"))
    if trust.temp_c_max is not None:
        chips.append(Chip("", f"up to {trust.temp_c_max:.0f} °C"))
    if trust.governors:
        steady = set(trust.governors) == {"performance"}
        chips.append(Chip("" if steady else "warn", f"governor {', '.join(trust.governors)}"))
    return chips


def job_chips(jobs: JobCounts, state: str) -> list[Chip]:
    """Return how the run's jobs went."""
    chips = [
        Chip(
            "good" if jobs.measured == jobs.planned else "",
            f"{jobs.measured} of {words.plural(jobs.planned, 'job')} measured",
        )
    ]
    if jobs.failed:
        chips.append(Chip("bad", f"{jobs.failed} failed"))
    if jobs.inconclusive:
        chips.append(Chip("warn", f"{jobs.inconclusive} inconclusive"))
    if jobs.waiting > 0:
        chips.append(Chip("warn" if state != "running" else "", f"{jobs.waiting} waiting"))
    if jobs.reused:
        chips.append(Chip("", f"{jobs.reused} reused from earlier runs"))
    return chips
