"""Errors that FlatSat raises on purpose; each says what went wrong and how to mend it."""

from __future__ import annotations

from pathlib import Path


class FlatSatError(Exception):
    """The root of FlatSat's own errors.

    Attributes:
        message: one line: what is wrong, and where.
        hint: one line: how to mend it, or None.
        exit_code: the exit code of the command line that meets this error.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message} ({hint})")
        self.message = message
        self.hint = hint


class UsageError(FlatSatError):
    """Something that the user gave can't be used as it is."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file is wrong at a known place."""

    def __init__(
        self,
        message: str,
        *,
        file: Path | None = None,
        line: int | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        super().__init__(f"{where}{message}", hint=hint)
        self.file = file
        self.line = line


class RecipeError(UsageError):
    """A recipe can't be applied: steps in a wrong order, or a step that this network refuses."""


class DataError(UsageError):
    """A data file is missing, truncated or not what it claims to be."""


class ModelError(UsageError):
    """A model file is corrupt, of an unknown format, or can't be run as asked."""


class KindMismatchError(UsageError):
    """Two quantities of different physics (wall and virtual time, metered and modelled energy)."""


class InfrastructureError(FlatSatError):
    """A board, a link, a disk or a tool failed; no fault of what was measured."""
