"""Help texts: prose without line breaks of the source, and examples that can be copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer


def examples(*lines: str) -> str:
    """Return an epilog that shows command lines, one a line."""
    shown = "\n".join(f"  [cyan]{line.replace('[', chr(92) + '[')}[/]" for line in lines)
    return f"[bold]Examples[/]\n{shown}"


def prose(text: str | None) -> str:
    """Return a docstring whose paragraphs are one line each, for the terminal to wrap."""
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def add_verb(
    app: typer.Typer,
    name: str,
    function: Callable[..., Any],
    *lines: str,
    panel: str | None = None,
    bare_is_help: bool = False,
) -> None:
    """Add a verb to the command line.

    Args:
        app: the command line, or a group of it.
        name: of the verb.
        function: whose docstring is the help.
        lines: examples.
        panel: heading under which the help of `app` lists it.
        bare_is_help: without arguments it shows its help.
    """
    app.command(
        name,
        help=prose(function.__doc__),
        epilog=examples(*lines),
        rich_help_panel=panel,
        no_args_is_help=bare_is_help,
    )(function)
