"""Deep deterministic policy gradient for one continuous action in [0, 1] (Lillicrap et al. 2016).

The parts that AMC changes (He et al. 2018, section 3.2): the reward of a whole episode, less a
moving average, at every step; discount 1; noise from a truncated normal distribution.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class DdpgSettings:
    """Hyper-parameters; the defaults are the paper's, or the public code's where it is silent.

    Attributes:
        hidden: units of each of two hidden layers.
        actor_lr, critic_lr: of Adam.
        tau: share of the new weights that a target takes over at each update.
        discount: of future reward.
        batch: transitions an update.
        replay_per_choice: transitions kept, for each choice of an episode.
        baseline_rate: weight of a new batch's mean reward in the moving average.
        sigma: of the exploring noise before decay.
    """

    hidden: int = 300
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    batch: int = 64
    replay_per_choice: int = 100
    baseline_rate: float = 0.5
    sigma: float = 0.5


class FlatMlp(nn.Module):
    """Two hidden layers with ReLU, whose weights are views of one vector.

    One vector makes optimiser, target update and checkpoint one operation each, which at this size
    is most of their time.
    """

    def __init__(self, inputs: int, hidden: int, draw: np.random.Generator) -> None:
        super().__init__()
        widths = (inputs, hidden, hidden, 1)
        self._shapes = [
            shape
            for fan_in, fan_out in itertools.pairwise(widths)
            for shape in ((fan_out, fan_in), (fan_out,))
        ]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]
        bounds = [1 / np.sqrt(fan_in) for fan_in in widths[:-1] for _ in range(2)]
        start = np.concatenate(
            [
                draw.uniform(-bound, bound, size)
                for bound, size in zip(bounds, self._sizes, strict=True)
            ]
        )
        self.flat = nn.Parameter(torch.from_numpy(start.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, 1)."""
        parts = torch.split(self.flat, self._sizes)
        w1, b1, w2, b2, w3, b3 = (
            part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)
        )
        x = F.relu(F.linear(x, w1, b1))
        x = F.relu(F.linear(x, w2, b2))
        return F.linear(x, w3, b3)


class Replay:
    """The last transitions, in arrays that are laid out once."""

    def __init__(self, capacity: int, state_size: int) -> None:
        self.capacity = capacity
        self.states = np.zeros((capacity, state_size), dtype=np.float32)
        self.following = np.zeros((capacity, state_size), dtype=np.float32)
        # action, reward, 1 while the episode goes on after this step
        self.facts = np.zeros((capacity, 3), dtype=np.float32)
        self.written = 0

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    def add(self, states: np.ndarray, actions: np.ndarray, reward: float) -> None:
        """Add one episode: states (steps, size), actions (steps,), its reward at each step."""
        steps = len(actions)
        rows = (self.written + np.arange(steps)) % self.capacity
        self.states[rows] = states
        self.following[rows[:-1]] = states[1:]
        self.following[rows[-1]] = 0.0
        self.facts[rows, 0] = actions
        self.facts[rows, 1] = reward
        self.facts[rows, 2] = 1.0
        self.facts[rows[-1], 2] = 0.0
        self.written += steps


class Ddpg:
    """Actor and critic with their targets, replay and baseline.

    Attributes:
        draw: source of batches and noise; part of the state.
    """

    def __init__(
        self, settings: DdpgSettings, state_size: int, choices: int, draw: np.random.Generator
    ) -> None:
        self.settings = settings
        self.draw = draw
        self.replay = Replay(settings.replay_per_choice * choices, state_size)
        self.actor = FlatMlp(state_size, settings.hidden, draw)
        self.critic = FlatMlp(state_size + 1, settings.hidden, draw)
        self.actor_target = FlatMlp(state_size, settings.hidden, draw)
        self.critic_target = FlatMlp(state_size + 1, settings.hidden, draw)
        for target, source in self._targets():
            with torch.no_grad():
                target.flat.copy_(source.flat)
        self._actor_adam = torch.optim.Adam([self.actor.flat], lr=settings.actor_lr, fused=True)
        self._critic_adam = torch.optim.Adam([self.critic.flat], lr=settings.critic_lr, fused=True)
        self._baseline: float | None = None

    def _targets(self) -> tuple[tuple[FlatMlp, FlatMlp], tuple[FlatMlp, FlatMlp]]:
        return (self.actor_target, self.actor), (self.critic_target, self.critic)

    def act(self, state: np.ndarray, sigma: float) -> float:
        """Return an action in [0, 1]: the actor's, with truncated normal noise around it.

        Args:
            state: float32 (size,).
            sigma: of the noise; 0 gives the actor's own action.
        """
        with torch.no_grad():
            mean = float(torch.sigmoid(self.actor(torch.from_numpy(state)[None])))
        return mean if sigma <= 0 else truncated_normal(mean, sigma, self.draw)

    def update(self) -> None:
        """Take one step of critic, actor and targets on a batch from the replay."""
        settings = self.settings
        rows = self.draw.integers(0, len(self.replay), settings.batch)
        states = torch.from_numpy(self.replay.states[rows])
        following = torch.from_numpy(self.replay.following[rows])
        facts = self.replay.facts[rows]
        actions = torch.from_numpy(facts[:, :1])
        goes_on = torch.from_numpy(facts[:, 2:])
        reward = torch.from_numpy(facts[:, 1:2] - self._move_baseline(float(facts[:, 1].mean())))

        with torch.no_grad():
            next_action = torch.sigmoid(self.actor_target(following))
            next_value = self.critic_target(torch.cat([following, next_action], dim=1))
            wanted = reward + settings.discount * goes_on * next_value
        value = self.critic(torch.cat([states, actions], dim=1))
        self.critic.flat.grad = torch.autograd.grad(F.mse_loss(value, wanted), self.critic.flat)[0]
        self._critic_adam.step()

        action = torch.sigmoid(self.actor(states))
        loss = -self.critic(torch.cat([states, action], dim=1)).mean()
        self.actor.flat.grad = torch.autograd.grad(loss, self.actor.flat)[0]
        self._actor_adam.step()

        with torch.no_grad():
            for target, source in self._targets():
                target.flat.lerp_(source.flat, settings.tau)

    def _move_baseline(self, mean_reward: float) -> float:
        if self._baseline is None:
            self._baseline = mean_reward
        else:
            self._baseline += self.settings.baseline_rate * (mean_reward - self._baseline)
        return self._baseline

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything but `draw` that decides what comes next."""
        found = {
            "replay_states": self.replay.states,
            "replay_following": self.replay.following,
            "replay_facts": self.replay.facts,
            "replay_written": np.array(self.replay.written),
            "baseline": np.array([] if self._baseline is None else [self._baseline]),
        }
        for name, net in self._nets().items():
            found[name] = net.flat.detach().numpy()
        for name, adam in self._adams().items():
            for key, value in adam.state_dict()["state"].get(0, {}).items():
                found[f"{name}_{key}"] = value.numpy()
        return {name: value.copy() for name, value in found.items()}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `arrays` returned.

        Raises:
            KeyError, ValueError: they are of another agent.
        """
        for name in ("states", "following", "facts"):
            held: np.ndarray = getattr(self.replay, name)
            if arrays[f"replay_{name}"].shape != held.shape:
                raise ValueError(f"replay_{name} has another shape")
            held[:] = arrays[f"replay_{name}"]
        self.replay.written = int(arrays["replay_written"])
        baseline = arrays["baseline"]
        self._baseline = float(baseline[0]) if len(baseline) else None
        with torch.no_grad():
            for name, net in self._nets().items():
                if arrays[name].shape != net.flat.shape:
                    raise ValueError(f"{name} has another shape")
                net.flat.copy_(torch.from_numpy(arrays[name]))
        for name, adam in self._adams().items():
            whole = adam.state_dict()
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"{name}_step" in arrays:
                moments = {key: torch.from_numpy(arrays[f"{name}_{key}"]) for key in keys}
                whole["state"] = {0: moments}
            adam.load_state_dict(whole)

    def _nets(self) -> dict[str, FlatMlp]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "actor_target": self.actor_target,
            "critic_target": self.critic_target,
        }

    def _adams(self) -> dict[str, torch.optim.Adam]:
        return {"actor_adam": self._actor_adam, "critic_adam": self._critic_adam}


def truncated_normal(mean: float, sigma: float, draw: np.random.Generator) -> float:
    """Draw from N(mean, sigma^2) cut to [0, 1], by inverting its distribution function."""
    low, high = ndtr((0.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    value = mean + sigma * float(ndtri(low + draw.random() * (high - low)))
    return min(max(value, 0.0), 1.0)
