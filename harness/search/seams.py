"""The three seams of a search, and the values that pass between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flatsat.harness.search.domain import Choice, Domain, Graph
    from flatsat.harness.search.wall import Wall


class Fidelity(StrEnum):
    """How an accuracy was come by, from cheapest to dearest."""

    PREDICTED = "predicted"
    NO_FINETUNE = "no-finetune"
    SHORT_TRAIN = "short-train"
    MEASURED = "measured"


@dataclass(frozen=True)
class Proposal:
    """A policy that a strategy wants judged.

    Attributes:
        kept: group name -> channels kept; one entry a choice, in the order of the domain.
        channels: group name -> how many there are; the same names.
        label: how the strategy came to it, for people ("uniform", "warm-up", "deep-heavier 0.25").
    """

    kept: Mapping[str, int]
    channels: Mapping[str, int]
    label: str = ""

    @property
    def key(self) -> tuple[int, ...]:
        """The kept channels in the order of the domain: equal keys are equal policies."""
        return tuple(self.kept.values())

    @property
    def ratios(self) -> dict[str, float]:
        """Group name -> preserve ratio in (0, 1]."""
        return {name: count / self.channels[name] for name, count in self.kept.items()}


@dataclass(frozen=True)
class Estimate:
    """What is thought of a proposal.

    Attributes:
        value: accuracy in [0, 1].
        error: its standard error from the number of images, in the same unit; 0 where exact.
        fidelity: how `value` was come by.
        cost: of the budget's quantity, in its unit ("macs" or nanoseconds).
        cost_error: relative standard error of `cost`; 0 where exact, NaN where unknown.
    """

    value: float
    error: float
    fidelity: Fidelity
    cost: float
    cost_error: float = 0.0


class Space(Protocol):
    """What may be chosen."""

    def domain(self, graph: Graph) -> Domain:
        """Return the choices that `graph` offers, in the order in which they are decided.

        Raises:
            UsageError: there is nothing to choose.
        """

    def bounds(self, choice: Choice) -> tuple[float, float]:
        """Return the least and the largest preserve ratio of one choice, each in (0, 1]."""

    def realise(self, proposal: Proposal) -> dict[str, object]:
        """Return the recipe, as a mapping of a recipe file's shape, that builds the proposal."""


class Strategy(Protocol):
    """How the next policy is found. Given the same seed and estimates it repeats itself exactly."""

    def ask(self) -> Proposal:
        """Return the next policy; each `ask` is followed by its `tell`."""

    def tell(self, proposal: Proposal, estimate: Estimate) -> float:
        """Learn what became of a proposal; return the reward that it earned."""

    def rewall(self, wall: Wall) -> None:
        """Go on under another wall: measurements have corrected the cost model."""

    def state(self) -> bytes:
        """Return everything that decides what is asked next: arrays and JSON, no code."""

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken, to the bit.

        Raises:
            DataError: the bytes are no state of this strategy over this domain.
        """


class Estimator(Protocol):
    """How a proposal is judged."""

    @property
    def fidelities(self) -> Sequence[Fidelity]:
        """What `estimate` can be asked for."""

    def estimate(self, proposal: Proposal, fidelity: Fidelity) -> Estimate:
        """Judge a proposal; the same proposal gives the same estimate.

        Raises:
            UsageError: this estimator doesn't offer that fidelity.
        """


class Reward(Protocol):
    """Turns an estimate into the number that a strategy maximises."""

    def __call__(self, estimate: Estimate) -> float:
        """Return the reward."""
