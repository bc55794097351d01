"""The notes that a search leaves in the record; `reports.model_search` has their schema."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from flatsat.harness.search.history import measurement_note, pareto, track_note
from flatsat.reports.model_search import SEARCH_SCHEMA

if TYPE_CHECKING:
    from flatsat.harness.search.finish import Ending
    from flatsat.harness.search.loop import SearchLoop

DETAIL_SCHEMA = "flatsat.search-detail/1"
_REWARDS = {
    "resource-constrained": "accuracy without fine-tuning on the validation split",
    "accuracy-guaranteed": "-error x log({quantity}) without fine-tuning on the validation split",
}


def search_note(loop: SearchLoop, ending: Ending | None) -> dict[str, object]:
    """Return the note "search", from which the report draws."""
    section, ground, domain = loop.section, loop.ground, loop.domain
    on_board = ground.table is not None
    clock = loop.whole.bench.time_kind if section.budget.quantity == "latency" else None
    channels = [choice.channels for choice in domain.choices]
    layers = {layer.name: layer for layer in domain.layers}
    told = []
    for choice in domain.choices:
        mine = [layers[name] for name in choice.producers]
        told.append(
            {
                "name": choice.name,
                "kind": domain.producer(choice).kind,
                "macs": sum(layer.macs for layer in mine),
                "params": sum(layer.weights for layer in mine),
            }
        )
    finished = ending is not None
    return {
        "schema": SEARCH_SCHEMA,
        "name": section.name,
        "workload": section.workload,
        "space": "channels",
        "reward": _REWARDS[section.reward.kind].format(quantity=section.budget.quantity),
        "budget": {
            "quantity": section.budget.quantity,
            "limit": ground.limit,
            "reference": ground.reference,
            "unit": loop.wall.cost.unit,
            "board": section.budget.board if on_board else None,
            "clock": clock.value if on_board and clock is not None else None,
        },
        "layers": told,
        "strategies": [
            track_note(
                track,
                channels,
                best=loop.best(track),
                warmup=section.warmup_episodes,
                finished=finished or loop.finished,
            )
            for track in loop.tracks
        ],
        "measured": [measurement_note(one) for one in loop.measured],
        "chosen": None if ending is None or ending.chosen is None else ending.chosen.candidate_id,
    }


def detail_note(loop: SearchLoop, ending: Ending | None) -> dict[str, object]:
    """Return the note "search-detail": how well latency was predicted, the front, the verdicts.

    `{"schema", "prediction_error" (median relative, before each measurement; null: none),
    "correction" (scale, offset, points, residual; null without a table), "layers_run" (the run
    that measured single layers), "layers_failed", "pareto" [{strategy, seed, evaluation, cost,
    accuracy}], "finals" [{strategy, candidate_id, verdict, accuracy_validation, accuracy_board,
    measured, low, high, keep, dtype}], "narrow", "verdict", "messages"}`
    """
    table, correction = loop.ground.table, loop.correction
    finals = []
    for final in () if ending is None else ending.finals:
        one = final.measurement
        finals.append(
            {
                "strategy": final.strategy,
                "verdict": final.verdict.value,
                "candidate_id": one.candidate_id,
                "accuracy_validation": one.accuracy,
                "accuracy_board": final.accuracy_board,
                "measured": one.measured,
                "low": one.low,
                "high": one.high,
                "keep": loop.domain.proposal(one.key).ratios,
                "dtype": one.dtype,
            }
        )
    return {
        "schema": DETAIL_SCHEMA,
        "prediction_error": loop.error,
        "correction": None if correction is None else asdict(correction.calibration),
        "layers_run": None if table is None else table.run_id,
        "layers_failed": {} if table is None else dict(table.failed),
        "pareto": pareto(loop.tracks),
        "finals": finals,
        "narrow": None if ending is None else ending.narrow_id or None,
        "verdict": None if ending is None else ending.verdict.value,
        "messages": list(loop.messages),
    }
