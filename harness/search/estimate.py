"""How a policy is judged without training: prune, reconstruct, look at held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.harness.search.costs import total_of
from flatsat.harness.search.seams import Estimate, Fidelity, Proposal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from flatsat.compressors.reconstruct import ChannelPruner
    from flatsat.datasets.workload import Split, Workload
    from flatsat.harness.search.costs import CostModel
    from flatsat.harness.search.settings import SearchSection
    from flatsat.progress import Progress


class NoFinetuneEstimator:
    """Accuracy after pruning and least-squares reconstruction, without any training.

    The images are those of the validation split, which was taken from the training data and is
    used for choices only; the test split stays closed. The error is the binomial standard error
    of the accuracy. Equal policies are judged once.

    Attributes:
        cost: model of the budget's quantity; may be replaced when measurements correct it.
        evaluations: how many policies were pruned and looked at.
    """

    def __init__(
        self,
        prune: Callable[[Proposal], nn.Module],
        evaluate: Callable[[nn.Module], float],
        images: int,
        cost: CostModel,
    ) -> None:
        """Put together what judges.

        Args:
            prune: makes the smaller network of a proposal.
            evaluate: its accuracy on the held-out images.
            images: how many there are; 0 for an accuracy that is exact.
            cost: model of the budget's quantity.
        """
        self._prune = prune
        self._evaluate = evaluate
        self._images = images
        self.cost = cost
        self.evaluations = 0
        self._known: dict[tuple[int, ...], float] = {}

    @property
    def fidelities(self) -> Sequence[Fidelity]:
        """Only without fine-tuning."""
        return (Fidelity.NO_FINETUNE,)

    def estimate(self, proposal: Proposal, fidelity: Fidelity) -> Estimate:
        """Return accuracy and predicted cost.

        Raises:
            UsageError: another fidelity than "no-finetune".
        """
        if fidelity not in self.fidelities:
            raise UsageError(
                f"fidelity {fidelity.value!r} is not offered here", hint="ask for 'no-finetune'"
            )
        accuracy = self._known.get(proposal.key)
        if accuracy is None:
            accuracy = self._evaluate(self._prune(proposal))
            self._known[proposal.key] = accuracy
            self.evaluations += 1
        error = math.sqrt(accuracy * (1 - accuracy) / self._images) if self._images else 0.0
        return Estimate(
            value=accuracy,
            error=error,
            fidelity=fidelity,
            cost=total_of(self.cost, proposal.key),
            cost_error=self.cost.relative_error,
        )

    def remember(self, key: tuple[int, ...], accuracy: float) -> None:
        """Take over what an earlier part of the same search found."""
        self._known[key] = accuracy


def held_out(workload: Workload, cache_dir: Path) -> Split:
    """Return the images that policies are judged by: the validation split, never the test split."""
    return workload.splits(cache_dir).validation


def estimator_of(pruner: ChannelPruner, split: Split, cost: CostModel) -> NoFinetuneEstimator:
    """Return an estimator over a pruner and held-out images."""
    from flatsat.datasets.fit import evaluate

    return NoFinetuneEstimator(
        prune=lambda proposal: pruner.prune(proposal.ratios),
        evaluate=lambda module: evaluate(module, split),
        images=len(split),
        cost=cost,
    )


def pruner_of(
    section: SearchSection, workload: Workload, network: str, cache_dir: Path, progress: Progress
) -> ChannelPruner:
    """Return the pruner of a search's dense network, with its Gram matrices summed.

    It prunes exactly as the recipe step "channel-prune" does, so that an estimate is the accuracy
    of the candidate that the policy becomes before any training.
    """
    from flatsat.compressors.base import Network
    from flatsat.compressors.gram import Sampling
    from flatsat.compressors.reconstruct import ChannelPruner
    from flatsat.datasets.reference import reference
    from flatsat.seeds import integer_seed

    seed = section.network_seed
    trained = reference(workload, network, seed=seed, cache_dir=cache_dir, progress=progress)
    return ChannelPruner(
        Network(trained.module, workload.image_shape),
        workload.splits(cache_dir).calibration.x,
        seed=integer_seed(seed, "compressors.channel-prune"),
        sampling=Sampling(section.estimate.calibration_batches, section.estimate.points),
    )
