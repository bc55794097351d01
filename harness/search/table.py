"""A latency table: single layers measured on the board, interpolated over their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsat.errors import InfrastructureError
from flatsat.harness.search.probes import Probe, probe_of

if TYPE_CHECKING:
    from flatsat.harness.search.domain import Domain

GRID_POINTS = 4
"""Counts measured on each side of a layer, from the least to the whole."""


@dataclass(frozen=True)
class Grid:
    """Latency of one layer over input and output features.

    Attributes:
        inputs, outputs: ascending counts of features.
        values: float64 (inputs, outputs): above the empty model's; never falls along an axis.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    values: np.ndarray

    def at(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Interpolate bilinearly; outside the grid its edge holds."""
        row, along = _place(self.inputs, inputs)
        column, across = _place(self.outputs, outputs)
        next_row = np.minimum(row + 1, len(self.inputs) - 1)
        next_column = np.minimum(column + 1, len(self.outputs) - 1)
        values = self.values
        near = values[row, column] * (1 - across) + values[row, next_column] * across
        far = values[next_row, column] * (1 - across) + values[next_row, next_column] * across
        return np.asarray(near * (1 - along) + far * along)


@dataclass(frozen=True)
class BoardTable:
    """Latency of every layer of a domain on one board.

    Attributes:
        grids: one a layer, in the order of the domain's layers.
        empty_value: what a model costs that hands its input on: subtracted from each layer.
        failed: layers that the board could not run alone -> why; they count as free, which the
            calibration by whole networks has to make up for.
        run_id: the run whose jobs measured it.
    """

    grids: tuple[Grid, ...]
    empty_value: float
    failed: Mapping[str, str]
    run_id: str = ""

    def cost(self, layer: int, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return nanoseconds of one layer for arrays of features of one shape."""
        return self.grids[layer].at(inputs, outputs)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping that `from_json` reads back to the bit."""
        return {
            "empty_value": self.empty_value,
            "failed": dict(self.failed),
            "run_id": self.run_id,
            "grids": [
                {
                    "inputs": grid.inputs.tolist(),
                    "outputs": grid.outputs.tolist(),
                    "values": grid.values.tolist(),
                }
                for grid in self.grids
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BoardTable:
        """Read what `to_json` wrote."""
        grids = tuple(
            Grid(
                np.array(grid["inputs"], dtype=np.float64),
                np.array(grid["outputs"], dtype=np.float64),
                np.array(grid["values"], dtype=np.float64),
            )
            for grid in value["grids"]
        )
        return cls(grids, float(value["empty_value"]), dict(value["failed"]), value["run_id"])


class TablePlan:
    """Which probes a domain's table needs.

    Attributes:
        empty: the model whose latency is subtracted from all others: it reads what the network
            reads.
    """

    def __init__(self, domain: Domain, points: int = GRID_POINTS) -> None:
        self._domain = domain
        self._points = points
        first = domain.layers[0]
        self.empty = Probe("empty", first.in_features, first.in_features, in_size=first.in_size)

    @cached_property
    def axes(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """Counts of input and of output features of each layer's grid."""
        low_in = self._domain.features_in(self._domain.least)
        low_out = self._domain.features_out(self._domain.least)
        found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for index, layer in enumerate(self._domain.layers):
            steps_in = _step(layer.inputs)
            steps_out = layer.output[2] if layer.output[0] is not None else 1
            outputs = _spread(int(low_out[index]), layer.out_features, self._points, steps_out)
            if layer.depthwise:
                found.append(((layer.in_features,), outputs))
                continue
            # A grouped convolution's inputs and outputs stay multiples of its groups.
            multiple_in = max(steps_in, layer.groups)
            inputs = _spread(int(low_in[index]), layer.in_features, self._points, multiple_in)
            found.append((inputs, outputs))
        return tuple(found)

    def probes(self) -> list[Probe]:
        """Return every probe once, the empty one first."""
        found = [self.empty]
        for layer, (inputs, outputs) in zip(self._domain.layers, self.axes, strict=True):
            found += [probe_of(layer, i, o) for i in inputs for o in outputs]
        return list(dict.fromkeys(found))

    def table(
        self, measured: Mapping[Probe, float], failed: Mapping[Probe, str], run_id: str = ""
    ) -> BoardTable:
        """Put measurements together.

        Args:
            measured: nanoseconds by probe, of whole one-layer models.
            failed: why a probe has none.
            run_id: of the run that measured them.

        Raises:
            InfrastructureError: the empty model, or every probe of the network, failed.
        """
        if self.empty not in measured or len(measured) == 1:
            why = next(iter(failed.values()), "no outcome")
            raise InfrastructureError(
                f"the board could not run the layers alone: {why}",
                hint="see: flatsat board doctor, or use budget.quantity = 'macs'",
            )
        empty_value = measured[self.empty]
        grids, lost = [], {}
        for layer, (inputs, outputs) in zip(self._domain.layers, self.axes, strict=True):
            wanted = [[probe_of(layer, i, o) for o in outputs] for i in inputs]
            missing = [probe for row in wanted for probe in row if probe not in measured]
            if missing:
                lost[layer.name] = failed.get(missing[0], "no outcome")
                values = np.zeros((len(inputs), len(outputs)))
            else:
                values = np.array([[measured[probe] for probe in row] for row in wanted])
                values = np.maximum(monotone(values) - empty_value, 0.0)
            grids.append(
                Grid(np.array(inputs, dtype=float), np.array(outputs, dtype=float), values)
            )
        return BoardTable(tuple(grids), empty_value, lost, run_id)


def monotone(values: np.ndarray) -> np.ndarray:
    """Return the mean of the least monotone table above `values` and the largest one below.

    Both never fall along either axis, so neither does their mean; a monotone table comes back as
    it is. More channels can't cost less, so what does is noise.
    """
    above = np.maximum.accumulate(np.maximum.accumulate(values, axis=0), axis=1)
    flipped = values[::-1, ::-1]
    below = np.minimum.accumulate(np.minimum.accumulate(flipped, axis=0), axis=1)[::-1, ::-1]
    return np.asarray((above + below) / 2)


def _place(axis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each value the index of the grid point below and the share of the way on."""
    if len(axis) == 1:
        return np.zeros(np.shape(values), dtype=np.int64), np.zeros(np.shape(values))
    clipped = np.clip(values, axis[0], axis[-1])
    index = np.clip(np.searchsorted(axis, clipped, side="right") - 1, 0, len(axis) - 2)
    return index, (clipped - axis[index]) / (axis[index + 1] - axis[index])


def _spread(low: int, high: int, points: int, step: int) -> tuple[int, ...]:
    """Return up to `points` counts from `low` to `high`, in multiples of `step` above `low`."""
    if low >= high:
        return (high,)
    wanted = np.linspace(low, high, points)
    counts = {low + round((value - low) / step) * step for value in wanted[1:-1]}
    return tuple(sorted({low, high} | {int(count) for count in counts if low < count < high}))


def _step(inputs: Sequence[tuple[int | None, int, int]]) -> int:
    return max((repeat for index, _, repeat in inputs if index is not None), default=1)
