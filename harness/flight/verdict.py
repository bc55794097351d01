"""What the evidence says of a requirement: a bound is compared with the limit, not a mean."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from flatsat.harness.flight.evidence import Estimate, Evidence, estimate

if TYPE_CHECKING:
    from flatsat.harness.flight.requirements import Margin, Mission, MissionHead, Requirement


class VerdictKind(StrEnum):
    """The verdicts of a verification matrix."""

    PASS = "pass"
    PASS_MARGIN_SHORT = "pass_margin_short"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_RUN = "not_run"
    NOT_APPLICABLE = "not_applicable"
    WAIVED = "waived"


COMPLIANCE = {
    VerdictKind.PASS: "yes",
    VerdictKind.PASS_MARGIN_SHORT: "partial",
    VerdictKind.FAIL: "no",
    VerdictKind.INCONCLUSIVE: "no",
    VerdictKind.NOT_RUN: "no",
    VerdictKind.NOT_APPLICABLE: "n/a",
    VerdictKind.WAIVED: "waived",
}


@dataclass(frozen=True)
class Verdict:
    """A requirement, the evidence for it, and what follows.

    Attributes:
        requirement: as in the mission file.
        kind: the verdict.
        reason: why, in one sentence.
        limit: in base units.
        measured: the statistic with bounds, or None.
        margin_required: a share of the limit, or absolute, as text; "" for none.
        margin_achieved: (limit - bound) / limit for upper limits, bound - limit for lower ones;
            None without a bound.
        jobs: identifiers of the jobs that the evidence came from.
    """

    requirement: Requirement
    kind: VerdictKind
    reason: str
    limit: float
    measured: Estimate | None
    margin_required: str
    margin_achieved: float | None
    jobs: tuple[str, ...]

    @property
    def compliance(self) -> str:
        """yes, partial, no, n/a or waived."""
        return COMPLIANCE[self.kind]

    @property
    def closed(self) -> bool:
        """Nothing is left to do for this requirement."""
        return self.kind in (VerdictKind.PASS, VerdictKind.NOT_APPLICABLE, VerdictKind.WAIVED)


def judge_mission(mission: Mission, evidence: Evidence, today: datetime.date) -> list[Verdict]:
    """Return a verdict for each requirement, in the order of the mission file."""
    return [judge(r, mission.mission, evidence, today) for r in mission.requirement]


def judge(
    requirement: Requirement, head: MissionHead, evidence: Evidence, today: datetime.date
) -> Verdict:
    """Return what the evidence says of one requirement."""
    limit = requirement.limit_in_base_units()
    margin = requirement.required_margin(head)
    jobs = tuple((evidence.jobs or {}).get(requirement.quantity, ()))

    def verdict(
        kind: VerdictKind,
        reason: str,
        measured: Estimate | None = None,
        achieved: float | None = None,
    ) -> Verdict:
        waiver = requirement.waiver
        if waiver is not None and kind not in (VerdictKind.PASS, VerdictKind.NOT_APPLICABLE):
            if datetime.date.fromisoformat(waiver.expiry) >= today:
                reason = f"{kind.value}, waived by {waiver.approver} ({waiver.reference}): {reason}"
                kind = VerdictKind.WAIVED
            else:
                reason = f"waiver {waiver.reference} expired on {waiver.expiry}; {reason}"
        return Verdict(
            requirement, kind, reason, limit, measured, _margin_text(margin), achieved, jobs
        )

    if head.phase not in requirement.applicability:
        return verdict(
            VerdictKind.NOT_APPLICABLE, f"not in phase {head.phase}: {requirement.rationale}"
        )
    if "test" not in requirement.method:
        return verdict(
            VerdictKind.NOT_RUN, f"to be shown by {', '.join(requirement.method)}, not by test"
        )
    mismatch = _scope_mismatch(requirement, evidence)
    if mismatch:
        return verdict(VerdictKind.NOT_RUN, mismatch)
    found = estimate(evidence, requirement.quantity, requirement.statistic, requirement.confidence)
    if isinstance(found, str):
        failed = evidence.failure is not None and found == evidence.failure
        return verdict(VerdictKind.FAIL if failed else VerdictKind.NOT_RUN, found)
    if found.n < requirement.min_samples or found.repeats < requirement.min_repeats:
        return verdict(
            VerdictKind.INCONCLUSIVE,
            f"{found.n} samples from {found.repeats} processes; the requirement asks for "
            f"{requirement.min_samples} and {requirement.min_repeats}",
            found,
        )
    upper_limited = requirement.comparator in ("<=", "<")
    bound = found.upper if upper_limited else found.lower
    opposite = found.lower if upper_limited else found.upper
    if opposite is not None and not _meets(opposite, requirement.comparator, limit):
        return verdict(
            VerdictKind.FAIL,
            f"even the favourable {requirement.confidence:.0%} bound breaks the limit",
            found,
            None if bound is None else _achieved(bound, limit, upper_limited),
        )
    if bound is None:
        return verdict(
            VerdictKind.INCONCLUSIVE,
            f"{found.n} samples are too few for a {requirement.confidence:.0%} bound on "
            f"{requirement.statistic}",
            found,
        )
    achieved = _achieved(bound, limit, upper_limited)
    if not _meets(bound, requirement.comparator, limit):
        return verdict(
            VerdictKind.INCONCLUSIVE,
            "the limit lies inside the confidence interval; more samples may decide",
            found,
            achieved,
        )
    if margin is not None and not _has_margin(bound, limit, upper_limited, margin):
        return verdict(
            VerdictKind.PASS_MARGIN_SHORT,
            f"meets the limit, but not the margin of {_margin_text(margin)}",
            found,
            achieved,
        )
    return verdict(VerdictKind.PASS, "the bound meets the limit with its margin", found, achieved)


def exit_code(verdicts: list[Verdict]) -> int:
    """Return 1 if a mandatory requirement fails or is short of margin, 4 if one is open, else 0."""
    kinds = {v.kind for v in verdicts if v.requirement.criticality == "mandatory"}
    if kinds & {VerdictKind.FAIL, VerdictKind.PASS_MARGIN_SHORT}:
        return 1
    return 4 if kinds & {VerdictKind.INCONCLUSIVE, VerdictKind.NOT_RUN} else 0


def _scope_mismatch(requirement: Requirement, evidence: Evidence) -> str:
    scope = requirement.scope
    pairs = [
        ("target", scope.target, evidence.board),
        ("runtime", scope.runtime, evidence.runtime),
    ]
    if requirement.quantity in ("latency", "load_time"):
        pairs.append(("clock", scope.clock, evidence.clock))
    if requirement.quantity == "accuracy":
        pairs.append(("workload", scope.workload, evidence.workload.partition("/")[0]))
    for what, wanted, had in pairs:
        if wanted is not None and had and wanted != had:
            return f"asks for {what} {wanted}; the evidence is of {had}"
    return ""


def _meets(value: float, comparator: str, limit: float) -> bool:
    return {
        "<=": value <= limit,
        "<": value < limit,
        ">=": value >= limit,
        ">": value > limit,
    }[comparator]


def _achieved(bound: float, limit: float, upper_limited: bool) -> float:
    if not upper_limited:
        return bound - limit
    return (limit - bound) / limit if limit else 0.0


def _has_margin(bound: float, limit: float, upper_limited: bool, margin: Margin) -> bool:
    if margin.absolute is not None:
        room = limit - bound if upper_limited else bound - limit
        return room >= margin.absolute
    assert margin.percent is not None
    if upper_limited:
        return bound <= limit * (1 - margin.percent / 100)
    return bound >= limit * (1 + margin.percent / 100)


def _margin_text(margin: Margin | None) -> str:
    if margin is None:
        return ""
    return f"{margin.percent:g} %" if margin.percent is not None else f"{margin.absolute:g}"
