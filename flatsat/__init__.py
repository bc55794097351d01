"""FlatSat: compress networks, measure them on boards, keep the evidence, steer the search."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatsat.harness.api import load_run, measure

__version__ = "0.1.0"

__all__ = ["__version__", "load_run", "measure"]

_PUBLIC = {"measure": "flatsat.harness.api", "load_run": "flatsat.harness.api"}


def __getattr__(name: str) -> object:
    """Import a public function when it is first asked for: `import flatsat` stays quick."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'flatsat' has no attribute {name!r}")
