"""What a recipe gives layers: one number for all, or a table by kind and name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from flatsat.compressors.channels import ChannelGroup, find
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.layers import LayerInfo

KINDS = ("conv", "fc")
NOT_NAMED = "the recipe doesn't name it"


def check_ratios(ratio: float | Mapping[str, float] | None) -> None:
    """Refuse a share that is not in [0, 1).

    Raises:
        ValueError: it names the share and its key.
    """
    for name, value in (ratio if isinstance(ratio, Mapping) else {"ratio": ratio or 0.0}).items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"the ratio {value} of {name} is not in [0, 1)")


def kinds_of(infos: Sequence[LayerInfo]) -> dict[str, str]:
    """Return layer -> "fc" or "conv"; a transposed convolution is one of the latter."""
    return {info.name: "fc" if info.kind == "fc" else "conv" for info in infos}


def by_layer(
    step: str, infos: Sequence[LayerInfo], value: float | Mapping[str, float]
) -> dict[str, float]:
    """Return layer -> its number, in the order of execution; others are not in it.

    Args:
        step: name of the step, for messages.
        infos: the network's layers.
        value: one number for all, or a table whose keys are kinds and layers; a layer's own name
            beats its kind.

    Raises:
        RecipeError: the table names a layer that there is not.
    """
    if not isinstance(value, Mapping):
        return {info.name: value for info in infos}
    kinds = kinds_of(infos)
    for name in value:
        if name not in KINDS and name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kinds)}"
            raise RecipeError(f"{step}: the network has no layer {name!r}", hint=hint)
    found = {name: value.get(name, value.get(kind)) for name, kind in kinds.items()}
    return {name: number for name, number in found.items() if number is not None}


def chosen(
    step: str,
    groups: Sequence[ChannelGroup],
    kinds: Mapping[str, str],
    ratio: float | Mapping[str, float],
    numbered: Collection[str] = KINDS,
) -> list[tuple[ChannelGroup, float]]:
    """Return the groups to prune, each with the share that it keeps.

    Args:
        step: name of the step, for messages.
        groups: of the network.
        kinds: as `kinds_of` tells them; a group has that of its first producer.
        ratio: share removed. A table's keys are kinds, which mean those groups of the kind that
            can be pruned, and group names, which insist; a name beats a kind.
        numbered: kinds that one number is for.

    Raises:
        RecipeError: the table names a group that there is not or that can't be pruned, or a kind
            that the network lacks.
    """
    if not isinstance(ratio, Mapping):
        return [(g, 1.0 - ratio) for g in groups if g.prunable and kinds[g.name] in numbered]
    for name in ratio:
        if name in KINDS:
            if name not in {kinds[group.name] for group in groups}:
                raise RecipeError(
                    f"{step}: the network has no layer of kind {name!r}",
                    hint=f"its kinds are {', '.join(sorted(set(kinds.values())))}",
                )
        elif not (group := find(groups, name)).prunable and ratio[name] > 0.0:
            raise RecipeError(f"{name} can't be pruned: {group.reason}", hint="leave it out")
    found: list[tuple[ChannelGroup, float]] = []
    for group in groups:
        # A layer that is called like a kind is reached by its kind.
        value = ratio.get(group.name, ratio.get(kinds[group.name]))
        if value is not None and group.prunable:
            found.append((group, 1.0 - value))
    return found


def left_alone(
    groups: Sequence[ChannelGroup], pruned: Collection[str], otherwise: Mapping[str, str]
) -> dict[str, str]:
    """Return, for each layer whose channels all stay, the reason.

    Args:
        groups: of the network.
        pruned: names of the groups that were pruned.
        otherwise: reason for a group that could have been pruned, by its name.
    """
    return {
        layer: group.reason or otherwise.get(group.name, NOT_NAMED)
        for group in groups
        if group.name not in pruned
        for layer in group.layers
    }
