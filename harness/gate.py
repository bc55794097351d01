"""What makes a run fail: a candidate that is shown to be slower or worse than its baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.errors import UsageError

if TYPE_CHECKING:
    from flatsat.harness.config import Gate
    from flatsat.reports.comparison import Comparison, Subject
    from flatsat.reports.rows import Store


@dataclass(frozen=True)
class Findings:
    """What a gate finds, a sentence each.

    Attributes:
        regressions: what makes the run fail.
        alarms: slower by more than `gate.latency.alarm`, but not shown to be beyond the limit.
    """

    regressions: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()


def find(store: Store, run_id: str, gate: Gate, baseline: str | None) -> Findings:
    """Hold a run to its gate.

    Each candidate is compared with the baseline of its own workload. Only what is shown counts: a
    whole confidence interval beyond the limit, not a mean.

    Args:
        store: the record.
        run_id: of the run.
        gate: the limits.
        baseline: label of the baseline; None takes the dense reference of each workload.

    Raises:
        UsageError: `baseline` was not measured in this run.
    """
    if gate.latency is None and gate.accuracy is None:
        return Findings()
    from flatsat.reports.compare import compare_all, subjects

    labelled = subjects(store, run_id)
    regressions: list[str] = []
    alarms: list[str] = []
    for base, others in _groups(store, run_id, labelled, baseline):
        report = compare_all(
            base,
            others,
            threshold=gate.latency.slower_than if gate.latency else 0.02,
            margin=gate.accuracy.non_inferior if gate.accuracy else 0.005,
        )
        for row in report.rows:
            if regression := _regression(row, gate):
                regressions.append(regression)
            elif gate.latency and gate.latency.alarm is not None:
                slower = _slower(row, gate.latency.alarm)
                alarms += [slower] if slower else []
    return Findings(tuple(regressions), tuple(alarms))


def _slower(row: Comparison, share: float) -> str | None:
    """Return a sentence if the whole interval is beyond `share`, else None."""
    if row.quantity != "latency" or row.ratio is None or row.ratio.high is None:
        return None
    if row.ratio.high >= 1 / (1 + share):
        return None
    return (
        f"{row.candidate} is slower than {row.baseline} by {100 * (1 / row.ratio.high - 1):.1f} % "
        f"or more; {100 * share:g} % is allowed"
    )


def _regression(row: Comparison, gate: Gate) -> str | None:
    if gate.latency and (slower := _slower(row, gate.latency.slower_than)):
        return slower
    if row.quantity == "accuracy" and gate.accuracy and row.difference is not None:
        high = row.difference.high
        if high is not None and high < -gate.accuracy.non_inferior:
            return (
                f"{row.candidate} is less accurate than {row.baseline} by {-100 * high:.2f} points "
                f"or more; {100 * gate.accuracy.non_inferior:g} are allowed"
            )
    return None


def _groups(
    store: Store, run_id: str, labelled: dict[str, Subject], baseline: str | None
) -> list[tuple[Subject, list[Subject]]]:
    """Return each baseline with the subjects that it is held against."""
    role_of: dict[str, str] = {}
    workload_of: dict[str, str] = {}
    for candidate in store.candidates(run_id):
        for artifact in store.artifacts(candidate.candidate_id):
            is_dense = candidate.role == "reference" and artifact.role == "float"
            role_of.setdefault(artifact.sha256, "reference" if is_dense else "other")
            workload_of.setdefault(artifact.sha256, candidate.workload)

    def artifact_of(subject: Subject) -> str:
        return subject.rows[0].job.artifact

    if baseline is None:
        bases = [s for s in labelled.values() if role_of.get(artifact_of(s)) == "reference"]
    else:
        names = (baseline, f"{baseline} float")
        bases = [s for label, s in labelled.items() if label in names]
        if not bases:
            raise UsageError(
                f"the baseline {baseline!r} was not measured in this run",
                hint=f"measured: {', '.join(labelled)}",
            )
    groups = []
    for base in bases:
        workload = workload_of.get(artifact_of(base), "")
        others = [
            s
            for s in labelled.values()
            if s is not base and workload_of.get(artifact_of(s), "") == workload
        ]
        if others:
            groups.append((base, others))
    return groups
