"""Warm-up and the counted window: the only code that runs while a candidate is timed.

**Steady state.** After each four warm-up inferences the last 16 durations are split into an older
and a newer half of eight. The state is steady when both hold:

1. the lower quartile of the newer half (its second smallest value) lies within 5 % of the older
   half's: caches, allocators and clocks that are still warming up move it, and a busy machine moves
   it far less than a mean or a median;
2. there is no falling trend: either the newer quartile lies less than 0.5 % below the older one, or
   the Mann-Kendall count S of the 16 values (pairs that rise minus pairs that fall) is above -3
   standard deviations of its distribution without trend, sqrt(n (n - 1) (2 n + 5) / 18).

The test only multiplies and compares integers, so durations without any spread, as a clock that
counts instructions gives them, pass like others. Within `limit` inferences the test passes or is
reported as not reached; the window is counted either way and says which.
"""

from __future__ import annotations

from array import array
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

HALF = 8
"""Durations in each of the two halves that are compared."""
EVERY = 4
"""Inferences between two looks at the test."""
CLOSE_PERCENT = 5
"""How near, in percent, the two quartiles must lie."""
FALL_PERMILLE = 5
"""A smaller fall between the halves, in thousandths, is no trend."""


class WarmUp(NamedTuple):
    """What happened before the window.

    Attributes:
        values: every duration in ns, in order; never counted.
        steady: the steady-state test passed on the last durations.
        reason: in words, for the report.
    """

    values: array[int]
    steady: bool
    reason: str


def steady(values: Sequence[int]) -> Tuple[bool, str]:
    """Say whether the end of `values` (ns) is steady, and why.

    Complexity: constant in the length of `values`; 120 comparisons and two sorts of eight.
    """
    if len(values) < 2 * HALF:
        return False, "fewer than %d warm-up inferences" % (2 * HALF)
    last = list(values[-2 * HALF :])
    older, newer = _lower_quartile(last[:HALF]), _lower_quartile(last[HALF:])
    if abs(newer - older) * 100 > CLOSE_PERCENT * older:
        return False, "the lower quartile of the last %d moved by more than %d %%" % (
            HALF,
            CLOSE_PERCENT,
        )
    if newer * 1000 < older * (1000 - FALL_PERMILLE) and _falls(last):
        return False, "durations were still falling"
    return True, "the lower quartiles of the last two %ds lie within %d %%, without a fall" % (
        HALF,
        CLOSE_PERCENT,
    )


def _lower_quartile(values: Sequence[int]) -> int:
    return sorted(values)[(len(values) + 3) // 4 - 1]


def _falls(values: Sequence[int]) -> bool:
    """Return whether Mann-Kendall's S is at or below -3 standard deviations (no ties assumed)."""
    n = len(values)
    s = 0
    for i in range(n - 1):
        early = values[i]
        for late in values[i + 1 :]:
            s += (late > early) - (late < early)
    return s < 0 and 2 * s * s >= n * (n - 1) * (2 * n + 5)


def warm_up(
    call: Callable[[Any, Any], Any],
    args: Tuple[Any, Any],
    clock: Callable[[], int],
    rule: str,
    limit: int,
    wait: Optional[Callable[[], None]] = None,
) -> WarmUp:
    """Run uncounted inferences until the steady-state test passes or `limit` is reached.

    Args:
        call: one inference is `call(first, second)`. Called with `*args` it would take half a
            per cent longer for a model of 20 us.
        args: made before the window.
        clock: nanoseconds as an integer.
        rule: "steady", or "fixed" for exactly `limit` inferences whatever the test says.
        limit: the most inferences.
        wait: called before each inference, outside of what is timed.
    """
    first, second = args
    values = array("q")
    for _ in range(limit):
        if wait is not None:
            wait()
        begin = clock()
        call(first, second)
        end = clock()
        values.append(end - begin)
        if rule == "steady" and len(values) >= 2 * HALF and len(values) % EVERY == 0:
            passed, reason = steady(values)
            if passed:
                return WarmUp(values, True, reason)
    passed, reason = steady(values)
    if rule == "fixed":
        return WarmUp(values, passed, "fixed warm-up of %d: %s" % (limit, reason))
    if not passed:
        reason = "not reached in %d inferences: %s" % (limit, reason)
    return WarmUp(values, passed, reason)


def count(
    call: Callable[[Any, Any], Any],
    args: Tuple[Any, Any],
    clock: Callable[[], int],
    min_inferences: int,
    min_ns: int,
    wait: Optional[Callable[[], None]] = None,
) -> array[int]:
    """Return every duration (ns) of at least `min_inferences` inferences and `min_ns` in all.

    Room for the values is set aside beforehand and doubled when it runs out; that happens between
    two timed inferences, never in one. `wait` is called before each, outside of what is timed.
    """
    room = max(min_inferences, 1024)
    values = array("q", bytes(8 * room))
    done = 0
    first, second = args
    deadline = clock() + min_ns
    while True:
        for index in range(done, room):
            if wait is not None:
                wait()
            begin = clock()
            call(first, second)
            end = clock()
            values[index] = end - begin
            if end >= deadline and index + 1 >= min_inferences:
                return values[: index + 1]
        values.extend(array("q", bytes(8 * room)))
        done, room = room, 2 * room
