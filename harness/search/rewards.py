"""What a search maximises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.harness.search.seams import Estimate, Reward

REWARDS = ("resource-constrained", "accuracy-guaranteed")


@dataclass(frozen=True)
class ResourceConstrained:
    """Accuracy alone: the action wall sees to the budget (He et al. 2018, section 3.3)."""

    def __call__(self, estimate: Estimate) -> float:
        """Return the accuracy in [0, 1]."""
        return estimate.value


@dataclass(frozen=True)
class AccuracyGuaranteed:
    """-error x log(cost): error counts most, and no budget is needed (eq. 6 of the paper).

    The logarithm is natural and takes the cost in multiply-accumulates or nanoseconds, as the
    paper's takes FLOPs: the unit is part of the reward, since it sets what a point of error is
    worth in cost.
    """

    def __call__(self, estimate: Estimate) -> float:
        """Return the reward, at most 0."""
        return -(1.0 - estimate.value) * math.log(max(estimate.cost, 1.0))


def make_reward(kind: str) -> Reward:
    """Return the reward called `kind`, one of `REWARDS`."""
    return AccuracyGuaranteed() if kind == "accuracy-guaranteed" else ResourceConstrained()
