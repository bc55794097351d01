"""Planted domains, and a bench that times networks by a formula instead of a board."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from flatsat.canonical import sha256_json
from flatsat.harness.search.bench import Built, Timed
from flatsat.harness.search.costs import MacsModel, total_of
from flatsat.harness.search.domain import Choice, CostLayer, Domain
from flatsat.harness.search.estimate import NoFinetuneEstimator
from flatsat.harness.search.loop import SearchLoop
from flatsat.harness.search.seams import Estimate, Fidelity, Proposal
from flatsat.harness.search.settings import SearchSection
from flatsat.harness.search.spaces import ChannelSpace
from flatsat.progress import NoProgress
from flatsat.seeds import generator
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.harness.search.table import BoardTable, TablePlan

NEEDS = (0.25, 0.9, 0.25, 0.8, 0.25, 1.0, 0.3, 0.7)
"""Share of its channels that each planted layer can't do without; the rest is redundant."""


def chain(needs: Sequence[float] = NEEDS, channels: int = 32, least: int = 8) -> Domain:
    """Return a chain of 3x3 convolutions on 16x16 maps that ends in a dense layer."""
    choices, layers = [], []
    for index in range(len(needs)):
        name = f"conv{index}"
        choices.append(Choice(name, channels, tuple(range(least, channels + 1)), (name,)))
        source = (None, 3, 1) if index == 0 else (index - 1, channels, 1)
        weights = source[1] * channels * 9
        layers.append(
            CostLayer(
                name,
                "conv",
                (source,),
                (index, channels, 1),
                (3, 3),
                (1, 1),
                (16, 16),
                (16, 16),
                1,
                weights,
                weights * 256,
            )
        )
    last = (len(needs) - 1, channels, 1)
    size = channels * 10
    layers.append(
        CostLayer("fc", "dense", (last,), (None, 10, 1), (1,), (1,), (), (), 1, size, size)
    )
    return Domain(tuple(choices), tuple(layers))


def planted_accuracy(domain: Domain, key: Sequence[int], needs: Sequence[float] = NEEDS) -> float:
    """Return exp(-2 x what is missing): 1.0 as long as no needed channel is gone."""
    ratios = np.array(key) / domain.full
    return float(math.exp(-2.0 * np.maximum(0.0, np.array(needs[: len(key)]) - ratios).sum()))


def judge(domain: Domain, proposal: Proposal) -> Estimate:
    """Return the exact estimate of a planted network."""
    return Estimate(
        planted_accuracy(domain, proposal.key),
        0.0,
        Fidelity.PREDICTED,
        total_of(MacsModel(domain), proposal.key),
    )


def true_latency_ns(domain: Domain, key: Sequence[int], factor: float = 1.3) -> float:
    """Return what the planted board takes: more than its layers alone, and a fixed part."""
    counts = np.array(key)
    inputs, outputs = domain.features_in(counts), domain.features_out(counts)
    return float(500.0 + factor * (inputs * outputs).sum())


@dataclass
class PlantedBench:
    """Builds nothing and times by formula; noise depends on comparison, candidate and round only.

    Attributes:
        domain: of the planted network.
        noise: relative standard deviation of a median.
        factor: of the board's whole networks against its single layers.
        fail_at: measure() number (from 0) at which the lab breaks, once.
        log: (comparison, number of candidates) of every call.
    """

    domain: Domain
    noise: float = 0.002
    factor: float = 1.3
    fail_at: int = -1
    broken: Callable[[Sequence[int]], bool] = lambda key: False
    time_kind: TimeKind | None = TimeKind.WALL
    log: list[tuple[str, int]] = field(default_factory=list)
    keys: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tables: int = 0

    def build(self, name: str, recipe: Mapping[str, object]) -> Built:
        """Return a candidate named by its recipe."""
        steps = recipe.get("step", [])
        assert isinstance(steps, list)
        keep = steps[0]["keep"] if steps and steps[0]["use"] == "channel-prune" else {}
        key = tuple(
            round(keep.get(choice.name, 1.0) * choice.channels) for choice in self.domain.choices
        )
        candidate_id = sha256_json(recipe)
        self.keys[candidate_id] = key
        macs = total_of(MacsModel(self.domain), key)
        return Built(candidate_id, planted_accuracy(self.domain, key), macs)

    def measure(
        self, comparison: str, candidate_ids: Sequence[str], *, rounds: int, accuracy: bool = False
    ) -> dict[str, Timed]:
        """Return the formula's latency with noise and a drift that all of a round share."""
        if len(self.log) == self.fail_at:
            self.fail_at = -1
            raise ConnectionError("the lab broke")
        self.log.append((comparison, len(candidate_ids)))
        found = {}
        for one in candidate_ids:
            key = self.keys[one]
            if self.broken(key):
                found[one] = Timed({}, "it crashed")
                continue
            medians = {}
            for number in range(rounds):
                drift = 1.0 + 0.2 * generator(number, comparison).random()
                noise = generator(number, f"{comparison}/{one}").normal(1.0, self.noise)
                medians[number] = true_latency_ns(self.domain, key, self.factor) * drift * noise
            found[one] = Timed(
                medians, "", planted_accuracy(self.domain, key) if accuracy else None
            )
        return found

    def table(self, plan: TablePlan) -> BoardTable:
        """Return the layers as they are alone: a thousand nanoseconds more than nothing."""
        self.tables += 1
        return plan.table(
            {
                probe: 1_000.0
                + (0.0 if probe.kind == "empty" else float(probe.inputs * probe.outputs))
                for probe in plan.probes()
            },
            {},
        )


@pytest.fixture
def planted() -> Domain:
    return chain()


@pytest.fixture
def small() -> Domain:
    """Four planted layers."""
    return chain(NEEDS[:4])


@pytest.fixture
def make_chain() -> Callable[..., Domain]:
    return chain


@pytest.fixture
def judged() -> Callable[[Domain, Proposal], Estimate]:
    return judge


@pytest.fixture
def make_bench() -> type[PlantedBench]:
    return PlantedBench


@pytest.fixture
def latency_of() -> Callable[..., float]:
    return true_latency_ns


@pytest.fixture
def make_section() -> Callable[..., SearchSection]:
    def make(**changes: object) -> SearchSection:
        values: dict[str, object] = {
            "name": "planted",
            "workload": "mnist-mini/lenet5",
            "episodes": 18,
            "warmup_episodes": 12,
            "seeds": [0],
            "budget": {"quantity": "macs", "ratio": 0.4},
            "measure": {"every": 6, "top": 1, "rounds": 3},
            "finish": {"rounds": 4, "attempts": 3, "equal_macs": False},
        }
        return SearchSection.model_validate({**values, **changes})

    return make


@pytest.fixture
def make_loop() -> Callable[[SearchSection, PlantedBench], SearchLoop]:
    def make(section: SearchSection, bench: PlantedBench) -> SearchLoop:
        domain = bench.domain
        estimator = NoFinetuneEstimator(
            prune=lambda proposal: proposal,  # type: ignore[arg-type, return-value]
            evaluate=lambda proposal: planted_accuracy(domain, proposal.key),  # type: ignore[attr-defined]
            images=500,
            cost=MacsModel(domain),
        )
        space = ChannelSpace(section.workload, lower=0.25)
        return SearchLoop(section, domain, space, estimator, bench, NoProgress())

    return make
