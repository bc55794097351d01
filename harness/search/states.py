"""What the agent sees of a layer: 11 numbers in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from flatsat.harness.search.costs import CostModel
    from flatsat.harness.search.domain import Domain

FEATURES = (
    "index",
    "type",
    "in_channels",
    "out_channels",
    "stride",
    "kernel",
    "weights",
    "cost",
    "reduced",
    "rest",
    "last_action",
)
_KINDS = {"conv": 1.0, "deconv": 1.0, "depthwise": 0.5, "dense": 0.0}


class LayerStates:
    """States of the choices of one domain (He et al. 2018, eq. 1).

    The paper lists t, n, c, h, w, stride, k, FLOPs, reduced, rest and the last action. Here the
    size of the map (h, w) is left to the two numbers that it enters, and type and weight count
    stand in its place: index, type, in-channels, out-channels, stride, kernel, weights, cost;
    then, live, the cost reduced so far / total, the cost in the rest / total and the last action.
    "Cost" is the budget's quantity: MACs or latency by the table. The first eight belong to the
    layer that first writes the choice's channels (weights and cost: to all its producers) and are
    scaled to [0, 1] over the choices by minimum and maximum; one that is the same for all is 0.

    Attributes:
        domain: of the network.
        cost: model of the budget's quantity.
    """

    def __init__(self, domain: Domain, cost: CostModel) -> None:
        self.domain = domain
        self.cost = cost
        self._last = np.array([domain.last_choice(layer) for layer in domain.layers])
        self._dense = cost.per_layer(domain.full)
        self._total = float(self._dense.sum())
        self._fixed = self._fixed_part()

    def _fixed_part(self) -> np.ndarray:
        index_of = {layer.name: i for i, layer in enumerate(self.domain.layers)}
        rows = []
        for step, choice in enumerate(self.domain.choices):
            first = self.domain.producer(choice)
            mine = [index_of[name] for name in choice.producers if name in index_of]
            rows.append(
                [
                    float(step),
                    _KINDS[first.kind],
                    float(first.in_features),
                    float(choice.channels),
                    float(max(first.stride)),
                    float(max(first.kernel)),
                    float(sum(self.domain.layers[i].weights for i in mine)),
                    float(self._dense[mine].sum()),
                ]
            )
        table = np.array(rows)
        low, high = table.min(axis=0), table.max(axis=0)
        span = np.where(high > low, high - low, 1.0)
        return np.asarray((table - low) / span)

    def state(self, chosen: Sequence[int]) -> np.ndarray:
        """Return the state before the next choice, float32 (11,).

        Args:
            chosen: counts of the choices before it.
        """
        step = len(chosen)
        counts = self.domain.full.copy()
        counts[:step] = chosen
        costs = self.cost.per_layer(counts)
        reduced = 1.0 - float(costs.sum()) / self._total
        rest = float(costs[self._last > step].sum()) / self._total
        last = chosen[-1] / self.domain.choices[step - 1].channels if step else 1.0
        live = np.clip([reduced, rest, last], 0.0, 1.0)
        return np.concatenate([self._fixed[step], live]).astype(np.float32)
