"""Configuration files: what they may hold, and how they are read.

Every TOML file that FlatSat takes goes through `load_toml`.
"""

from __future__ import annotations

from flatsat.harness.config_toml import (
    TomlDocument,
    TomlModel,
    choice_error,
    load_toml,
    nearest,
    read_toml,
)

__all__ = ["TomlDocument", "TomlModel", "choice_error", "load_toml", "nearest", "read_toml"]
