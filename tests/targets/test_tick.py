"""Inferences begin just after the timer tick where time is counted instructions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flatsat.targets.agent.tick import tick_waiter
from flatsat.targets.agent.window import count, warm_up

PERIOD_NS = 4_000_000
TICK_NS = 6_600


class Guest:
    """A clock that advances with each reading, and by an interrupt each time a period is over."""

    def __init__(self, reading_ns: int, phase_ns: int, tick_ns: int = TICK_NS) -> None:
        self.now = 0
        self.reading_ns = reading_ns
        self.next_tick = phase_ns
        self.tick_ns = tick_ns
        self.ticks = 0

    def advance(self, ns: int) -> None:
        self.now += ns
        while self.tick_ns and self.now >= self.next_tick:
            self.now += self.tick_ns
            self.next_tick += PERIOD_NS
            self.ticks += 1

    def clock(self) -> int:
        self.advance(self.reading_ns)
        return self.now


@given(
    phase_ns=st.integers(1, PERIOD_NS),
    reading_ns=st.sampled_from([200, 352, 800]),
    work_ns=st.integers(1_000, 9_000_000),
)
def test_every_inference_meets_the_same_number_of_ticks(
    phase_ns: int, reading_ns: int, work_ns: int
) -> None:
    guest = Guest(reading_ns, phase_ns)
    wait = tick_waiter(guest.clock)

    def call(_first: object, _second: object) -> None:
        guest.advance(work_ns)

    values = count(call, (None, None), guest.clock, 8, 0, wait)
    assert len(values) == 8
    # Two readings of the clock apart, the phase is known no better.
    edge = work_ns % PERIOD_NS
    if 4 * reading_ns < edge < PERIOD_NS - 4 * reading_ns - TICK_NS:
        ticks = work_ns // PERIOD_NS
        assert set(values) == {work_ns + reading_ns + ticks * TICK_NS}


def test_a_system_without_a_tick_is_measured_all_the_same() -> None:
    guest = Guest(352, 1, tick_ns=0)
    wait = tick_waiter(guest.clock)
    warm = warm_up(
        lambda _a, _b: guest.advance(10_000), (None, None), guest.clock, "fixed", 3, wait
    )
    assert list(warm.values) == [10_352] * 3
