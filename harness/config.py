"""Configuration files: how recipe, run and lab files are read and checked as a whole.

Every TOML file that FlatSat takes goes through `load_toml`. Paths inside a file are relative to
that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.errors import ConfigError, UsageError
from flatsat.harness.config_tables import (
    Gate,
    LabFile,
    Matrix,
    Plan,
    RecipeFile,
    RunFile,
)
from flatsat.harness.config_toml import (
    KeyPath,
    TomlDocument,
    TomlModel,
    load_toml,
    read_toml,
    table_name,
)
from flatsat.harness.names import choice_error

if TYPE_CHECKING:
    from flatsat.compressors.recipe import RecipeSpec

__all__ = [
    "Gate",
    "LabFile",
    "Matrix",
    "Plan",
    "RecipeFile",
    "RunConfig",
    "RunFile",
    "TomlDocument",
    "TomlModel",
    "choose_recipes",
    "load_lab_boards",
    "load_recipes",
    "load_run",
    "load_toml",
    "read_toml",
]

LAB_FILE = "lab.toml"


@dataclass(frozen=True)
class RunConfig:
    """A run's configuration, read and checked as a whole.

    Attributes:
        file: the tables.
        recipes: those that the matrix names, in its order.
        document: positions, for later messages about a value of the file.
    """

    file: RunFile
    recipes: tuple[RecipeSpec, ...]
    document: TomlDocument


def load_recipes(path: Path) -> dict[str, RecipeSpec]:
    """Read a file of recipes; a run's file will do as well.

    Raises:
        ConfigError: the file is wrong, or a recipe can't apply; names file and line.
    """
    document = read_toml(path)
    if "run" in document.values or "matrix" in document.values:
        file = document.validate(RunFile)
        recipes = _included(document, file)
    else:
        document.validate(RecipeFile)
        recipes = {}
    return {**recipes, **_own_recipes(document)}


def choose_recipes(path: Path, name: str | None, seed: int | None = None) -> list[RecipeSpec]:
    """Read a file of recipes and return the one called `name`, or all; with one seed, or theirs.

    Raises:
        ConfigError: as `load_recipes`; or no recipe of that name.
    """
    recipes = load_recipes(path)
    if name is not None and name not in recipes:
        message, hint = choice_error("recipe", name, list(recipes))
        raise ConfigError(message, file=path, hint=hint)
    specs = list(recipes.values()) if name is None else [recipes[name]]
    return specs if seed is None else [replace(spec, seeds=(seed,)) for spec in specs]


def load_run(path: Path) -> RunConfig:
    """Read the configuration of a run, with the recipes that it includes.

    Raises:
        ConfigError: a file is wrong, a recipe can't apply, or the matrix names an unknown recipe.
    """
    document = read_toml(path)
    file = document.validate(RunFile)
    recipes = {**_included(document, file), **_own_recipes(document)}
    wanted = file.matrix.recipes
    if wanted is None:
        wanted = tuple(recipes)
    for index, name in enumerate(wanted):
        if name not in recipes:
            message, hint = choice_error("recipe", name, list(recipes))
            raise document.error(message, ("matrix", "recipes", index), hint=hint)
    if not wanted and not file.matrix.candidates:
        raise document.error(
            "nothing to measure: no recipe and no candidate",
            ("matrix",),
            hint='add [recipe.NAME] tables, include = ["recipes.toml"], or matrix.candidates',
        )
    for index, name in enumerate(file.run.required or ()):
        if name not in file.matrix.boards:
            message, hint = choice_error("board", name, list(file.matrix.boards))
            raise document.error(message, ("run", "required", index), hint=hint)
    return RunConfig(file, tuple(recipes[name] for name in wanted), document)


def load_lab_boards(root: Path) -> dict[str, dict[str, object]]:
    """Return the boards of `lab.toml` in a lab's folder: name -> settings with their "kind".

    A lab without that file has the built-in boards only.

    Raises:
        ConfigError: the file is wrong, or a board's kind doesn't take its settings.
    """
    path = root / LAB_FILE
    if not path.exists():
        return {}
    document = read_toml(path)
    document.validate(LabFile)
    boards: dict[str, dict[str, object]] = document.values.get("board", {})
    for name, settings in boards.items():
        _check_board(document, name, settings)
    return boards


def _check_board(document: TomlDocument, name: str, settings: Mapping[str, object]) -> None:
    """Let the board's kind refuse its settings, and say on which line."""
    kind = str(settings["kind"])
    others = {key: value for key, value in settings.items() if key != "kind"}
    fault = _refusal(name, kind, others)
    if fault is None:
        return
    # To blame is a setting that is refused in the same words by itself, or whose absence mends it.
    for key, alone in (("kind", {}), *((key, {key: value}) for key, value in others.items())):
        refusal = _refusal(name, kind, alone)
        if refusal is not None and refusal.message == fault.message:
            raise _placed(document, ("board", name, key), fault)
    for key in others:
        if _refusal(name, kind, {k: v for k, v in others.items() if k != key}) is None:
            raise _placed(document, ("board", name, key), fault)
    raise _placed(document, ("board", name), fault)


def _refusal(name: str, kind: str, settings: Mapping[str, object]) -> UsageError | None:
    from flatsat.targets.boards import make_board

    try:
        make_board(name, kind, settings)
    except UsageError as error:
        return error
    return None


def _included(document: TomlDocument, file: RunFile) -> dict[str, RecipeSpec]:
    recipes: dict[str, RecipeSpec] = {}
    for index, name in enumerate(file.run.include):
        path = document.path.parent / name
        if not path.is_file():
            raise document.error(f"no such file: {path}", ("run", "include", index))
        for key, spec in load_recipes(path).items():
            if key in recipes:
                raise document.error(
                    f"recipe {key!r} of {path} was included before", ("run", "include", index)
                )
            recipes[key] = spec
    for key in file.recipe:
        if key in recipes:
            raise document.error(
                f"recipe {key!r} stands in an included file as well",
                ("recipe", key),
                hint="rename one of them",
            )
    return recipes


def _own_recipes(document: TomlDocument) -> dict[str, RecipeSpec]:
    tables: Mapping[str, Mapping[str, Any]] = document.values.get("recipe", {})
    return {name: _recipe(document, name, table) for name, table in tables.items()}


def _recipe(document: TomlDocument, name: str, table: Mapping[str, Any]) -> RecipeSpec:
    from flatsat.compressors.recipe import check, from_mapping

    try:
        spec = from_mapping(name, table)
        if spec.data is not None:
            # As every path in a file: relative to it.
            data = document.path.parent / Path(spec.data).expanduser()
            spec = replace(spec, data=str(data.resolve()))
        check(spec)
    except ConfigError:
        raise
    except UsageError as error:
        raise _placed(document, ("recipe", name), error) from None
    return spec


def _placed(document: TomlDocument, table: KeyPath, error: UsageError) -> ConfigError:
    """Return `error` with file and line; `error.key_path`, where it has one, tells the key."""
    inner: KeyPath = tuple(getattr(error, "key_path", ()))
    path = (*table, *inner)
    # Within a file the line tells the place; the key is named as `load_toml` names it.
    text = error.message.removeprefix(f"{_dotted(inner)}: ")
    place = table_name(path[:-1])
    if text == "unknown key":
        text = f"unknown key {path[-1]!r} {place}"
    elif text == "is missing":
        text = f"missing key {path[-1]!r} {place}"
    elif inner and isinstance(path[-1], str):
        text = f"{path[-1]!r} {place}: {text}"
    elif table[0] == "recipe":
        text = f"{table_name(path).removeprefix('in ')}: {text}"
    hint = error.hint
    if hint is not None and hint.startswith("did you mean"):
        text, hint = f"{text}; {hint}", None
    return document.error(text, path, hint=hint)


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
