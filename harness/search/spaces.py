"""The space of channel pruning: a preserve ratio for each group of coupled channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.harness.search.domain import Choice, Domain, Graph, layers_of

if TYPE_CHECKING:
    from flatsat.compressors.graph import ChannelGroup
    from flatsat.harness.search.seams import Proposal


@dataclass(frozen=True)
class ChannelSpace:
    """Channels kept of each prunable group; coupled channels share one choice.

    Inputs of the network and outputs of its last layer belong to no prunable group and stay.

    Attributes:
        workload: "mnist-mini/lenet5".
        seed: of the reference network that is pruned.
        lower: least preserve ratio, in (0, 1].
        round_to: channels kept are rounded up to a multiple of it, or all are kept.
        batches, points: of the least-squares reconstruction.
        fine_tune_epochs: of training after the pruning; 0 for none.
        dtypes: forms that a candidate is lowered to, "float" and "int8".
    """

    workload: str
    seed: int = 0
    lower: float = 0.2
    round_to: int = 1
    batches: int = 60
    points: int = 10
    fine_tune_epochs: float = 0.0
    dtypes: tuple[str, ...] = ("float",)

    def domain(self, graph: Graph) -> Domain:
        """Return one choice a prunable group, in the order of execution.

        Raises:
            UsageError: no group can be pruned.
        """
        groups = [group for group in graph.groups if group.prunable]
        if not groups:
            reasons = "; ".join(f"{g.name}: {g.reason}" for g in graph.groups)
            raise UsageError(
                f"{self.workload} has no channels that can be pruned ({reasons or 'no groups'})",
                hint="choose another network",
            )
        choices = tuple(
            Choice(group.name, group.channels, self._options(group), group.layers)
            for group in groups
        )
        return Domain(choices, layers_of(graph, [group.name for group in groups]))

    def _options(self, group: ChannelGroup) -> tuple[int, ...]:
        """Return the counts that may be kept: multiples of `round_to` real channels, and all."""
        from flatsat.compressors.channels import kept_count

        least = kept_count(group, self.lower, self.round_to)
        counts = (
            count
            for count in range(least, group.channels)
            if count * group.bundle % self.round_to == 0
        )
        return (*counts, group.channels)

    def bounds(self, choice: Choice) -> tuple[float, float]:
        """Return the least and the largest preserve ratio."""
        return choice.options[0] / choice.channels, 1.0

    def realise(self, proposal: Proposal) -> dict[str, object]:
        """Return the recipe that prunes as proposed, then fine-tunes if so set."""
        steps: list[dict[str, object]] = [
            {
                "use": "channel-prune",
                "keep": proposal.ratios,
                "batches": self.batches,
                "points": self.points,
            }
        ]
        if self.fine_tune_epochs:
            steps.append({"use": "fine-tune", "epochs": self.fine_tune_epochs})
        return {
            "workload": self.workload,
            "seeds": [self.seed],
            "step": steps,
            "lower": [
                {"to": "onnx"} if dtype == "float" else {"to": "onnx", "int8": {}}
                for dtype in self.dtypes
            ],
        }

    def dense(self) -> dict[str, object]:
        """Return the recipe of the network that nothing is removed from, in floats."""
        return {"workload": self.workload, "seeds": [self.seed], "lower": [{"to": "onnx"}]}
