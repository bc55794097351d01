"""What a report shows of a search, and the note from which it is read.

**Note "search"** (`Store.put_note(run_id, "search", value)`), written by a search after each batch
of evaluations, read by `collect`; every list of a strategy has one entry an evaluation::

    {"schema": "flatsat.search/1",
     "name": "amc",                         # of the study
     "workload": "mnist-mini/lenet5",
     "space": "channels",
     "reward": "accuracy without fine-tuning on the calibration split",   # said in words
     "budget": {"quantity": "latency",      # "macs", "latency", "params", "bytes", or "energy",
                                            # which is modelled from counted events
                "limit": 61000.0,           # in the unit of the quantity
                "reference": 122000.0,      # the dense network's value, or null
                "unit": "ns",               # "ns", "MACs", "", "B", "nJ"
                "board": "host", "clock": "wall"},                        # null but for latency
     "layers": [{"name": "conv1", "kind": "conv", "macs": 288000, "params": 520}],
     "strategies": [
       {"strategy": "amc", "label": "AMC (DDPG)", "role": "search",       # or "baseline"
        "seed": 0, "state": "running",      # or "finished"
        "warmup": 100,                      # exploring evaluations before it learns, or 0
        "reward": [0.31, 0.52],             # null for an evaluation that failed
        "cost": [60500.0, 58000.0],         # estimate of the budget's quantity, or null
        "best": {"evaluation": 1, "reward": 0.52, "cost": 58000.0,
                 "ratios": [1.0, 0.4]},     # preserve ratio of each of `layers`; null before any
        "cpu_s": 12.5}],                    # spent so far
     "measured": [                          # candidates measured whole on the board
       {"candidate_id": "...", "label": "amc s0 e1", "strategy": "amc", "seed": 0,
        "evaluation": 1, "reward": 0.52,
        "accuracy": 0.957,                  # on the validation split after fine-tuning, or null
        "predicted": 58000.0,               # by the estimator, in the budget's unit
        "measured": 59100.0, "low": 58800.0, "high": 59500.0}],           # null: failed
     "chosen": "..."}                       # candidate_id that the search ends with, or null

Of the note "search-detail", "messages" is shown: lines that a reader of the result should know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.reports.model import Estimate
    from flatsat.units import TimeKind

SEARCH_SCHEMA = "flatsat.search/1"


@dataclass(frozen=True)
class StrategyReport:
    """One strategy with one seed; the lists are as in the module's docstring."""

    strategy: str
    label: str
    role: str
    seed: int
    state: str
    warmup: int
    reward: tuple[float | None, ...]
    cost: tuple[float | None, ...]
    best_evaluation: int | None
    best_reward: float | None
    best_cost: float | None
    best_ratios: tuple[float, ...]
    cpu_s: float | None


@dataclass(frozen=True)
class SearchedReport:
    """A candidate of a search that was measured whole."""

    candidate_id: str
    label: str
    strategy: str
    seed: int
    evaluation: int
    reward: float | None
    accuracy: float | None
    predicted: float | None
    measured: Estimate
    dtype: str = ""
    """Of the form that counted, "float" or "int8"; "" where it isn't told."""
    pareto: bool = False


@dataclass(frozen=True)
class SearchReport:
    """A search: its budget, how each strategy went, and what was measured whole."""

    name: str
    workload: str
    space: str
    reward: str
    quantity: str
    unit: str
    limit: float | None
    reference: float | None
    board: str | None
    clock: TimeKind | None
    layers: tuple[tuple[str, str, int, int], ...]
    """(name, kind, MACs, parameters) of each layer that has a preserve ratio."""
    strategies: tuple[StrategyReport, ...]
    measured: tuple[SearchedReport, ...]
    chosen: str | None
    messages: tuple[str, ...] = ()

    @property
    def quantity_name(self) -> str:
        """The budget's quantity in words; an energy is one that was modelled from counts."""
        return "modelled energy" if self.quantity == "energy" else self.quantity
