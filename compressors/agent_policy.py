"""One pruning agent: its network, its reward, and how it learns by REINFORCE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_ACCURACY_TERM = -1.0
"""Where `accuracy_term` is capped from below: one ruinous sample would drown all the others."""

_KERNEL = 7
_CHANNELS = 8
_POOLED = 8
_SURE = 0.95
_FORGET = 0.8


@dataclass(frozen=True)
class Learning:
    """How an agent learns.

    Attributes:
        samples: Monte-Carlo samples of an action, M, from which one gradient is estimated.
        iterations: gradient steps at most.
        lr: learning rate of the agent's Adam.
        hidden: units of the agent's hidden layer.
    """

    samples: int
    iterations: int
    lr: float
    hidden: int


@dataclass(frozen=True)
class Lesson:
    """What an agent learnt.

    Attributes:
        keep: probability that each filter stays, float64 (filters,).
        rewards: mean reward of each iteration's samples.
        kept: mean filters kept of each iteration's samples.
        trials: actions that were tried out.
    """

    keep: Tensor
    rewards: tuple[float, ...]
    kept: tuple[float, ...]
    trials: int


def accuracy_term(b: float, p_ref: float, p: float) -> float:
    """Return psi = (b - (p_ref - p)) / b, all in points: 0 at a drop of b, negative beyond.

    Capped to [`LEAST_ACCURACY_TERM`, 1]. The paper's equation has no cap: its reward for an
    accuracy above the reference pays for luck on few images.
    """
    return min(1.0, max(LEAST_ACCURACY_TERM, (b - (p_ref - p)) / b))


def efficiency_term(kept: int, total: int) -> float:
    """Return phi = log(N / C): 0 where all N filters stay; C, those kept, is at least 1."""
    return math.log(total / kept)


def reward(b: float, p_ref: float, p: float, kept: int, total: int) -> float:
    """Return R = psi x phi of an action.

    Args:
        b: drop of accuracy that is allowed, in points.
        p_ref: accuracy of the reference, in points.
        p: accuracy of the pruned network, in points.
        kept: filters of the layer that the action keeps.
        total: all its filters.
    """
    return accuracy_term(b, p_ref, p) * efficiency_term(kept, total)


class Agent(nn.Module):
    """Maps a layer's filters, reshaped to a matrix (filters, weights), to keep logits (filters,).

    As in the paper, a matrix that is large enough goes through convolutions of 7 x 7 alternating
    with pooling and then through two fully connected layers; a small one through the latter alone.
    How many channels and units there are is ours, and so is that the hidden units share a sum of 1:
    a step of Adam then moves a logit by about twice the learning rate, whatever the layer's size,
    and no agent is sure of itself before it has seen a few dozen samples.
    """

    def __init__(self, filters: int, weights: int, hidden: int) -> None:
        super().__init__()
        self.spatial = min(filters, weights) >= 2 * _KERNEL
        width = filters * weights
        if self.spatial:
            self.convs = nn.ModuleList(
                nn.Conv2d(i, _CHANNELS, _KERNEL, padding=_KERNEL // 2) for i in (1, _CHANNELS)
            )
            width = _CHANNELS * _POOLED**2
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, filters)

    def forward(self, filters: Tensor) -> Tensor:
        """Map (filters, weights) to logits (filters,)."""
        x = filters[None, None]
        if self.spatial:
            for conv in self.convs:
                x = F.max_pool2d(F.relu(conv(x)), 2, ceil_mode=True)
            x = F.adaptive_avg_pool2d(x, _POOLED)
        hidden = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(F.normalize(hidden, p=1.0))
        return logits[0]


def new_agent(filters: int, weights: int, hidden: int, generator: torch.Generator) -> Agent:
    """Return an agent whose first weights come from `generator`; no other one is drawn from."""
    with torch.device("meta"):
        agent = Agent(filters, weights, hidden)
    agent.to_empty(device="cpu")
    with torch.no_grad():
        for part in agent.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(part.weight, generator=generator)
                assert part.bias is not None
                nn.init.zeros_(part.bias)
        # Every filter starts near even odds, whatever the weights are.
        agent.fc2.weight.mul_(0.1)
    return agent


def learn(
    filters: Tensor,
    try_out: Callable[[Tensor], float],
    learning: Learning,
    generator: torch.Generator,
    told: Callable[[int, float, float], None] | None = None,
) -> Lesson:
    """Train an agent on one layer by REINFORCE.

    A sample keeps filter j with the agent's probability p_j (Bernoulli). The gradient of the
    expected reward is estimated from M samples,
    (1/M) sum_i (R_i - baseline) sum_j d log P(a_ij) / d theta, where the baseline is the moving
    mean of the rewards so far. Learning ends early when every p_j is within 5 % of 0 or 1. A
    sample that drops all filters keeps its most probable one: no layer can be empty.

    Args:
        filters: (filters, weights) of the layer; standardised here.
        try_out: kept filters, bool (filters,) -> reward.
        learning: see there.
        generator: of the agent's first weights and of its samples.
        told: called after each iteration with its number, mean reward and mean filters kept.
    """
    state = (filters - filters.mean()) / filters.std(correction=0).clamp_min(1e-12)
    agent = new_agent(len(filters), filters.shape[1], learning.hidden, generator)
    optimiser = torch.optim.Adam(agent.parameters(), lr=learning.lr)
    baseline: float | None = None
    rewards: list[float] = []
    kept: list[float] = []
    known: dict[tuple[bool, ...], float] = {}
    for number in range(1, learning.iterations + 1):
        with torch.enable_grad():
            logits = agent(state.float())
            with torch.no_grad():
                keep = torch.sigmoid(logits)
                shape = (learning.samples, len(keep))
                actions = torch.rand(shape, generator=generator) < keep
                actions[~actions.any(1), int(keep.argmax())] = True
                found = []
                for action in actions:
                    key = tuple(action.tolist())
                    if key not in known:
                        known[key] = try_out(action)
                    found.append(known[key])
                gained = torch.tensor(found)
            mean = float(gained.mean())
            if baseline is None:
                baseline = mean
            chosen = -F.binary_cross_entropy_with_logits(
                logits.expand(shape), actions.float(), reduction="none"
            ).sum(1)
            loss = -((gained - baseline) * chosen).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        baseline = _FORGET * baseline + (1 - _FORGET) * mean
        rewards.append(mean)
        kept.append(float(actions.sum(1).float().mean()))
        if told is not None:
            told(number, mean, kept[-1])
        if bool((torch.maximum(keep, 1 - keep) > _SURE).all()):
            break
    with torch.no_grad():
        final = torch.sigmoid(agent(state.float())).double()
    return Lesson(final, tuple(rewards), tuple(kept), len(known))
