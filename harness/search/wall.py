"""The action wall: whatever is chosen next, the budget can still be met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatsat.errors import UsageError
from flatsat.harness.search.costs import CostModel, total_of

if TYPE_CHECKING:
    from flatsat.harness.search.domain import Choice, Domain


def round_up(ratio: float, choice: Choice) -> int:
    """Return the least option that keeps at least `ratio` of a choice's channels.

    A ratio under the lowest option gives the lowest option.
    """
    # A ratio made by dividing two counts must come back as that count.
    wanted = math.ceil(ratio * choice.channels - 1e-9)
    return next((option for option in choice.options if option >= wanted), choice.options[-1])


@dataclass(frozen=True)
class Wall:
    """Caps each choice so that, with every later choice at its lowest option, the limit holds.

    The cap works on counts after rounding, so rounding can't break it: the invariant "chosen so
    far, the rest at the lowest, within the limit" holds before the first choice (checked when the
    wall is made) and each option that `affordable` returns keeps it.

    Attributes:
        domain: of the network.
        cost: what is limited.
        limit: in the cost's unit; None caps nothing (accuracy-guaranteed search).
    """

    domain: Domain
    cost: CostModel
    limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse a limit that nothing in the domain meets."""
        if self.limit is None:
            return
        least = self.least_cost
        if least > self.limit:
            reference = total_of(self.cost, self.domain.full)
            raise UsageError(
                f"a budget of {self.limit:,.0f} {self.cost.unit} "
                f"({self.limit / reference:.3f} of the dense network) can't be met: the least "
                f"reachable is {least:,.0f} ({least / reference:.3f})",
                hint="raise budget.ratio or budget.limit, or lower space.lower",
            )

    @property
    def least_cost(self) -> float:
        """Cost with every choice at its lowest option."""
        return total_of(self.cost, self.domain.least)

    @property
    def reference_cost(self) -> float:
        """Cost of the dense network."""
        return total_of(self.cost, self.domain.full)

    def within(self, counts: Sequence[int]) -> bool:
        """Return whether a whole policy meets the limit."""
        return self.limit is None or total_of(self.cost, counts) <= self.limit

    def affordable(self, chosen: Sequence[int]) -> tuple[int, ...]:
        """Return the options of the next choice that leave the limit in reach, ascending.

        Args:
            chosen: counts of the choices before it.
        """
        step = len(chosen)
        options = self.domain.choices[step].options
        if self.limit is None:
            return options
        counts = np.repeat(self.domain.least[np.newaxis], len(options), axis=0)
        counts[:, :step] = chosen
        counts[:, step] = options
        within = self.cost.total(counts) <= self.limit
        # The lowest option is always in reach by the invariant.
        within[0] = True
        return tuple(option for option, fits in zip(options, within, strict=True) if fits)

    def settle(self, ratio: float, chosen: Sequence[int]) -> int:
        """Return the count that a wished preserve ratio becomes: rounded up, then capped."""
        wanted = round_up(ratio, self.domain.choices[len(chosen)])
        return max(option for option in self.affordable(chosen) if option <= wanted)

    def settle_all(self, ratios: Sequence[float]) -> tuple[int, ...]:
        """Settle one ratio after another, in the order of the choices."""
        chosen: list[int] = []
        for ratio in ratios:
            chosen.append(self.settle(ratio, chosen))
        return tuple(chosen)
