"""Begin each inference just after the system's timer tick, where time is counted instructions.

There the timer interrupt is all that disturbs an inference: 250 times a second it adds some 3,000
instructions. Whether an inference of half a tick's length meets one is chance, and where half of
them do, the median falls to either side from process to process. Begun at one phase of the tick,
every inference meets the same number of interrupts.

The tick shows as a gap between two readings of the clock. Looking for it is outside of what is
timed, and costs no more than one period of busy waiting.
"""

from __future__ import annotations

from typing import Callable

_READINGS = 256
_GAP = 4
"""A gap is a tick if it is so many times the usual distance of two readings ..."""
_LEAST_GAP_NS = 1500
"""... and so long at least: the interrupt takes 6 us at two nanoseconds an instruction."""
_MOST_NS = 50_000_000
"""After so long without any, the system has no tick and nothing needs aligning."""


def tick_waiter(clock: Callable[[], int]) -> Callable[[], None]:
    """Return a function that returns just after a timer tick.

    Args:
        clock: nanoseconds as an integer.
    """
    distances = []
    last = clock()
    for _ in range(_READINGS):
        now = clock()
        distances.append(now - last)
        last = now
    gap_ns = max(_LEAST_GAP_NS, _GAP * sorted(distances)[_READINGS // 2])

    def wait() -> None:
        last = clock()
        deadline = last + _MOST_NS
        while last < deadline:
            now = clock()
            if now - last > gap_ns:
                return
            last = now

    return wait
