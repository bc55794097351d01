"""The command line `flatsat`: one module a group of verbs, put together in `app`."""

from __future__ import annotations

from flatsat.harness.cli.entry import main

__all__ = ["main"]
