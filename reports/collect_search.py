"""Reads the note "search" of a run; `model_search` has its schema."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flatsat.errors import DataError
from flatsat.reports.model import Estimate
from flatsat.reports.model_search import (
    SEARCH_SCHEMA,
    SearchedReport,
    SearchReport,
    StrategyReport,
)
from flatsat.reports.ranks import pareto_front
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.reports.rows import Store


def search_from_note(note: object) -> SearchReport:
    """Return a search as its note tells it.

    Raises:
        DataError: the note is of another schema, or lacks something.
    """
    if not isinstance(note, Mapping) or note.get("schema") != SEARCH_SCHEMA:
        raise DataError(f"the note is not of schema {SEARCH_SCHEMA}")
    try:
        return _search(note)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"the note of a search can't be read: {error!r}") from error


def siblings(store: Store, note: object) -> tuple[SearchReport, ...]:
    """Return the searches that a run's note "searches" (board -> run) sets side by side."""
    if not isinstance(note, Mapping):
        return ()
    found = []
    for run_id in note.values():
        try:
            found.append(search_from_note(store.notes(str(run_id)).get("search")))
        except DataError:
            # A search that was stopped before its first note has nothing to show.
            continue
    return tuple(found)


def _search(note: Mapping[str, Any]) -> SearchReport:
    budget = note["budget"]
    measured = [_measured(entry) for entry in note["measured"]]
    points = [
        (
            math.nan if m.measured.value is None else m.measured.value,
            math.nan if m.accuracy is None else m.accuracy,
        )
        for m in measured
    ]
    front = pareto_front(points, ("minimise", "maximise"))
    return SearchReport(
        name=str(note["name"]),
        workload=str(note["workload"]),
        space=str(note["space"]),
        reward=str(note["reward"]),
        quantity=str(budget["quantity"]),
        unit=str(budget["unit"]),
        limit=_number(budget.get("limit")),
        reference=_number(budget.get("reference")),
        board=None if budget.get("board") is None else str(budget["board"]),
        clock=None if budget.get("clock") is None else TimeKind(budget["clock"]),
        layers=tuple(
            (str(la["name"]), str(la["kind"]), int(la["macs"]), int(la["params"]))
            for la in note["layers"]
        ),
        strategies=tuple(_strategy(entry) for entry in note["strategies"]),
        measured=tuple(
            SearchedReport(**{**vars(m), "pareto": bool(best)})
            for m, best in zip(measured, front, strict=True)
        ),
        chosen=None if note.get("chosen") is None else str(note["chosen"]),
    )


def _strategy(entry: Mapping[str, Any]) -> StrategyReport:
    best = entry.get("best") or {}
    return StrategyReport(
        strategy=str(entry["strategy"]),
        label=str(entry["label"]),
        role=str(entry["role"]),
        seed=int(entry["seed"]),
        state=str(entry["state"]),
        warmup=int(entry.get("warmup") or 0),
        reward=_numbers(entry["reward"]),
        cost=_numbers(entry["cost"]),
        best_evaluation=None if best.get("evaluation") is None else int(best["evaluation"]),
        best_reward=_number(best.get("reward")),
        best_cost=_number(best.get("cost")),
        best_ratios=tuple(float(ratio) for ratio in best.get("ratios") or ()),
        cpu_s=_number(entry.get("cpu_s")),
    )


def _measured(entry: Mapping[str, Any]) -> SearchedReport:
    return SearchedReport(
        candidate_id=str(entry["candidate_id"]),
        label=str(entry["label"]),
        strategy=str(entry["strategy"]),
        seed=int(entry["seed"]),
        evaluation=int(entry["evaluation"]),
        reward=_number(entry.get("reward")),
        accuracy=_number(entry.get("accuracy")),
        predicted=_number(entry.get("predicted")),
        measured=Estimate(
            _number(entry.get("measured")), _number(entry.get("low")), _number(entry.get("high"))
        ),
        dtype=str(entry.get("dtype") or ""),
    )


def _numbers(values: Sequence[object]) -> tuple[float | None, ...]:
    return tuple(_number(value) for value in values)


def _number(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no number")
    return float(value) if math.isfinite(value) else None
