"""How long work tells what it does; the command line draws it, a library call ignores it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes what long work reports; must be cheap and must not raise."""

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Say that `task` has done `done` of `total`; equal numbers end the task."""

    def log(self, message: str) -> None:
        """Say one line that a reader wants to keep."""


class NoProgress:
    """Ignores everything."""

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Ignore."""

    def log(self, message: str) -> None:
        """Ignore."""
