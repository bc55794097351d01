"""The table of methods: what each costs, promises and brings, beside dense and narrow networks.

It brings together what is known of a network and what each board measured. Clocks never mix: each
column is one board, clock, runtime and thread count, and nothing is ranked across columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import judged, sizes, techniques, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.judged import Judged
    from flatsat.reports.model import (
        BoardSection,
        CandidateReport,
        Estimate,
        MeasurementReport,
        RatioReport,
        RunReport,
    )
    from flatsat.reports.model_survey import Kept
    from flatsat.reports.sizes import Sized

_SPARSE_RUNTIMES = ("sparse",)
_FULL = 0.9
"""Kept shares above this count as dense: quantisation alone puts a few weights on zero."""
_SAME_MACS = 1.05
_IDLE = {"equal": "nothing", "slower": "nothing", "inconclusive": "unsettled"}
_COSTS = ("cpu_s", "train_steps", "forward_passes")
_ROLES = ("reference", "equal-macs", "compressed", "imported")


@dataclass(frozen=True)
class Column:
    """Where speed was measured: one board, clock, runtime and number of threads."""

    board: str
    board_id: str
    clock: str
    runtime: str
    threads: int


@dataclass(frozen=True)
class Across:
    """Speed against the dense reference in another runtime.

    Attributes:
        runtime: the other one.
        value: its median latency / this one's.
        low, high: as far as the ends of the two medians' 95 % intervals allow, which is wider
            than an interval of the ratio would be; None without them.
    """

    runtime: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Cell:
    """A file as measured in a column.

    Attributes:
        p50_ns: median latency.
        ratio: against the dense reference in the same column; None for itself and without one.
        across: for a runtime that leaves zeros out, and where a runtime has no dense reference:
            the speed against the dense reference in the quickest other runtime of the board.
        idle: "nothing" where the file's zeros are shown to bring no speed, "unsettled" where none
            is shown, "" where the question doesn't arise.
    """

    p50_ns: float | None
    ratio: RatioReport | None
    across: Across | None
    idle: str


@dataclass(frozen=True)
class Narrow:
    """The dense narrow network of as many MACs, beside a compressed one.

    Attributes:
        where: runtime and board that ran both: the first, a dense runtime before one that leaves
            zeros out, where products with a zero don't count as MACs.
        ratio: this file's speed against it there.
    """

    label: str
    where: str
    accuracy: Judged | None
    ratio: RatioReport


@dataclass(frozen=True)
class ResultRow:
    """A candidate's files of one precision.

    Attributes:
        method: its steps in words.
        zeros: share of the weights it holds that are zero.
        unstructured: its zeros stand singly, so that a dense runtime has as many MACs as before.
        files: (format, bytes, coder or "", coded bytes or 0) of each.
        smallest: the smallest form that is known, and how many times smaller than the dense
            network in float32.
        by_macs, by_nonzeros: speed-up that a count of MACs promises, and a count of those with a
            non-zero weight; the latter None where the weights are dense.
        cells: one a column, None where it was not measured there.
        cost: of compression, without what was spent on the candidate's files of other precisions:
            "cpu_s", "train_steps", "forward_passes", those that are known.
    """

    candidate: CandidateReport
    family: str
    label: str
    method: str
    zeros: float
    unstructured: bool
    files: tuple[tuple[str, int, str, int], ...]
    smallest: Sized | None
    smaller: float | None
    by_macs: float | None
    by_nonzeros: float | None
    cells: tuple[Cell | None, ...]
    accuracy: Judged | None
    narrow: Narrow | None
    cost: Mapping[str, float]


@dataclass(frozen=True)
class Results:
    """The table of one workload.

    Attributes:
        idle: what runtimes make of zeros, one sentence a column that has some.
        more: networks whose speed alone was measured, which are left out.
        virtual: whether a column counts instructions; dtypes: and int8 stands beside float there.
    """

    workload: str
    columns: tuple[Column, ...]
    rows: tuple[ResultRow, ...]
    idle: tuple[str, ...]
    virtual: bool
    dtypes: bool
    more: int


def results(report: RunReport) -> list[Results]:
    """Return the table of each workload with a compressed network that was measured."""
    found: list[Results] = []
    for workload in dict.fromkeys(c.workload for c in report.candidates if c.workload):
        sections = [s for s in report.sections if s.workload == workload and not s.smoke]
        columns = _columns(sections)
        mine = [c for c in report.candidates if c.workload == workload]
        mine.sort(key=lambda c: _ROLES.index(c.role) if c.role in _ROLES else len(_ROLES))
        every = [
            row
            for candidate, precision in sizes.networks(report, mine)
            if (row := _row(report, sections, columns, candidate, precision)) is not None
        ]
        # A search times many networks that it never judges on the board.
        rows = [row for row in every if row.accuracy is not None] or every
        if columns and any(row.candidate.role == "compressed" for row in rows):
            virtual = any(column.clock == "virtual" for column in columns)
            dtypes = virtual and any(s.virtual and s.several_dtypes for s in sections)
            idle = _idle(columns, rows)
            more = len(every) - len(rows)
            found.append(Results(workload, columns, tuple(rows), idle, virtual, dtypes, more))
    return found


def _columns(sections: Sequence[BoardSection]) -> tuple[Column, ...]:
    return tuple(
        dict.fromkeys(
            Column(s.board, s.board_id, s.clock.value, m.runtime, m.threads)
            for s in sections
            for m in sorted(s.measurements, key=lambda m: (m.runtime, m.threads))
        )
    )


def _row(
    report: RunReport,
    sections: Sequence[BoardSection],
    columns: Sequence[Column],
    candidate: CandidateReport,
    precision: str,
) -> ResultRow | None:
    """Return a row, None where nothing of it was measured."""
    mine = [a for a in candidate.artifacts if techniques.numbers(a[2]) == precision]
    shas = {sha for sha, _, _, _ in mine}
    measured = [(s, m) for s in sections for m in s.measurements if m.artifact in shas]
    if not measured:
        return None
    kept = report.survey.of(candidate.candidate_id)
    reference = sizes.reference_of(report, candidate)
    smallest = sizes.sized(candidate, kept, precision)
    dense = sizes.dense_bytes(reference)
    sparse = _density(candidate) < _FULL
    by_macs, by_nonzeros = _predicted(candidate, reference)
    is_reference = candidate.role == "reference" and precision == "float"
    unstructured = sparse and precision == "float" and by_macs is not None and by_macs < _SAME_MACS
    return ResultRow(
        candidate=candidate,
        family=_family(candidate, precision),
        label=candidate.label if precision == "float" else f"{candidate.label} {precision}",
        method=techniques.method(candidate, precision),
        zeros=1 - _density(candidate),
        unstructured=unstructured,
        files=tuple(
            (form, size, *kept.coded.get(sha, ("", 0)))
            for sha, form, _, size in sorted(mine, key=lambda a: a[1] != "onnx")
        ),
        smallest=smallest,
        smaller=dense / smallest.size_bytes if dense and smallest and smallest.size_bytes else None,
        by_macs=None if is_reference else by_macs,
        by_nonzeros=by_nonzeros if sparse and not is_reference else None,
        cells=tuple(_cell(column, sections, measured, unstructured) for column in columns),
        accuracy=judged.on_board(report, candidate, precision),
        narrow=_narrow(report, measured),
        cost=_cost(candidate, kept, precision),
    )


def _cost(candidate: CandidateReport, kept: Kept, precision: str) -> dict[str, float]:
    """Return the candidate's cost less that of passes which made its other files."""
    cost = {key: candidate.cost[key] for key in _COSTS if key in candidate.cost}
    for told in kept.history:
        role, passes = told.get("role"), told.get("cost", {})
        if not isinstance(role, str) or techniques.numbers(role) == precision:
            continue
        spent = {**(passes if isinstance(passes, Mapping) else {}), "cpu_s": told.get("cpu_s", 0)}
        for key in cost:
            used = spent.get(key, 0)
            cost[key] = max(0.0, cost[key] - used) if isinstance(used, int | float) else cost[key]
    return cost


def _family(candidate: CandidateReport, precision: str) -> str:
    if candidate.role in ("equal-macs", "imported"):
        return candidate.role
    if candidate.role == "reference" and precision == "float":
        return candidate.role
    return precision if precision in ("float", "int8") else "other"


def _density(candidate: CandidateReport) -> float:
    """Return the share of its weights that are not zero, in [0, 1]."""
    if not candidate.params or candidate.nonzeros is None:
        return 1.0
    return candidate.nonzeros / candidate.params


def _predicted(
    candidate: CandidateReport, reference: CandidateReport | None
) -> tuple[float | None, float | None]:
    """Return the dense network's MACs / this one's, all of them and those that are not by zero."""
    if reference is None or not reference.macs:
        return None, None
    useful = sum(la.macs * la.nonzeros / la.params for la in candidate.layers if la.params)
    return (
        reference.macs / candidate.macs if candidate.macs else None,
        reference.macs / useful if useful else None,
    )


def _cell(
    column: Column,
    sections: Sequence[BoardSection],
    measured: Sequence[tuple[BoardSection, MeasurementReport]],
    unstructured: bool,
) -> Cell | None:
    here = [m for s, m in measured if _where(s, m) == column]
    if not here:
        return None
    m = here[0]
    ratio = m.versus_reference
    if ratio is not None and ratio.value is None:
        ratio = None
    idle = ""
    if unstructured and ratio is not None and not _leaves_zeros_out(column.runtime):
        idle = _IDLE.get(ratio.verdict, "")
    across = None
    if (ratio is None and m.role != "reference") or _leaves_zeros_out(column.runtime):
        across = _across(column, sections, m.p50_ns)
    return Cell(m.p50_ns.value, ratio, across, idle)


def _where(section: BoardSection, m: MeasurementReport) -> Column:
    return Column(section.board, section.board_id, section.clock.value, m.runtime, m.threads)


def _across(column: Column, sections: Sequence[BoardSection], mine: Estimate) -> Across | None:
    """Return the speed against the dense reference in its quickest other runtime."""
    dense = [
        (m.p50_ns.value, m.runtime, m.p50_ns)
        for s in sections
        if s.board_id == column.board_id and s.clock.value == column.clock
        for m in s.measurements
        if m.role == "reference"
        and m.precision == "float"
        and m.runtime != column.runtime
        and m.threads == column.threads
        and m.p50_ns.value
    ]
    if not dense or not mine.value:
        return None
    fastest, runtime, theirs = min(dense, key=lambda one: one[:2])
    ends = (theirs.low, mine.high, theirs.high, mine.low)
    low, high = (
        (theirs.low / mine.high, theirs.high / mine.low)
        if all(ends) and theirs.low and theirs.high and mine.low and mine.high
        else (None, None)
    )
    return Across(runtime, fastest / mine.value, low, high)


def _narrow(
    report: RunReport, measured: Sequence[tuple[BoardSection, MeasurementReport]]
) -> Narrow | None:
    for section, m in sorted(measured, key=lambda one: _leaves_zeros_out(one[1].runtime)):
        ratio = m.versus_equal_macs
        if ratio is None or ratio.value is None:
            continue
        other = section.find(ratio.against)
        held = None if other is None else report.candidate(other.candidate_id)
        label, accuracy = ratio.against, None
        if other is not None and held is not None:
            precision = techniques.numbers(other.precision)
            label = held.label if precision == "float" else f"{held.label} {precision}"
            accuracy = judged.on_board(report, held, precision)
        return Narrow(label, f"{m.runtime}, {section.board}", accuracy, ratio)
    return None


def _leaves_zeros_out(runtime: str) -> bool:
    return runtime.startswith(_SPARSE_RUNTIMES)


def _idle(columns: Sequence[Column], rows: Sequence[ResultRow]) -> tuple[str, ...]:
    """Return a sentence for each column in which zeros bring nothing, or something."""
    said: list[str] = []
    for i, column in enumerate(columns):
        cells = [(row, cell) for row in rows if (cell := row.cells[i]) is not None]
        if _leaves_zeros_out(column.runtime):
            told = [_gains(row, cell.across) for row, cell in cells if row.unstructured]
            if told := [one for one in told if one]:
                where = f"{column.runtime} on {column.board}"
                said.append(f"{where} leaves zeros out: {_first(told)}.")
            continue
        settled = [_runs(row, cell) for row, cell in cells if cell.idle == "nothing"]
        where = f"{column.runtime} on {column.board}"
        if settled:
            said.append(
                f"{where} multiplies zeros like any other weight, so they bring no speed there: "
                f"{_first(settled)}."
            )
        open_ = [_runs(row, cell) for row, cell in cells if cell.idle == "unsettled"]
        if open_ and not settled:
            said.append(f"No gain from zeros is shown in {where}: {_first(open_)}.")
    return tuple(said)


def _gains(row: ResultRow, across: Across | None) -> str:
    """Return how fast a runtime that leaves zeros out is beside the quickest that does not."""
    if across is None:
        return ""
    told = f"{row.label} ({words.percent(row.zeros, 0)} zeros) runs {words.times(across.value)}"
    told += f" as fast as the dense network in {across.runtime}"
    if across.low is not None and across.high is not None:
        told += f" ({words.between(across.value, across.low, across.high)})"
    if across.value <= 1 or (across.low is not None and across.low <= 1):
        told += ", no gain" if across.value <= 1 else ", no gain shown"
    return told


def _runs(row: ResultRow, cell: Cell) -> str:
    ratio = cell.ratio
    value, low, high = (None, None, None) if ratio is None else (ratio.value, ratio.low, ratio.high)
    told = f"{row.label} ({words.percent(row.zeros, 0)} zeros) runs {words.times(value)} as fast"
    if value is None or low is None or high is None:
        return told
    return f"{told} ({words.between(value, low, high)})"


def _first(told: Sequence[str], most: int = 3) -> str:
    more = f", and {len(told) - most} more likewise" if len(told) > most else ""
    return words.listed(told[:most]) + more
