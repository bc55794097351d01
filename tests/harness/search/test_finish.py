"""The end: what the best policies are worth is said by measurement, not by prediction."""

from __future__ import annotations

import pytest
import torch

from flatsat.harness.search.bench import Timed, relative
from flatsat.harness.search.finish import finish
from flatsat.harness.search.history import Measurement, Verdict
from flatsat.progress import NoProgress


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _measurement(measured, low, high):
    return Measurement("c", "amc", 0, 0, (1,), "s", 0.5, 0.5, False, 1.0, None, measured, low, high)


@pytest.mark.parametrize(
    ("measured", "low", "high", "verdict"),
    [
        (90.0, 85.0, 95.0, Verdict.MET),
        (100.0, 99.0, 100.0, Verdict.MET),
        (99.0, 97.0, 101.0, Verdict.UNCLEAR),
        (101.0, 99.0, 103.0, Verdict.UNCLEAR),
        (110.0, 105.0, 115.0, Verdict.OVER),
        (None, None, None, Verdict.FAILED),
        (100.0, None, None, Verdict.MET),
        (100.1, None, None, Verdict.OVER),
    ],
)
def test_the_end_of_the_interval_decides(measured, low, high, verdict):
    assert _measurement(measured, low, high).verdict(100.0) is verdict


def test_the_ratio_to_the_dense_network_is_free_of_drift():
    dense = Timed({0: 100.0, 1: 200.0, 2: 400.0})
    half = Timed({0: 50.0, 1: 100.0, 2: 200.0})
    found = relative(half, dense, 1000.0)
    assert (found.value, found.low, found.high) == pytest.approx((500.0, 500.0, 500.0))
    assert relative(half, None).value == pytest.approx(100.0)
    assert relative(half, None).low < 60
    assert relative(Timed({}), dense) is None
    # Only rounds that both have count.
    assert relative(Timed({2: 100.0, 7: 1.0}), dense, 8.0).value == pytest.approx(2.0)


def _finished(loop):
    loop.prepare()
    while not loop.finished:
        loop.batch()
    return finish(loop, NoProgress())


def test_the_chosen_candidate_meets_the_budget_by_measurement(
    small, make_section, make_bench, make_loop
):
    loop = make_loop(make_section(budget={"quantity": "latency", "ratio": 0.5}), make_bench(small))
    ending = _finished(loop)
    assert ending.verdict is Verdict.MET
    assert ending.chosen.high <= loop.ground.limit
    assert ending.chosen.stage == "final"
    met = [final for final in ending.finals if final.verdict is Verdict.MET]
    assert ending.chosen.accuracy == max(final.measurement.accuracy for final in met)


def test_a_policy_that_is_over_gives_way_to_one_predicted_tighter_and_it_is_said(
    small, make_section, make_bench, make_loop
):
    # No measurement during the search: the first prediction has nothing but the dense network.
    section = make_section(
        budget={"quantity": "latency", "ratio": 0.4},
        measure={"every": 18, "top": 0, "rounds": 3},
        finish={"rounds": 4, "attempts": 8, "equal_macs": False},
    )
    bench = make_bench(small)
    loop = make_loop(section, bench)
    ending = _finished(loop)
    qualified = [one for one in loop.measured if one.stage.startswith("qualify")]
    assert any(one.verdict(loop.ground.limit) is Verdict.OVER for one in qualified)
    assert any("over the budget" in message for message in loop.messages)
    assert len([name for name, _ in bench.log if name.startswith("qualify")]) > 1
    assert ending.verdict is Verdict.MET
    assert ending.chosen.measured <= loop.ground.limit


def test_a_noisy_board_makes_the_verdict_unclear(small, make_section, make_bench, make_loop):
    section = make_section(
        budget={"quantity": "latency", "ratio": 0.5},
        finish={"rounds": 2, "attempts": 1, "equal_macs": False},
        strategies=["uniform"],
    )
    bench = make_bench(small, noise=0.2)
    ending = _finished(make_loop(section, bench))
    assert ending.chosen is None
    assert ending.verdict in (Verdict.UNCLEAR, Verdict.OVER)


def test_accuracy_on_the_test_split_is_asked_for_in_the_last_comparison_only(
    small, make_section, make_bench, make_loop
):
    asked = []

    class Watching(make_bench):
        def measure(self, comparison, candidate_ids, *, rounds, accuracy=False):
            asked.append((comparison, accuracy))
            return super().measure(comparison, candidate_ids, rounds=rounds, accuracy=accuracy)

    section = make_section(budget={"quantity": "latency", "ratio": 0.5})
    ending = _finished(make_loop(section, Watching(small)))
    assert [name for name, accuracy in asked if accuracy] == ["final"]
    assert asked[-1] == ("final", True)
    assert all(final.accuracy_board is not None for final in ending.finals)


def test_fine_tuning_that_makes_a_network_worse_is_not_kept(
    small, make_section, make_bench, make_loop
):
    class Spoiling(make_bench):
        def build(self, name, recipe):
            built = super().build(name, recipe)
            spoilt = any(step["use"] == "fine-tune" for step in recipe.get("step", []))
            return type(built)(
                built.candidate_id, built.accuracy * (0.9 if spoilt else 1.0), built.macs
            )

    section = make_section(
        finish={"fine_tune_epochs": 2, "rounds": 2, "attempts": 1, "equal_macs": False}
    )
    loop = make_loop(section, Spoiling(small))
    ending = _finished(loop)
    assert not ending.chosen.fine_tuned
    assert any("left as pruned" in message for message in loop.messages)
    kept = _finished(make_loop(section, make_bench(small)))
    assert kept.chosen.fine_tuned


def test_the_dense_narrow_network_stands_in_the_last_comparison(
    small, make_section, make_bench, make_loop
):
    built = []

    class Watching(make_bench):
        def build(self, name, recipe):
            built.append((name, recipe))
            return super().build(name, recipe)

    section = make_section(finish={"rounds": 2, "attempts": 1, "equal_macs": True})
    bench = Watching(small)
    loop = make_loop(section, bench)
    ending = _finished(loop)
    (recipe,) = [recipe for name, recipe in built if name == "narrow"]
    best = max((f.measurement for f in ending.finals), key=lambda one: one.reward)
    assert recipe["step"] == [{"use": "narrow", "macs": int(best.measured)}]
    assert ending.narrow_id in bench.keys
    assert bench.log[-1] == ("final", 2 + len({f.measurement.key for f in ending.finals}))
