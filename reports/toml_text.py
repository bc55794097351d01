"""Plain JSON-able mappings as TOML text, for people to read and to run again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(value: Mapping[str, object]) -> str:
    """Return a mapping as TOML that `tomllib` reads back, but for None, which is left out.

    Raises:
        TypeError: a value that TOML doesn't know.
    """
    lines: list[str] = []
    _table(lines, (), value)
    return "\n".join(lines).strip() + "\n"


def _table(lines: list[str], path: tuple[str, ...], table: Mapping[str, object]) -> None:
    held = {key: part for key, part in table.items() if part is not None}
    for key, part in held.items():
        if not isinstance(part, Mapping) and not _is_tables(part):
            lines.append(f"{_key(key)} = {inline(part)}")
    for key, part in held.items():
        below = (*path, key)
        name = ".".join(_key(k) for k in below)
        if isinstance(part, Mapping):
            # A table that holds nothing but tables needs no heading of its own.
            nested = [v for v in part.values() if v is not None]
            if not nested or not all(isinstance(v, Mapping) or _is_tables(v) for v in nested):
                lines += ["", f"[{name}]"]
            _table(lines, below, part)
        elif _is_tables(part):
            assert isinstance(part, (list, tuple))
            for entry in part:
                lines += ["", f"[[{name}]]"]
                _table(lines, below, entry)


def _is_tables(value: object) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(isinstance(entry, Mapping) for entry in value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but for what JSON leaves as it is and TOML forbids.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def inline(value: object) -> str:
    """Return a value on one line, a mapping as an inline table.

    Raises:
        TypeError: a value that TOML does not know.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(inline(part) for part in value if part is not None) + "]"
    if isinstance(value, Mapping):
        parts = (f"{_key(k)} = {inline(v)}" for k, v in value.items() if v is not None)
        return "{ " + ", ".join(parts) + " }" if value else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}")
