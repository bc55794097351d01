"""What the steps of a recipe do, told by their names: which series of a picture a candidate is in.

Steps are named for what they do ("magnitude-prune", "linear-quantise"), so that one that is added
later finds its place here without being listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flatsat.canonical import canonical_json

if TYPE_CHECKING:
    from flatsat.reports.model import CandidateReport
    from flatsat.reports.model_survey import StepReport

PRUNE, QUANTISE, LOW_RANK = "prune", "quantise", "low rank"
_QUANTISING = ("share-weights",)
_LOW_RANK = ("svd", "tucker", "cp-", "separable")
_AFTERWARDS = ("fine-tune", "code", "bias-correct")


def numbers(role: str) -> str:
    """Return what numbers a file of a role computes with: a sparse file is another form of float.

    Files of a candidate that compute with the same numbers are one network; they differ in what
    executes them.
    """
    return "float" if role == "sparse" else role


def technique(step: str) -> str:
    """Return `PRUNE`, `QUANTISE`, `LOW_RANK` or "" for a step by its registered name."""
    if step == "prune" or step.endswith("-prune"):
        return PRUNE
    if "quantise" in step or step in _QUANTISING:
        return QUANTISE
    return LOW_RANK if step.startswith(_LOW_RANK) else ""


def techniques(candidate: CandidateReport, precision: str = "float") -> tuple[str, ...]:
    """Return what was done to an artifact of a candidate, each once, in the order of the recipe.

    An int8 file is quantised, whatever the recipe's steps.

    Args:
        candidate: as compressed.
        precision: as `numbers` tells it.
    """
    found = [technique(step.use) for step in candidate.steps]
    if precision == "int8":
        found.append(QUANTISE)
    return tuple(dict.fromkeys(name for name in found if name))


def method(candidate: CandidateReport, precision: str = "float") -> str:
    """Return what was done in words: "magnitude-prune, linear-quantise (4 bits), int8"."""
    if candidate.role == "reference":
        parts = ["dense"]
    elif candidate.role == "imported":
        parts = ["imported"]
    else:
        parts = [_said(step) for step in candidate.steps if step.use not in _AFTERWARDS]
    if precision not in ("float", "imported"):
        parts.append(precision)
    return ", ".join(parts)


def _said(step: StepReport) -> str:
    bits = bits_of(step)
    return step.use if bits is None else f"{step.use} ({bits} bit{'s' if bits > 1 else ''})"


def bits_of(step: StepReport) -> int | None:
    """Return how many bits a quantising step gives a weight, None where it isn't one number."""
    bits = step.params.get("bits") if technique(step.use) == QUANTISE else None
    return bits if isinstance(bits, int) and not isinstance(bits, bool) else None


def candidate_bits(steps: Sequence[StepReport]) -> int | None:
    """Return the bits of the only step that quantises weights; None without one such."""
    found = [step for step in steps if technique(step.use) == QUANTISE]
    return bits_of(found[0]) if len(found) == 1 else None


def but_for_bits(steps: Sequence[StepReport]) -> str:
    """Return a key that is equal for chains of steps which differ in bits a weight only."""
    return canonical_json(
        [
            {"use": step.use, "params": _without_bits(step)}
            if technique(step.use) == QUANTISE
            else {"use": step.use, "params": dict(step.params)}
            for step in steps
        ]
    )


def _without_bits(step: StepReport) -> Mapping[str, object]:
    return {key: value for key, value in step.params.items() if key != "bits"}
