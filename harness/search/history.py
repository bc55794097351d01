"""What a search has done so far: every evaluation, every measurement, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

Key = tuple[int, ...]
"""Channels kept by each choice, in the order of the domain."""

LABELS = {"amc": "AMC (DDPG)", "uniform": "uniform and tilted rules", "random": "random"}
ROLES = {"amc": "search", "uniform": "baseline", "random": "baseline"}


class Verdict(StrEnum):
    """Does a measurement meet the budget: by the interval's end, not by its middle."""

    MET = "met"
    OVER = "over"
    UNCLEAR = "unclear"
    FAILED = "failed"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of one strategy.

    Attributes:
        key: the policy.
        label: how the strategy came to it.
        accuracy, error: on the held-out images.
        cost: of the budget's quantity as predicted then.
        reward: that the strategy was told.
    """

    key: Key
    label: str
    accuracy: float
    error: float
    cost: float
    reward: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Evaluated:
        """Read what `dataclasses.asdict` and JSON made of it."""
        return cls(**{**value, "key": tuple(value["key"])})


@dataclass(frozen=True)
class Measurement:
    """One candidate measured whole on the board.

    Attributes:
        candidate_id: of the candidate.
        strategy, seed, evaluation: whose policy; evaluation counts from 0.
        key: the policy.
        stage: comparison in which it was measured ("batch-3", "qualify-0", "final").
        reward: that the evaluation earned.
        accuracy: of the candidate on the validation split, after its fine-tuning if it had any.
        fine_tuned: whether it had.
        predicted: cost as predicted before it was measured, in the budget's unit.
        layers_sum: sum of the table's layers in nanoseconds; None without a table.
        measured, low, high: in the budget's unit with a 95 % interval; None where it failed.
        why: it failed, or "".
        dtype: of the form that was the quickest on the board, "float" or "int8".
    """

    candidate_id: str
    strategy: str
    seed: int
    evaluation: int
    key: Key
    stage: str
    reward: float
    accuracy: float
    fine_tuned: bool
    predicted: float
    layers_sum: float | None
    measured: float | None
    low: float | None
    high: float | None
    why: str = ""
    dtype: str = "float"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """Read what `dataclasses.asdict` and JSON made of it."""
        return cls(**{**value, "key": tuple(value["key"])})

    def verdict(self, limit: float | None) -> Verdict:
        """Hold the interval against a limit in the budget's unit."""
        if self.measured is None:
            return Verdict.FAILED
        if limit is None:
            return Verdict.MET
        low = self.measured if self.low is None else self.low
        high = self.measured if self.high is None else self.high
        return Verdict.MET if high <= limit else Verdict.OVER if low > limit else Verdict.UNCLEAR


@dataclass
class Track:
    """One strategy with one seed.

    Attributes:
        name: of the strategy.
        seed: of it.
        evaluated: in order.
        cpu_s: processor time so far.
    """

    name: str
    seed: int
    evaluated: list[Evaluated]
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Track:
        """Read what `to_json` wrote."""
        evaluated = [Evaluated.from_json(one) for one in value["evaluated"]]
        return cls(value["name"], value["seed"], evaluated, value["cpu_s"])


def track_note(
    track: Track, channels: Sequence[int], *, best: int | None, warmup: int, finished: bool
) -> dict[str, object]:
    """Return a track as the note "search" has it (`reports.model_search`)."""
    told = None
    if best is not None:
        one = track.evaluated[best]
        told = {
            "evaluation": best,
            "reward": one.reward,
            "cost": one.cost,
            "ratios": [kept / of for kept, of in zip(one.key, channels, strict=True)],
        }
    return {
        "strategy": track.name,
        "label": LABELS[track.name],
        "role": ROLES[track.name],
        "seed": track.seed,
        "state": "finished" if finished else "running",
        "warmup": warmup if track.name == "amc" else 0,
        "reward": [one.reward for one in track.evaluated],
        "cost": [one.cost for one in track.evaluated],
        "best": told,
        "cpu_s": track.cpu_s,
    }


def measurement_note(one: Measurement) -> dict[str, object]:
    """Return a measurement as the note "search" has it."""
    tuned = (" fine-tuned" if one.fine_tuned else "") + ("" if one.dtype == "float" else " int8")
    return {
        "candidate_id": one.candidate_id,
        "label": f"{one.strategy} s{one.seed} e{one.evaluation}{tuned}",
        "strategy": one.strategy,
        "seed": one.seed,
        "evaluation": one.evaluation,
        "reward": one.reward,
        "accuracy": one.accuracy,
        "predicted": one.predicted,
        "measured": one.measured,
        "low": one.low,
        "high": one.high,
        "stage": one.stage,
        "dtype": one.dtype,
    }


def pareto(tracks: Sequence[Track]) -> list[dict[str, object]]:
    """Return the evaluations that no other beats in accuracy and cost, cheapest first."""
    points = [
        (one.cost, -one.accuracy, track, i)
        for track in tracks
        for i, one in enumerate(track.evaluated)
    ]
    front: list[dict[str, object]] = []
    best = float("-inf")
    for cost, minus, track, index in sorted(points, key=lambda point: point[:2]):
        if -minus > best:
            best = -minus
            front.append(
                {
                    "strategy": track.name,
                    "seed": track.seed,
                    "evaluation": index,
                    "cost": cost,
                    "accuracy": -minus,
                }
            )
    return front
