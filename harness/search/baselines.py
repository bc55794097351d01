"""What a search is judged against: rules of thumb and chance, under the same wall."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flatsat.errors import DataError
from flatsat.harness.search.archive import generator_state, pack, restore_generator, unpack
from flatsat.harness.search.wall import Wall, round_up
from flatsat.seeds import generator

if TYPE_CHECKING:
    from flatsat.harness.search.seams import Estimate, Proposal, Reward

MAX_TILT = 0.8
_BISECTIONS = 40


class UniformStrategy:
    """One ratio for all choices, found to just meet the budget; then rules that favour one end.

    Evaluation 0 is the uniform rule. The others tilt it: the ratio of choice t is base x
    (1 + tilt x p), p from -1 at the first choice to 1 at the last, with the base found to just meet
    the budget; a positive tilt keeps more at the deep end ("shallow-heavier" prunes there less:
    see the label). Tilts come in van der Corput order, alternately of each sign, so that any number
    of evaluations covers [-MAX_TILT, MAX_TILT]. It learns nothing.

    Without a budget the base itself runs over the ratios, at no tilt.
    """

    name = "uniform"

    def __init__(self, wall: Wall, reward: Reward, seed: int = 0) -> None:
        self.wall = wall
        self.reward = reward
        self._seed = seed
        self._evaluation = 0

    def rewall(self, wall: Wall) -> None:
        """Go on under another wall."""
        self.wall = wall

    def ask(self) -> Proposal:
        """Return the next rule's policy."""
        domain = self.wall.domain
        if self.wall.limit is None:
            base = 1.0 - _van_der_corput(self._evaluation)
            counts = self._counts(base, 0.0)
            return domain.proposal(counts, f"uniform {base:.3f}")
        tilt, label = _tilt(self._evaluation)
        counts = self._just_within(tilt)
        return domain.proposal(counts, label)

    def tell(self, proposal: Proposal, estimate: Estimate) -> float:  # noqa: ARG002
        """Return the reward; the next rule does not depend on it."""
        self._evaluation += 1
        return self.reward(estimate)

    def _counts(self, base: float, tilt: float) -> tuple[int, ...]:
        choices = self.wall.domain.choices
        places = np.linspace(-1.0, 1.0, len(choices)) if len(choices) > 1 else np.zeros(1)
        ratios = np.clip(base * (1.0 + tilt * places), 0.0, 1.0)
        return tuple(
            round_up(float(ratio), choice) for ratio, choice in zip(ratios, choices, strict=True)
        )

    def _just_within(self, tilt: float) -> tuple[int, ...]:
        """Return the policy of the largest base that meets the budget, by bisection."""
        low, high = 0.0, 1.0 / (1.0 - abs(tilt))
        best = self._counts(low, tilt)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            counts = self._counts(middle, tilt)
            if self.wall.within(counts):
                low, best = middle, counts
            else:
                high = middle
        return best

    def state(self) -> bytes:
        """Return how many rules were asked for."""
        return pack({"strategy": self.name, "evaluation": self._evaluation}, {})

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: it is of another strategy.
        """
        head, _ = unpack(state, "the state of the rules")
        _require(head.get("strategy") == self.name)
        self._evaluation = int(head["evaluation"])


class RandomStrategy:
    """Each ratio uniform between the choice's least and 1, then rounding and the same wall."""

    name = "random"

    def __init__(self, wall: Wall, reward: Reward, seed: int) -> None:
        self.wall = wall
        self.reward = reward
        self._draw = generator(seed, "search/random")

    def rewall(self, wall: Wall) -> None:
        """Go on under another wall."""
        self.wall = wall

    def ask(self) -> Proposal:
        """Draw a policy."""
        chosen: list[int] = []
        for choice in self.wall.domain.choices:
            wish = self._draw.uniform(choice.options[0] / choice.channels, 1.0)
            chosen.append(self.wall.settle(wish, chosen))
        return self.wall.domain.proposal(chosen, "random")

    def tell(self, proposal: Proposal, estimate: Estimate) -> float:  # noqa: ARG002
        """Return the reward; the next draw does not depend on it."""
        return self.reward(estimate)

    def state(self) -> bytes:
        """Return the generator's state."""
        return pack({"strategy": self.name, "draw": generator_state(self._draw)}, {})

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: it is of another strategy.
        """
        head, _ = unpack(state, "the state of the random search")
        _require(head.get("strategy") == self.name)
        self._draw = restore_generator(head["draw"])


def _require(mine: bool) -> None:
    if not mine:
        raise DataError(
            "the state is of another strategy", hint="start the search anew, without --resume"
        )


def _van_der_corput(index: int) -> float:
    """Return the index-th point of the base-2 sequence in [0, 1): 0, 1/2, 1/4, 3/4, ..."""
    value, place = 0.0, 0.5
    while index:
        value += place * (index & 1)
        index >>= 1
        place /= 2
    return value


def _tilt(evaluation: int) -> tuple[float, str]:
    if evaluation == 0:
        return 0.0, "uniform"
    size = MAX_TILT * _van_der_corput((evaluation + 1) // 2)
    # Odd evaluations keep more of the deep end: the pruning is heavier at the shallow end.
    if evaluation % 2:
        return size, f"prunes shallow heavier, tilt {size:.3f}"
    return -size, f"prunes deep heavier, tilt {size:.3f}"
