"""`flatsat board`: what can be measured on, and whether it is fit."""

from __future__ import annotations

from typing import Annotated

import typer

from flatsat.harness.cli.completion import complete_boards
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, open_lab, out, print_json, working
from flatsat.harness.cli.style import cell, make_table

board = typer.Typer(
    help="The boards of this lab: the built-in host, and those of LAB/lab.toml.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(board, "list", list_boards, "flatsat board list")
    add_verb(
        board, "doctor", doctor, "flatsat board doctor host", "flatsat board doctor host --json"
    )
    app.add_typer(board, name="board", rich_help_panel="What there is")


def list_boards(ctx: typer.Context, as_json: JsonFlag = False) -> int:
    """List the boards by name, kind and clock."""
    lab = open_lab(ctx)
    found = [lab.board(name) for name in lab.board_names()]
    rows = [
        {
            "name": b.name,
            "kind": b.kind,
            "clock": b.time_kind.value,
            "from": "lab.toml" if b.name in lab.boards else "built in",
        }
        for b in found
    ]
    if as_json:
        print_json({"schema": "flatsat.boards/1", "boards": rows})
        return 0
    table = make_table("board", "kind", "clock", "from")
    for row in rows:
        table.add_row(cell(row["name"], "cyan"), *(cell(row[k]) for k in ("kind", "clock", "from")))
    out().print(table)
    return 0


def doctor(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="BOARD", autocompletion=complete_boards, help="Board name.")
    ] = "host",
    as_json: JsonFlag = False,
) -> int:
    """Examine a board: link, agent, runtimes, clock, what would spoil a measurement.

    Exit code 0 when all checks pass, 3 when one fails.
    """
    import asyncio

    from flatsat.targets.doctor import examine

    lab = open_lab(ctx, prepare=True)
    chosen = lab.board(name)
    with working(ctx), lab.pool().acquire(name) as lease:
        findings = asyncio.run(examine(chosen, lease))
    if as_json:
        print_json(
            {
                "schema": "flatsat.doctor/1",
                "board": name,
                "findings": [
                    {"check": f.check, "ok": f.ok, "detail": f.detail, "fix": f.fix}
                    for f in findings
                ],
            }
        )
    else:
        table = make_table("", "check", "found", "to mend it")
        for finding in findings:
            mark = cell("ok", "green") if finding.ok else cell("!!", "bold red")
            table.add_row(mark, cell(finding.check), cell(finding.detail), cell(finding.fix or " "))
        out().print(table)
    return 0 if all(finding.ok for finding in findings) else 3
