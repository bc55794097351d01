"""What a policy costs, layer by layer: exact multiply-accumulates, or by a board's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from flatsat.harness.search.domain import Domain

UNITS = MappingProxyType({"macs": "MACs", "latency": "ns", "energy": "nJ"})
"""Quantity of a budget -> its unit."""


class CostModel(Protocol):
    """The cost of policies; never falls when a channel is added."""

    @property
    def quantity(self) -> str:
        """What is counted: "macs", "latency" or "energy"."""

    @property
    def unit(self) -> str:
        """In which unit: "MACs", "ns" or "nJ"."""

    @property
    def relative_error(self) -> float:
        """Typical relative error of a prediction; 0 where exact, NaN where unknown."""

    def per_layer(self, counts: np.ndarray) -> np.ndarray:
        """Return float64 (..., layers) for counts (..., choices)."""

    def total(self, counts: np.ndarray) -> np.ndarray:
        """Return float64 (...) for counts (..., choices)."""


@dataclass(frozen=True)
class MacsModel:
    """Multiply-accumulates of one image: exact for dense, convolution and depthwise layers.

    Counts below 2**53 are whole numbers in float64, so sums are exact in any order.
    """

    domain: Domain
    quantity: str = "macs"
    unit: str = "MACs"
    relative_error: float = 0.0

    @cached_property
    def _unit_macs(self) -> np.ndarray:
        return np.array(
            [
                layer.macs / (layer.out_features * (1 if layer.depthwise else layer.in_features))
                for layer in self.domain.layers
            ]
        )

    @cached_property
    def _depthwise(self) -> np.ndarray:
        return np.array([layer.depthwise for layer in self.domain.layers], dtype=bool)

    def per_layer(self, counts: np.ndarray) -> np.ndarray:
        """Return MACs, float64 (..., layers): unit x inputs x outputs of each layer."""
        inputs = np.where(self._depthwise, 1.0, self.domain.features_in(counts))
        return np.asarray(self._unit_macs * inputs * self.domain.features_out(counts))

    def total(self, counts: np.ndarray) -> np.ndarray:
        """Return MACs, float64 (...)."""
        return np.asarray(self.per_layer(counts).sum(axis=-1))


class LayerCost(Protocol):
    """Latency or energy of each layer by its features, in and out; never falls in either."""

    def cost(self, layer: int, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return float64 (ns or nJ) of one layer for arrays of features of one shape."""


@dataclass(frozen=True)
class BoardModel:
    """Latency or energy of the whole network: scale x (sum of layers) + offset, in ns or nJ.

    Attributes:
        domain: of the network.
        table: single layers as measured on the board.
        scale, offset: from whole networks measured on the board; neither is negative, so that
            the model never falls when a channel is added.
        relative_error: of predictions for networks that were measured afterwards.
        quantity: "latency" or "energy".
    """

    domain: Domain
    table: LayerCost
    scale: float = 1.0
    offset: float = 0.0
    relative_error: float = float("nan")
    quantity: str = "latency"

    @property
    def unit(self) -> str:
        """In which unit."""
        return UNITS[self.quantity]

    def per_layer(self, counts: np.ndarray) -> np.ndarray:
        """Return ns or nJ, float64 (..., layers); the offset belongs to no layer."""
        inputs, outputs = self.domain.features_in(counts), self.domain.features_out(counts)
        columns = [
            self.table.cost(index, inputs[..., index], outputs[..., index])
            for index in range(len(self.domain.layers))
        ]
        return np.asarray(self.scale * np.stack(columns, axis=-1))

    def uncalibrated(self, counts: np.ndarray) -> np.ndarray:
        """Return the sum of the layers alone, float64 (...)."""
        return np.asarray(self.per_layer(counts).sum(axis=-1) / self.scale)

    def total(self, counts: np.ndarray) -> np.ndarray:
        """Return ns or nJ, float64 (...)."""
        return np.asarray(self.per_layer(counts).sum(axis=-1) + self.offset)


def total_of(model: CostModel, counts: Sequence[int] | np.ndarray) -> float:
    """Return the cost of one policy."""
    return float(model.total(np.asarray(counts, dtype=np.int64)))
