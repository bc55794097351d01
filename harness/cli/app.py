"""The verbs, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import flatsat
from flatsat.harness.cli import (
    boards,
    candidates,
    catalogue,
    decode,
    judge,
    measure,
    networks,
    runs,
    sensitivity,
    work,
)
from flatsat.harness.cli.examples import examples, prose
from flatsat.harness.cli.session import Options
from flatsat.harness.lab import DEFAULT_ROOT, ROOT_VARIABLE

HELP = """Compress networks, measure them on boards, keep the evidence, steer the search.

Exit codes: 0 pass, 1 gate failed or regression, 2 usage or configuration, 3 infrastructure,
4 inconclusive. The options below may stand anywhere on the line."""

app = typer.Typer(
    name="flatsat",
    help=prose(HELP),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "flatsat demo",
        "flatsat measure model.onnx --board host",
        "flatsat run nightly.toml",
        "flatsat compare reference deep",
        "flatsat --install-completion",
    ),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flatsat {flatsat.__version__}")
        raise typer.Exit


@app.callback()
def _start(
    ctx: typer.Context,
    lab: Annotated[
        Path,
        typer.Option(
            "--lab",
            envvar=ROOT_VARIABLE,
            metavar="DIR",
            help="Folder with the record, the candidates and the runs.",
        ),
    ] = Path(DEFAULT_ROOT),
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and warnings of libraries.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version
    ctx.obj = Options(lab=lab, debug=debug, quiet=quiet)


for module in (
    work,
    sensitivity,
    measure,
    decode,
    judge,
    runs,
    candidates,
    boards,
    catalogue,
    networks,
):
    module.register(app)
