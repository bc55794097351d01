"""What the same search chose on each of several boards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.reports import caveats, words
from flatsat.reports.figures_search import quantity

if TYPE_CHECKING:
    from flatsat.reports.model_search import SearchedReport, SearchReport


@dataclass(frozen=True)
class ChoiceRow:
    """One board's search, in words.

    Attributes:
        board, clock: where.
        budget: with the dense network's value.
        form: element type of what it chose; "" where nothing met the budget.
        label: of the candidate.
        measured, between: its cost with the interval.
        of_dense: share of the dense network's value.
        accuracy: on the validation split.
        others: how many candidates counted as each form, of all that were measured.
    """

    board: str
    clock: str
    budget: str
    form: str
    label: str
    measured: str
    between: str
    of_dense: str
    accuracy: str
    others: str


@dataclass(frozen=True)
class ChoicesView:
    """The table, ready to show."""

    workload: str
    name: str
    quantity: str
    rows: tuple[ChoiceRow, ...]
    differ: bool
    caveat: str


def choices_view(searches: Sequence[SearchReport]) -> ChoicesView | None:
    """Return the searches side by side, or None where there are none."""
    if not searches:
        return None
    rows = tuple(_row(search) for search in searches)
    first = searches[0]
    virtual = any(s.clock is not None and s.clock.value == "virtual" for s in searches)
    return ChoicesView(
        workload=first.workload,
        name=first.name,
        quantity=first.quantity_name,
        rows=rows,
        differ=len({row.form for row in rows if row.form}) > 1,
        caveat=caveats.DTYPES if virtual else "",
    )


def _row(search: SearchReport) -> ChoiceRow:
    chosen = _chosen(search)
    forms = [one.dtype for one in search.measured if one.dtype]
    counted = [f"{forms.count(form)} {form}" for form in dict.fromkeys(forms)]
    budget = quantity(search, search.limit)
    if search.reference:
        budget += f" (dense: {quantity(search, search.reference)})"
    value = None if chosen is None else chosen.measured.value
    return ChoiceRow(
        board=search.board or words.NONE,
        clock=words.NONE if search.clock is None else search.clock.value,
        budget=budget,
        form="" if chosen is None else chosen.dtype,
        label="nothing met the budget" if chosen is None else chosen.label,
        measured=quantity(search, value),
        between=""
        if chosen is None or chosen.measured.low is None
        else f"{quantity(search, chosen.measured.low)} to {quantity(search, chosen.measured.high)}",
        of_dense=words.percent(value / search.reference)
        if value is not None and search.reference
        else words.NONE,
        accuracy=words.NONE
        if chosen is None or chosen.accuracy is None
        else words.percent(chosen.accuracy, 1),
        others=", ".join(counted) or words.NONE,
    )


def _chosen(search: SearchReport) -> SearchedReport | None:
    """Return what the search ended with, as it was measured last."""
    mine = [one for one in search.measured if one.candidate_id == search.chosen]
    return mine[-1] if mine else None
