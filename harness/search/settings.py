"""What the file of a search may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from flatsat.errors import UsageError
from flatsat.harness.config import TomlModel, read_toml
from flatsat.jobspec import JobKind, MeasurePlan

if TYPE_CHECKING:
    from pathlib import Path

Ratio = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
StrategyName = Literal["amc", "uniform", "random"]


def _some_distinct(value: tuple[object, ...]) -> tuple[object, ...]:
    if not value:
        raise ValueError("needs at least one entry")
    if len(set(value)) != len(value):
        raise ValueError("names something twice")
    return value


class SearchTable(TomlModel):
    """`[search]`.

    Attributes:
        name: of the search, for people.
        workload: "mnist-mini/lenet5": data and dense network.
        strategies: what searches; each gets the same number of evaluations.
        episodes: evaluations of each strategy and seed.
        warmup_episodes: of them, how many "amc" spends exploring before it learns.
        seeds: each strategy runs once with each ("uniform" draws nothing and runs once).
        network_seed: of the dense network's training.
        noise_decay: of "amc" an episode; by default as far down as the paper's 0.99 goes in 300
            episodes (see `amc.decay_over`).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    workload: str
    strategies: Annotated[tuple[StrategyName, ...], AfterValidator(_some_distinct)] = (
        "amc",
        "uniform",
        "random",
    )
    episodes: Count = 400
    warmup_episodes: Natural = 100
    seeds: Annotated[tuple[Natural, ...], AfterValidator(_some_distinct)] = (0,)
    network_seed: Natural = 0
    noise_decay: Ratio | None = None

    @model_validator(mode="after")
    def _learns(self) -> SearchTable:
        if "amc" in self.strategies and self.warmup_episodes >= self.episodes:
            raise ValueError(
                f"warmup_episodes = {self.warmup_episodes} leaves none of {self.episodes} episodes"
                " to learn in"
            )
        return self


class BudgetTable(TomlModel):
    """`[search.budget]`.

    Attributes:
        quantity: "macs"; or "latency" as measured on the board (median); or "energy" as modelled
            from the events that the board's meter counts (median).
        ratio: of the dense network's value, in (0, 1].
        limit: absolute, in MACs, nanoseconds or nanojoules, instead of a ratio.
        board: where candidates are measured; "" measures none (only with "macs").
    """

    quantity: Literal["macs", "latency", "energy"] = "macs"
    ratio: Ratio | None = None
    limit: Positive | None = None
    board: str = "host"

    @model_validator(mode="after")
    def _one_limit(self) -> BudgetTable:
        if self.ratio is not None and self.limit is not None:
            raise ValueError("ratio and limit exclude each other")
        if self.quantity != "macs" and not self.board:
            raise ValueError(f"a budget on {self.quantity} needs a board")
        return self


class SpaceTable(TomlModel):
    """`[search.space]`.

    Attributes:
        lower: least preserve ratio of each group of coupled channels.
        round_to: channels kept are rounded up to a multiple of it.
        dtypes: forms in which each candidate is measured; the board decides which one counts.
        int8_loss: validation accuracy that a candidate's int8 form may lose against its float form
            and still be taken for its speed.
    """

    lower: Ratio = 0.2
    round_to: Count = 1
    dtypes: Annotated[tuple[Literal["float", "int8"], ...], AfterValidator(_some_distinct)] = (
        "float",
    )
    int8_loss: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.01


class RewardTable(TomlModel):
    """`[search.reward]`.

    Attributes:
        kind: "resource-constrained": accuracy, under the budget; "accuracy-guaranteed":
            -error x log(budget's quantity), with or without a budget.
    """

    kind: Literal["resource-constrained", "accuracy-guaranteed"] = "resource-constrained"


class EstimateTable(TomlModel):
    """`[search.estimate]`: of the least-squares reconstruction.

    Attributes:
        calibration_batches: batches of 50 calibration images.
        points: sampled positions of each map.
        grid: counts measured on each side of a layer, for the board's table.
    """

    calibration_batches: Count = 60
    points: Count = 10
    grid: Annotated[int, Field(ge=2)] = 4


class MeasureTable(TomlModel):
    """`[search.measure]`: whole candidates on the board while the search goes on.

    Attributes:
        every: after so many episodes of each strategy and seed.
        top: the best unmeasured policies of each strategy; 0 for none.
        rounds: latency jobs of each candidate, interleaved with the dense network's; two at
            least, or there is no interval.
        processes, min_inferences, min_s: of each job.
        reuse: may earlier measurements of single layers on this very board serve.
    """

    every: Count = 50
    top: Natural = 2
    rounds: Annotated[int, Field(ge=2)] = 3
    processes: Count = 2
    min_inferences: Count = 50
    min_s: Positive = 0.1
    reuse: Annotated[str, Field(pattern=r"^(never|always|within [1-9]\d*[dh])$")] = "within 1d"

    def plan(self) -> MeasurePlan:
        """Return what each job is told."""
        return MeasurePlan(
            processes=self.processes, min_inferences=self.min_inferences, min_s=self.min_s
        )


class FinishTable(TomlModel):
    """`[search.finish]`.

    Attributes:
        fine_tune_epochs: of each strategy's best policy; 0 for none.
        rounds: latency jobs of each finalist.
        attempts: how often a strategy's best policy may be replaced by a tighter one, when the
            measurement says that it does not meet the budget.
        equal_macs: measure a dense narrow network of as many MACs, trained from scratch, beside.
    """

    fine_tune_epochs: Annotated[float, Field(ge=0, le=10_000)] = 0
    rounds: Annotated[int, Field(ge=2)] = 6
    attempts: Count = 4
    equal_macs: bool = True


class SearchSection(SearchTable):
    """`[search]` with its tables."""

    budget: BudgetTable = BudgetTable(ratio=0.5)
    space: SpaceTable = SpaceTable()
    reward: RewardTable = RewardTable()
    estimate: EstimateTable = EstimateTable()
    measure: MeasureTable = MeasureTable()
    finish: FinishTable = FinishTable()

    @property
    def job_kind(self) -> JobKind:
        """The kind of job that measures the budget's quantity."""
        return JobKind.ENERGY if self.budget.quantity == "energy" else JobKind.LATENCY

    @model_validator(mode="after")
    def _has_budget(self) -> SearchSection:
        no_limit = self.budget.ratio is None and self.budget.limit is None
        if no_limit and self.reward.kind == "resource-constrained":
            raise ValueError(
                'budget needs a ratio or a limit (or reward kind "accuracy-guaranteed")'
            )
        return self


class SearchFile(TomlModel):
    """A file for `flatsat search`."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    search: SearchSection


def load_search(path: Path) -> SearchFile:
    """Read and check the file of a search.

    Raises:
        ConfigError: the file is wrong, or names an unknown workload or network; with its line.
    """
    from flatsat.datasets.workload import parse_ref

    document = read_toml(path)
    file = document.validate(SearchFile)
    where = ("search", "workload")
    try:
        workload, network = parse_ref(file.search.workload)
    except UsageError as error:
        raise document.error(error.message, where, hint=error.hint) from None
    if network not in workload.networks:
        raise document.error(
            f"{workload.name} has no network {network!r}",
            where,
            hint=f"has {', '.join(workload.networks)}",
        )
    return file
