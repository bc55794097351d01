"""Whole candidates: policies built by ordinary recipes and measured beside the dense network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flatsat.errors import InfrastructureError
from flatsat.harness.search.bench import Bench, Built, Timed, relative, together
from flatsat.harness.search.costs import BoardModel, MacsModel, total_of
from flatsat.harness.search.history import Measurement
from flatsat.harness.search.table import BoardTable, TablePlan

if TYPE_CHECKING:
    from flatsat.harness.search.costs import CostModel
    from flatsat.harness.search.domain import Domain
    from flatsat.harness.search.history import Track
    from flatsat.harness.search.settings import SearchSection
    from flatsat.harness.search.spaces import ChannelSpace
    from flatsat.progress import Progress


@dataclass(frozen=True)
class Ground:
    """What a search stands on once the board has been asked for the first time.

    Attributes:
        reference: the dense network's value of the budget's quantity.
        limit: of the budget in its unit; None for none.
        table: of single layers on the board; None for a budget on MACs.
        dense_id: the dense candidate; "" without a board.
    """

    reference: float
    limit: float | None
    table: BoardTable | None
    dense_id: str


@dataclass(frozen=True)
class Stage:
    """Candidates that were measured together.

    Attributes:
        measurements: in the order of the policies.
        timed: candidate_id -> its measurement, the dense network's among them.
    """

    measurements: list[Measurement]
    timed: Mapping[str, Timed]


@dataclass(frozen=True)
class Whole:
    """Builds policies and measures them.

    Attributes:
        section: of the search.
        domain: of the dense network.
        space: realises policies as recipes.
        bench: where they are made and measured.
        progress: is told what goes on.
    """

    section: SearchSection
    domain: Domain
    space: ChannelSpace
    bench: Bench
    progress: Progress

    def ground(self) -> Ground:
        """Measure what a search stands on: single layers and the dense network.

        Raises:
            InfrastructureError: the board could not run the dense network, or no layer.
        """
        budget = self.section.budget
        table = None
        if budget.quantity != "macs":
            table = self.bench.table(TablePlan(self.domain, self.section.estimate.grid))
        dense_id = ""
        reference = float(MacsModel(self.domain).total(self.domain.full))
        if budget.board:
            dense_id = self.bench.build("dense", self.space.dense()).candidate_id
            if table is not None:
                rounds = self.section.measure.rounds
                told = self.bench.measure("dense", [dense_id], rounds=rounds)[dense_id]
                found = relative(told, None)
                if found is None:
                    raise InfrastructureError(
                        f"{budget.board} gave no {budget.quantity} of the dense network: "
                        f"{told.why}",
                        hint=f"see: flatsat board doctor {budget.board}",
                    )
                reference = found.value
        limit = budget.limit if budget.ratio is None else budget.ratio * reference
        return Ground(reference, limit, table, dense_id)

    def measure(
        self,
        stage: str,
        policies: Sequence[tuple[Track, int]],
        ground: Ground,
        cost: CostModel,
        *,
        rounds: int,
        epochs: Sequence[float] = (),
        accuracy: bool = False,
        beside: Sequence[str] = (),
        earlier: Sequence[Mapping[str, Timed]] = (),
    ) -> Stage:
        """Build policies and measure them whole, in interleaved rounds with the dense network.

        Args:
            stage: name of the comparison; the same again measures nothing twice.
            policies: track and evaluation of each.
            ground: of the search.
            cost: predicts what is about to be measured.
            rounds: latency jobs of each.
            epochs: of training after the pruning, for each policy; () for none.
            accuracy: run the test split on the board as well.
            beside: further candidates of the bench for the same rounds.
            earlier: comparisons whose rounds count as well where they hold the same candidate.
        """
        if not policies:
            return Stage([], {})
        epochs = epochs or [0.0] * len(policies)
        built = self.build(policies, epochs)
        timed: Mapping[str, Timed] = {}
        if ground.dense_id:
            ids = [ground.dense_id, *(one.candidate_id for one in built), *beside]
            timed = self.bench.measure(stage, ids, rounds=rounds, accuracy=accuracy)
        rounds_of = [*earlier, timed] if timed else []
        measurements = [
            self._judged(stage, track, index, made, rounds_of, ground, cost, fine_tuned=trained > 0)
            for (track, index), made, trained in zip(policies, built, epochs, strict=True)
        ]
        return Stage(measurements, timed)

    def build(self, policies: Sequence[tuple[Track, int]], epochs: Sequence[float]) -> list[Built]:
        """Build policies by their recipes, with so many epochs of fine-tuning each."""
        built = []
        for number, ((track, index), trained) in enumerate(zip(policies, epochs, strict=True)):
            space = replace(self.space, fine_tune_epochs=trained)
            tuned = "-tuned" if trained else ""
            name = f"{track.name}-s{track.seed}-e{index}{tuned}"
            self.progress.update("build candidates", number, len(policies), name)
            proposal = self.domain.proposal(track.evaluated[index].key)
            with one_torch_thread():
                built.append(self.bench.build(name, space.realise(proposal)))
        self.progress.update("build candidates", len(policies), len(policies))
        return built

    def _judged(
        self,
        stage: str,
        track: Track,
        index: int,
        made: Built,
        stages: Sequence[Mapping[str, Timed]],
        ground: Ground,
        cost: CostModel,
        *,
        fine_tuned: bool,
    ) -> Measurement:
        """Return a measurement in the budget's unit.

        A budget that is a ratio is judged by the ratio to the dense network in the same rounds,
        times the dense network's first value: the machine's drift is in neither. An absolute
        budget is judged by the latency itself.
        """
        one = track.evaluated[index]
        told = together(stages, made.candidate_id) if stages else Timed({})
        value: tuple[float | None, float | None, float | None] = (made.macs,) * 3
        total = None
        if told.why:
            value = (None, None, None)
        elif ground.table is not None:
            total = layers_sum(self.domain, ground.table, one.key)
            anchored = self.section.budget.limit is None
            dense = together(stages, ground.dense_id) if anchored else None
            found = relative(told, dense, ground.reference)
            value = (None, None, None) if found is None else (found.value, found.low, found.high)
        return Measurement(
            candidate_id=made.candidate_id,
            strategy=track.name,
            seed=track.seed,
            evaluation=index,
            key=one.key,
            stage=stage,
            reward=one.reward,
            accuracy=made.accuracy_as(told.dtype),
            fine_tuned=fine_tuned,
            predicted=total_of(cost, one.key),
            layers_sum=total,
            measured=value[0],
            low=value[1],
            high=value[2],
            why=told.why,
            dtype=told.dtype,
        )


def layers_sum(domain: Domain, table: BoardTable, counts: Sequence[int]) -> float:
    """Return the sum of a policy's layers in nanoseconds, at least 1."""
    # Layers too quick to be told from the empty model would make a sum of nothing.
    return max(1.0, total_of(BoardModel(domain, table), counts))


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread: small networks gain nothing from more, and sums stay the same."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
