"""What can be chosen in one network, and how each layer's cost depends on the choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from flatsat.harness.search.seams import Proposal

if TYPE_CHECKING:
    from flatsat.compressors.graph import ChannelGroup, LayerInfo


@dataclass(frozen=True)
class Graph:
    """A network as `compressors.graph` tells it.

    Attributes:
        layers: of one image's forward pass, in order.
        groups: channels that are coupled, in order of their first producer.
        input_shape: of one image, (channels, height, width).
    """

    layers: Sequence[LayerInfo]
    groups: Sequence[ChannelGroup]
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One decision: how many channels a group of coupled channels keeps.

    Attributes:
        name: of the group.
        channels: how many there are.
        options: the counts that may be kept, ascending; the last is `channels`.
        producers: layers whose outputs they are; the first gives the state its numbers.
    """

    name: str
    channels: int
    options: tuple[int, ...]
    producers: tuple[str, ...]


@dataclass(frozen=True)
class CostLayer:
    """One layer that costs something.

    Attributes:
        name: in the network.
        kind: "conv", "depthwise", "deconv" or "dense".
        inputs: (choice index or None, channels, features a channel) of each part of the input;
            the features are more than one where a map is flattened into a dense layer.
        output: the same of what it writes; more than one beside grouped convolutions.
        kernel, stride: of a convolution; (1,) of a dense layer.
        in_size, out_size: of the maps that it reads and writes, without channels; () of a dense
            layer.
        groups: of a convolution.
        weights: parameters.
        macs: multiply-accumulates for one image of the whole network.
    """

    name: str
    kind: str
    inputs: tuple[tuple[int | None, int, int], ...]
    output: tuple[int | None, int, int]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    groups: int
    weights: int
    macs: int

    @property
    def in_features(self) -> int:
        """Input features of the whole network's layer."""
        return sum(channels * repeat for _, channels, repeat in self.inputs)

    @property
    def out_features(self) -> int:
        """Output channels of the whole network's layer."""
        return self.output[1] * self.output[2]

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads its own input channel alone."""
        return self.kind == "depthwise"


@dataclass(frozen=True)
class Domain:
    """Choices and layers of one network; all arrays of counts have the choices on the last axis.

    Attributes:
        choices: in the order in which they are decided.
        layers: in order of the forward pass.
    """

    choices: tuple[Choice, ...]
    layers: tuple[CostLayer, ...]

    @cached_property
    def full(self) -> np.ndarray:
        """int64 (choices,): nothing is removed."""
        return np.array([choice.channels for choice in self.choices], dtype=np.int64)

    @cached_property
    def least(self) -> np.ndarray:
        """int64 (choices,): everything that may be removed is."""
        return np.array([choice.options[0] for choice in self.choices], dtype=np.int64)

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        shape = (len(self.choices), len(self.layers))
        into, out = np.zeros(shape), np.zeros(shape)
        fixed_in, fixed_out = np.zeros(shape[1]), np.zeros(shape[1])
        for column, layer in enumerate(self.layers):
            for index, channels, repeat in layer.inputs:
                if index is None:
                    fixed_in[column] += channels * repeat
                else:
                    into[index, column] += repeat
            index, channels, repeat = layer.output
            if index is None:
                fixed_out[column] = channels * repeat
            else:
                out[index, column] = repeat
        return into, fixed_in, out, fixed_out

    def features_in(self, counts: np.ndarray) -> np.ndarray:
        """Return float64 (..., layers): input features of each layer under `counts`."""
        into, fixed_in, _, _ = self._maps
        return np.asarray(counts @ into + fixed_in)

    def features_out(self, counts: np.ndarray) -> np.ndarray:
        """Return float64 (..., layers): output channels of each layer under `counts`."""
        _, _, out, fixed_out = self._maps
        return np.asarray(counts @ out + fixed_out)

    def proposal(self, counts: Sequence[int], label: str = "") -> Proposal:
        """Return the policy that keeps `counts`, in the order of the choices."""
        pairs = list(zip(self.choices, counts, strict=True))
        return Proposal(
            kept={choice.name: int(count) for choice, count in pairs},
            channels={choice.name: choice.channels for choice in self.choices},
            label=label,
        )

    def producer(self, choice: Choice) -> CostLayer:
        """Return the layer that first writes a choice's channels."""
        return next(layer for layer in self.layers if layer.name == choice.producers[0])

    def last_choice(self, layer: CostLayer) -> int:
        """Return the index of the last choice that a layer's cost depends on, -1 for none."""
        touching = [index for index, _, _ in layer.inputs if index is not None]
        if layer.output[0] is not None:
            touching.append(layer.output[0])
        return max(touching, default=-1)


def layers_of(graph: Graph, chosen: Sequence[str]) -> tuple[CostLayer, ...]:
    """Return the layers of a graph, with the groups in `chosen` as the choices in that order."""
    index = {name: position for position, name in enumerate(chosen)}
    found = []
    for info in graph.layers:
        parts: dict[str, list[tuple[int | None, int, int]]] = {"in": [], "out": []}
        for group in graph.groups:
            for slot in group.slots:
                if slot.layer == info.name:
                    part = (index.get(group.name), group.channels, len(slot.index[0]))
                    parts[slot.side].append(part)
        if info.depthwise:
            parts["in"] = []
        rest = info.in_channels - sum(channels * repeat for _, channels, repeat in parts["in"])
        if rest:
            parts["in"].append((None, rest, 1))
        out = parts["out"][0] if parts["out"] else (None, info.out_channels, 1)
        spatial = info.kind != "fc"
        found.append(
            CostLayer(
                name=info.name,
                kind="depthwise" if info.depthwise else "dense" if not spatial else info.kind,
                inputs=tuple(parts["in"]),
                output=out,
                kernel=info.kernel,
                stride=info.stride,
                in_size=info.in_shape[1:] if spatial else (),
                out_size=info.out_shape[1:] if spatial else (),
                groups=info.groups,
                weights=info.params,
                macs=info.macs,
            )
        )
    return tuple(found)
