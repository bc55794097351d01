"""What sections say beside each other: boards of one clock, and runtimes on one board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from flatsat.reports import stats, words
from flatsat.reports.model import Estimate
from flatsat.reports.model_board import (
    BoardsReport,
    DtypeCell,
    DtypeRow,
    RuntimeCell,
    RuntimeRow,
    RuntimesReport,
)
from flatsat.runtimes import FORMATS

if TYPE_CHECKING:
    from flatsat.reports.known import Known
    from flatsat.reports.model import BoardSection, MeasurementReport
    from flatsat.units import TimeKind

_FEWEST = 4
"""Files that a rank correlation needs."""


def across_boards(
    sections: Sequence[BoardSection], artifacts: Mapping[str, Known]
) -> tuple[BoardsReport, ...]:
    """Return a report for each workload and clock that several boards measured files of.

    The clocks never meet, and what an emulator's real clock says takes no part. Left out is what
    holds neither a network in two element types nor enough files to compare an order.
    """
    groups: dict[tuple[str, TimeKind], list[BoardSection]] = {}
    for section in sections:
        if not section.smoke:
            groups.setdefault((section.workload, section.clock), []).append(section)
    found: list[BoardsReport] = []
    for (workload, clock), group in groups.items():
        if len(group) < 2:
            continue
        rows = _dtype_rows(group, artifacts)
        ranks = tuple(
            (left.board, right.board, rho)
            for left, right in combinations(group, 2)
            if (rho := _rank_correlation(left, right)) is not None
        )
        if rows or ranks:
            names = tuple(section.board for section in group)
            found.append(BoardsReport(workload, clock, names, rows, ranks))
    return tuple(found)


def _setting(m: MeasurementReport) -> tuple[str, str, int, int]:
    return m.artifact, m.runtime, m.threads, m.batch


def _dtype_rows(
    group: Sequence[BoardSection], artifacts: Mapping[str, Known]
) -> tuple[DtypeRow, ...]:
    """Return the networks that two boards or more ran both in float and in int8."""
    by_board = [{_setting(m): m for m in section.measurements} for section in group]
    several = len({(m.format, m.runtime) for s in group for m in s.measurements}) > 1
    rows: list[DtypeRow] = []
    for key in dict.fromkeys(key for held in by_board for key in held):
        cells = tuple(
            _cell(section, held.get(key)) for section, held in zip(group, by_board, strict=True)
        )
        if sum(cell is not None for cell in cells) < 2:
            continue
        first = next(held[key] for held in by_board if key in held)
        known = artifacts.get(first.artifact)
        label = first.label if known is None else known.candidate_label
        detail = words.plural(first.threads, "thread")
        if several:
            detail = f"{first.format}, {first.runtime}, {detail}"
        rows.append(DtypeRow(label, detail, cells))
    return tuple(rows)


def _cell(section: BoardSection, int8: MeasurementReport | None) -> DtypeCell | None:
    gain = None if int8 is None else int8.versus_float
    if int8 is None or gain is None or gain.value is None:
        return None
    plain = section.find(gain.against)
    if plain is None or not plain.p50_ns.value or not int8.p50_ns.value:
        return None
    return DtypeCell(plain.p50_ns.value, int8.p50_ns.value, gain)


def _rank_correlation(left: BoardSection, right: BoardSection) -> Estimate | None:
    """Return how alike two boards of one clock rank the files that both ran."""
    mine = {_setting(m): m.p50_ns.value for m in left.measurements}
    theirs = {_setting(m): m.p50_ns.value for m in right.measurements}
    pairs = [
        (value, other)
        for key, value in mine.items()
        if value is not None and (other := theirs.get(key)) is not None
    ]
    if len(pairs) < _FEWEST:
        return None
    rho = stats.spearman([p[0] for p in pairs], [p[1] for p in pairs])
    return None if rho is None else Estimate(rho.value, rho.low, rho.high, len(pairs))


def _network(m: MeasurementReport, artifacts: Mapping[str, Known]) -> tuple[object, ...]:
    """Return whose files are of one network: a candidate's; all dense references' of one seed."""
    known = artifacts.get(m.artifact)
    if m.role == "reference" and known is not None:
        return m.role, known.candidate.workload, known.candidate.seed
    return (m.candidate_id,)


def _usual(column: tuple[str, str]) -> tuple[int, str]:
    """Return a runtime's place: those that FlatSat knows in their usual order, then others."""
    names = list(FORMATS)
    return (names.index(column[0]) if column[0] in names else len(names), column[0])


def across_runtimes(
    measured: Sequence[MeasurementReport], artifacts: Mapping[str, Known]
) -> RuntimesReport | None:
    """Return the networks of a section that several runtimes ran in one precision, or None.

    Runtimes take files of different formats, so that what is held side by side is one network and
    not one file.
    """
    groups: dict[tuple[object, ...], dict[tuple[str, str], MeasurementReport]] = {}
    for m in measured:
        column = (m.runtime, m.format)
        key = (_network(m, artifacts), m.precision, m.threads, m.batch)
        groups.setdefault(key, {}).setdefault(column, m)
    columns = sorted({(m.runtime, m.format) for m in measured}, key=_usual)
    rows: list[RuntimeRow] = []
    for held in groups.values():
        timed = {c: m.p50_ns.value for c, m in held.items() if m.p50_ns.value}
        if len(timed) < 2:
            continue
        first = next(iter(held.values()))
        names = {m.label if (k := artifacts.get(m.artifact)) is None else k.candidate_label
                 for m in held.values()}  # fmt: skip
        label = names.pop() if len(names) == 1 else "dense reference"
        if len({m.threads for m in measured}) > 1:
            label += f", {words.plural(first.threads, 'thread')}"
        best = min(timed.values())
        rows.append(
            RuntimeRow(
                label,
                first.precision,
                tuple(RuntimeCell(timed[c], timed[c] / best) if c in timed else None
                      for c in columns),
            )
        )  # fmt: skip
    if not rows:
        return None
    used = [i for i in range(len(columns)) if any(row.cells[i] is not None for row in rows)]
    return RuntimesReport(
        tuple(columns[i] for i in used),
        tuple(RuntimeRow(r.label, r.precision, tuple(r.cells[i] for i in used)) for r in rows),
    )
