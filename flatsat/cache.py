"""Where things that can be made again are kept between runs, for all labs of a user."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return $FLATSAT_CACHE, else $XDG_CACHE_HOME/flatsat, else ~/.cache/flatsat.

    The folder need not exist; it is made when something is first written to it.
    """
    if own := os.environ.get("FLATSAT_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "flatsat"
    return Path.home() / ".cache" / "flatsat"
