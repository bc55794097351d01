import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.reports import words
from flatsat.reports.model import Estimate


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (850, "850 ns"),
        (999.6, "1.00 µs"),
        (118_234, "118 µs"),
        (1_240_000, "1.24 ms"),
        (1_200_000_000, "1.20 s"),
        (None, "\u2013"),
    ],
)
def test_durations_have_three_figures_and_a_unit_that_suits(ns, text):
    assert words.duration(ns) == text.replace(" ", "\u00a0")


@given(st.floats(1e-3, 1e15))
def test_no_number_is_written_with_an_exponent_or_more_than_a_thousandth_off(value):
    text = words.figures(value)
    assert "e" not in text or value < 1e-3
    assert float(text.replace(",", "")) == pytest.approx(value, rel=5.001e-3)


@given(st.floats(0, 1e16), st.sampled_from([words.duration, words.size, words.count]))
def test_scaled_numbers_stay_short(value, say):
    number = re.split("\u00a0", say(value))[0]
    assert float(number.replace(",", "")) < 1000 or value >= 0.9995e12


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.012, "+1.2"), (-0.0031, "\u22120.3"), (-0.0002, "0.0"), (0.0, "0.0")],
)
def test_points_are_signed_but_for_zero(share, text):
    assert words.points(share) == text


def test_a_percentile_without_enough_samples_says_how_many_it_needs():
    assert words.missing(Estimate(None, n=40, needs=662)) == "not available (n=40 < 662)"


def test_an_interval_is_told_in_the_unit_of_its_value():
    assert words.interval_ns(Estimate(118_000, 116_000, 121_400, 900)) == "116 to 121"
    assert words.interval_ns(Estimate(118_000)) == ""


def test_a_moment_is_told_in_utc_and_nonsense_as_it_is():
    assert words.moment("2026-11-24T23:10:00.000000+00:00") == "24 Nov 2026, 23:10 UTC"
    assert words.moment("yesterday") == "yesterday"
    assert words.moment(None) == "\u2013"
