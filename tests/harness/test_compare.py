"""`flatsat compare`: measured now in rounds or from the record; verdicts, refusals, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatsat.errors import UsageError
from flatsat.harness.cli.judge import parse_share

Flatsat = Callable[..., Any]
Onnx = Callable[..., Path]


@pytest.fixture
def two(flatsat: Flatsat, dense_file: Onnx) -> Flatsat:
    """A lab with a small network and one of some hundred times its work."""
    for name, hidden in (("small", 4), ("large", 20_000)):
        assert flatsat("candidates", "import", str(dense_file(f"{name}.onnx", hidden))).code == 0
    return flatsat


def test_a_planted_difference_is_found_and_a_regression_is_exit_1(two: Flatsat) -> None:
    slower = two("compare", "small", "large", "--rounds", "3", "--json")
    assert slower.code == 1, slower.err
    told = json.loads(slower.out)
    (row,) = told["rows"]
    assert (row["baseline"], row["candidate"], row["verdict"]) == ("small", "large", "slower")
    assert (row["paired"], row["rounds"]) == (True, 3)
    assert 0 < row["low"] <= row["value"] <= row["high"] < 1
    # Every measurement is an ordinary job, its rounds interleaved.
    run = json.loads(two("runs", "show", "last", "--json").out)
    assert (run["run_id"], run["kind"], run["state"]) == (told["run_id"], "compare", "done")
    assert run["jobs"]["measured"] == 6

    # The same evidence, seen from the other side, needs no board.
    faster = two("compare", "large", "small", "--recorded", "--within", "1%")
    assert faster.code == 0, faster.err
    assert "faster" in faster.out
    assert json.loads(two("runs", "list", "--json").out)["runs"][1:] == []


def test_runs_are_compared_by_what_they_recorded(two: Flatsat) -> None:
    quick = ("--processes", "3", "--min-inferences", "30", "--min-s", "0")
    for _ in range(2):
        assert two("measure", "small", *quick).code == 0
    ids = [run["run_id"] for run in json.loads(two("runs", "list", "--json").out)["runs"]]
    said = two("compare", ids[1], "last", "--within", "99%", "--json")
    (row,) = json.loads(said.out)["rows"]
    # On a machine that is busy just then, three processes a side may not tell.
    assert said.code == {"equal": 0, "inconclusive": 4}[row["verdict"]], said.err
    assert (row["candidate"], row["paired"]) == ("small", False)
    assert "not interleaved" in row["why"]
    assert two("measure", "large", *quick).code == 0
    assert "nothing of the same name" in two("compare", ids[0], "last").error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["small"], "at least two"),
        (["small", "small"], "same model file"),
        (["small", "smal"], "no candidate 'smal'"),
        (["small", "large:int8"], "unknown role of large 'int8'"),
        (["small", "large", "--within", "fast"], "--within 'fast'"),
        (["small", "large", "--within", "0"], "no share"),
        (["small", "large", "--board", "em1"], "'em1'"),
        (["small", "large", "--recorded"], "no record"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    two: Flatsat, arguments: list[str], words: str
) -> None:
    said = two("compare", *arguments)
    assert (said.code, said.out) == (2, "")
    assert words in said.error


def test_unlike_measurements_are_refused_with_the_reason(two: Flatsat) -> None:
    quick = ("--processes", "2", "--min-inferences", "20", "--min-s", "0")
    assert two("measure", "small", *quick).code == 0
    assert two("measure", "large", "--threads", "2", *quick).code == 0
    said = two("compare", "small", "large", "--recorded")
    assert said.code == 2
    assert "refused" in said.out
    assert "threads 1 and 2" in said.out


def test_a_run_beside_a_candidate_is_refused(two: Flatsat) -> None:
    assert two("measure", "small", "--processes", "1", "--min-s", "0").code == 0
    assert "is a run" in two("compare", "last", "small").error


def test_shares_are_read() -> None:
    assert [parse_share("--within", text) for text in ("1%", "0.01", "2.5%")] == [0.01, 0.01, 0.025]
    for text in ("0", "100%", "nan", "-1%", "x"):
        with pytest.raises(UsageError):
            parse_share("--within", text)
