"""AMC: a DDPG agent decides one preserve ratio after another (He et al. 2018)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flatsat.errors import DataError
from flatsat.harness.search.archive import generator_state, pack, restore_generator, unpack
from flatsat.harness.search.ddpg import Ddpg, DdpgSettings
from flatsat.harness.search.states import FEATURES, LayerStates
from flatsat.seeds import generator

if TYPE_CHECKING:
    from flatsat.harness.search.seams import Estimate, Proposal, Reward
    from flatsat.harness.search.wall import Wall


@dataclass(frozen=True)
class AmcSettings:
    """How the agent explores and learns.

    Attributes:
        warmup: episodes with uniformly random actions, in which nothing is learnt.
        noise_decay: sigma of the noise is multiplied by it after each episode past the warm-up:
            0.99 in the paper, 0.95 in its public code. See `decay_over`.
        updates_per_choice: updates after an episode, for each of its choices.
        ddpg: the agent's own.
    """

    warmup: int = 100
    noise_decay: float = 0.99
    updates_per_choice: int = 1
    ddpg: DdpgSettings = field(default_factory=DdpgSettings)


def decay_over(episodes: int) -> float:
    """Return the decay that takes the noise as far down over `episodes` as 0.99 does over 300.

    0.99 is the paper's decay, 300 the least number of episodes that it learns in; a shorter search
    that kept to 0.99 would end while it still explores.
    """
    return float(0.99 ** (300 / max(1, episodes)))


class AmcStrategy:
    """Each episode walks over the choices: state, action, wall; then learns from the reward.

    During warm-up an action is uniform between the choice's least ratio and 1. As in the public
    code, the replay keeps the action before wall and rounding, but not below the least ratio; the
    next state tells what was carried out.
    """

    name = "amc"

    def __init__(self, wall: Wall, reward: Reward, settings: AmcSettings, seed: int) -> None:
        self.wall = wall
        self.reward = reward
        self.settings = settings
        self._seed = seed
        self._draw = generator(seed, "search/amc")
        choices = len(wall.domain.choices)
        self._agent = Ddpg(settings.ddpg, len(FEATURES), choices, self._draw)
        self._episode = 0
        self._walk: tuple[np.ndarray, np.ndarray] | None = None
        self.rewall(wall)

    def rewall(self, wall: Wall) -> None:
        """Go on under another wall: a cost model that measurements have corrected."""
        self.wall = wall
        self._states = LayerStates(wall.domain, wall.cost)

    @property
    def sigma(self) -> float:
        """Of the noise in the next episode."""
        past = max(0, self._episode - self.settings.warmup)
        return self.settings.ddpg.sigma * self.settings.noise_decay**past

    def ask(self) -> Proposal:
        """Walk over the choices and return the policy."""
        warming = self._episode < self.settings.warmup
        chosen: list[int] = []
        states, actions = [], []
        for choice in self.wall.domain.choices:
            state = self._states.state(chosen)
            least = choice.options[0] / choice.channels
            drawn = self._draw.uniform() if warming else self._agent.act(state, self.sigma)
            wish = least + (1.0 - least) * drawn if warming else max(least, drawn)
            chosen.append(self.wall.settle(wish, chosen))
            states.append(state)
            actions.append(wish)
        self._walk = (np.stack(states), np.array(actions, dtype=np.float32))
        label = "warm-up" if warming else f"noise {self.sigma:.3f}"
        return self.wall.domain.proposal(chosen, label)

    def tell(self, proposal: Proposal, estimate: Estimate) -> float:
        """Give the episode's reward to each of its steps; past the warm-up, learn."""
        if self._walk is None:
            raise RuntimeError("tell without ask")
        reward = self.reward(estimate)
        self._agent.replay.add(*self._walk, reward)
        self._walk = None
        self._episode += 1
        if self._episode > self.settings.warmup:
            for _ in range(self.settings.updates_per_choice * len(proposal.kept)):
                self._agent.update()
        return reward

    def state(self) -> bytes:
        """Return agent, replay, noise and counters."""
        return pack(
            {
                "strategy": self.name,
                "settings": asdict(self.settings),
                "episode": self._episode,
                "draw": generator_state(self._draw),
            },
            self._agent.arrays(),
        )

    def restore(self, state: bytes) -> None:
        """Go on where `state` was taken, to the bit.

        Raises:
            DataError: it is of another strategy, other settings or another domain.
        """
        head, arrays = unpack(state, "the agent's state")
        try:
            if head["strategy"] != self.name or head["settings"] != asdict(self.settings):
                raise ValueError("other strategy or settings")
            self._agent.load(arrays)
            self._draw = restore_generator(head["draw"])
            self._agent.draw = self._draw
            self._episode = int(head["episode"])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"the agent's state is of another search: {error}",
                hint="start the search anew, without --resume",
            ) from error
        self._walk = None
