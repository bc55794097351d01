"""The verification matrix: one record, drawn as HTML, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.harness.flight.requirements import BASE_UNITS, Mission
from flatsat.harness.flight.verdict import Verdict, VerdictKind, exit_code

if TYPE_CHECKING:
    from flatsat.harness.flight.evidence import Estimate, Evidence

COLUMNS = (
    "id",
    "parent",
    "text",
    "method",
    "level",
    "statistic",
    "scope",
    "limit",
    "measured",
    "bound",
    "n",
    "repeats",
    "margin_required",
    "margin_achieved",
    "verdict",
    "compliance",
    "close_out",
    "reason",
    "evidence",
    "run_id",
    "waiver",
)


@dataclass(frozen=True)
class Subject:
    """What was validated, where, when.

    Attributes:
        candidate_id, candidate_name, artifact, role, size_bytes: the model file.
        board, board_id, board_kind, runtime, clock: where.
        run_id: the run that holds the evidence.
        date_utc: when the matrix was made.
        version: of FlatSat.
        mission_sha: sha256 of the mission file.
    """

    candidate_id: str
    candidate_name: str
    artifact: str
    role: str
    size_bytes: int
    board: str
    board_id: str
    board_kind: str
    runtime: str
    clock: str
    run_id: str
    date_utc: str
    version: str
    mission_sha: str


@dataclass(frozen=True)
class Matrix:
    """A verification matrix.

    Attributes:
        mission: the mission file.
        subject: what was validated.
        verdicts: in the order of the mission file.
        untraced: evidence that no requirement asks for.
    """

    mission: Mission
    subject: Subject
    verdicts: tuple[Verdict, ...]
    untraced: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 accepted, 1 a mandatory requirement fails, 4 one is open."""
        return exit_code(list(self.verdicts))

    @property
    def statement(self) -> str:
        """One sentence for the top of the page."""
        mandatory = [v for v in self.verdicts if v.requirement.criticality == "mandatory"]
        closed = sum(v.closed for v in mandatory)
        word = {0: "Accepted", 1: "Not accepted", 4: "Not accepted yet"}[self.exit_code]
        return f"{word}: {closed} of {len(mandatory)} mandatory requirements are closed."

    def rows(self) -> list[dict[str, object]]:
        """Return a flat row a requirement, with the columns of `COLUMNS`."""
        return [_row(v, self.subject) for v in self.verdicts]

    def roll_up(self) -> list[tuple[str, Mapping[str, int]]]:
        """Return verdict counts by category."""
        counts: dict[str, Counter[str]] = {}
        for v in self.verdicts:
            counts.setdefault(v.requirement.category, Counter())[v.kind.value] += 1
        return sorted(counts.items())

    def to_json(self) -> str:
        """Return the matrix as JSON, schema flatsat.matrix/1."""
        value = {
            "schema": "flatsat.matrix/1",
            "mission": self.mission.mission.model_dump(),
            "subject": vars(self.subject),
            "statement": self.statement,
            "exit_code": self.exit_code,
            "rows": self.rows(),
            "evidence_without_requirement": list(self.untraced),
        }
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    def to_csv(self) -> str:
        """Return the matrix as CSV with a header line."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return buffer.getvalue()

    def to_html(self) -> str:
        """Return the matrix as one self-contained page; what is not closed comes first."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("flatsat.harness.flight"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        open_rows = [r for r, v in zip(self.rows(), self.verdicts, strict=True) if not v.closed]
        return environment.get_template("matrix.html").render(
            matrix=self, rows=self.rows(), open_rows=open_rows, kinds=list(VerdictKind)
        )


def untraced_evidence(mission: Mission, evidence: Evidence) -> tuple[str, ...]:
    """Return the quantities that were measured though no requirement asks for them."""
    asked = {r.quantity for r in mission.requirement}
    had = {
        "latency": bool(evidence.latency_ns),
        "load_time": bool(evidence.load_ns),
        "memory": bool(evidence.rss_bytes),
        "storage": bool(evidence.size_bytes),
        "accuracy": evidence.correct is not None,
        "agreement": bool(evidence.agreement),
    }
    return tuple(quantity for quantity, there in had.items() if there and quantity not in asked)


def humane(value: float | None, quantity: str) -> str:
    """Return a value in base units as people write it."""
    if value is None:
        return "not available"
    unit = BASE_UNITS[quantity]
    if unit == "nanosecond":
        for scale, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
            if abs(value) >= scale:
                return f"{value / scale:.4g} {name}"
        return f"{value:.0f} ns"
    if unit == "byte":
        for scale, name in ((1e6, "MB"), (1e3, "kB")):
            if abs(value) >= scale:
                return f"{value / scale:.4g} {name}"
        return f"{value:.0f} B"
    if unit == "dimensionless":
        return f"{100 * value:.2f} %"
    return f"{value:.4g} {unit}"


def _row(v: Verdict, subject: Subject) -> dict[str, object]:
    r = v.requirement
    measured = v.measured
    return {
        "id": r.id,
        "parent": " ".join(r.parent),
        "text": r.text,
        "method": " ".join(r.method),
        "level": subject.board_kind,
        "statistic": f"{r.quantity} {r.statistic}",
        "scope": f"{subject.board}, {subject.runtime}, {subject.clock} clock",
        "limit": f"{r.comparator} {r.limit:g} {r.unit}",
        "measured": "" if measured is None else humane(measured.point, r.quantity),
        "bound": _bound(measured, r.comparator, r.quantity),
        "n": "" if measured is None else measured.n,
        "repeats": "" if measured is None else measured.repeats,
        "margin_required": v.margin_required,
        "margin_achieved": _margin(v),
        "verdict": v.kind.value,
        "compliance": v.compliance,
        "close_out": "closed" if v.closed else "open",
        "reason": v.reason,
        "evidence": " ".join(v.jobs) or (f"sha256:{subject.artifact}" if measured else ""),
        "run_id": subject.run_id,
        "waiver": "" if r.waiver is None else r.waiver.reference,
    }


def _bound(measured: Estimate | None, comparator: str, quantity: str) -> str:
    if measured is None:
        return ""
    return humane(measured.upper if comparator in ("<=", "<") else measured.lower, quantity)


def _margin(v: Verdict) -> str:
    if v.margin_achieved is None:
        return ""
    if v.requirement.comparator in ("<=", "<"):
        return f"{100 * v.margin_achieved:.1f} %"
    return f"{100 * v.margin_achieved:+.2f} points"
