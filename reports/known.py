"""Which artifact belongs to which candidate of a run, and what people call it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.reports.rows import CandidateRow, Store


@dataclass(frozen=True)
class Known:
    """An artifact that was measured, with its candidate and its label."""

    candidate: CandidateRow
    artifact: Artifact
    label: str


def known(
    store: Store, candidates: Sequence[CandidateRow], measured: Collection[str]
) -> dict[str, Known]:
    """Return the measured artifacts by sha256, in the order of the candidates.

    A label is the candidate's name, with its seed where several candidates bear the name, and the
    artifact's role where several of its artifacts were measured. An artifact that candidates share
    stands with the first.
    """
    names = Counter(candidate.name for candidate in candidates)
    found: dict[str, Known] = {}
    for candidate in candidates:
        artifacts = [a for a in store.artifacts(candidate.candidate_id) if a.sha256 in measured]
        for artifact in artifacts:
            if artifact.sha256 in found:
                continue
            label = candidate.name
            if names[candidate.name] > 1 and candidate.seed is not None:
                label += f" seed {candidate.seed}"
            if len(artifacts) > 1:
                label += f" {artifact.role}"
            found[artifact.sha256] = Known(candidate, artifact, label)
    return found
