import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.errors import DataError
from flatsat.reports import figures_static
from flatsat.reports.collect_search import search_from_note, siblings
from flatsat.reports.model import JobCounts, MaskPicture, TrustReport
from flatsat.reports.pages_choices import choices_view
from flatsat.reports.toml_text import to_toml


def _note():
    return {
        "schema": "flatsat.search/1",
        "name": "amc",
        "workload": "mnist-mini/lenet5",
        "space": "channels",
        "reward": "accuracy without fine-tuning on the calibration split",
        "budget": {
            "quantity": "latency",
            "limit": 61000.0,
            "reference": 122000.0,
            "unit": "ns",
            "board": "host",
            "clock": "wall",
        },
        "layers": [{"name": "conv1", "kind": "conv", "macs": 288000, "params": 520}],
        "strategies": [
            {
                "strategy": "amc",
                "label": "AMC (DDPG)",
                "role": "search",
                "seed": 0,
                "state": "running",
                "warmup": 100,
                "reward": [0.31, None, 0.52],
                "cost": [60500.0, None, 58000.0],
                "best": {"evaluation": 2, "reward": 0.52, "cost": 58000.0, "ratios": [0.4]},
                "cpu_s": 12.5,
            },
            {
                "strategy": "random",
                "label": "random",
                "role": "baseline",
                "seed": 0,
                "state": "running",
                "reward": [],
                "cost": [],
                "best": None,
            },
        ],
        "measured": [
            {
                "candidate_id": "c1",
                "label": "amc s0 e2",
                "strategy": "amc",
                "seed": 0,
                "evaluation": 2,
                "reward": 0.52,
                "accuracy": 0.957,
                "predicted": 58000.0,
                "measured": 59100.0,
                "low": 58800.0,
                "high": 59500.0,
            },
            {
                "candidate_id": "c2",
                "label": "amc s0 e0",
                "strategy": "amc",
                "seed": 0,
                "evaluation": 0,
                "measured": None,
            },
        ],
        "chosen": "c1",
    }


def test_the_note_of_a_search_is_read_with_its_gaps():
    search = search_from_note(_note())
    assert search.strategies[0].reward == (0.31, None, 0.52)
    assert search.strategies[0].best_ratios == (0.4,)
    assert search.strategies[1].best_reward is None
    assert search.measured[0].pareto
    assert not search.measured[1].pareto
    assert search.measured[1].measured.value is None


@pytest.mark.parametrize(
    "broken",
    [None, {}, {**_note(), "schema": "flatsat.search/2"}, {**_note(), "layers": [{}]}],
)
def test_another_note_is_refused(broken):
    with pytest.raises(DataError):
        search_from_note(broken)


def test_a_number_in_the_note_that_is_no_number_is_refused():
    note = _note()
    note["strategies"][0]["reward"] = ["0.3"]
    with pytest.raises(DataError, match="no number"):
        search_from_note(note)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="300 x 784"):
        MaskPicture("fc1", 300, 784, b"\xff")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_mask_comes_back_from_its_bits(rows, cols, seed):
    bits = np.random.default_rng(seed).random((rows, cols)) < 0.3
    picture = MaskPicture("fc", rows, cols, np.packbits(bits).tobytes())
    assert np.array_equal(figures_static.mask_bits(picture), bits)


def test_waiting_jobs_are_those_without_an_outcome():
    assert JobCounts(planned=9, measured=4, failed=1, inconclusive=1).waiting == 3


@pytest.mark.parametrize(
    ("load", "cores", "crowded"),
    [(0.7, 2, False), (2.1, 2, True), (None, 2, None), (1.0, None, None)],
)
def test_a_board_is_crowded_when_more_wants_to_run_than_there_are_cores(load, cores, crowded):
    assert TrustReport(1, 1, load, cores).crowded is crowded


_scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8")),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), _values, max_size=5))
def test_a_configuration_written_as_toml_reads_back_the_same(value):
    assert tomllib.loads(to_toml(value)) == value


def test_what_toml_has_no_word_for_is_left_out():
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None, "d": 1}})) == {"b": {"d": 1}}


class _Notes:
    """A record that holds notes only."""

    def __init__(self, notes: dict[str, dict[str, object]]) -> None:
        self._notes = notes

    def notes(self, run_id: str) -> dict[str, object]:
        return self._notes.get(run_id, {})


def _note_on(board: str, dtype: str) -> dict[str, object]:
    note = _note()
    note["budget"] = {**note["budget"], "board": board, "clock": "virtual"}
    note["measured"][0]["dtype"] = dtype
    note["chosen"] = note["measured"][0]["candidate_id"]
    return note


def test_searches_of_several_boards_stand_side_by_side_with_what_each_chose():
    store = _Notes(
        {
            "r1": {"search": _note_on("a72", "float")},
            "r2": {"search": _note_on("a76", "int8")},
            "r3": {},
        }
    )
    found = siblings(store, {"a72": "r1", "a76": "r2", "gone": "r3"})
    view = choices_view(found)
    assert view is not None
    assert [(row.board, row.form) for row in view.rows] == [("a72", "float"), ("a76", "int8")]
    assert view.differ
    assert "wide multiply" in view.caveat
    assert choices_view(siblings(store, None)) is None
