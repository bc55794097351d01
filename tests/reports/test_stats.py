"""Statistics against published values, other implementations, exact sums and seeded simulation."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.reports import resampling, stats
from flatsat.reports.stats import Interval

NUMBERS = st.floats(-1e6, 1e6)
POSITIVE = st.floats(1e-3, 1e9)


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


# Percentiles


@pytest.mark.parametrize(("q", "floor"), [(0.9, 64), (0.1, 64), (0.99, 662), (0.5, 1)])
def test_percentiles_need_the_samples_that_loadgen_asks_for(q: float, floor: int) -> None:
    assert stats.sample_floor(q) == floor
    assert stats.percentile(range(floor - 1), q) is None
    assert stats.percentile(range(floor), q) == np.quantile(np.arange(floor), q)


def test_no_samples_have_no_percentile() -> None:
    assert stats.percentile([], 0.5) is None


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, 50])
def test_a_percentile_is_a_share(q: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.percentile([1], q)


@pytest.mark.parametrize(("q", "n"), [(0.95, 59), (0.99, 299), (0.999, 2995), (0.5, 5)])
def test_an_upper_bound_exists_from_the_known_number_of_samples_on(q: float, n: int) -> None:
    assert stats.bound_floor(q) == n
    assert stats.percentile_bound(range(n), q) == n - 1
    assert stats.percentile_bound(range(n - 1), q) is None


def at_most(k: int, n: int, q: Fraction) -> Fraction:
    return sum((math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1)), Fraction(0))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 80), q=st.sampled_from([Fraction(1, 2), Fraction(9, 10), Fraction(19, 20)]))
def test_bounds_are_the_tightest_order_statistics_that_hold(n: int, q: Fraction) -> None:
    confidence = Fraction(95, 100)
    upper = stats.percentile_bound(range(1, n + 1), float(q), 0.95)
    holds = [r for r in range(1, n + 1) if at_most(r - 1, n, q) >= confidence]
    assert upper == (holds[0] if holds else None)
    lower = stats.percentile_bound(range(1, n + 1), float(q), 0.95, "lower")
    holds = [r for r in range(1, n + 1) if 1 - at_most(r - 1, n, q) >= confidence]
    assert lower == (holds[-1] if holds else None)


@given(st.lists(NUMBERS, max_size=120), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_lower_bound_mirrors_the_upper(values: list[float], q: float) -> None:
    lower = stats.percentile_bound(values, q, side="lower")
    upper = stats.percentile_bound([-value for value in values], 1 - q)
    assert (lower is None) == (upper is None)
    assert lower is None or lower == -upper  # type: ignore[operator]


def test_the_p99_bound_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    bounds = [stats.percentile_bound(rng.exponential(size=400), 0.99) for _ in range(400)]
    held = sum(bound is not None and bound >= -math.log(0.01) for bound in bounds)
    assert held / 400 >= 0.93


# Hierarchical bootstrap


def processes(
    rng: np.random.Generator, count: int, n: int, between: float, within: float
) -> list[np.ndarray]:
    return [1e6 + rng.normal(0, between) + rng.normal(0, within, n) for _ in range(count)]


def test_equal_seeds_give_equal_intervals() -> None:
    groups = processes(np.random.default_rng(0), 5, 80, 100, 100)
    assert stats.bootstrap_ci(groups, 0.5, seed=3) == stats.bootstrap_ci(groups, 0.5, seed=3)
    assert stats.bootstrap_ci(groups, 0.5, seed=3) != stats.bootstrap_ci(groups, 0.5, seed=4)


def test_several_statistics_at_once_are_the_same_as_one_by_one() -> None:
    groups = processes(np.random.default_rng(0), 6, 200, 100, 100)
    wanted = (0.1, 0.5, 0.9, "mean")
    together = stats.bootstrap_cis(groups, wanted)
    assert together == tuple(stats.bootstrap_ci(groups, stat) for stat in wanted)


@pytest.mark.parametrize("stat", [0.1, 0.5, 0.9, "mean"])
def test_data_without_spread_have_an_interval_without_width(stat: stats.Statistic) -> None:
    found = stats.bootstrap_ci([[7.0] * 40] * 4, stat)
    assert found is not None
    assert (found.value, found.n, found.groups) == (7, 160, 4)
    assert ends(found) == (pytest.approx(7, rel=1e-6), pytest.approx(7, rel=1e-6))


def test_one_process_vouches_for_no_other() -> None:
    found = stats.bootstrap_ci([[1, 2, 3, 4], []], 0.5)
    assert found == Interval(2.5, None, None, 0.95, 4, 1)
    assert found.half_width is None


def test_a_percentile_without_enough_samples_is_not_available() -> None:
    p50, p90, p99 = stats.bootstrap_cis([range(40), range(40)], (0.5, 0.9, 0.99))
    assert p50 is not None
    assert p90 is not None
    assert p99 is None
    assert stats.bootstrap_cis([], (0.5, "mean")) == (None, None)


def test_two_processes_span_what_either_says() -> None:
    low, high = ends(stats.bootstrap_ci([[10.0] * 50, [12.0] * 50], 0.5))
    assert (low, high) == (10, 12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 10**9), min_size=1, max_size=30), min_size=2, max_size=6),
    st.sampled_from([0.5, "mean"]),
    st.sampled_from([2.0, 1024.0]),
)
def test_intervals_hold_their_value_and_follow_the_unit(
    groups: list[list[int]], stat: stats.Statistic, unit: float
) -> None:
    found = stats.bootstrap_ci(groups, stat, n=200)
    assert found is not None
    low, high = ends(found)
    assert min(map(min, groups)) * (1 - 1e-9) <= low <= found.value <= high
    assert high <= max(map(max, groups)) * (1 + 1e-9)
    scaled = ends(stats.bootstrap_ci([[unit * v for v in g] for g in groups], stat, n=200))
    assert scaled == pytest.approx((unit * low, unit * high), rel=1e-9)


def naive(groups: list[np.ndarray], q: float, n: int) -> np.ndarray:
    """The same bootstrap, drawn sample by sample."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(n):
        chosen = [groups[i] for i in rng.integers(0, len(groups), len(groups))]
        drawn = [group[rng.integers(0, len(group), len(group))] for group in chosen]
        found.append(np.quantile(np.concatenate(drawn), q))
    return np.array(found)


@pytest.mark.parametrize(("count", "n", "q"), [(8, 30, 0.5), (6, 1500, 0.5), (6, 1500, 0.9)])
def test_replicates_spread_like_those_of_the_plain_bootstrap(count: int, n: int, q: float) -> None:
    groups = processes(np.random.default_rng(5), count, n, 60, 100)
    quick = resampling.replicates(groups, (q,), 3000, 0)[0]
    plain = naive(groups, q, 800)
    assert quick.mean() == pytest.approx(plain.mean(), abs=0.15 * plain.std())
    assert quick.std() == pytest.approx(plain.std(), rel=0.12)


def test_within_process_spread_is_not_lost_by_cutting_into_cells() -> None:
    groups = processes(np.random.default_rng(6), 6, 3000, 0, 100)
    quick = resampling.replicates(groups, ("mean", 0.5), 3000, 0)
    plain = naive(groups, 0.5, 300)
    assert quick[1].std() == pytest.approx(plain.std(), rel=0.25)
    means = np.array([group.mean() for group in groups])
    expected = math.sqrt(means.var() / 6 + 100**2 / 18_000)
    assert quick[0].std() == pytest.approx(expected, rel=0.15)


def test_intervals_cover_the_truth_where_processes_differ() -> None:
    rng = np.random.default_rng(2)
    covered = ignorant = 0
    rounds = 150
    for seed in range(rounds):
        groups = processes(rng, 10, 100, 100, 100)
        low, high = ends(stats.bootstrap_ci(groups, 0.5, n=500, seed=seed))
        covered += low <= 1e6 <= high
        pooled = np.concatenate(groups)
        half = 1.96 * 1.2533 * pooled.std() / math.sqrt(pooled.size)
        ignorant += abs(float(np.median(pooled)) - 1e6) <= half
    assert 0.90 <= covered / rounds <= 1
    assert ignorant / rounds < 0.5  # what an interval that ignores processes would give


# Shares


# Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I.
@pytest.mark.parametrize(
    ("successes", "n", "score", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_shares_have_the_published_intervals(
    successes: int, n: int, score: tuple[float, float], exact: tuple[float, float]
) -> None:
    assert ends(stats.wilson(successes, n)) == pytest.approx(score, abs=5.1e-5)
    bounds = [stats.share_bound(successes, n, 0.975, side) for side in ("lower", "upper")]
    assert bounds == pytest.approx(exact, abs=5.1e-5)


@given(st.integers(1, 10_000), st.data())
def test_a_share_and_its_complement_have_mirrored_intervals(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = ends(stats.wilson(k, n))
    assert 0 <= low <= k / n <= high <= 1
    assert ends(stats.wilson(n - k, n)) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        stats.wilson(successes, n)
    with pytest.raises(ValueError, match="no share"):
        stats.share_bound(successes, n)


def answers(n: int, gained: int, lost: int) -> tuple[np.ndarray, np.ndarray]:
    """Answers of a reference and of a candidate that gained and lost so many images."""
    reference, candidate = np.ones(n, bool), np.ones(n, bool)
    reference[:gained] = False
    candidate[gained : gained + lost] = False
    return reference, candidate


def test_a_paired_difference_by_hand() -> None:
    # Bonett and Price with 3 gained and 9 lost of 100: shares (3 + 1) / 102 and (9 + 1) / 102.
    found = stats.paired_difference(*answers(100, 3, 9))
    assert found.value == pytest.approx(-0.06)
    centre, half = -6 / 102, 1.959964 * math.sqrt((14 / 102 - (6 / 102) ** 2) / 102)
    assert ends(found) == pytest.approx((centre - half, centre + half), abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_swapping_the_sides_mirrors_a_paired_difference(pairs: list[tuple[bool, bool]]) -> None:
    left, right = zip(*pairs, strict=True)
    there, back = stats.paired_difference(left, right), stats.paired_difference(right, left)
    low, high = ends(there)
    assert there.value == -back.value
    assert ends(back) == pytest.approx((-high, -low))
    assert -1 <= low <= there.value <= high <= 1


def test_answers_to_different_images_are_not_paired() -> None:
    with pytest.raises(ValueError, match="paired"):
        stats.paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="paired"):
        stats.paired_difference([], [])


def test_a_thousand_images_cannot_show_half_a_point_but_ten_thousand_three_tenths() -> None:
    few = stats.paired_difference(*answers(1_000, 10, 10))
    many = stats.paired_difference(*answers(10_000, 100, 100))
    assert not stats.is_non_inferior(few, 0.005)
    assert stats.is_non_inferior(many, 0.003)
    assert not stats.is_non_inferior(many, 0.002)


def test_paired_differences_cover_the_truth() -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(600):
        kind = rng.choice(3, size=1000, p=[0.97, 0.02, 0.01])  # equal, lost, gained
        low, high = ends(stats.paired_difference(kind != 2, kind != 1))
        covered += low <= -0.01 <= high
    assert covered / 600 >= 0.93


# Ratios


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=30))
def test_the_mean_log_ratio_is_students_interval_on_logs(pairs: list[tuple[float, float]]) -> None:
    top, bottom = zip(*pairs, strict=True)
    found = stats.mean_log_ratio(top, bottom)
    logs = [math.log(a) - math.log(b) for a, b in pairs]
    half = scipy.stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    expected = (mean - half, mean + half)
    assert tuple(map(math.log, ends(found))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # SciPy's, on equal values
@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=20),
    st.lists(st.integers(1, 1000), min_size=2, max_size=20),
)
def test_unpaired_ratios_are_welchs_interval_on_logs(top: list[int], bottom: list[int]) -> None:
    found = ends(stats.unpaired_log_ratio(top, bottom))
    left, right = np.log(top), np.log(bottom)
    if left.std() + right.std() < 1e-9:
        assert found == pytest.approx((top[0] / bottom[0],) * 2)
        return
    interval = scipy.stats.ttest_ind(left, right, equal_var=False).confidence_interval(0.95)
    assert tuple(map(math.log, found)) == pytest.approx(tuple(interval), abs=1e-6)


def test_equal_ratios_have_no_spread_and_one_round_no_interval() -> None:
    assert ends(stats.mean_log_ratio([2, 4, 8], [1, 2, 4])) == pytest.approx((2, 2))
    assert stats.mean_log_ratio([2], [1]) == Interval(2, None, None, 0.95, 1, 1)
    assert stats.mean_log_ratio([], []) is None
    assert stats.unpaired_log_ratio([2], [1, 1]) == Interval(2, None, None, 0.95, 3, 3)
    assert stats.unpaired_log_ratio([], [1]) is None


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_a_ratio_needs_positive_values(bad: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        stats.mean_log_ratio([1, bad], [1, 1])
    with pytest.raises(ValueError, match="positive"):
        stats.unpaired_log_ratio([1, 1], [bad])
    with pytest.raises(ValueError, match="paired"):
        stats.mean_log_ratio([1, 1], [1])


def test_one_sided_bounds_of_a_mean() -> None:
    values = [3.0, 4.0, 5.0, 9.0]
    half = scipy.stats.t.ppf(0.95, 3) * statistics.stdev(values) / 2
    assert stats.mean_bound(values) == pytest.approx(5.25 + half)
    assert stats.mean_bound(values, side="lower") == pytest.approx(5.25 - half)
    assert stats.mean_bound([1.0, 1.0]) == 1
    assert stats.mean_bound([1.0]) is None


# Ranks


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=40))
def test_spearman_agrees_with_scipy_on_ties(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    found = stats.spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-9)
    low, high = ends(found)
    assert -1 <= low <= found.value <= high <= 1


def test_spearman_of_few_points_is_not_available() -> None:
    assert stats.spearman([1, 2, 3], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="paired"):
        stats.spearman([1, 2], [1])


def test_four_points_in_order_prove_little_and_a_hundred_much() -> None:
    low, high = ends(stats.spearman(range(4), range(4)))
    assert low < 0
    assert high == 1
    low, high = ends(stats.spearman(range(100), range(100)))
    assert low > 0.99
    low, high = ends(stats.spearman(range(4), range(4, 0, -1)))
    assert (low, high > 0) == (-1, True)


def test_spearmans_interval_by_hand() -> None:
    x, y = list(range(20)), [*range(10, 20), *range(10)]
    found = stats.spearman(x, y)
    assert found is not None
    rho = scipy.stats.spearmanr(x, y).statistic
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 17)
    expected = (math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half))
    assert ends(found) == pytest.approx(expected, abs=1e-6)


POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=25)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, int]]) -> None:
    front = stats.pareto_front(points, ("minimise", "maximise", "minimise"))
    as_less = [(a, -b, c) for a, b, c in points]

    def beaten(p: tuple[int, ...]) -> bool:
        return any(q != p and all(s <= t for s, t in zip(q, p, strict=True)) for q in as_less)

    assert front.tolist() == [not beaten(p) for p in as_less]


def test_a_point_without_a_value_is_never_on_the_front_and_beats_nobody() -> None:
    points = [(1, math.nan), (2, 5), (3, 1)]
    assert stats.pareto_front(points, ("minimise", "maximise")).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="directions"):
        stats.pareto_front(points, ("minimise",))
