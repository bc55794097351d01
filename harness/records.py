"""Runs of a lab's record, found as people name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsat.errors import UsageError
from flatsat.harness.names import choice_error

if TYPE_CHECKING:
    from flatsat.harness.lab import Lab
    from flatsat.reports.rows import RunRow, Store


def open_record(lab: Lab) -> Store:
    """Open a lab's record, without making one.

    Raises:
        UsageError: there is none yet.
    """
    if not (lab.root / "record.db").is_file():
        raise UsageError(
            f"no record in {lab.root} yet",
            hint="measure something first (flatsat demo), or name the lab with --lab DIR",
        )
    return lab.store()


def find_run(store: Store, wanted: str) -> RunRow:
    """Return the run of an identifier or the start of one; "last" is the newest.

    The runs of kind "layers", which a search keeps its table of layers in, are never the last.

    Raises:
        UsageError: none or several fit.
    """
    found = store.runs()
    if not found:
        raise UsageError("the record holds no run yet", hint="start one with: flatsat demo")
    if wanted == "last":
        return next((run for run in reversed(found) if run.kind != "layers"), found[-1])
    fitting = [run for run in found if run.run_id == wanted] or [
        run for run in found if run.run_id.startswith(wanted)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(
            f"{len(fitting)} runs start with {wanted!r}", hint="give more of the identifier"
        )
    message, _ = choice_error("run", wanted, [run.run_id for run in found])
    raise UsageError(message, hint="list them with: flatsat runs list")
