"""The one visible place that lists the kinds of board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from flatsat.errors import ConfigError
from flatsat.targets.host import HostBoard
from flatsat.targets.settings import checked, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flatsat.targets.board import Board


def _host(name: str, settings: Mapping[str, object]) -> Board:
    chosen = checked(name, settings, {"python": str, "store": str, "sites": dict})
    if "store" in chosen:
        chosen["store"] = Path(cast("str", chosen["store"]))
    return HostBoard(name, **chosen)  # type: ignore[arg-type]


def _qemu(name: str, settings: Mapping[str, object]) -> Board:
    from flatsat.targets.qemu_settings import board_from_settings

    return board_from_settings(name, settings)


def _linux(name: str, settings: Mapping[str, object]) -> Board:
    from flatsat.targets.linux_settings import board_from_settings

    return board_from_settings(name, settings)


KINDS: Mapping[str, Callable[[str, Mapping[str, object]], Board]] = {
    "host": _host,
    "qemu-arm64": _qemu,
    "linux": _linux,
}
"""Kind of board -> how to make one from its name and its settings in `lab.toml`."""


def builtin_boards() -> Mapping[str, tuple[str, Mapping[str, object]]]:
    """Return the boards that need no entry in `lab.toml`: name -> kind and settings."""
    return {
        "host": ("host", {}),
        "qemu-arm64": ("qemu-arm64", {}),
        "qemu-arm64-a76": ("qemu-arm64", {"cpu": "cortex-a76"}),
    }


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
            hint=nearest(kind, KINDS),
        )
    return KINDS[kind](name, settings or {})
