"""What a policy costs, layer by layer: exact multiply-accumulates, or latency by a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from flatsat.harness.search.domain import Domain


class CostModel(Protocol):
    """The cost of policies; never falls when a channel is added."""

    @property
    def quantity(self) -> str:
        """What is counted: "macs" or "latency"."""

    @property
    def unit(self) -> str:
        """In which unit: "MACs" or "ns"."""

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


class LayerLatency(Protocol):
    """Latency of each layer by its input and output features; never falls in either."""

    def latency_ns(self, layer: int, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return float64 nanoseconds of one layer for arrays of features of one shape."""


@dataclass(frozen=True)
class LatencyModel:
    """Latency of the whole network: scale x (sum of layers) + offset, in nanoseconds.

    Attributes:
        domain: of the network.
        table: latency of single layers as measured on the board.
        scale, offset_ns: from whole networks measured on the board; neither is negative, so that
            the model never falls when a channel is added.
        relative_error: of predictions for networks that were measured afterwards.
    """

    domain: Domain
    table: LayerLatency
    scale: float = 1.0
    offset_ns: float = 0.0
    relative_error: float = float("nan")
    quantity: str = "latency"
    unit: str = "ns"

    def per_layer(self, counts: np.ndarray) -> np.ndarray:
        """Return nanoseconds, float64 (..., layers); the offset belongs to no layer."""
        inputs, outputs = self.domain.features_in(counts), self.domain.features_out(counts)
        columns = [
            self.table.latency_ns(index, inputs[..., index], outputs[..., index])
            for index in range(len(self.domain.layers))
        ]
        return np.asarray(self.scale * np.stack(columns, axis=-1))

    def uncalibrated_ns(self, counts: np.ndarray) -> np.ndarray:
        """Return the sum of the layers alone, float64 (...)."""
        return np.asarray(self.per_layer(counts).sum(axis=-1) / self.scale)

    def total(self, counts: np.ndarray) -> np.ndarray:
        """Return nanoseconds, float64 (...)."""
        return np.asarray(self.per_layer(counts).sum(axis=-1) + self.offset_ns)


def total_of(model: CostModel, counts: Sequence[int] | np.ndarray) -> float:
    """Return the cost of one policy."""
    return float(model.total(np.asarray(counts, dtype=np.int64)))
