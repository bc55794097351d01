"""A candidate with a float and an int8 form counts by the quicker one that is accurate enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flatsat.artifact import Artifact
from flatsat.compressors.candidate import Candidate
from flatsat.harness.search.bench import Built, Timed, quickest, together
from flatsat.harness.search.spaces import ChannelSpace
from flatsat.jobspec import JobKind
from flatsat.outcome import Failed, Fault, Measured, Owner, Samples
from flatsat.reports.rows import JobRow, OutcomeRow


def candidate(accuracies: Mapping[str, float], roles: tuple[str, ...]) -> Candidate:
    artifacts = tuple(
        Artifact(role, "onnx", role, 1, f"{role}.onnx", 17, 8, "NCHW", (), ()) for role in roles
    )
    return Candidate(
        candidate_id="c",
        recipe_id="",
        recipe={},
        name="c",
        workload="w/n",
        seed=0,
        parent=None,
        artifacts=artifacts,
        params=1,
        nonzeros=1,
        macs=1,
        size_bytes=1,
        cost={},
        accuracy_host=accuracies,
        layers=(),
        role="compressed",
        folder=Path(),
    )


def row(artifact: str, index: int, latency_ns: int | None) -> OutcomeRow:
    job = JobRow(f"{artifact}-{index}", artifact, "b", JobKind.LATENCY.value, "{}", index)
    if latency_ns is None:
        return OutcomeRow(
            job, Failed(Fault(Owner.CANDIDATE, False, "crash", "it fell")), "b", "", 0
        )
    samples = Samples("latency_ns", "virtual", 0, True, (latency_ns,) * 3)
    return OutcomeRow(job, Measured((samples,)), "b", "", 0.0)


BOTH = ("float", "int8")
GOOD = {"validation": 0.97, "validation/int8": 0.968}
BAD = {"validation": 0.97, "validation/int8": 0.90}


@pytest.mark.parametrize(
    ("float_ns", "int8_ns", "accuracies", "dtype", "median"),
    [
        (100, 60, GOOD, "int8", 60),
        (60, 100, GOOD, "float", 60),
        (100, 60, BAD, "float", 100),
        (None, 60, GOOD, "int8", 60),
        (100, None, GOOD, "float", 100),
    ],
)
def test_the_quickest_accurate_form_counts(
    float_ns: int | None,
    int8_ns: int | None,
    accuracies: Mapping[str, float],
    dtype: str,
    median: int,
) -> None:
    rows = [row("float", r, float_ns) for r in (0, 1)] + [row("int8", r, int8_ns) for r in (0, 1)]
    found = quickest(rows, candidate(accuracies, BOTH), int8_loss=0.01)
    assert found.dtype == dtype
    assert found.medians == {0: median, 1: median}
    assert not found.why


def test_an_int8_form_alone_that_loses_too_much_says_so() -> None:
    found = quickest([row("int8", 0, 60)], candidate(BAD, ("int8",)), int8_loss=0.01)
    assert not found.medians
    assert "loses more than 0.01" in found.why


def test_rounds_of_two_forms_are_never_put_together() -> None:
    stages = [
        {"c": Timed({0: 10.0, 1: 11.0}, dtype="float")},
        {"c": Timed({0: 7.0}, dtype="int8")},
        {"c": Timed({0: 8.0}, dtype="int8")},
    ]
    both = together(stages, "c")
    assert both.dtype == "int8"
    assert sorted(both.medians.values()) == [7.0, 8.0]


def test_accuracy_is_that_of_the_form() -> None:
    built = Built("c", 0.97, 1.0, {"int8": 0.96})
    assert (built.accuracy_as("float"), built.accuracy_as("int8")) == (0.97, 0.96)


def test_a_space_of_two_dtypes_lowers_to_both_and_keeps_the_reference_in_floats() -> None:
    space = ChannelSpace("mnist-mini/lenet5", dtypes=BOTH)
    assert space.dense()["lower"] == [{"to": "onnx"}]
