"""`flatsat compare` and `flatsat validate`: verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatsat.harness.cli.completion import (
    complete_boards,
    complete_candidates,
    complete_toml,
)
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.runs import Open, OpenOption, show_page
from flatsat.harness.cli.session import JsonFlag, interruptible, open_lab, out, working
from flatsat.harness.cli.style import cell, make_table

if TYPE_CHECKING:
    from rich.console import Console

    from flatsat.harness.flight.matrix import Matrix

VERDICT_STYLES = {
    "pass": "green",
    "pass_margin_short": "yellow",
    "fail": "bold red",
    "inconclusive": "yellow",
    "not_run": "yellow",
}


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        app,
        "validate",
        validate,
        "flatsat validate deep --requirements mission.toml --board host",
        "flatsat validate deep --role int8 --requirements mission.toml --json",
        panel="Work",
        bare_is_help=True,
    )


def validate(
    ctx: typer.Context,
    candidate: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_candidates, help="Name, identifier or folder of a candidate."
        ),
    ],
    requirements: Annotated[
        Path,
        typer.Option(metavar="FILE.toml", autocompletion=complete_toml, help="What it must show."),
    ],
    board: Annotated[
        str, typer.Option(autocompletion=complete_boards, help="Where it must show it.")
    ] = "host",
    role: Annotated[
        str | None, typer.Option(help="The artifact of a candidate with several, such as int8.")
    ] = None,
    as_json: JsonFlag = False,
    open_: OpenOption = Open.NO,
) -> int:
    """Measure a candidate and judge it against each requirement of a mission file.

    Exit code 0 when all mandatory requirements pass, 1 when one fails, 4 when the evidence of one
    doesn't suffice. Writes the matrix as HTML, CSV and JSON.
    """
    from flatsat.harness.flight.validate import validate as judge

    lab = open_lab(ctx, prepare=True)
    chosen = lab.candidate(candidate)
    with interruptible("start it again"), working(ctx) as progress:
        found = judge(lab, chosen, requirements, board=board, role=role, progress=progress)
    if as_json:
        typer.echo(found.matrix.to_json(), nl=False)
        return found.matrix.exit_code
    show_matrix(out(), found.matrix)
    show_page(found.html, open_)
    return found.matrix.exit_code


def show_matrix(console: Console, matrix: Matrix) -> None:
    """Write a verification matrix for people."""
    subject = matrix.subject
    console.print(
        cell(
            f"{matrix.mission.mission.id} issue {matrix.mission.mission.issue}: "
            f"{subject.candidate_name} {subject.role} on {subject.board}",
            "bold",
        )
    )
    table = make_table("requirement", "what", "limit", "measured", "bound", "verdict", "why")
    for row, verdict in zip(matrix.rows(), matrix.verdicts, strict=True):
        table.add_row(
            cell(row["id"], "cyan"),
            cell(row["statistic"]),
            cell(row["limit"]),
            cell(row["measured"]),
            cell(row["bound"]),
            cell(verdict.kind.value.replace("_", " "), VERDICT_STYLES.get(verdict.kind.value, "")),
            cell(verdict.reason),
        )
    console.print(table)
    console.print(cell(matrix.statement, "bold"))
