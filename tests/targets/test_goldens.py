"""Agreement by each policy, and rows run through models of any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.targets.agent.faults import AgentFault
from flatsat.targets.agent.goldens import check_goldens, compare, run_rows
from flatsat.targets.agent.inputs import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

REF = np.array([[1.0, 2.0, 3.0], [9.0, 5.0, 1.0]], np.float32)
DECISION = {"kind": "decision", "quantum": 0.5, "p99_quanta": 2.0, "top1": 0.99}


class Doubler:
    """Gives twice its first input, and remembers how long its batches were."""

    def __init__(self, *infos: TensorInfo) -> None:
        self.inputs = infos
        self.outputs = (TensorInfo("out", "float32", ("batch", 2)),)
        self.batches: list[int] = []

    def run(self, feed: Mapping[str, Any]) -> list[Any]:
        first = feed[self.inputs[0].name]
        self.batches.append(len(first))
        return [first * 2]

    def bind(self, feed: Mapping[str, Any]) -> Any:
        return self.run, (feed,)

    def end_profile(self) -> None:
        return None


def test_equal_outputs_pass_every_policy() -> None:
    for policy in ({"kind": "bit"}, {"kind": "tol", "max_rel": 0.0}, DECISION):
        result = compare([REF], [REF], policy)
        assert result["ok"]
        assert (result["max_abs"], result["max_rel"], result["top1_agree"]) == (0.0, 0.0, 1.0)
        assert result["n"] == 2


def test_tolerance_is_relative_to_the_largest_reference() -> None:
    got = REF + np.float32(0.009)
    result = compare([got], [REF], {"kind": "tol", "max_rel": 1.01e-3})
    assert result["ok"]
    assert result["max_rel"] == pytest.approx(0.001, rel=1e-3)
    assert not compare([got], [REF], {"kind": "tol", "max_rel": 0.9e-3})["ok"]


def test_one_bit_breaks_the_bit_policy_only() -> None:
    got = np.nextafter(REF, np.float32(np.inf))
    assert not compare([got], [REF], {"kind": "bit"})["ok"]
    assert compare([got], [REF], {"kind": "tol", "max_rel": 1e-4})["ok"]


def test_minus_zero_is_another_bit_pattern() -> None:
    zero = np.zeros((1, 2), np.float32)
    assert not compare([-zero], [zero], {"kind": "bit"})["ok"]


def test_a_decision_may_move_by_quanta_but_not_change() -> None:
    moved = REF.copy()
    moved[0] += 1.0
    assert compare([moved], [REF], DECISION)["ok"]
    swapped = REF.copy()
    swapped[0, [1, 2]] = swapped[0, [2, 1]]
    result = compare([swapped], [REF], DECISION)
    assert not result["ok"]
    assert result["top1_agree"] == 0.5


def test_p99_looks_past_one_outlier_in_a_hundred_but_not_two() -> None:
    ref = np.zeros((100, 2), np.float32)
    ref[:, 0] = 10
    one, three = ref.copy(), ref.copy()
    one[0, 0] += 100
    three[:3, 0] += 100
    assert compare([one], [ref], DECISION)["ok"]
    assert not compare([three], [ref], DECISION)["ok"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_never_pass(bad: float) -> None:
    got = REF.copy()
    got[1, 1] = bad
    for policy in ({"kind": "tol", "max_rel": 1e9}, DECISION, {"kind": "bit"}):
        result = compare([got], [REF], policy)
        assert not result["ok"]
        assert np.isfinite([result["max_abs"], result["max_rel"], result["p99_abs"]]).all()


def test_the_worst_output_speaks() -> None:
    result = compare([REF, REF + 1], [REF, REF], {"kind": "tol", "max_rel": 1e-4})
    assert not result["ok"]
    assert result["max_abs"] == 1.0


def test_a_zero_reference_allows_nothing_else() -> None:
    zero = np.zeros((1, 3), np.float32)
    assert not compare([zero + 1e-20], [zero], {"kind": "tol", "max_rel": 0.5})["ok"]


def test_an_unknown_policy_is_the_configurations_fault() -> None:
    for policy, message in (
        ({"kind": "close enough"}, "no agreement policy"),
        ({"kind": "tol"}, "lacks 'max_rel'"),
    ):
        with pytest.raises(AgentFault, match=message) as caught:
            compare([REF], [REF], policy)
        assert caught.value.owner == "config"


def test_another_shape_is_named() -> None:
    with pytest.raises(AgentFault, match=r"shape \(2, 3\)"):
        compare([REF], [REF[:1]], {"kind": "bit"})


@given(st.integers(1, 23), st.integers(1, 8))
def test_a_fixed_batch_is_filled_and_cut(rows: int, batch: int) -> None:
    model = Doubler(TensorInfo("x", "float32", (batch, 2)))
    data = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    (got,) = run_rows(model, {"x": data}, {"batch": 1, "axes": {}})
    assert np.array_equal(got, data * 2)
    assert set(model.batches) == {batch}


@given(st.integers(1, 23), st.integers(1, 8))
def test_an_open_batch_takes_what_the_job_says(rows: int, batch: int) -> None:
    model = Doubler(TensorInfo("x", "float32", ("batch", 2)))
    data = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    (got,) = run_rows(model, {"x": data}, {"batch": batch, "axes": {}})
    assert np.array_equal(got, data * 2)
    assert sum(model.batches) == rows
    assert max(model.batches) <= batch


def test_goldens_of_an_open_batch_go_in_bounded_pieces() -> None:
    wide = 100_000
    model = Doubler(TensorInfo("x", "float32", ("batch", wide)))
    data = np.zeros((3, wide), np.float32)
    run_rows(model, {"x": data}, {"batch": 1, "axes": {}}, by_bytes=True)
    assert model.batches == [1, 1, 1]
    narrow = Doubler(TensorInfo("x", "float32", ("batch", 2)))
    run_rows(narrow, {"x": np.zeros((70, 2))}, {"batch": 1, "axes": {}}, by_bytes=True)
    assert narrow.batches == [32, 32, 6]


def test_an_input_without_examples_goes_whole_into_every_piece() -> None:
    model = Doubler(TensorInfo("x", "float32", ("batch", 2)), TensorInfo("scale", "float32", ()))
    data = np.ones((5, 2), np.float32)
    (got,) = run_rows(model, {"x": data, "scale": np.float32(3)}, {"batch": 2, "axes": {}})
    assert got.shape == (5, 2)


def test_a_leading_axis_that_counts_no_examples_is_not_cut() -> None:
    model = Doubler(TensorInfo("x", "float32", ("seq", 2)))
    run_rows(model, {"x": np.ones((7, 2))}, {"batch": 1, "axes": {}})
    assert model.batches == [7]


def test_goldens_that_do_not_fit_the_model_are_the_configurations_fault(tmp_path: Any) -> None:
    model = Doubler(TensorInfo("x", "float32", ("batch", 2)))
    path = tmp_path / "goldens.npz"
    np.savez(path, **{"in:other": np.ones((1, 2)), "out:out": np.ones((1, 2))})
    spec = {"batch": 1, "axes": {}, "agreement": {"kind": "bit"}}
    with pytest.raises(AgentFault, match="no input 'x'") as caught:
        check_goldens(model, str(path), spec)
    assert (caught.value.owner, caught.value.code) == ("config", "goldens")


def test_disagreement_carries_its_figures(tmp_path: Any) -> None:
    model = Doubler(TensorInfo("x", "float32", ("batch", 2)))
    path = tmp_path / "goldens.npz"
    np.savez(path, **{"in:x": REF[:, :2], "out:out": REF[:, :2]})
    spec = {"batch": 1, "axes": {}, "agreement": {"kind": "tol", "max_rel": 1e-4}}
    with pytest.raises(AgentFault) as caught:
        check_goldens(model, str(path), spec)
    assert (caught.value.owner, caught.value.code) == ("candidate", "disagrees")
    assert caught.value.evidence["agreement"]["max_rel"] == pytest.approx(1.0)
