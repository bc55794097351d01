"""The baseline that pruning must beat: a dense narrow network at equal MACs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.datasets.nets import width_for_macs
from flatsat.datasets.reference import reference
from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.datasets.workload import Workload


class NarrowParams(StepParams):
    """How many MACs the network may have: exactly one of `macs` and `macs_ratio`.

    Attributes:
        macs: multiply-adds an image, at most.
        macs_ratio: the same as a share of the dense reference's, in (0, 1].
    """

    macs: int | None = Field(None, ge=1)
    macs_ratio: float | None = Field(None, gt=0.0, le=1.0)

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.macs is None) == (self.macs_ratio is None):
            raise ValueError("give either macs or macs_ratio")
        return self


class Narrow:
    """A dense network of the reference's architecture, narrowed and trained from scratch.

    Every hidden layer's width is multiplied by one number, the largest for which the network's
    MACs are at or below the target. It is trained as the reference was: same data, epochs, batch,
    learning rate and seed, so the comparison is between architectures at equal inference cost
    (Liu et al. 2019, "Scratch-E").
    """

    name: ClassVar[str] = "narrow"
    Params: ClassVar[type[StepParams]] = NarrowParams

    def __init__(self, params: NarrowParams) -> None:
        self._params = params

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the narrow network, from the cache or trained now; `network` is not used.

        Raises:
            RecipeError: it is not the recipe's first step, the network is no reference
                architecture, or even one channel everywhere has more MACs than asked.
        """
        if network.history:
            raise RecipeError(f"{self.name} trains from scratch", hint="make it the first step")
        if not ctx.network:
            raise RecipeError(
                f"{self.name} needs a reference architecture", hint="name one in the workload"
            )
        dense = ctx.workload.cost(ctx.network).macs
        target = self._params.macs or int(dense * (self._params.macs_ratio or 1.0))
        width = width_at_most(ctx.workload, ctx.network, target)
        trained = reference(
            ctx.workload,
            ctx.network,
            seed=ctx.seed,
            width=width,
            cache_dir=ctx.cache_dir,
            progress=ctx.progress,
        )
        entry = {
            "step": self.name,
            "params": self._params.model_dump(mode="json"),
            "layers": [],
            "width": width,
            "macs": ctx.workload.cost(ctx.network, width).macs,
            "target_macs": target,
            # It counts as cost of this network all the same: someone has paid for it.
            "cached_cpu_s": trained.cpu_s if trained.cached else 0.0,
            "cost": {"train_steps": trained.steps, "forward_passes": 0},
        }
        return network.after(trained.module, entry, masks={})


def width_at_most(workload: Workload, network: str, macs: int) -> float:
    """Return the width multiplier of the largest `network` with at most `macs` MACs an image.

    Raises:
        RecipeError: one channel everywhere has more.
        UsageError: no such network.
    """
    if macs == workload.cost(network).macs:
        return 1.0
    width = width_for_macs(
        network, max(1, macs), classes=workload.classes, input_shape=workload.image_shape
    )
    least = workload.cost(network, width).macs
    if least > macs:
        raise RecipeError(
            f"{network} has {least} MACs with one channel a layer, above the target of {macs}",
            hint="raise the target of narrow",
        )
    return width
