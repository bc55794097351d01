"""The end of a search: each strategy's best policy must meet the budget by measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.history import Key, Measurement, Track, Verdict
from flatsat.harness.search.whole import one_torch_thread

if TYPE_CHECKING:
    from flatsat.harness.search.bench import Timed
    from flatsat.harness.search.loop import SearchLoop
    from flatsat.progress import Progress

_ORDER = (Verdict.MET, Verdict.UNCLEAR, Verdict.OVER, Verdict.FAILED)
TIGHTEN = 0.99
"""A strategy's next try must be predicted below the last bound by so much at least."""


@dataclass(frozen=True)
class Final:
    """What a strategy ends with.

    Attributes:
        strategy: its name.
        measurement: of its candidate, by the last comparison and those in which it qualified.
        verdict: of that measurement.
        accuracy_board: on the test images, on the board; None without a board.
    """

    strategy: str
    measurement: Measurement
    verdict: Verdict
    accuracy_board: float | None = None


@dataclass(frozen=True)
class Ending:
    """How a search ended.

    Attributes:
        finals: one a strategy, in the order of the file.
        chosen: the one that the search ends with: of those that meet the budget by measurement
            the most accurate on the validation split; None where none does.
        narrow_id: the dense narrow network at equal MACs, "" where none was made.
        verdict: of the search as a whole: that of `chosen`, or the best there is.
    """

    finals: tuple[Final, ...]
    chosen: Measurement | None
    narrow_id: str
    verdict: Verdict


@dataclass(frozen=True)
class _Pick:
    """A policy with the epochs of fine-tuning after which it is measured."""

    track: Track
    index: int
    epochs: float

    @property
    def key(self) -> Key:
        return self.track.evaluated[self.index].key


def finish(loop: SearchLoop, progress: Progress) -> Ending:
    """Find each strategy's best policy that holds the budget, fine-tune, measure, choose.

    The rounds in which a candidate qualified count in its last measurement as well. The test split
    is run in the last comparison only, and the choice does not look at it.
    """
    stages: list[Mapping[str, Timed]] = []
    picked = _qualify(loop, progress, stages)
    section = loop.section
    picks = list(picked.values())
    narrow_id = _narrow(loop, picks, progress) if section.finish.equal_macs else ""
    stage = loop.whole.measure(
        "final",
        [(pick.track, pick.index) for pick in picks],
        loop.ground,
        loop.wall.cost,
        rounds=section.finish.rounds,
        epochs=[pick.epochs for pick in picks],
        accuracy=True,
        beside=(narrow_id,) if narrow_id else (),
        earlier=stages,
    )
    loop.measured += stage.measurements
    finals = []
    for name, one in zip(picked, stage.measurements, strict=True):
        timed = stage.timed.get(one.candidate_id)
        accuracy = None if timed is None else timed.accuracy
        finals.append(Final(name, one, one.verdict(loop.ground.limit), accuracy))
    chosen = _choose(finals, loop, progress)
    verdict = min((final.verdict for final in finals), key=_ORDER.index)
    return Ending(tuple(finals), chosen, narrow_id, verdict)


def _qualify(
    loop: SearchLoop, progress: Progress, stages: list[Mapping[str, Timed]]
) -> dict[str, _Pick]:
    """Return each strategy's best policy that meets the budget; put what was timed into `stages`.

    MACs are exact. A latency must be measured: a policy that is over the budget, or whose interval
    holds it, gives way to the strategy's next best that is predicted lower, as often as the file
    allows; then the best that was tried stays, and its verdict says what it is.
    """
    names = loop.section.strategies
    limit = loop.ground.limit
    if loop.ground.table is None or limit is None:
        first = [loop.ranked(name)[0] for name in names]
        trained = _epochs(loop, first, progress)
        picks = [_Pick(*found, count) for found, count in zip(first, trained, strict=True)]
        return dict(zip(names, picks, strict=True))
    tried: dict[str, dict[Key, tuple[_Pick, Verdict]]] = {name: {} for name in names}
    bounds = dict.fromkeys(names, limit)
    accepted: dict[str, _Pick] = {}
    for attempt in range(loop.section.finish.attempts):
        wanted = {}
        for name in names:
            if name not in accepted:
                found = _next(loop, name, tried[name], bounds[name])
                if found is not None:
                    wanted[name] = found
        if not wanted:
            break
        # The same policy of two strategies is measured once.
        distinct = {track.evaluated[index].key: (track, index) for track, index in wanted.values()}
        epochs = dict(zip(distinct, _epochs(loop, list(distinct.values()), progress), strict=True))
        stage = loop.whole.measure(
            f"qualify-{attempt}",
            list(distinct.values()),
            loop.ground,
            loop.wall.cost,
            rounds=loop.section.finish.rounds,
            epochs=list(epochs.values()),
        )
        stages.append(stage.timed)
        loop.measured += stage.measurements
        by_key = {one.key: one for one in stage.measurements}
        for name, (track, index) in wanted.items():
            one = by_key[track.evaluated[index].key]
            pick = _Pick(track, index, epochs[one.key])
            verdict = one.verdict(limit)
            tried[name][one.key] = (pick, verdict)
            if verdict is Verdict.MET:
                accepted[name] = pick
                continue
            bounds[name] = _tighter(one, limit, bounds[name])
            _say(loop, progress, _why_not(name, one, verdict, limit, bounds[name]))
        loop.correct()
    return {name: accepted.get(name) or _least_bad(loop, name, tried[name]) for name in names}


def _next(
    loop: SearchLoop, name: str, tried: Mapping[Key, object], bound: float
) -> tuple[Track, int] | None:
    """Return a strategy's best policy that is predicted within `bound` and not known to be over."""
    over = {one.key for one in loop.measured if one.verdict(loop.ground.limit) is Verdict.OVER}
    for track, index in loop.ranked(name):
        key = track.evaluated[index].key
        if key not in tried and key not in over and total_of(loop.wall.cost, key) <= bound:
            return track, index
    return None


def _tighter(one: Measurement, limit: float, bound: float) -> float:
    """Return the prediction that the next policy must stay under, from how the last one missed."""
    if one.measured is None or one.high is None:
        return bound * TIGHTEN
    # Room for the interval's half, and for what the prediction was too low by.
    room = one.measured / one.high * min(1.0, one.predicted / one.measured)
    return min(bound * TIGHTEN, limit * room)


def _why_not(name: str, one: Measurement, verdict: Verdict, limit: float, bound: float) -> str:
    if one.measured is None:
        return f"{name}: evaluation {one.evaluation} could not be measured: {one.why}"
    high = one.measured if one.high is None else one.high
    said = "is over" if verdict is Verdict.OVER else "may be over"
    return (
        f"{name}: evaluation {one.evaluation} was predicted at {one.predicted / 1e3:.1f} us and "
        f"measured at {one.measured / 1e3:.1f} us (up to {high / 1e3:.1f}), which {said} the "
        f"budget of {limit / 1e3:.1f} us; next: its best one predicted under {bound / 1e3:.1f} us"
    )


def _least_bad(loop: SearchLoop, name: str, tried: Mapping[Key, tuple[_Pick, Verdict]]) -> _Pick:
    """Return the best that was tried; where nothing could be, what the search measured lowest."""
    if tried:
        return min(tried.values(), key=lambda one: _ORDER.index(one[1]))[0]
    measured = {
        one.key: one.measured
        for one in loop.measured
        if one.strategy == name and one.measured is not None
    }
    ranked = loop.ranked(name)
    found = [one for one in ranked if one[0].evaluated[one[1]].key in measured]
    if not found:
        return _Pick(*ranked[0], 0.0)
    return _Pick(*min(found, key=lambda one: measured[one[0].evaluated[one[1]].key]), 0.0)


def _narrow(loop: SearchLoop, picks: list[_Pick], progress: Progress) -> str:
    """Build the dense narrow network of as many MACs as the most accurate policy; return its id."""
    best = max(picks, key=lambda pick: pick.track.evaluated[pick.index].accuracy)
    macs = int(total_of(MacsModel(loop.domain), best.key))
    recipe = loop.whole.space.dense()
    recipe["step"] = [{"use": "narrow", "macs": macs}]
    progress.log(f"training a dense narrow network of at most {macs:,} MACs from scratch")
    try:
        with one_torch_thread():
            return loop.whole.bench.build("narrow", recipe).candidate_id
    except UsageError as error:
        _say(loop, progress, f"no dense narrow network at equal MACs: {error}")
        return ""


def _epochs(loop: SearchLoop, policies: list[tuple[Track, int]], progress: Progress) -> list[float]:
    """Return for each policy the epochs after which it is better on the validation split.

    A few epochs can make a well reconstructed network worse; then it stays as it was.
    """
    wanted = loop.section.finish.fine_tune_epochs
    if not wanted or not policies:
        return [0.0] * len(policies)
    plain = loop.whole.build(policies, [0.0] * len(policies))
    tuned = loop.whole.build(policies, [wanted] * len(policies))
    epochs = []
    for (track, index), before, after in zip(policies, plain, tuned, strict=True):
        better = after.accuracy >= before.accuracy
        epochs.append(wanted if better else 0.0)
        if not better:
            _say(
                loop,
                progress,
                f"{track.name}: evaluation {index} is left as pruned: {wanted:g} epochs of "
                f"fine-tuning took it from {before.accuracy:.4f} to {after.accuracy:.4f}",
            )
    return epochs


def _choose(finals: list[Final], loop: SearchLoop, progress: Progress) -> Measurement | None:
    met = [final.measurement for final in finals if final.verdict is Verdict.MET]
    if not met:
        _say(loop, progress, "no candidate was shown by measurement to meet the budget")
        return None
    return max(met, key=lambda one: (one.accuracy, -(one.measured or 0.0)))


def _say(loop: SearchLoop, progress: Progress, message: str) -> None:
    loop.messages.append(message)
    progress.log(message)
