"""How many bytes a network takes in the smallest form that is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import techniques

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.model import CandidateReport, RunReport
    from flatsat.reports.model_survey import Kept

_FLOAT_BYTES = 4
_SAID = {
    "dense_fp32": "dense float32",
    "bitmap_fp32": "bitmap, float32",
    "linear": "codes of b bits",
}


@dataclass(frozen=True)
class Sized:
    """A size and how it was come by.

    Attributes:
        size_bytes: of the parameters, or of the whole file.
        how: "coded: context", "bitmap, float32", "int8 file".
        real: True for the bytes of a file that exists, False for what a form would take.
    """

    size_bytes: int
    how: str
    real: bool


def dense_bytes(candidate: CandidateReport | None) -> int | None:
    """Return 4 bytes a parameter of a dense network, None where the number is not known."""
    if candidate is None or not candidate.params:
        return None
    return _FLOAT_BYTES * candidate.params


def sized(candidate: CandidateReport, kept: Kept, precision: str) -> Sized | None:
    """Return the smallest known form of a candidate's network of a precision; None without any.

    A coded file goes before everything else: it exists, and it is what would be sent. Next come
    the bytes that a way to store the parameters would take, for float files; an int8 file is as
    large as it is.
    """
    mine = [a for a in candidate.artifacts if techniques.numbers(a[2]) == precision]
    coded = [kept.coded[sha] for sha, _, _, _ in mine if sha in kept.coded]
    if coded:
        coder, size = min(coded, key=lambda form: form[1])
        return Sized(size, f"coded: {coder}", real=True)
    if precision == "float" and kept.bytes_by_coding:
        name, size = min(kept.bytes_by_coding.items(), key=lambda item: item[1])
        return Sized(size, _SAID.get(name, name.replace("_", " ")), real=False)
    if not mine:
        return None
    return Sized(min(size for _, _, _, size in mine), f"{precision} file", real=True)


def networks(
    report: RunReport, candidates: Sequence[CandidateReport]
) -> list[tuple[CandidateReport, str]]:
    """Return (candidate, precision) of each network once, in order: candidates may share files.

    Of those that do the one with more files stands, then the one with a coded file.
    """
    found: list[tuple[CandidateReport, str]] = []
    seen: set[str] = set()

    def told(candidate: CandidateReport) -> tuple[int, int]:
        kept = report.survey.of(candidate.candidate_id)
        return -len(candidate.artifacts), -len(kept.coded)

    for candidate in sorted(candidates, key=told):
        for precision in dict.fromkeys(techniques.numbers(a[2]) for a in candidate.artifacts):
            shas = {a[0] for a in candidate.artifacts if techniques.numbers(a[2]) == precision}
            if not shas <= seen:
                found.append((candidate, precision))
            seen |= shas
    place = {candidate.candidate_id: i for i, candidate in enumerate(candidates)}
    return sorted(found, key=lambda one: place[one[0].candidate_id])


def reference_of(report: RunReport, candidate: CandidateReport) -> CandidateReport | None:
    """Return the dense reference of a candidate's workload, of its own seed where there is one."""
    fitting = [
        c for c in report.candidates if c.role == "reference" and c.workload == candidate.workload
    ]
    own = [c for c in fitting if c.seed == candidate.seed]
    return next(iter(own or fitting), None)
