"""What `lab.toml` may say of a Linux board."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flatsat.errors import ConfigError
from flatsat.targets.linux import LinuxBoard, SerialWay, SshWay
from flatsat.targets.settings import between, checked, one_of

_TYPES: Mapping[str, type] = {
    "links": list,
    "link": str,
    "provision_via": str,
    "python": str,
    "store": str,
    "clock": str,
    "sites": dict,
}
_WAYS: Mapping[str, Mapping[str, type]] = {
    "ssh": {
        "via": str,
        "host": str,
        "port": int,
        "user": str,
        "key": list,
        "known_hosts": str,
        "password_env": str,
        "keepalive_s": float,
    },
    "serial": {"via": str, "port": str, "baud": int, "user": str, "password_env": str},
}
_NEEDED: Mapping[str, tuple[str, ...]] = {"ssh": ("host", "user"), "serial": ("port",)}
_EXAMPLE = 'links = [{ via = "ssh", host = "em1.lab", user = "pi" }]'


def board_from_settings(name: str, settings: Mapping[str, object]) -> LinuxBoard:
    """Return the Linux board that a table of `lab.toml` describes.

    Raises:
        ConfigError: a setting is unknown, is missing, or can't be had.
    """
    chosen = checked(name, settings, _TYPES)
    clock = chosen.pop("clock", "wall")
    one_of(name, "clock", clock, ("wall",))
    for runtime, folder in cast("Mapping[str, object]", chosen.get("sites", {})).items():
        if not isinstance(folder, str):
            raise ConfigError(f"board {name!r}: sites.{runtime} must be a folder on the board")
    tables = cast("list[object]", chosen.pop("links", []))
    ways = tuple(_way(name, index, table) for index, table in enumerate(tables))
    if not ways:
        raise ConfigError(f"board {name!r} has no links", hint=_EXAMPLE)
    vias = [way.via for way in ways]
    for via in vias:
        if vias.count(via) > 1:
            raise ConfigError(
                f"board {name!r}: links holds two via {via!r}", hint="one of each kind"
            )
    for key in ("link", "provision_via"):
        if key in chosen:
            one_of(name, key, chosen[key], vias)
    board = LinuxBoard(name, ways, **cast("dict[str, Any]", chosen))
    _check_shared_store(board)
    return board


def _check_shared_store(board: LinuxBoard) -> None:
    """Refuse a store in a home where two users bring their parts of it."""
    first, second = board.way(board.link), board.way(board.provision_via or board.link)
    if first.user != second.user and not board.store.startswith("/"):
        raise ConfigError(
            f"board {board.name!r}: {first.user} and {second.user} have no store in common",
            hint='set store to an absolute folder, such as "/var/lib/flatsat"',
        )


def _way(name: str, index: int, table: object) -> SshWay | SerialWay:
    where = f"board {name!r}: links[{index}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table", hint=_EXAMPLE)
    via = table.get("via", "ssh")
    try:
        one_of(name, "via", via, _WAYS)
        if "password" in table:
            raise ConfigError(
                f"board {name!r}: a password does not belong into a file",
                hint='password_env = "NAME" names the environment variable that holds it',
            )
        given = checked(name, _widened(table), _WAYS[via])
        for key in _NEEDED[via]:
            if key not in given:
                raise ConfigError(f"board {name!r}: {key} is missing", hint=_EXAMPLE)
        return _make(name, via, given)
    except ConfigError as error:
        message = error.message.removeprefix(f"board {name!r}: ")
        raise ConfigError(f"{where}: {message}", hint=error.hint) from None


def _widened(table: Mapping[str, object]) -> dict[str, object]:
    """Let one key stand for a list of one, and a whole number for a fraction."""
    wide = dict(table)
    if isinstance(wide.get("key"), str):
        wide["key"] = [wide["key"]]
    if isinstance(wide.get("keepalive_s"), int) and not isinstance(wide["keepalive_s"], bool):
        wide["keepalive_s"] = float(cast("int", wide["keepalive_s"]))
    return wide


def _make(name: str, via: str, given: dict[str, object]) -> SshWay | SerialWay:
    if via == "serial":
        if "baud" in given:
            between(name, "baud", given["baud"], 1200, 4_000_000)
        return SerialWay(**cast("dict[str, Any]", given))
    if "port" in given:
        between(name, "port", given["port"], 1, 65535)
    keys = cast("list[object]", given.pop("key", []))
    if not all(isinstance(key, str) for key in keys):
        raise ConfigError(f"board {name!r}: key must be a file, or a list of files")
    if not cast("float", given.get("keepalive_s", 1.0)) > 0:
        raise ConfigError(f"board {name!r}: keepalive_s must be more than 0")
    paths = tuple(Path(str(key)) for key in keys)
    return SshWay(keys=paths, **cast("dict[str, Any]", given))
