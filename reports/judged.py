"""A network's accuracy as a picture of methods shows it: on a board, else on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import techniques
from flatsat.reports.sizes import reference_of

if TYPE_CHECKING:
    from flatsat.reports.model import AccuracyReport, CandidateReport, RunReport

ON_HOST = "validation split, on the host"


@dataclass(frozen=True)
class Judged:
    """An accuracy and what it was taken on.

    Attributes:
        value: in [0, 1], with interval where there is one.
        loss: the dense reference's accuracy minus this, in [-1, 1]; None where not known.
        loss_low, loss_high: of its interval, None without one.
        n: images, 0 where not told.
        where: "test split, on host"; before it the metric where that is no accuracy.
    """

    value: float
    low: float | None
    high: float | None
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    n: int
    where: str


def on_board(report: RunReport, candidate: CandidateReport, precision: str) -> Judged | None:
    """Return the accuracy of a candidate's files of a precision on the first board that has one.

    The dense reference's own loss is zero.
    """
    found = measured_accuracy(report, candidate, precision)
    if found is None:
        return None
    board, accuracy = found
    loss = accuracy.loss
    reference = candidate.role == "reference" and precision == "float"
    return Judged(
        accuracy.value,
        accuracy.low,
        accuracy.high,
        0.0 if reference else None if loss is None else loss.value,
        None if loss is None else loss.low,
        None if loss is None else loss.high,
        accuracy.n,
        ("" if accuracy.metric == "accuracy" else f"{accuracy.metric}, ")
        + f"test split, on {board}",
    )


def measured_accuracy(
    report: RunReport, candidate: CandidateReport, precision: str
) -> tuple[str, AccuracyReport] | None:
    """Return (board, accuracy) of the first measurement that has one, None without any."""
    mine = [a for a in candidate.artifacts if techniques.numbers(a[2]) == precision]
    # A float file goes before a sparse one: the dense reference has one, so that the two pair.
    for role in dict.fromkeys((precision, *(form for _, _, form, _ in mine))):
        shas = {sha for sha, _, form, _ in mine if form == role}
        for section in report.sections:
            for m in section.measurements:
                if m.artifact in shas and m.accuracy is not None:
                    return section.board, m.accuracy
    return None


def on_host(report: RunReport, candidate: CandidateReport, precision: str) -> Judged | None:
    """Return the accuracy on the validation split, as the candidate's making told it."""
    value = _host_value(candidate, precision)
    if value is None:
        return None
    reference = reference_of(report, candidate)
    dense = None if reference is None else _host_value(reference, "float")
    loss = None if dense is None else dense - value
    return Judged(value, None, None, loss, None, None, 0, ON_HOST)


def _host_value(candidate: CandidateReport, precision: str) -> float | None:
    key = "validation" if precision == "float" else f"validation/{precision}"
    return candidate.accuracy_host.get(key)
