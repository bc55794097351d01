"""What `lab.toml` may say of an emulated board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from flatsat.targets.energy import model_from_settings
from flatsat.targets.qemu import CPUS, QemuBoard
from flatsat.targets.settings import between, checked, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES: Mapping[str, type] = {
    "cpu": str,
    "clock": str,
    "memory_mb": int,
    "shift": int,
    "link": str,
    "console": str,
    "meter": str,
    "energy": dict,
    "cache_dir": str,
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "cpu": CPUS,
    "clock": ("virtual", "wall"),
    "link": ("ssh", "serial"),
    "console": ("pty", "socket"),
    "meter": ("events", "none"),
}
_RANGES: Mapping[str, tuple[int, int, str]] = {
    "memory_mb": (96, 3072, "MiB"),
    "shift": (0, 10, ""),
}


def board_from_settings(name: str, settings: Mapping[str, object]) -> QemuBoard:
    """Return the emulated board that a table of `lab.toml` describes.

    Raises:
        ConfigError: a setting is unknown or can't be had.
    """
    chosen = checked(name, settings, _TYPES)
    for key, value in chosen.items():
        if key in _CHOICES:
            one_of(name, key, value, _CHOICES[key])
        if key in _RANGES:
            low, high, unit = _RANGES[key]
            between(name, key, value, low, high, unit)
    if "energy" in chosen:
        chosen["energy"] = model_from_settings(name, cast("dict[str, object]", chosen["energy"]))
    if "cache_dir" in chosen:
        chosen["cache_dir"] = Path(cast("str", chosen["cache_dir"]))
    return QemuBoard(name, **chosen)  # type: ignore[arg-type]
