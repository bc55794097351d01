"""Recipes: read from a mapping, checked as a whole before any work, named by their intent."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import flatsat
from flatsat.canonical import sha256_json
from flatsat.compressors.registry import (
    StepEntry,
    entry,
    int8_pass,
    step_class,
    step_names,
)
from flatsat.datasets.workload import Workload, parse_ref
from flatsat.errors import DataError, RecipeError, UsageError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from flatsat.compressors.base import StepParams
    from flatsat.progress import Progress

KeyPath = tuple[str | int, ...]
_DEFAULT_CODEC = "context"


# What pydantic calls them in Python's words.
_KINDS = {
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "list_type": "must be an array",
    "tuple_type": "must be an array",
}


class RecipeKeyError(RecipeError):
    """A recipe is wrong at a known place.

    Attributes:
        key_path: keys and positions that lead from the recipe's table to the fault, such as
            ("step", 1, "quality").
    """

    def __init__(self, message: str, key_path: KeyPath = (), *, hint: str | None = None) -> None:
        place = _dotted(key_path)
        super().__init__(f"{place}: {message}" if place else message, hint=hint)
        self.key_path = key_path


@dataclass(frozen=True)
class StepSpec:
    """One transform of a recipe: its registered name, and all its parameters as JSON."""

    use: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LowerSpec:
    """One model file of a recipe.

    Attributes:
        to: name of the lowering.
        params: of the lowering, as JSON.
        int8: parameters of the int8 pass over the lowered file, or None without it.
    """

    to: str
    params: Mapping[str, Any] = field(default_factory=dict)
    int8: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class RecipeSpec:
    """From a reference network to model files: Transform* Lower+ ArtifactPass* (Codec).

    Attributes:
        name: what people call it; not part of its identity.
        workload: "workload/network".
        seeds: one candidate for each.
        steps: transforms in order; none gives the dense reference.
        lowers: the files to write.
        code: how weights are coded for uplink: "with" and that codec's parameters; or None.
        data: where the workload's data lie, or None for the usual place.
    """

    name: str
    workload: str
    seeds: tuple[int, ...] = (0,)
    steps: tuple[StepSpec, ...] = ()
    lowers: tuple[LowerSpec, ...] = (LowerSpec("onnx"),)
    code: Mapping[str, Any] | None = None
    data: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the intent as JSON: all but the name and the seeds."""
        return {
            "workload": self.workload,
            **({} if self.data is None else {"data": self.data}),
            "steps": [{"use": s.use, "params": dict(s.params)} for s in self.steps],
            "lowers": [
                {
                    "to": low.to,
                    "params": dict(low.params),
                    "int8": None if low.int8 is None else dict(low.int8),
                }
                for low in self.lowers
            ],
            "code": None if self.code is None else dict(self.code),
        }


class _Table(BaseModel):
    """What a recipe's own keys may hold; steps and lowerings are read by their classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    workload: str
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    step: list[dict[str, Any]] = Field(default=[])
    lower: list[dict[str, Any]] = Field(default=[{"to": "onnx"}], min_length=1)
    code: dict[str, Any] | None = None
    data: str | None = None


def from_mapping(name: str, mapping: Mapping[str, Any]) -> RecipeSpec:
    """Read a recipe's table, as TOML gives it.

    Keys: `workload`, `seeds` ([0]), `step` (tables with `use` and the step's parameters), `lower`
    (tables with `to`, the lowering's parameters and perhaps `int8`; by default one ONNX file),
    `code` (a table with `with`, a codec, and its parameters; "context" by default), `data` (path of
    the workload's data).

    Raises:
        RecipeKeyError: a key or value is wrong; the message names its place and the nearest valid
            name, `key_path` leads there.
    """
    raw = _plain(mapping)
    table = cast("_Table", _validated(_Table, raw, (), raw))
    if len(set(table.seeds)) != len(table.seeds):
        raise RecipeKeyError("names a seed twice", ("seeds",))
    return RecipeSpec(
        name=name,
        workload=table.workload,
        seeds=tuple(table.seeds),
        steps=tuple(_step(raw, i) for i in range(len(table.step))),
        lowers=tuple(_lower(table.lower, raw, i) for i in range(len(table.lower))),
        code=None if table.code is None else _code(table.code, raw),
        data=table.data,
    )


def check(spec: RecipeSpec) -> Workload:
    """Check a recipe as a whole, without any work; return its workload.

    Raises:
        RecipeKeyError: an unknown workload, network or step, no data where the recipe says, steps
            in an order that can't be, a split that a step lacks, or the same file asked for twice.
    """
    if spec.code is not None:
        entry(str(spec.code["with"]), "codec")
    try:
        workload, network = parse_ref(spec.workload, spec.data)
    except DataError as error:
        raise RecipeKeyError(error.message, ("data",), hint=error.hint) from None
    except UsageError as error:
        raise RecipeKeyError(error.message, ("workload",), hint=error.hint) from None
    if network not in workload.networks:
        names = ", ".join(workload.networks)
        raise RecipeKeyError(
            f"{workload.name} has no network {network!r}", ("workload",), hint=f"has {names}"
        )
    _check_order(spec)
    sizes = _split_sizes(spec, workload)
    for index, step in enumerate(spec.steps):
        _check_splits(entry(step.use, "transform"), step.params, sizes, ("step", index))
    if not spec.lowers:
        raise RecipeKeyError("nothing is lowered", ("lower",), hint='add [[lower]] to = "onnx"')
    for index, lower in enumerate(spec.lowers):
        entry(lower.to, "lower")
        if lower in spec.lowers[:index]:
            raise RecipeKeyError("writes the same file as one before", ("lower", index))
        if lower.int8 is not None:
            _check_splits(
                entry(int8_pass(lower.to), "pass"), lower.int8, sizes, ("lower", index, "int8")
            )
    return workload


def recipe_id(spec: RecipeSpec, seed: int) -> str:
    """Return the hash of the intent as 64 hex digits: workload, steps, files, seed, code version.

    The name and the other seeds are no part of it; of data at a path their content is, wherever
    they lie.

    Raises:
        DataError: the data can't be read.
    """
    intent = {**spec.to_json(), "seed": seed, "code_version": flatsat.__version__}
    if (content := data_sha256(spec)) is not None:
        intent["data"] = content
    return sha256_json(intent)


def data_sha256(spec: RecipeSpec) -> str | None:
    """Return the hash of the data that the recipe gives a path of, None without a path.

    Raises:
        DataError: the data can't be read.
    """
    return None if spec.data is None else parse_ref(spec.workload, spec.data)[0].data_sha256()


def role_of(spec: RecipeSpec) -> str:
    """Return the role of the recipe's candidates: "reference", "equal-macs" or "compressed".

    A recipe without steps gives the reference, unless it keeps no float file.
    """
    if not spec.steps:
        return "reference" if any(low.int8 is None for low in spec.lowers) else "compressed"
    roles = {entry(step.use).role for step in spec.steps}
    return "equal-macs" if "equal-macs" in roles else "compressed"


def build(
    spec: RecipeSpec,
    seed: int,
    *,
    candidates_dir: Path,
    cache_dir: Path,
    progress: Progress | None = None,
) -> Path:
    """Make the candidate of one seed, unless it was made before; return its folder.

    The folder appears whole or not at all. Several processes may build at the same time; of those
    that build the same recipe one works and the others wait.

    Args:
        spec: a recipe.
        seed: of training and of everything drawn.
        candidates_dir: where candidates lie; made if need be.
        cache_dir: where trained references are kept.
        progress: told what long work does.

    Raises:
        RecipeError: the recipe is wrong, or a step refuses the network.
        ModelError: a file that was lowered disagrees with the network.
        DataError: the workload's data are missing or damaged.
        UsageError: the folder can't be written to.
        InfrastructureError: the disk is full.
    """
    from flatsat.compressors.building import build_candidate
    from flatsat.progress import NoProgress

    return build_candidate(
        spec,
        seed,
        candidates_dir=candidates_dir,
        cache_dir=cache_dir,
        progress=NoProgress() if progress is None else progress,
    )


def _split_sizes(spec: RecipeSpec, workload: Workload) -> Mapping[str, int]:
    """Return the images of each split: those of the data at hand where they are the user's."""
    if spec.data is None and not workload.needs_path:
        return dict(workload.sizes)
    try:
        return workload.split_sizes()
    except DataError as error:
        raise RecipeKeyError(error.message, ("data",), hint=error.hint) from None


def _check_order(spec: RecipeSpec) -> None:
    frozen_by = ""
    for index, step in enumerate(spec.steps):
        found = entry(step.use, "transform")
        if found.first and index > 0:
            raise RecipeKeyError(
                f"{step.use} makes the network itself and must come first", ("step", index, "use")
            )
        if found.corrects:
            if not frozen_by:
                raise RecipeKeyError(
                    f"{step.use} mends what quantising did, and no such step is before it",
                    ("step", index, "use"),
                    hint="put it after linear-quantise",
                )
            continue
        if frozen_by:
            raise RecipeKeyError(
                f"{step.use} can't follow {frozen_by}, whose levels it would leave",
                ("step", index, "use"),
                hint=f"put {frozen_by} last",
            )
        frozen_by = step.use if found.last else ""


def _check_splits(
    found: StepEntry, params: Mapping[str, Any], sizes: Mapping[str, int], path: KeyPath
) -> None:
    for split in found.needs:
        if not sizes.get(split):
            raise RecipeKeyError(f"{found.name} needs a {split} split, which is empty", path)
    if "calibration" in found.needs and int(params.get("n", 0)) > sizes["calibration"]:
        raise RecipeKeyError(
            f"{params['n']} images are asked for, the calibration split has {sizes['calibration']}",
            (*path, "n"),
        )


def _step(raw: Mapping[str, Any], index: int) -> StepSpec:
    table, path = raw["step"][index], ("step", index)
    name = _name(table, "use", "transform", path)
    given = {key: value for key, value in table.items() if key != "use"}
    return StepSpec(name, _params(name, "transform", given, path, raw))


def _lower(tables: Sequence[Mapping[str, Any]], raw: Mapping[str, Any], index: int) -> LowerSpec:
    table, path = tables[index], ("lower", index)
    name = _name(table, "to", "lower", path)
    int8 = table.get("int8")
    if int8 is not None and not isinstance(int8, Mapping):
        raise RecipeKeyError("must be a table, such as { n = 256 }", (*path, "int8"))
    given = {key: value for key, value in table.items() if key not in ("to", "int8")}
    return LowerSpec(
        name,
        _params(name, "lower", given, path, raw, also=("int8",)),
        None if int8 is None else _params(int8_pass(name), "pass", int8, (*path, "int8"), raw),
    )


def _code(table: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    name = _name({"with": _DEFAULT_CODEC, **table}, "with", "codec", ("code",))
    given = {key: value for key, value in table.items() if key != "with"}
    return {"with": name, **_params(name, "codec", given, ("code",), raw, also=("with",))}


def _name(table: Mapping[str, Any], key: str, kind: str, path: KeyPath) -> str:
    name = table.get(key)
    if not isinstance(name, str):
        known = ", ".join(step_names(kind))
        raise RecipeKeyError(f"needs {key!r} with a name", path, hint=f"choose from {known}")
    try:
        return entry(name, kind).name
    except RecipeError as error:
        raise RecipeKeyError(error.message, (*path, key), hint=error.hint) from None


def _params(
    name: str,
    kind: str,
    given: Mapping[str, Any],
    path: KeyPath,
    raw: Mapping[str, Any],
    also: Sequence[str] = (),
) -> dict[str, Any]:
    model: type[StepParams] = step_class(name, kind).Params
    params = _validated(model, given, path, raw, also)
    return dict(params.model_dump(mode="json"))


def _validated(
    model: type[BaseModel],
    given: Mapping[str, Any],
    path: KeyPath,
    raw: Mapping[str, Any],
    also: Sequence[str] = (),
) -> BaseModel:
    """Return `given` as `model`, or raise its first fault with its place.

    `also` names keys that stand in the same table without being fields of `model`.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A mistyped key makes a required one missing, too: tell the typing error. Of the branches
        # of a union, tell the one that got furthest.
        faults.sort(key=lambda d: (d["type"] == "missing", -len(_existing(raw, path + d["loc"]))))
        first = faults[0]
        place = path + first["loc"]
        if first["type"] == "missing":
            raise RecipeKeyError("is missing", place) from None
        if first["type"] == "extra_forbidden":
            known = [*model.model_fields, *also]
            raise _unknown(str(first["loc"][-1]), known, place) from None
        text = _KINDS.get(first["type"]) or (
            first["msg"].removeprefix("Value error, ").replace("Input should", "must")
        )
        shown = repr(first["input"])
        if first["type"] != "value_error" and len(shown) <= 60:
            text += f", not {shown}"
        raise RecipeKeyError(text, _existing(raw, place), hint=_choice(first)) from None


def _unknown(key: str, known: Sequence[str], place: KeyPath) -> RecipeKeyError:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    return RecipeKeyError("unknown key", place, hint=hint)


def _choice(fault: ErrorDetails) -> str | None:
    """Return the nearest of the values that a choice takes, as a hint."""
    if fault["type"] != "literal_error" or not isinstance(fault["input"], str):
        return None
    allowed = re.findall(r"'([^']*)'", str(fault.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(fault["input"], allowed, n=1)
    return f"did you mean {near[0]!r}?" if near else None


def _existing(raw: Any, place: KeyPath) -> KeyPath:
    """Return the parts of `place` that the recipe holds: pydantic adds the branches of unions."""
    found: list[str | int] = []
    for part in place:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            continue
        found.append(part)
    return tuple(found)


def _plain(value: Any) -> Any:
    """Return tables and arrays as dicts and lists, whatever they are made of."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
