"""What the tables of recipe, run and lab files may hold."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field

from flatsat.harness.config_toml import TomlModel
from flatsat.jobspec import VIRTUAL_PLAN, VIRTUAL_ROUNDS, MeasurePlan

_DEFAULT_PLAN = MeasurePlan()


def _reuse_rule(value: str) -> str:
    if value in ("never", "always") or re.fullmatch(r"within [1-9]\d*[dh]", value):
        return value
    raise ValueError(f'{value!r} is no rule; use "never", "always" or "within 7d"')


def _name(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        return value
    raise ValueError(f"{value!r} may hold letters, digits, '.', '_' and '-' only")


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("needs at least one entry")
    return value


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) != len(value):
        raise ValueError("names something twice")
    return value


Schema = Annotated[Literal[1], Field(alias="schema")]
Name = Annotated[str, AfterValidator(_name)]
Names = Annotated[tuple[Name, ...], AfterValidator(_distinct)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class FreeTable(TomlModel):
    """A table whose further keys belong to a plug-in, which checks them itself."""

    model_config = ConfigDict(extra="allow")


RecipeTables = dict[Name, dict[str, Any]]
"""`[recipe.NAME]`: checked by `flatsat.compressors.recipe`, which knows every step's parameters."""


class RecipeFile(TomlModel):
    """A file of recipes."""

    schema_: Schema = 1
    recipe: Annotated[RecipeTables, Field(min_length=1)]


class RunTable(TomlModel):
    """`[run]`.

    Attributes:
        name: of the run, for people.
        seed: of the order of jobs and of everything drawn.
        reuse: may an earlier outcome of the same job on the very same board serve: "never",
            "always", "within 7d" or "within 12h".
        baseline: the recipe or candidate that the others are compared with; by default the
            dense reference of the same workload.
        required: boards without which the run counts as failed (exit 3); by default all.
        include: files of recipes.
    """

    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    reuse: Annotated[str, AfterValidator(_reuse_rule)] = "never"
    baseline: str | None = None
    required: Names | None = None
    include: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ()


class Matrix(TomlModel):
    """`[matrix]`: what is measured where.

    Attributes:
        recipes: names; by default all of the file and of its includes.
        candidates: candidates of the lab that are measured beside the recipes' own.
        boards: names.
        runtimes: names, each for the files whose format it takes; by default onnxruntime for ONNX
            and litert for TFLite.
        threads: intra-op threads; each count is a measurement of its own.
        affinity: CPU numbers to pin to; empty leaves processes free.
        jobs: kinds; "energy" is done on boards with a meter, "capability" once a board.
    """

    recipes: Names | None = None
    candidates: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ()
    boards: Annotated[Names, AfterValidator(_not_empty)] = ("host",)
    runtimes: Names = ()
    threads: Annotated[tuple[Count, ...], AfterValidator(_not_empty), AfterValidator(_distinct)] = (
        1,
    )
    affinity: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_distinct)] = ()
    jobs: Annotated[
        tuple[Literal["latency", "accuracy", "energy", "capability"], ...],
        AfterValidator(_not_empty),
        AfterValidator(_distinct),
    ] = ("latency", "accuracy")


class WallPlan(TomlModel):
    """`[plan.wall]`: how a board with a real clock measures; see `MeasurePlan`.

    Attributes:
        rounds: latency jobs of each artifact, interleaved with the others'.
    """

    processes: Count = _DEFAULT_PLAN.processes
    min_inferences: Count = _DEFAULT_PLAN.min_inferences
    min_s: Seconds = _DEFAULT_PLAN.min_s
    rounds: Count = 5
    warmup: Literal["steady", "fixed"] = "steady"
    max_warmup: Annotated[int, Field(ge=0)] = _DEFAULT_PLAN.max_warmup
    isolation: Literal["spawn", "fork"] = "spawn"
    deadline_s: Seconds = _DEFAULT_PLAN.deadline_s
    memory_limit_bytes: Count | None = None

    def measure_plan(self) -> MeasurePlan:
        """Return what each latency job is told."""
        return MeasurePlan(**self.model_dump(exclude={"rounds"}))


class VirtualPlan(TomlModel):
    """`[plan.virtual]`: how a board that counts instructions measures; see `MeasurePlan`.

    Attributes:
        rounds: latency jobs of each artifact, each in a fresh process.
    """

    processes: Count = VIRTUAL_PLAN.processes
    min_inferences: Count = VIRTUAL_PLAN.min_inferences
    rounds: Count = VIRTUAL_ROUNDS
    warmup: Literal["steady", "fixed"] = "fixed"
    max_warmup: Annotated[int, Field(ge=0)] = VIRTUAL_PLAN.max_warmup
    isolation: Literal["spawn", "fork"] = "spawn"
    deadline_s: Seconds = VIRTUAL_PLAN.deadline_s
    memory_limit_bytes: Count | None = None

    def measure_plan(self) -> MeasurePlan:
        """Return what each latency job is told."""
        return MeasurePlan(min_s=0.0, **self.model_dump(exclude={"rounds"}))


class Plan(TomlModel):
    """`[plan]`: how latency is measured, by kind of clock."""

    wall: WallPlan = WallPlan()
    virtual: VirtualPlan = VirtualPlan()


class LatencyGate(TomlModel):
    """`gate.latency`: fails when a candidate is shown to be slower than its baseline.

    Attributes:
        slower_than: share; 0.02 is 2 % slower.
        alarm: share from which the report warns.
    """

    slower_than: Share
    alarm: Share | None = None


class AccuracyGate(TomlModel):
    """`gate.accuracy`: fails when a candidate is shown to be worse than its baseline.

    Attributes:
        non_inferior: margin in accuracy; 0.005 is half a point.
    """

    non_inferior: Share


class Gate(TomlModel):
    """`[gate]`: what makes a run fail with exit code 1; nothing by default."""

    latency: LatencyGate | None = None
    accuracy: AccuracyGate | None = None


class RunFile(TomlModel):
    """The configuration of a run."""

    schema_: Schema = 1
    run: RunTable
    matrix: Matrix = Matrix()
    plan: Plan = Plan()
    gate: Gate = Gate()
    recipe: RecipeTables = Field(default_factory=dict)


class BoardTable(FreeTable):
    """`[board.NAME]`: its kind's own module checks the further keys."""

    kind: str


class LabFile(TomlModel):
    """`lab.toml`: the boards of a lab, beside the built-in ones.

    Attributes:
        board: name -> settings; `kind` says which further keys a board takes.
    """

    schema_: Schema = 1
    board: dict[Name, BoardTable] = Field(default_factory=dict)
