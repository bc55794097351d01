"""The one visible place that lists the kinds of board."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flatsat.errors import ConfigError
from flatsat.targets.host import HostBoard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flatsat.targets.board import Board


def _host(name: str, settings: Mapping[str, object]) -> Board:
    chosen = _checked(name, settings, {"python": str, "store": str, "sites": dict})
    if "store" in chosen:
        chosen["store"] = Path(cast("str", chosen["store"]))
    return HostBoard(name, **chosen)  # type: ignore[arg-type]


KINDS: Mapping[str, Callable[[str, Mapping[str, object]], Board]] = {"host": _host}
"""Kind of board -> how to make one from its name and its settings in `lab.toml`."""


def builtin_boards() -> tuple[str, ...]:
    """Return the boards that need no entry in `lab.toml`."""
    return ("host",)


def make_board(name: str, kind: str, settings: Mapping[str, object] | None = None) -> Board:
    """Return a board of `kind`.

    Args:
        name: the board's name in the lab.
        kind: a key of `KINDS`.
        settings: the rest of its table in `lab.toml`.

    Raises:
        ConfigError: no such kind, or a setting that it doesn't know.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"board {name!r}: no kind of board is called {kind!r}",
            hint=_nearest(kind, KINDS),
        )
    return KINDS[kind](name, settings or {})


def _checked(
    name: str, settings: Mapping[str, object], types: Mapping[str, type]
) -> dict[str, object]:
    for key, value in settings.items():
        if key not in types:
            raise ConfigError(
                f"board {name!r}: no setting is called {key!r}", hint=_nearest(key, types)
            )
        if not isinstance(value, types[key]):
            raise ConfigError(f"board {name!r}: {key} must be a {types[key].__name__}")
    return dict(settings)


def _nearest(given: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(given, known, 1)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))
