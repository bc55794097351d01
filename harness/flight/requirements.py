"""A mission file: what a model must show before it flies, each limit with a unit that is checked.

The fields follow the practice of ECSS verification control and of NASA's GSFC-STD-1000 margins.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flatsat.errors import ConfigError
from flatsat.harness.config import load_toml

if TYPE_CHECKING:
    import pint

Phase = Literal["srr", "pdr", "cdr", "flight"]
Category = Literal[
    "task",
    "agreement",
    "timing",
    "memory",
    "storage",
    "energy",
    "power",
    "thermal",
    "integrity",
    "robustness",
    "link",
    "data",
    "interface",
]
Quantity = Literal[
    "accuracy", "latency", "load_time", "memory", "storage", "agreement", "energy", "power"
]
Comparator = Literal["<=", "<", ">=", ">"]

BASE_UNITS: dict[str, str] = {
    "accuracy": "dimensionless",
    "agreement": "dimensionless",
    "latency": "nanosecond",
    "load_time": "nanosecond",
    "memory": "byte",
    "storage": "byte",
    "energy": "joule",
    "power": "watt",
}
STATISTICS: dict[str, tuple[str, ...]] = {
    "accuracy": ("mean",),
    "agreement": ("rate", "max_rel"),
    "latency": ("mean", "p50", "p90", "p95", "p99", "p99.9", "max_observed"),
    "load_time": ("mean", "max_observed"),
    "memory": ("max_observed",),
    "storage": ("value",),
    "energy": ("mean", "max_observed"),
    "power": ("mean", "max_observed"),
}

# GSFC-STD-1000 table 3.07-1: margin of resources by phase, in percent of the limit.
GSFC_3_07_1: dict[str, dict[Phase, float]] = {
    "timing": {"srr": 50, "pdr": 50, "cdr": 40, "flight": 30},
    "memory": {"srr": 50, "pdr": 50, "cdr": 40, "flight": 30},
    "storage": {"srr": 50, "pdr": 50, "cdr": 40, "flight": 30},
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MissionHead(_Strict):
    """Which mission, which issue of its file, in which phase, with which margins."""

    id: str
    issue: str
    phase: Phase
    margin_policy: Literal["gsfc-3.07-1", "none"] = "gsfc-3.07-1"


class Scope(_Strict):
    """Where and how a requirement is to be shown; an empty field leaves it open."""

    workload: str | None = None
    target: str | None = None
    runtime: str = "onnxruntime"
    threads: int = Field(default=1, ge=1)
    batch: int = Field(default=1, ge=1)
    clock: Literal["wall", "virtual"] = "wall"


class Margin(_Strict):
    """A margin that replaces the policy's: percent of the limit, absolute, or none with reason."""

    percent: float | None = Field(default=None, ge=0, lt=100)
    absolute: float | None = Field(default=None, ge=0)
    none_because: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Margin:
        given = [v for v in (self.percent, self.absolute, self.none_because) if v is not None]
        if len(given) != 1:
            raise ValueError("margin takes exactly one of percent, absolute, none_because")
        return self


class Waiver(_Strict):
    """Who allowed what, until when (ISO date)."""

    reference: str
    approver: str
    expiry: str


class Requirement(_Strict):
    """One line of a mission file."""

    id: str
    text: str
    category: Category
    quantity: Quantity
    statistic: str
    comparator: Comparator
    limit: float
    unit: str
    title: str = ""
    parent: tuple[str, ...] = ()
    criticality: Literal["mandatory", "desirable"] = "mandatory"
    method: tuple[Literal["test", "analysis", "review_of_design", "inspection"], ...] = ("test",)
    scope: Scope = Scope()
    margin: Margin | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    min_samples: int = Field(default=1, ge=1)
    min_repeats: int = Field(default=1, ge=1)
    applicability: tuple[Phase, ...] = ("srr", "pdr", "cdr", "flight")
    rationale: str = ""
    source: str = ""
    waiver: Waiver | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Requirement:
        allowed = STATISTICS[self.quantity]
        if self.statistic not in allowed:
            raise ValueError(
                f"{self.id}: statistic {self.statistic!r} is not one of {self.quantity}'s: "
                + ", ".join(allowed)
            )
        if "shall" not in self.text:
            raise ValueError(f"{self.id}: the text of a requirement needs the word 'shall'")
        if self.waiver is None and len(self.applicability) < 4 and not self.rationale:
            raise ValueError(f"{self.id}: a limited applicability needs a rationale")
        self.limit_in_base_units()
        return self

    def limit_in_base_units(self) -> float:
        """Return the limit in ns, bytes, J, W or as a share in [0, 1].

        Raises:
            ValueError: the unit is unknown or of another dimension than the quantity.
        """
        return convert(self.limit, self.unit, self.quantity, self.id)

    def required_margin(self, head: MissionHead) -> Margin | None:
        """Return the margin that applies: the requirement's own, else the policy's, else None."""
        if self.margin is not None:
            return None if self.margin.none_because is not None else self.margin
        if head.margin_policy == "none" or self.category not in GSFC_3_07_1:
            return None
        return Margin(percent=GSFC_3_07_1[self.category][head.phase])


class Mission(_Strict):
    """A mission file as a whole."""

    schema_: Literal[1] = Field(alias="schema")
    mission: MissionHead
    requirement: tuple[Requirement, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Mission:
        seen: set[str] = set()
        for requirement in self.requirement:
            if requirement.id in seen:
                raise ValueError(f"requirement id {requirement.id!r} is given twice")
            seen.add(requirement.id)
        for requirement in self.requirement:
            for parent in requirement.parent:
                if parent == requirement.id:
                    raise ValueError(f"{requirement.id} can't be its own parent")
        return self


@functools.cache
def _units() -> pint.UnitRegistry[float]:
    import pint

    return pint.UnitRegistry()


def convert(value: float, unit: str, quantity: str, where: str) -> float:
    """Return `value` of `unit` in the base unit of `quantity`.

    Raises:
        ValueError: the unit is unknown or of another dimension.
    """
    import pint

    base = BASE_UNITS[quantity]
    try:
        return float(_units().Quantity(value, unit).to(base).magnitude)
    except pint.UndefinedUnitError:
        raise ValueError(
            f"{where}: unit {unit!r} is unknown; {quantity} is given in, for example, "
            f"{_example_unit(quantity)}"
        ) from None
    except pint.DimensionalityError:
        raise ValueError(
            f"{where}: unit {unit!r} doesn't measure {quantity}; use, for example, "
            f"{_example_unit(quantity)}"
        ) from None


def load_mission(path: Path) -> Mission:
    """Read and check a mission file.

    Raises:
        ConfigError: with file, line and what to mend.
    """
    mission = load_toml(path, Mission)
    if not any(r.criticality == "mandatory" for r in mission.requirement):
        raise ConfigError(
            "no requirement is mandatory, so nothing could fail",
            file=path,
            hint='set criticality = "mandatory" where it applies',
        )
    return mission


def _example_unit(quantity: str) -> str:
    return {
        "nanosecond": "ms",
        "byte": "kB or MiB",
        "dimensionless": "percent or dimensionless",
        "joule": "mJ",
        "watt": "W",
    }[BASE_UNITS[quantity]]
