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
        measurement: of its candidate in the last comparison; None where none could be measured.
        verdict: of that measurement.
        accuracy_board: on the test images, on the board; None without a board.
    """

    strategy: str
    measurement: Measurement | None
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


def finish(loop: SearchLoop, progress: Progress) -> Ending:
    """Find each strategy's best policy that holds the budget, fine-tune, measure, choose.

    The test split is run in the last comparison only, and the choice does not look at it.
    """
    picked = _qualify(loop, progress)
    section = loop.section
    policies = [found for found in picked.values() if found is not None]
    narrow_id = _narrow(loop, policies, progress) if section.finish.equal_macs else ""
    epochs = _epochs(loop, policies, progress)
    stage = loop.whole.measure(
        "final",
        policies,
        loop.ground,
        loop.wall.cost,
        rounds=section.finish.rounds,
        epochs=epochs,
        accuracy=True,
        beside=(narrow_id,) if narrow_id else (),
    )
    by_key = {(one.strategy, one.key): one for one in stage.measurements}
    loop.measured += stage.measurements
    finals = []
    for name, found in picked.items():
        if found is None:
            finals.append(Final(name, None, Verdict.FAILED))
            continue
        one = by_key[name, _key(found)]
        timed = stage.timed.get(one.candidate_id)
        accuracy = None if timed is None else timed.accuracy
        finals.append(Final(name, one, one.verdict(loop.ground.limit), accuracy))
    chosen = _choose(finals, loop, progress)
    verdict = min((final.verdict for final in finals), key=_ORDER.index, default=Verdict.FAILED)
    return Ending(tuple(finals), chosen, narrow_id, verdict)


def _key(found: tuple[Track, int]) -> Key:
    track, index = found
    return track.evaluated[index].key


def _qualify(loop: SearchLoop, progress: Progress) -> dict[str, tuple[Track, int] | None]:
    """Return each strategy's best policy that meets the budget.

    MACs are exact. A latency must be measured: a policy that is over the budget, or whose interval
    holds it, gives way to the strategy's next best that is predicted lower, as often as the file
    allows; then the best that was tried stays, and its verdict says what it is.
    """
    names = loop.section.strategies
    limit = loop.ground.limit
    if loop.ground.table is None or limit is None:
        return {name: next(iter(loop.ranked(name)), None) for name in names}
    tried: dict[str, dict[Key, tuple[tuple[Track, int], Verdict]]] = {name: {} for name in names}
    bounds = dict.fromkeys(names, limit)
    accepted: dict[str, tuple[Track, int]] = {}
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
        distinct = {_key(found): found for found in wanted.values()}
        stage = loop.whole.measure(
            f"qualify-{attempt}",
            list(distinct.values()),
            loop.ground,
            loop.wall.cost,
            rounds=loop.section.finish.rounds,
        )
        loop.measured += stage.measurements
        by_key = {one.key: one for one in stage.measurements}
        for name, found in wanted.items():
            one = by_key[_key(found)]
            verdict = one.verdict(limit)
            tried[name][one.key] = (found, verdict)
            if verdict is Verdict.MET:
                accepted[name] = found
                continue
            bounds[name] = _tighter(one, limit, bounds[name])
            _say(loop, progress, _why_not(name, one, verdict, limit, bounds[name]))
        loop.correct()
    return {name: accepted.get(name) or _least_bad(tried[name]) for name in names}


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


def _least_bad(
    tried: Mapping[Key, tuple[tuple[Track, int], Verdict]],
) -> tuple[Track, int] | None:
    if not tried:
        return None
    return min(tried.values(), key=lambda one: _ORDER.index(one[1]))[0]


def _narrow(loop: SearchLoop, policies: list[tuple[Track, int]], progress: Progress) -> str:
    """Build the dense narrow network of as many MACs as the most accurate policy; return its id."""
    if not policies:
        return ""
    track, index = max(policies, key=lambda found: found[0].evaluated[found[1]].accuracy)
    macs = int(total_of(MacsModel(loop.domain), track.evaluated[index].key))
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
    met = [
        final.measurement
        for final in finals
        if final.measurement is not None and final.verdict is Verdict.MET
    ]
    if not met:
        _say(loop, progress, "no candidate was shown by measurement to meet the budget")
        return None
    return max(met, key=lambda one: (one.accuracy, -(one.measured or 0.0)))


def _say(loop: SearchLoop, progress: Progress, message: str) -> None:
    loop.messages.append(message)
    progress.log(message)
