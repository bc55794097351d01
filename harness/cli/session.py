"""What every verb needs: the lab, the two consoles, and how results and errors are written."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatsat.errors import FlatSatError
from flatsat.harness.console import make_console, printable, progress_on

if TYPE_CHECKING:
    from rich.console import Console

    from flatsat.harness.lab import Lab
    from flatsat.progress import Progress

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Write JSON to standard output, for other programs.")
]


@dataclass(frozen=True)
class Options:
    """The options that stand before the verb.

    Attributes:
        lab: folder of the lab.
        debug: show tracebacks and warnings.
        quiet: no progress.
    """

    lab: Path
    debug: bool = False
    quiet: bool = False


def options(ctx: typer.Context) -> Options:
    """Return the global options of this call."""
    found = ctx.find_root().obj
    assert isinstance(found, Options)
    return found


def open_lab(ctx: typer.Context, *, prepare: bool = False) -> Lab:
    """Return the lab of this call.

    Args:
        ctx: of the verb.
        prepare: make its folders, and fail early where they can't be written.

    Raises:
        UsageError: the folder can't be written, or its lab.toml is wrong.
    """
    from flatsat.harness.config import load_lab_boards
    from flatsat.harness.lab import Lab

    root = options(ctx).lab
    lab = Lab(root, load_lab_boards(root))
    if prepare:
        lab.prepare()
    return lab


def out() -> Console:
    """Return the console of results."""
    return make_console(sys.stdout)


def say(message: str, *, style: str | None = None) -> None:
    """Write one line to standard error."""
    make_console(sys.stderr).print(
        printable(message), style=style, markup=False, soft_wrap=True, highlight=False
    )


def print_json(value: Any) -> None:
    """Write a value as indented JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


class WorkInterruptedError(FlatSatError):
    """Ctrl-C during work that can go on; the hint says how."""

    exit_code = INTERRUPTED


@contextlib.contextmanager
def interruptible(how: str) -> Iterator[None]:
    """Let an interruption of this work tell how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise WorkInterruptedError("interrupted", hint=how) from None


@contextlib.contextmanager
def working(ctx: typer.Context) -> Iterator[Progress]:
    """Lend a progress sink; what libraries print goes to standard error meanwhile."""
    with contextlib.redirect_stdout(sys.stderr), progress_on(quiet=options(ctx).quiet) as sink:
        yield sink
