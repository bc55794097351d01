"""Channel pruning by a policy: a preserve ratio for each group of coupled channels."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.channels import cut_masks, difference
from flatsat.compressors.gram import Sampling
from flatsat.compressors.layers import layers, outside
from flatsat.compressors.ratios import left_alone
from flatsat.compressors.reconstruct import ChannelPruner, Criterion
from flatsat.errors import RecipeError
from flatsat.seeds import integer_seed

_TOLERANCE = 1e-4


class ChannelPruneParams(StepParams):
    """What stays, and how the rest makes up for it.

    Attributes:
        keep: group -> preserve ratio in (0, 1]; groups that are not named stay whole. A group is
            called by the first layer that makes its channels.
        round_to: channels kept are rounded up to a multiple of it.
        criterion: which channels stay: the largest L1 norm of the weights that form them ("l1")
            or that read them ("l1-consumer").
        reconstruct: fit the weights of the layers that read pruned channels by least squares.
        batches, points, batch: calibration batches, points a feature map, images a batch.
    """

    keep: dict[str, float]
    round_to: int = Field(1, ge=1)
    criterion: Criterion = "l1"
    reconstruct: bool = True
    batches: int = Field(60, ge=1)
    points: int = Field(10, ge=1)
    batch: int = Field(50, ge=1)

    @field_validator("keep")
    @classmethod
    def _in_range(cls, value: dict[str, float]) -> dict[str, float]:
        for name, ratio in value.items():
            if not 0.0 < ratio <= 1.0:
                raise ValueError(f"the preserve ratio {ratio} of {name} is not in (0, 1]")
        return value


class ChannelPrune:
    """The realisation of an AMC policy (He et al. 2018): prune channels, reconstruct, no training.

    Of each group the channels of largest L1 norm stay, with everything that is coupled to them.
    Each layer that reads pruned channels gets, by least squares on sampled points of calibration
    images, the weights that bring its output nearest to the dense one; see `ChannelPruner` for the
    equation and its approximations.
    """

    name: ClassVar[str] = "channel-prune"
    Params: ClassVar[type[StepParams]] = ChannelPruneParams

    def __init__(self, params: ChannelPruneParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the smaller network.

        Raises:
            RecipeError: an unknown group, one that can't be pruned, frozen weights, or a smaller
                network that gives other outputs than the masked one.
            DataError: there are no calibration images.
        """
        network.require_free(self.name)
        params = self._params
        pruner = ChannelPruner(
            network,
            ctx.calibration.x,
            seed=integer_seed(ctx.seed, "compressors.channel-prune"),
            round_to=params.round_to,
            criterion=params.criterion,
            reconstruct=params.reconstruct,
            sampling=Sampling(params.batches, params.points, params.batch),
        )
        infos = layers(network.module, network.input_shape)
        kept = pruner.kept(params.keep)
        module = pruner.prune(params.keep)
        gap = difference(pruner.masked(params.keep), module, network.input_shape)
        if not gap <= _TOLERANCE:
            raise RecipeError(
                f"{self.name}: the smaller network's outputs differ by {gap:.1e} from those with "
                "the channels masked",
                hint="leave out groups of keep until it holds",
            )
        entry = {
            "step": self.name,
            "params": params.model_dump(mode="json"),
            "layers": [
                {
                    "name": group.name,
                    "coupled": list(group.layers),
                    "channels": group.channels,
                    "kept": len(kept.get(group.name, range(group.channels))),
                }
                for group in pruner.groups
                if group.prunable
            ],
            "left": left_alone(pruner.groups, [g.name for g in pruner.groups if g.prunable], {})
            | outside(network.module, infos),
            "not_reconstructed": dict(pruner.skipped),
            "cost": {"train_steps": 0, "forward_passes": pruner.forward_passes},
        }
        masks = cut_masks(network.masks, pruner.cuts(params.keep))
        return network.after(module, entry, masks=masks)
