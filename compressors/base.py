"""The four kinds of step, and the network that transforms pass on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from flatsat.errors import RecipeError
from flatsat.progress import NoProgress, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from flatsat.artifact import Artifact
    from flatsat.compressors.tensor_ranges import TensorRange
    from flatsat.datasets.workload import Split, Workload


class StepParams(BaseModel):
    """The parameters of a step as a recipe gives them; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Network:
    """A network between two steps.

    A step never changes what it was given: it works on a deep copy of `module` and returns a new
    Network (`after`).

    Attributes:
        module: in eval mode, on the CPU, float32; takes (batch, *input_shape), gives logits
            (batch, classes).
        input_shape: of one image, without the batch axis.
        masks: parameter name -> bool tensor of the parameter's shape, true where the weight is
            kept. A later step that trains or rewrites weights holds the others at zero.
        history: one JSON-able entry a step, in order: {"step": name, "params": {...},
            "layers": [...] (per-layer provenance), "cost": {"train_steps": n,
            "forward_passes": n}} and what else the step wants to tell. A forward pass is one image
            through the network outside training.
        frozen: why the weights may no longer change (they stand on quantisation levels), or "".
        quantum: where activations are quantised, the step of the output's quantiser in output
            units: rounding may then fall to either side of a level, so files lowered from this
            network are judged by decision, not by tolerance.
        unquantised: the module just before its weights were put on levels, without training since;
            None where there is none.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    history: tuple[Mapping[str, object], ...] = ()
    frozen: str = ""
    quantum: float | None = None
    unquantised: nn.Module | None = None

    def after(
        self,
        module: nn.Module,
        entry: Mapping[str, object],
        *,
        masks: Mapping[str, Tensor] | None = None,
    ) -> Network:
        """Return what a step made: `entry` ends its history; masks stay unless given."""
        kept = self.masks if masks is None else masks
        return replace(self, module=module, masks=kept, history=(*self.history, entry))

    def require_free(self, step: str) -> None:
        """Refuse a step that would change weights which may no longer change.

        Raises:
            RecipeError: the weights are frozen; the message says why.
        """
        if self.frozen:
            raise RecipeError(
                f"{step} can't follow: {self.frozen}", hint=f"put {step} before that step"
            )


@dataclass(frozen=True)
class StepContext:
    """What a step may use beside the network: never the test split.

    Attributes:
        workload: names the task; a step takes data from the three splits below.
        network: name of the reference architecture ("lenet5"); "" for a network of another origin.
        train, calibration, validation: see `flatsat.datasets`.
        seed: of the recipe; a step draws by `flatsat.seeds.integer_seed(seed, "<its purpose>")`.
        cache_dir: where trained networks are kept.
        progress: told what long work does.
    """

    workload: Workload
    network: str
    train: Split
    calibration: Split
    validation: Split
    seed: int
    cache_dir: Path
    progress: Progress = field(default_factory=NoProgress)

    @classmethod
    def of(
        cls,
        workload: Workload,
        network: str,
        *,
        seed: int,
        cache_dir: Path,
        progress: Progress | None = None,
    ) -> StepContext:
        """Return the context of a workload's own splits."""
        splits = workload.splits(cache_dir)
        return cls(
            workload=workload,
            network=network,
            train=splits.train,
            calibration=splits.calibration,
            validation=splits.validation,
            seed=seed,
            cache_dir=cache_dir,
            progress=progress or NoProgress(),
        )

    @property
    def classes(self) -> int:
        """How many classes the workload tells apart."""
        return self.workload.classes


class Transform(Protocol):
    """Network -> Network. Constructed with an instance of its `Params`.

    The class docstring states the technique's equations and where it departs from its paper.
    """

    name: ClassVar[str]
    Params: ClassVar[type[StepParams]]

    def apply(self, network: Network, ctx: StepContext) -> Network:
        """Return the transformed network; `network` stays as it was.

        Raises:
            RecipeError: the step can't be applied to this network.
        """


class Lower(Protocol):
    """Network -> Artifact: writes a model file and its goldens into the candidate's folder."""

    name: ClassVar[str]
    Params: ClassVar[type[StepParams]]

    def lower(self, network: Network, folder: Path, ctx: StepContext) -> Artifact:
        """Write the file, check it against the network, and return what is known of it.

        Raises:
            RecipeError: the network can't be lowered.
            ModelError: the file disagrees with the network.
        """


class ArtifactPass(Protocol):
    """Artifact -> Artifact: makes another model file from one in the folder."""

    name: ClassVar[str]
    Params: ClassVar[type[StepParams]]

    def apply(self, artifact: Artifact, folder: Path, ctx: StepContext) -> Artifact:
        """Write the new file beside the old one and return what is known of it.

        Raises:
            RecipeError: the pass can't be applied to this artifact.
            ModelError: the new file can't be run.
        """


class Codec(Protocol):
    """Bytes of an artifact <-> coded bytes; decoding gives exactly what was encoded."""

    name: ClassVar[str]
    Params: ClassVar[type[StepParams]]

    def encode(self, data: bytes, tensors: Sequence[TensorRange], suffix: str = "bin") -> bytes:
        """Return the coded bytes; `tensors` of the file are coded, the rest is packed.

        Raises:
            RecipeError: the file can't be coded.
        """

    def decode(self, coded: bytes) -> bytes:
        """Return the bytes that `encode` was given.

        Raises:
            DataError: `coded` is no output of `encode`.
        """
