"""The loop: batches, corrections by measurement, checkpoints and exact resume."""

from __future__ import annotations

import json

import pytest
import torch

from flatsat.errors import DataError, InfrastructureError, UsageError
from flatsat.harness.search.costs import total_of
from flatsat.harness.search.finish import finish
from flatsat.harness.search.history import Verdict
from flatsat.harness.search.note import detail_note, search_note
from flatsat.progress import NoProgress
from flatsat.reports.collect_search import search_from_note

LATENCY = {"quantity": "latency", "ratio": 0.4}
MACS = {"quantity": "macs", "ratio": 0.4}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _run(loop):
    loop.prepare()
    while not loop.finished:
        loop.batch()
    return loop


def _told(loop, ending=None):
    """Everything that a search says, less the time that it took."""
    note = search_note(loop, ending)
    for strategy in note["strategies"]:
        del strategy["cpu_s"]
    return json.dumps([note, detail_note(loop, ending)], sort_keys=True)


def test_every_strategy_gets_the_same_evaluations(small, make_section, make_bench, make_loop):
    loop = _run(make_loop(make_section(seeds=[0, 1]), make_bench(small)))
    assert [(t.name, t.seed) for t in loop.tracks] == [
        ("amc", 0),
        ("amc", 1),
        ("uniform", 0),
        ("random", 0),
        ("random", 1),
    ]
    assert {len(track.evaluated) for track in loop.tracks} == {18}
    limit = loop.ground.limit
    assert all(one.cost <= limit for track in loop.tracks for one in track.evaluated)


@pytest.mark.parametrize("budget", [MACS, LATENCY], ids=["macs", "latency"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_resumed_search_says_the_same_as_one_in_one_go(
    small, make_section, make_bench, make_loop, budget, stop
):
    section = make_section(budget=budget)
    whole = _run(make_loop(section, make_bench(small)))
    first = make_loop(section, make_bench(small))
    first.prepare()
    for _ in range(stop):
        first.batch()
    state = first.state()
    bench = make_bench(small)
    bench.keys = dict(first.whole.bench.keys)
    second = make_loop(section, bench)
    second.restore(state)
    assert second.state() == state
    while not second.finished:
        second.batch()
    assert bench.tables == 0
    assert _told(second, finish(second, NoProgress())) == _told(whole, finish(whole, NoProgress()))


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_lab_that_breaks_in_a_batch_costs_that_batch_only(
    small, make_section, make_bench, make_loop, fail_at
):
    section = make_section(budget=LATENCY)
    whole = _run(make_loop(section, make_bench(small)))
    broken = make_bench(small, fail_at=fail_at)
    first = make_loop(section, broken)
    first.prepare()
    state = first.state()
    with pytest.raises(ConnectionError):
        while not first.finished:
            first.batch()
            state = first.state()
    second = make_loop(section, broken)
    second.restore(state)
    while not second.finished:
        second.batch()
    assert _told(second) == _told(whole)


def test_measurements_correct_the_prediction_for_all(small, make_section, make_bench, make_loop):
    section = make_section(budget=LATENCY)
    loop = make_loop(section, make_bench(small))
    loop.prepare()
    # The dense network alone can't tell the fixed part from the layers.
    assert loop.correction.calibration.offset == 0.0
    assert loop.error is None
    while not loop.finished:
        loop.batch()
    last = [one for one in loop.measured if one.stage == "batch-2"]
    assert last
    for one in last:
        assert one.predicted == pytest.approx(one.measured, rel=0.03)
    assert loop.correction.calibration.points == 1 + len(loop.measured)
    assert loop.error < 0.2


def test_promising_candidates_are_measured_beside_the_dense_network(
    small, make_section, make_bench, make_loop
):
    section = make_section(budget=LATENCY, measure={"every": 6, "top": 2, "rounds": 2})
    bench = make_bench(small)
    loop = _run(make_loop(section, bench))
    stages = [name for name, _ in bench.log]
    assert stages == ["dense", "batch-0", "batch-1", "batch-2"]
    keys = [one.key for one in loop.measured]
    assert len(set(keys)) == len(keys), "nothing is measured twice"
    for name in section.strategies:
        first = [one for one in loop.measured if one.stage == "batch-0" and one.strategy == name]
        assert 1 <= len(first) <= 2
    # Drift that all of a round share is in no measurement: it was 10 % in the mean.
    for one in loop.measured:
        assert one.measured == pytest.approx(_anchored(loop, bench, one.key), rel=0.02)


def _anchored(loop, bench, key):
    table = loop.ground
    counts, full = key, tuple(loop.domain.full)
    return table.reference * _true(loop, bench, counts) / _true(loop, bench, full)


def _true(loop, bench, key):
    domain = loop.domain
    import numpy as np

    counts = np.array(key)
    inputs, outputs = domain.features_in(counts), domain.features_out(counts)
    return 500.0 + bench.factor * float((inputs * outputs).sum())


def test_a_budget_on_macs_measures_no_single_layer(small, make_section, make_bench, make_loop):
    bench = make_bench(small)
    loop = _run(make_loop(make_section(), bench))
    assert bench.tables == 0
    assert all(one.measured == one.predicted for one in loop.measured)
    ending = finish(loop, NoProgress())
    assert ending.verdict is Verdict.MET
    assert ending.chosen.measured <= loop.ground.limit


def test_a_search_without_a_board_still_ends_with_a_policy(
    small, make_section, make_bench, make_loop
):
    bench = make_bench(small, time_kind=None)
    section = make_section(budget={"quantity": "macs", "ratio": 0.4, "board": ""})
    loop = _run(make_loop(section, bench))
    ending = finish(loop, NoProgress())
    assert bench.log == []
    assert ending.chosen is not None
    assert ending.verdict is Verdict.MET


def test_a_budget_out_of_reach_is_refused_before_any_evaluation(
    small, make_section, make_bench, make_loop
):
    section = make_section(budget={"quantity": "latency", "ratio": 0.01})
    loop = make_loop(section, make_bench(small))
    with pytest.raises(UsageError, match="least reachable"):
        loop.prepare()
    assert all(not track.evaluated for track in loop.tracks)


def test_a_correction_that_leaves_no_policy_is_not_followed_and_said(
    small, make_section, make_bench, make_loop
):
    # The dense network tells nothing of a fixed part, which small networks can't get below.
    reference = total_of_dense(small)
    section = make_section(budget={"quantity": "latency", "limit": 0.13 * reference})
    loop = _run(make_loop(section, make_bench(small)))
    assert any("not corrected" in message for message in loop.messages)
    ending = finish(loop, NoProgress())
    assert ending.chosen is None
    assert ending.verdict is Verdict.OVER
    # What the checkpoint holds is the wall that was followed.
    again = make_loop(section, loop.whole.bench)
    again.restore(loop.state())
    assert again.wall.cost.scale == loop.wall.cost.scale
    assert again.messages == loop.messages


def total_of_dense(domain):
    return 500.0 + 1.3 * float(
        (domain.features_in(domain.full) * domain.features_out(domain.full)).sum()
    )


def test_a_board_that_cannot_run_the_dense_network_ends_the_search(
    small, make_section, make_bench, make_loop
):
    bench = make_bench(small, broken=lambda key: min(key) == 32)
    with pytest.raises(InfrastructureError, match="it crashed"):
        make_loop(make_section(budget=LATENCY), bench).prepare()


def test_a_candidate_that_fails_on_the_board_is_no_measurement(
    small, make_section, make_bench, make_loop
):
    bench = make_bench(small, broken=lambda key: key[0] < 20)
    loop = _run(make_loop(make_section(budget=LATENCY), bench))
    failed = [one for one in loop.measured if one.key[0] < 20]
    assert failed
    for one in failed:
        assert (one.measured, one.low, one.high, one.why) == (None, None, None, "it crashed")
        assert one.verdict(loop.ground.limit) is Verdict.FAILED
    assert loop.correction.calibration.points == 1 + len(loop.measured) - len(failed)


@pytest.mark.parametrize("change", [{"episodes": 19}, {"seeds": [5]}, {"name": "other"}])
def test_the_checkpoint_of_another_search_is_refused(
    small, make_section, make_bench, make_loop, change
):
    bench = make_bench(small)
    loop = make_loop(make_section(), bench)
    loop.prepare()
    with pytest.raises(DataError, match="another search"):
        make_loop(make_section(**change), bench).restore(loop.state())
    with pytest.raises(DataError):
        make_loop(make_section(), bench).restore(loop.state()[:-9])


def test_the_note_is_what_the_report_reads(small, make_section, make_bench, make_loop):
    section = make_section(budget=LATENCY)
    loop = make_loop(section, make_bench(small))
    loop.prepare()
    empty = search_from_note(json.loads(json.dumps(search_note(loop, None))))
    assert empty.chosen is None
    while not loop.finished:
        loop.batch()
    ending = finish(loop, NoProgress())
    report = search_from_note(json.loads(json.dumps(search_note(loop, ending))))
    assert (report.quantity, report.unit, report.board) == ("latency", "ns", "host")
    assert report.limit == pytest.approx(0.4 * report.reference)
    assert [layer[0] for layer in report.layers] == [choice.name for choice in small.choices]
    for strategy in report.strategies:
        assert len(strategy.reward) == len(strategy.cost) == 18
        assert len(strategy.best_ratios) == len(report.layers)
        track = next(t for t in loop.tracks if t.name == strategy.strategy)
        within = [one.reward for one in track.evaluated if loop.wall.within(one.key)]
        assert strategy.best_reward == max(within)
    assert report.chosen in {one.candidate_id for one in report.measured}
    detail = json.loads(json.dumps(detail_note(loop, ending)))
    costs = [point["cost"] for point in detail["pareto"]]
    accuracies = [point["accuracy"] for point in detail["pareto"]]
    assert costs == sorted(costs)
    assert accuracies == sorted(set(accuracies))
    assert detail["verdict"] == "met"


def test_predictions_follow_the_wall(small, make_section, make_bench, make_loop):
    loop = _run(make_loop(make_section(budget=LATENCY), make_bench(small)))
    for track in loop.tracks:
        last = track.evaluated[-1]
        # Predicted with the wall of its batch: the last correction is all that differs.
        assert total_of(loop.wall.cost, last.key) == pytest.approx(last.cost, rel=0.1)
