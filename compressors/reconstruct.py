"""Channel pruning with least-squares reconstruction, fast enough for a search's inner loop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from flatsat.compressors.channels import (
    ChannelGroup,
    Cut,
    cut_module,
    cuts,
    find,
    kept_count,
    zero_channels,
)
from flatsat.compressors.copying import copied
from flatsat.compressors.gram import (
    Nested,
    Normal,
    Sampling,
    Sum,
    columns,
    own_weight,
    patches,
    schedule,
    solve,
)
from flatsat.compressors.graph import channel_groups
from flatsat.compressors.importance import l1, strongest
from flatsat.compressors.layers import evaluating, weight_of
from flatsat.datasets.fit import as_tensor
from flatsat.errors import DataError, RecipeError
from flatsat.seeds import generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flatsat.compressors.base import Network

Criterion = Literal["l1", "l1-consumer"]

_CACHE_BYTES = 256 << 20
_MOST_NESTED = 8192
"""Columns; a factor as large as the Gram matrix is kept beside it."""


class ChannelPruner:
    """Prunes one network again and again, by preserve ratios, each time from the dense weights.

    Which channels stay is decided once: the order of their L1 norms. A layer that reads pruned
    channels gets new weights, which bring its output on the remaining inputs as near as possible,
    in squared error, to its output in the dense network (He et al. 2017, equation 1 with the
    channels given; He et al. 2018): with samples A (n, k) of its input patches, G = A^T A,
    S the columns that stay and R those that go,

        W'_S = W_S + (G_SS + r I)^-1 G_SR W_R,      r = 1e-7 x mean diagonal of G

    which is (G_SS)^-1 G_S,all W with a small pull towards the old weights. A layer with a bias has
    it fitted too (G is then the covariance): a constant part of what was removed is not lost.

    G is summed once, when the pruner is made, and holds for all candidates and episodes; solutions
    are kept by (layer, number of channels of each group that it reads).

    Approximations, as in the paper's public code: A comes from the dense network's activations,
    not from those of the network whose earlier layers are pruned too; and layers are solved one by
    one. Layers for which a reconstruction isn't defined keep their own weights on what remains:
    `skipped` says which and why (depthwise filters lose whole channels and have none to combine).

    Attributes:
        network: the dense network, which stays as it is.
        groups: its channel groups.
        skipped: consumer -> why it is not reconstructed.
        forward_passes: images that went through the network to sum the Gram matrices.
    """

    def __init__(
        self,
        network: Network,
        x_calib: NDArray[np.float32],
        groups: Sequence[ChannelGroup] | None = None,
        seed: int = 0,
        *,
        round_to: int = 1,
        criterion: Criterion = "l1",
        reconstruct: bool = True,
        sampling: Sampling | None = None,
    ) -> None:
        """Sum the Gram matrices: some forward passes of the dense network.

        Args:
            network: dense; not changed.
            x_calib: calibration images (n, *input_shape).
            groups: None to find them.
            seed: of the sampled points.
            round_to: channels kept are rounded up to a multiple of it.
            criterion: "l1": of the weights that form a channel, over all coupled producers;
                "l1-consumer": of the weights that read it (the public code of He et al. 2018).
            reconstruct: False for plain removal; then no image is used.
            sampling: which samples are used.

        Raises:
            RecipeError: the network can't be traced, or its weights are frozen.
            DataError: there are no calibration images, or they have another shape.
        """
        network.require_free("channel pruning")
        self.network = network
        self.groups = tuple(
            channel_groups(network.module, network.input_shape) if groups is None else groups
        )
        self.skipped: dict[str, str] = {}
        self.forward_passes = 0
        self._round_to = round_to
        side = "out" if criterion == "l1" else "in"
        self._norms = {g.name: l1(network.module, g, side) for g in self.groups if g.prunable}
        self._normals: dict[str, Normal] = {}
        self._nested: dict[str, Nested | None] = {}
        self._solved: OrderedDict[tuple[str, tuple[tuple[str, int], ...]], tuple[Tensor, ...]] = (
            OrderedDict()
        )
        self._solved_bytes = 0
        if reconstruct:
            readers = self._readers()
            if readers:
                self._sum_grams(readers, x_calib, seed, sampling or Sampling())

    def kept(self, keep: Mapping[str, float]) -> dict[str, tuple[int, ...]]:
        """Return the channels that stay, by group, for preserve ratios in (0, 1].

        Groups that are not named, and those whose ratio keeps all channels, are not in the result.

        Raises:
            RecipeError: an unknown group, one that can't be pruned, or a ratio out of range.
        """
        result: dict[str, tuple[int, ...]] = {}
        for name, ratio in keep.items():
            group = find(self.groups, name)
            count = kept_count(group, ratio, self._round_to)
            if count == group.channels:
                continue
            if not group.prunable:
                raise RecipeError(f"{name} can't be pruned: {group.reason}", hint="leave it out")
            result[name] = strongest(self._norms[name], count)
        return result

    def cuts(self, keep: Mapping[str, float]) -> tuple[Cut, ...]:
        """Return what `prune` cuts; see `channels.cut_masks`."""
        return cuts(self.network.module, self.groups, self.kept(keep))

    def prune(self, keep: Mapping[str, float]) -> nn.Module:
        """Return a smaller network, in eval mode, with reconstructed weights.

        Args:
            keep: group -> preserve ratio; other groups stay whole.

        Raises:
            RecipeError: as `kept`.
        """
        kept = self.kept(keep)
        module = copied(self.network.module)
        self._rewrite(module, kept)
        cut_module(module, cuts(module, self.groups, kept))
        return module.eval()

    def masked(self, keep: Mapping[str, float]) -> nn.Module:
        """Return a network of the dense shape that gives the outputs of `prune(keep)`."""
        kept = self.kept(keep)
        module = copied(self.network.module)
        self._rewrite(module, kept)
        return zero_channels(module, self.groups, kept).eval()

    def layer_error(self, layer: str, keep: Mapping[str, float], *, plain: bool = False) -> float:
        """Return the relative squared error of a consumer's output on the samples.

        mean |dense output - output|^2 / mean |dense output|^2 with the dense network's inputs;
        the bias counts in neither. `plain`: with the old weights on what remains.

        Raises:
            RecipeError: the layer is not reconstructed.
        """
        if layer not in self._normals:
            why = self.skipped.get(layer, "it reads no channel that can be pruned")
            raise RecipeError(f"{layer} is not reconstructed: {why}")
        normal = self._normals[layer]
        stays, goes = columns(normal, self._reads(layer, self.kept(keep)))
        gap = normal.weight.clone()
        gap[stays] -= normal.weight[stays] if plain else solve(normal, stays, goes)
        shift = torch.zeros(gap.shape[1], dtype=torch.float64)
        if plain:
            shift = normal.mean @ gap
        energy = float((normal.weight * (normal.gram @ normal.weight)).sum())
        energy += float((normal.mean @ normal.weight).square().sum())
        error = float((gap * (normal.gram @ gap)).sum() + shift.square().sum())
        return error / energy if energy > 0.0 else error

    def _reads(self, layer: str, kept: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {name: kept[name] for name in self._normals[layer].readers if name in kept}

    def _rewrite(self, module: nn.Module, kept: Mapping[str, tuple[int, ...]]) -> None:
        """Put reconstructed weights, with zeros for what goes, into a network of dense shape."""
        with torch.no_grad():
            for layer in self._normals:
                reads = self._reads(layer, kept)
                if not reads:
                    continue
                weight, *bias = self._solution(layer, reads)
                part = module.get_submodule(layer)
                own_weight(part).copy_(weight)
                for value in bias:
                    assert isinstance(part.bias, nn.Parameter)
                    part.bias.copy_(value)

    def _solution(self, layer: str, reads: Mapping[str, tuple[int, ...]]) -> tuple[Tensor, ...]:
        key = (layer, tuple((name, len(kept)) for name, kept in reads.items()))
        if key in self._solved:
            self._solved.move_to_end(key)
            return self._solved[key]
        normal = self._normals[layer]
        full = torch.zeros_like(normal.weight)
        nested = self._nested_for(layer)
        if nested is not None:
            ((_, kept),) = reads.items()
            stays, solved = nested.solve(len(kept))
            full[stays] = solved
        else:
            stays, goes = columns(normal, reads)
            full[stays] = solve(normal, stays, goes)
        shape = weight_of(self.network.module, layer).shape
        solution: tuple[Tensor, ...] = (full.T.reshape(shape).float(),)
        if normal.bias is not None:
            bias = normal.bias + normal.mean @ (normal.weight - full)
            solution = (*solution, bias.float())
        self._solved[key] = solution
        self._solved_bytes += sum(part.nbytes for part in solution)
        while self._solved_bytes > _CACHE_BYTES and len(self._solved) > 1:
            _, oldest = self._solved.popitem(last=False)
            self._solved_bytes -= sum(part.nbytes for part in oldest)
        return solution

    def _nested_for(self, layer: str) -> Nested | None:
        """Return what solves a layer that reads one group alone; None where `solve` has to."""
        if layer not in self._nested:
            normal = self._normals[layer]
            found = None
            if len(normal.readers) == 1 and len(normal.gram) <= _MOST_NESTED:
                (name,) = normal.readers
                # `kept` takes the first ones of this order.
                order = torch.sort(self._norms[name], descending=True, stable=True).indices
                found = Nested(normal, name, order)
            self._nested[layer] = found if found is not None and found.sound else None
        return self._nested[layer]

    def _readers(self) -> dict[str, dict[str, Tensor]]:
        """Return, for each consumer that can be reconstructed, group -> its input positions."""
        found: dict[str, dict[str, Tensor]] = {}
        for group in self.groups:
            if not group.prunable:
                continue
            for slot in group.slots:
                part = self.network.module.get_submodule(slot.layer)
                if slot.side == "out":
                    if slot.layer in group.layers and _groups(part) > 1:
                        self.skipped[slot.layer] = "a depthwise or grouped convolution"
                    continue
                if slot.layer not in group.consumers:
                    continue
                if _groups(part) > 1:
                    self.skipped[slot.layer] = "a depthwise or grouped convolution"
                elif isinstance(part, _ConvTransposeNd):
                    self.skipped[slot.layer] = "a transposed convolution"
                elif isinstance(part, _ConvNd) and own_weight(part).ndim != 4:
                    self.skipped[slot.layer] = "a convolution over other than two axes"
                elif f"{slot.layer}.weight" in self.network.masks:
                    self.skipped[slot.layer] = "its weights are masked"
                else:
                    found.setdefault(slot.layer, {})[group.name] = torch.tensor(slot.index)
        return found

    def _sum_grams(
        self,
        readers: Mapping[str, Mapping[str, Tensor]],
        x_calib: NDArray[np.float32],
        seed: int,
        sampling: Sampling,
    ) -> None:
        shape = self.network.input_shape
        if len(x_calib) == 0 or tuple(x_calib.shape[1:]) != shape:
            raise DataError(
                f"calibration images have shape {tuple(x_calib.shape)}",
                hint=f"at least one image of shape {shape}",
            )
        sums = {layer: Sum() for layer in readers}
        draw = generator(seed, "compressors.reconstruct/points")
        points = sampling.points

        def sample(part: nn.Module, args: tuple[Tensor, ...], layer: str) -> None:
            sums[layer].add(patches(part, args[0], points, draw))

        handles = [
            self.network.module.get_submodule(layer).register_forward_pre_hook(
                lambda part, args, layer=layer: sample(part, args, layer)
            )
            for layer in readers
        ]
        try:
            with evaluating(self.network.module):
                for start, repeats in schedule(len(x_calib), sampling):
                    points = sampling.points * repeats
                    images = as_tensor(x_calib[start : start + sampling.batch])
                    self.network.module(images)
                    self.forward_passes += len(images)
        finally:
            for handle in handles:
                handle.remove()
        for layer, groups in readers.items():
            part = self.network.module.get_submodule(layer)
            self._normals[layer] = sums[layer].normal(part, groups)


def _groups(part: nn.Module) -> int:
    return part.groups if isinstance(part, _ConvNd) else 1
