"""`flatsat decode`: a coded file becomes the model file again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flatsat.harness.cli.completion import complete_coded
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, out, print_json
from flatsat.harness.cli.style import byte_count, facts_table


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    add_verb(
        app,
        "decode",
        decode,
        "flatsat decode float-1a2b3c.onnx.fscw",
        "flatsat decode uplinked.fscw --output model.onnx",
        "flatsat decode uplinked.fscw --json",
        panel="Work",
        bare_is_help=True,
    )


def decode(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", autocompletion=complete_coded, help="A file of coded weights."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where to; by default beside it."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Give back the ONNX or TFLite file that was coded, bit for bit, its hash checked.

    A recipe writes coded files where it has a table `code`; docs/coded-weights.md describes them.
    """
    from flatsat.harness.decoding import decode_file

    made = decode_file(file, output, force=force)
    if as_json:
        print_json(
            {
                "schema": "flatsat.decode/1",
                "source": str(made.source),
                "path": str(made.path),
                "coder": made.coder,
                "sha256": made.sha256,
                "size_bytes": made.size_bytes,
                "coded_bytes": made.coded_bytes,
            }
        )
        return 0
    out().print(
        facts_table(
            {
                "file": str(made.path),
                "size": byte_count(made.size_bytes),
                "coded": f"{byte_count(made.coded_bytes)}, {made.ratio:.1f} times smaller",
                "coder": made.coder,
                "sha256": f"{made.sha256}, checked",
            }
        )
    )
    return 0
