"""`flatsat compare` and `flatsat validate`: verdicts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from flatsat.errors import UsageError
from flatsat.harness.cli.completion import (
    complete_boards,
    complete_candidates,
    complete_compared,
    complete_toml,
)
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.runs import Open, OpenOption, show_page
from flatsat.harness.cli.session import (
    JsonFlag,
    interruptible,
    open_lab,
    out,
    print_json,
    working,
)
from flatsat.harness.cli.style import cell, make_table

if TYPE_CHECKING:
    from rich.console import Console

    from flatsat.harness.flight.matrix import Matrix
    from flatsat.reports.compare import Comparison, ComparisonReport

COMPARE_STYLES = {
    "faster": "green",
    "less": "green",
    "better": "green",
    "equal": "green",
    "non-inferior": "green",
    "slower": "bold red",
    "more": "bold red",
    "worse": "bold red",
    "inconclusive": "yellow",
    "refused": "yellow",
}
VERDICT_STYLES = {
    "pass": "green",
    "pass_margin_short": "yellow",
    "fail": "bold red",
    "inconclusive": "yellow",
    "not_run": "yellow",
}


class StatisticName(StrEnum):
    """What stands for a process."""

    P10 = "p10"
    P50 = "p50"
    MEAN = "mean"


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        app,
        "compare",
        compare,
        "flatsat compare reference deep",
        "flatsat compare reference:float reference:int8 deep:int8 --within 1%",
        "flatsat compare run-20260901 run-20260902",
        panel="Work",
        bare_is_help=True,
    )
    add_verb(
        app,
        "validate",
        validate,
        "flatsat validate deep --requirements mission.toml --board host",
        "flatsat validate deep --role int8 --requirements mission.toml --json",
        panel="Work",
        bare_is_help=True,
    )


def compare(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            autocompletion=complete_compared,
            help="The baseline, then what is held against it: candidates, or runs. "
            "NAME:ROLE takes one artifact of a candidate.",
        ),
    ],
    within: Annotated[
        str,
        typer.Option(metavar="SHARE", help="A difference in latency that still counts as equal."),
    ] = "2%",
    margin: Annotated[
        str,
        typer.Option(metavar="SHARE", help="A loss of accuracy that still counts as none."),
    ] = "0.5%",
    board: Annotated[
        str, typer.Option(autocompletion=complete_boards, help="Where candidates are measured.")
    ] = "host",
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads.")] = 1,
    rounds: Annotated[
        int, typer.Option(min=1, help="Interleaved rounds; more of them see smaller differences.")
    ] = 10,
    statistic: Annotated[
        StatisticName, typer.Option(help="Of each process's latencies.")
    ] = StatisticName.P50,
    accuracy: Annotated[
        bool, typer.Option("--accuracy/--no-accuracy", help="Compare accuracy on the board, too.")
    ] = True,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Measure nothing; take what the record holds.")
    ] = False,
    as_json: JsonFlag = False,
    open_: OpenOption = Open.NO,
) -> int:
    """Hold candidates or runs against a baseline: faster, slower, equal, or not to be told.

    Candidates are measured now, interleaved in rounds, so that the machine's drift favours none;
    runs are compared by what they recorded. What can't be compared is refused, with the reason.

    Exit code 0 without regression, 1 when something was shown to be worse, 2 when nothing could be
    compared, 4 when something can't be told.
    """
    from flatsat.harness.compare import CompareRequest
    from flatsat.harness.compare import compare as judge

    request = CompareRequest(
        names=tuple(names),
        board=board,
        threads=threads,
        rounds=rounds,
        threshold=parse_share("--within", within),
        margin=parse_share("--margin", margin),
        statistic=statistic.value,
        accuracy=accuracy,
        recorded=recorded,
    )
    lab = open_lab(ctx)
    with interruptible("start it again"), working(ctx) as progress:
        found = judge(lab, request, progress=progress)
    if as_json:
        print_json({**found.report.to_json(), "run_id": found.run_id})
        return found.report.exit_code
    show_comparison(out(), found.report)
    if found.page is not None:
        show_page(found.page, open_)
    return found.report.exit_code


def parse_share(option: str, text: str) -> float:
    """Read "1%" or "0.01".

    Raises:
        UsageError: neither, or not between 0 and 1.
    """
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageError(f"{option} {text!r} is no share above 0 and below 1", hint="such as 1%")
    return share


def show_comparison(console: Console, report: ComparisonReport) -> None:
    """Write verdicts for people, and below them the reasons of those that need one."""
    console.print(cell(f"against {report.baseline}", "bold"))
    right = ("by", "95 % interval")
    table = make_table("candidate", "what", "verdict", *right, right=right)
    reasons: list[str] = []
    for row in report.rows:
        what = row.quantity if row.quantity == "accuracy" else f"{row.quantity} {row.statistic}"
        by, interval = _amount(row)
        verdict = Text(row.verdict.value, COMPARE_STYLES.get(row.verdict.value, ""), no_wrap=True)
        table.add_row(cell(row.candidate, "cyan"), what, verdict, by, interval)
        if row.why:
            reasons.append(f"{row.candidate}, {what}: {row.why}")
        if row.baseline not in (report.baseline, row.candidate):
            reasons.append(f"{row.candidate} is held against {row.baseline}")
    console.print(table)
    for line in dict.fromkeys([*reasons, *report.notes]):
        console.print(cell(line, "dim"))


def _amount(row: Comparison) -> tuple[str, Text]:
    """Return by how much two differ, and the interval."""
    if row.difference is not None:
        found, scale, digits, unit, sign = row.difference, 100.0, 2, " points", "+"
    elif row.ratio is not None:
        found, scale, digits, unit, sign = row.ratio, 1.0, 3, "x", ""
    else:
        return "", Text("")
    value = f"{scale * found.value:{sign}.{digits}f}{unit}"
    if found.low is None or found.high is None:
        return value, Text("")
    low, high = (f"{scale * end:{sign}.{digits}f}" for end in (found.low, found.high))
    return value, Text(f"{low} … {high}", style="dim")


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
