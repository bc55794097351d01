"""Steady state and the counted window, on scripted clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.targets.agent.window import HALF, count, steady, warm_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NEEDED = 2 * HALF
durations = st.integers(1_000, 10**10)


class Script:
    """A call whose inferences take the given durations on this script's clock, then the last."""

    def __init__(self, values: Iterable[int]) -> None:
        self._values: Iterator[int] = iter(values)
        self._last = 1
        self.now = 10**15
        self.calls = 0

    def clock(self) -> int:
        return self.now

    def call(self, _first: object = None, _second: object = None) -> None:
        self._last = next(self._values, self._last)
        self.now += self._last
        self.calls += 1


def warmed(values: Iterable[int], limit: int, rule: str = "steady"):
    script = Script(values)
    return warm_up(script.call, (None, None), script.clock, rule, limit)


@given(durations, st.integers(NEEDED, 300))
def test_a_constant_series_passes_at_once(value: int, limit: int) -> None:
    result = warmed([value] * 300, limit)
    assert result.steady
    assert list(result.values) == [value] * NEEDED


def test_a_clock_that_does_not_tick_passes_too() -> None:
    assert steady([0] * NEEDED)[0]


@given(durations, st.floats(0.8, 0.998), st.integers(20, 60))
def test_a_falling_series_does_not_pass(start: int, factor: float, length: int) -> None:
    series = [start * 10**6]
    for _ in range(length):
        series.append(int(series[-1] * factor))
    assert not steady(series)[0]


@given(durations, st.floats(1.06, 3.0), st.lists(durations, max_size=50))
def test_a_step_between_the_halves_does_not_pass(
    low: int, factor: float, before: list[int]
) -> None:
    high = int(low * factor) + 1
    assert not steady([*before, *[low] * HALF, *[high] * HALF])[0]
    assert not steady([*before, *[high] * HALF, *[low] * HALF])[0]


@given(
    durations,
    st.lists(st.integers(0, 100), min_size=NEEDED, max_size=NEEDED),
)
def test_bursts_of_a_busy_machine_do_not_matter(base: int, noise: list[int]) -> None:
    # Three of each eight values are ten times too long; the others scatter by at most 0.1 %.
    series = [base * (1000 + n // 100) // 1000 for n in noise]
    for start in (0, HALF):
        for late in (2, 4, 7):
            series[start + late] *= 10
    assert steady(series)[0]


@given(st.lists(durations, max_size=NEEDED - 1))
def test_too_few_values_never_pass(values: list[int]) -> None:
    passed, reason = steady(values)
    assert not passed
    assert str(NEEDED) in reason


@given(st.integers(0, 120))
def test_the_limit_is_kept_and_told(limit: int) -> None:
    falling = [10**9 - i * 10**6 for i in range(400)]
    result = warmed(falling, limit)
    assert len(result.values) == limit
    assert not result.steady
    assert f"not reached in {limit} inferences" in result.reason


def test_a_fixed_warm_up_runs_all_and_says_what_the_test_thinks() -> None:
    result = warmed([5000] * 50, 50, "fixed")
    assert (len(result.values), result.steady) == (50, True)
    assert result.reason.startswith("fixed warm-up of 50: ")


def test_slow_first_inferences_end_in_the_warm_up() -> None:
    result = warmed([90_000, 30_000, *[10_000] * 300], 300)
    assert result.steady
    assert list(result.values)[:2] == [90_000, 30_000]


@given(st.integers(1, 60), st.integers(0, 2_000), st.lists(durations, min_size=1, max_size=20))
def test_the_window_holds_both_minima_and_keeps_every_value(
    minimum: int, min_us: int, cycle: list[int]
) -> None:
    values = [cycle[i % len(cycle)] for i in range(3000)]
    script = Script(values)
    counted = list(count(script.call, (None, None), script.clock, minimum, min_us * 1000))
    assert counted == values[: len(counted)]
    assert script.calls == len(counted)
    assert len(counted) >= minimum
    assert sum(counted) >= min_us * 1000
    # One less would have broken a minimum.
    assert len(counted) == minimum or sum(counted[:-1]) < min_us * 1000


@pytest.mark.parametrize("inferences", [1023, 1024, 1025, 5000])
def test_room_for_values_grows_without_a_gap(inferences: int) -> None:
    script = Script(range(1, 10_000))
    assert list(count(script.call, (None, None), script.clock, inferences, 0)) == list(
        range(1, inferences + 1)
    )
