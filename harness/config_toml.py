"""TOML files with positions: values by tomllib, lines by tree-sitter, checks by pydantic.

Every fault of a file becomes one `ConfigError` that names file, line, key and nearest valid name.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from flatsat.errors import ConfigError
from flatsat.harness.names import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from tree_sitter import Node

KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

_KINDS = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a table",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "an array",
    "mapping_type": "a table",
    "model_type": "a table",
    "string_type": "text in quotes",
    "tuple_type": "an array",
}


class TomlModel(BaseModel):
    """What a table of a configuration file may hold: nothing else, and it never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class TomlDocument:
    """A TOML file that was read: its values, and where each of them stands.

    Attributes:
        path: of the file, as the user gave it.
        text: the whole file.
        values: what tomllib made of it.
    """

    path: Path
    text: str
    values: Mapping[str, Any]

    def line(self, key_path: Sequence[str | int]) -> int:
        """Return the line (from 1) of a key; of the nearest table around it when it isn't there."""
        lines: dict[KeyPath, int] = {}
        for place in _positions(self.text):
            # [a.b] and a.b = 1 stand for the table a, too, until [a] itself comes.
            if not place.implied or place.path not in lines:
                lines[place.path] = place.line
        for length in range(len(key_path), 0, -1):
            found = lines.get(tuple(key_path[:length]))
            if found is not None:
                return found
        return 1

    def error(
        self, message: str, key_path: Sequence[str | int] = (), *, hint: str | None = None
    ) -> ConfigError:
        """Return the error that says `message` about the value at `key_path`."""
        return ConfigError(message, file=self.path, line=self.line(key_path), hint=hint)

    def validate(self, model: type[M]) -> M:
        """Return the file's values as `model`.

        Raises:
            ConfigError: a key or a value that `model` doesn't take.
        """
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            raise self.from_pydantic(error, model) from None

    def from_pydantic(
        self, error: ValidationError, model: type[BaseModel], prefix: KeyPath = ()
    ) -> ConfigError:
        """Return the first fault of `error`, in the order of the file, as a ConfigError.

        Args:
            error: what pydantic found.
            model: what was validated, for the names that it knows.
            prefix: where in the file the validated value stands.
        """
        faults = []
        for detail in error.errors(include_url=False):
            loc = _real_path(self.values, (*prefix, *detail["loc"]), detail["type"])
            # A mistyped key also makes a required one missing, and a wrong entry of an array makes
            # the array too short: the first is the cause.
            follows = detail["type"] in ("missing", "too_short")
            faults.append((follows, self.line(loc), loc, detail))
        faults.sort(key=lambda fault: fault[:2])
        follows, _, loc, detail = faults[0]
        message, hint = _explain(detail, loc, self.values, model, prefix)
        others = sum(fault[0] == follows for fault in faults) - 1
        if others:
            message += f" (and {others} more)"
        return self.error(message, loc, hint=hint)


def read_toml(path: Path) -> TomlDocument:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing, no file, not UTF-8, or not TOML.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such file", file=path, hint=_similar_file(path)) from None
    except IsADirectoryError:
        raise ConfigError(
            "is a folder, not a file", file=path, hint="name the .toml file inside it"
        ) from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", file=path) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8 text", file=path, line=line, hint="save as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = _syntax(str(error), text)
        raise ConfigError(f"not valid TOML: {message}", file=path, line=line) from None
    except RecursionError:
        raise ConfigError("tables or arrays nested too deeply", file=path) from None
    return TomlDocument(path, text, values)


def load_toml(path: Path, model: type[M]) -> M:
    """Read a TOML file into a pydantic model.

    Raises:
        ConfigError: the file can't be read, is no TOML, or holds a key or value that `model`
            doesn't take; the message names file, line, key and nearest valid name.
    """
    return read_toml(path).validate(model)


def _similar_file(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix == ".toml"]
    except OSError:
        return f"there is no folder {path.parent} either"
    near = nearest(path.name, names)
    return None if near is None else f"did you mean {path.parent / near}?"


def _syntax(message: str, text: str) -> tuple[str, int]:
    """Split tomllib's "MESSAGE (at line 2, column 5)" into the message and the line."""
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    bare = re.sub(r" \(at [^)]*\)$", "", message)
    last = max(1, len(text.rstrip().splitlines()))
    return bare[:1].lower() + bare[1:], int(found[1]) if found else last


class _Place(NamedTuple):
    """Where a table, a key or an element stands; `implied` where only a longer key says so."""

    path: KeyPath
    line: int
    implied: bool = False


def _positions(text: str) -> Iterator[_Place]:
    """Yield the place of each table, key and array element."""
    import tree_sitter
    import tree_sitter_toml

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
    arrays: dict[KeyPath, int] = {}
    for node in parser.parse(text.encode()).root_node.named_children:
        if node.type == "pair":
            yield from _pair(node, ())
        elif node.type in ("table", "table_array_element"):
            header = next(child for child in node.named_children if child.type.endswith("key"))
            path = _header(_names(header), arrays, opens=node.type == "table_array_element")
            yield from _prefixes(path, 1, header)
            for child in node.named_children:
                if child.type == "pair":
                    yield from _pair(child, path)


def _prefixes(path: KeyPath, shortest: int, key: Node) -> Iterator[_Place]:
    for length in range(shortest, len(path) + 1):
        yield _Place(path[:length], key.start_point[0] + 1, implied=length < len(path))


def _header(names: list[str], arrays: dict[KeyPath, int], *, opens: bool) -> KeyPath:
    """Return a header's key path: an array of tables on the way means its last element so far."""
    path: KeyPath = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if opens and position == len(names) - 1:
            arrays[path] = arrays.get(path, -1) + 1
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _pair(node: Node, table: KeyPath) -> Iterator[_Place]:
    key, *rest = [child for child in node.named_children if child.type != "comment"]
    path = (*table, *_names(key))
    yield from _prefixes(path, len(table) + 1, key)
    if rest:
        yield from _value(rest[0], path)


def _value(node: Node, path: KeyPath) -> Iterator[_Place]:
    if node.type == "inline_table":
        for child in node.named_children:
            if child.type == "pair":
                yield from _pair(child, path)
    elif node.type == "array":
        elements = [child for child in node.named_children if child.type != "comment"]
        for index, child in enumerate(elements):
            yield _Place((*path, index), child.start_point[0] + 1)
            yield from _value(child, (*path, index))


def _names(key: Node) -> list[str]:
    """Return the parts of a bare, quoted or dotted key."""
    if key.type == "dotted_key":
        return [name for child in key.named_children for name in _names(child)]
    text = (key.text or b"").decode()
    return list(tomllib.loads(f"{text} = 0")) if key.type == "quoted_key" else [text]


def _real_path(values: Any, loc: Sequence[str | int], kind: str) -> KeyPath:
    """Drop what pydantic puts into a location that is no key: union members, "[key]" marks."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        in_table = isinstance(values, Mapping) and part in values
        in_array = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_table or in_array:
            values = values[part]
            path.append(part)
        elif last and kind == "missing":
            path.append(part)
    return tuple(path)


def table_name(path: Sequence[str | int]) -> str:
    """Return where a key stands, for a message: "in [recipe.deep.step]", "at the top level"."""
    names = [_key_name(part) for part in path if isinstance(part, str)]
    return f"in [{'.'.join(names)}]" if names else "at the top level"


def _key_name(part: str) -> str:
    return part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"'


def _explain(
    detail: ErrorDetails, loc: KeyPath, values: Any, model: type[BaseModel], prefix: KeyPath
) -> tuple[str, str | None]:
    """Return message and hint for one fault that pydantic found."""
    kind = detail["type"]
    owner = loc
    while owner and isinstance(owner[-1], int):
        owner = owner[:-1]
    key, place = (str(owner[-1]), table_name(owner[:-1])) if owner else ("", "")
    what = f"{key!r} {place}" if owner else "the file"
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_keys(model, loc[len(prefix) : -1])
        present = _at(values, loc[:-1])
        free = [name for name in known if not (isinstance(present, Mapping) and name in present)]
        near = nearest(key, free)
        if near is not None:
            return f"unknown key {key!r} {place}; did you mean {near!r}?", None
        return f"unknown key {key!r} {place}", f"known keys: {', '.join(known) or 'none'}"
    if kind == "missing":
        return f"missing key {key!r} {place}", None
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        if isinstance(detail["input"], str) and allowed:
            near = nearest(detail["input"], allowed)
            if near is not None:
                return f"unknown value {detail['input']!r} of {what}; did you mean {near!r}?", None
        hint = f"choose from: {', '.join(allowed) or context.get('expected', '')}"
        return f"unknown value {_shown(detail['input'])} of {what}", hint
    if kind == "too_short":
        return f"{what} needs at least {context['min_length']}", None
    if kind in _KINDS:
        return f"{what} must be {_KINDS[kind]}, not {_shown(detail['input'])}", None
    if kind == "value_error":
        return f"{what}: {context.get('error', detail['msg'])}", None
    message = detail["msg"].removeprefix("Input ").replace("should ", "must ")
    return f"{what} {message[:1].lower() + message[1:]}, not {_shown(detail['input'])}", None


def _shown(value: object) -> str:
    """Return a value as a reader of TOML knows it, on one short line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "an array"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _known_keys(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that a table at `path` of `model` takes."""
    found: list[Any] = [model]
    for part in path:
        found = [inner for annotation in found for inner in _inside(annotation, part)]
    names: list[str] = []
    for annotation in found:
        for member in _members(annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                names += [field.alias or name for name, field in member.model_fields.items()]
    return list(dict.fromkeys(names))


def _members(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, or the annotation itself."""
    origin = get_origin(annotation)
    if origin is None or isinstance(origin, type):
        plain = origin is None or issubclass(origin, (Mapping, Sequence))
        if plain:
            return [annotation]
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _inside(annotation: Any, part: str | int) -> Iterator[Any]:
    """Yield what may stand under `part` of a value of type `annotation`."""
    for member in _members(annotation):
        origin = get_origin(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                if part == (field.alias or name):
                    yield field.annotation
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            yield get_args(member)[1]
        elif isinstance(origin, type) and issubclass(origin, Sequence):
            yield get_args(member)[0]
