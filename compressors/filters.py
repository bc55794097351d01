"""Structured pruning by L1 norm: filters go with everything that is coupled to them."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.channels import find, kept_count
from flatsat.compressors.graph import channel_groups, prune_network
from flatsat.compressors.importance import l1, strongest
from flatsat.compressors.layers import layers, outside
from flatsat.compressors.ratios import check_ratios, chosen, kinds_of, left_alone


class L1FilterParams(StepParams):
    """Which share of the filters goes: exactly one of `ratio` and `keep`.

    Attributes:
        ratio: share removed, in [0, 1): one number for every channel group that can be pruned, or
            a table whose keys are "conv" (transposed ones too), "fc" (kinds of a group's first
            producer) or group names
            (`flatsat compressors` calls a group by its first producer); a name beats a kind, and
            what the table doesn't name stays.
        keep: preserve ratio in (0, 1] by group name; other groups stay whole.
        round_to: channels kept are rounded up to a multiple of it.
    """

    ratio: float | dict[str, float] | None = None
    keep: dict[str, float] | None = None
    round_to: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.ratio is None) == (self.keep is None):
            raise ValueError("give either ratio or keep")
        check_ratios(self.ratio)
        for name, value in (self.keep or {}).items():
            if not 0.0 < value <= 1.0:
                raise ValueError(f"the preserve ratio {value} of {name} is not in (0, 1]")
        return self


class L1FilterPrune:
    """Li et al. 2017: remove the filters whose kernels have the least L1 norm.

    s_j = sum |F_j| over filter j's weights (section 3.1); the filters of least s_j are removed,
    with the batch norm that follows and the kernels of the next layers that read their maps. In a
    residual network, and around depthwise convolutions, layers share their channels: s_j is then
    summed over all layers that make channel j, and the channel goes everywhere at once (the paper
    lets the shortcut's layer decide). The network becomes really smaller and runs on unchanged
    hardware. No training here: add `fine-tune`.

    The network's output and input stay whole, as do groups that can't be pruned safely.
    """

    name: ClassVar[str] = "l1-filter-prune"
    Params: ClassVar[type[StepParams]] = L1FilterParams

    def __init__(self, params: L1FilterParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:  # noqa: ARG002
        """Return the smaller network.

        Raises:
            RecipeError: an unknown group or kind, one that can't be pruned, or frozen weights.
        """
        network.require_free(self.name)
        groups = channel_groups(network.module, network.input_shape)
        infos = layers(network.module, network.input_shape)
        kinds = kinds_of(infos)
        keep: dict[str, tuple[int, ...]] = {}
        told: list[dict[str, object]] = []
        if self._params.keep is not None:
            named = {find(groups, name).name: value for name, value in self._params.keep.items()}
            preserved = [(group, named[group.name]) for group in groups if group.name in named]
        else:
            preserved = chosen(self.name, groups, kinds, self._params.ratio or 0.0)
        for group, preserve in preserved:
            norms = l1(network.module, group)
            kept = strongest(norms, kept_count(group, preserve, self._params.round_to))
            keep[group.name] = kept
            told.append(
                {
                    "name": group.name,
                    "coupled": list(group.layers),
                    "channels": group.channels,
                    "kept": len(kept),
                    "least_kept_l1": float(norms[list(kept)].min()),
                }
            )
        entry = {
            "step": self.name,
            "params": self._params.model_dump(mode="json"),
            "layers": told,
            "left": left_alone(groups, keep, {}) | outside(network.module, infos),
            "cost": {"train_steps": 0, "forward_passes": 0},
        }
        return prune_network(network, keep, entry, groups)
