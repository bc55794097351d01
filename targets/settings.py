"""A board's settings in `lab.toml`, checked against what its kind takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from flatsat.errors import ConfigError


def checked(
    name: str, settings: Mapping[str, object], types: Mapping[str, type]
) -> dict[str, object]:
    """Return the settings if each is known and of its type.

    Args:
        name: of the board.
        settings: of its table.
        types: setting -> what its value must be.

    Raises:
        ConfigError: one isn't; the hint names the nearest.
    """
    for key, value in settings.items():
        if key not in types:
            raise ConfigError(
                f"board {name!r}: no setting is called {key!r}", hint=nearest(key, types)
            )
        # Python calls true an integer; TOML doesn't.
        if not isinstance(value, types[key]) or (types[key] is int and isinstance(value, bool)):
            raise ConfigError(f"board {name!r}: {key} must be a {types[key].__name__}")
    return dict(settings)


def one_of(name: str, key: str, value: object, known: Iterable[str]) -> None:
    """Refuse a value that is not among those known.

    Raises:
        ConfigError: it isn't; the hint names the nearest.
    """
    choices = list(known)
    if value not in choices:
        raise ConfigError(
            f"board {name!r}: {key} can't be {value!r}", hint=nearest(str(value), choices)
        )


def between(name: str, key: str, value: object, low: int, high: int, unit: str = "") -> None:
    """Refuse a number outside low..high.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(
            f"board {name!r}: {key} can't be {value!r}",
            hint=f"{low} to {high} {unit}".strip(),
        )


def nearest(given: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest of the known names, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(given, names, 1)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(names))
