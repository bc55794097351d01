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
    """An artifact that was measured, with its candidate and its label.

    Attributes:
        candidate_label: of the candidate alone: its name, with its seed where several bear it.
    """

    candidate: CandidateRow
    artifact: Artifact
    label: str
    candidate_label: str = ""


def known(
    store: Store, candidates: Sequence[CandidateRow], measured: Collection[str]
) -> dict[str, Known]:
    """Return the measured artifacts by sha256, in the order of the candidates.

    A label is the candidate's name, with its seed where several candidates bear the name, and what
    tells the artifact from others of the candidate that were measured (`own_name`). An artifact
    that candidates share stands with the first.
    """
    names = seeds_of_names(candidates)
    found: dict[str, Known] = {}
    for candidate in candidates:
        artifacts = [a for a in store.artifacts(candidate.candidate_id) if a.sha256 in measured]
        for artifact in artifacts:
            if artifact.sha256 in found:
                continue
            name = candidate.name
            if names[candidate.name] > 1 and candidate.seed is not None:
                name += f" seed {candidate.seed}"
            label = name + own_name(artifact, artifacts)
            found[artifact.sha256] = Known(candidate, artifact, label, name)
    return found


def seeds_of_names(candidates: Sequence[CandidateRow]) -> Counter[str]:
    """Return with how many seeds each name stands; one is no need to tell it."""
    return Counter(name for name, _ in {(c.name, c.seed) for c in candidates})


def own_name(artifact: Artifact, all_of_candidate: Sequence[Artifact]) -> str:
    """Return what tells an artifact from others of its candidate: " float", " tflite int8", or "".

    A format is named for those that aren't ONNX, beside others that are.
    """
    if len(all_of_candidate) < 2:
        return ""
    formats = {other.format for other in all_of_candidate}
    other = len(formats) > 1 and artifact.format != "onnx"
    return f" {artifact.format} {artifact.role}" if other else f" {artifact.role}"
