"""`flatsat networks`: the reference architectures, before any data or training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatsat.errors import UsageError
from flatsat.harness.cli.completion import complete_networks
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, out, print_json, working
from flatsat.harness.cli.style import byte_count, cell, count, facts_table, make_table

if TYPE_CHECKING:
    from flatsat.datasets.architectures import Shape
    from flatsat.harness.networks import Architecture

networks = typer.Typer(
    help="The reference architectures, without data or training.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Classes = Annotated[
    int | None, typer.Option(min=1, help="Outputs; by default those of the network's paper.")
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="CxHxW", help="One image, such as 3x64x64; by default the paper's."
    ),
]
Width = Annotated[float, typer.Option(help="Multiplies hidden channels and units.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        networks,
        "list",
        list_networks,
        "flatsat networks list",
        "flatsat networks list --input 3x64x64 --classes 4",
    )
    add_verb(
        networks,
        "export",
        export,
        "flatsat networks export alexnet",
        "flatsat networks export mobilenet-v2 --width 0.5 --input 3x96x96 -o small.onnx",
        bare_is_help=True,
    )
    app.add_typer(networks, name="networks", rich_help_panel="What there is")


def list_networks(
    input_: Input = None, classes: Classes = None, width: Width = 1.0, as_json: JsonFlag = False
) -> int:
    """List the architectures with their exact counts of parameters and MACs.

    A recipe names one behind a workload that suits it: see flatsat workloads.
    """
    from flatsat.harness.networks import architectures

    found = architectures(parse_shape(input_), classes, width)
    if as_json:
        print_json(
            {"schema": "flatsat.networks/1", "width": width, "networks": [_json(a) for a in found]}
        )
        return 0
    right = ("classes", "parameters", "weights", "MACs")
    table = make_table("network", "image", *right, right=right)
    for known in found:
        image = " x ".join(map(str, known.input_shape))
        name = cell(known.name, "cyan")
        if known.cost is None:
            table.add_row(name, image, f"{known.classes:,}", *(cell(None) for _ in right[1:]))
            continue
        cost = known.cost
        counts = (f"{n:,}" for n in (known.classes, cost.parameters, cost.weights, cost.macs))
        table.add_row(name, image, *counts)
    console = out()
    console.print(table)
    for known in found:
        if known.cost is None:
            console.print(cell(f"{known.name}: {known.why}", "dim"), soft_wrap=True)
    return 0


def export(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK", autocompletion=complete_networks, help="An architecture's name."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where to; by default NETWORK.onnx."),
    ] = None,
    input_: Input = None,
    classes: Classes = None,
    width: Width = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: JsonFlag = False,
) -> int:
    """Write an architecture with untrained weights as ONNX, to see what it costs on a board.

    What a dense network takes there hardly depends on its weights: flatsat measure tells. For a
    trained network write a recipe.
    """
    from flatsat.harness.networks import export_network

    with working(ctx):
        made = export_network(
            name,
            Path(f"{name}.onnx") if output is None else output,
            input_shape=parse_shape(input_),
            classes=classes,
            width=width,
            seed=seed,
            force=force,
        )
    cost = made.architecture.cost
    assert cost is not None
    if as_json:
        print_json(
            {
                "schema": "flatsat.network/1",
                **_json(made.architecture),
                "width": width,
                "seed": seed,
                "path": str(made.path),
                "sha256": made.sha256,
                "size_bytes": made.size_bytes,
            }
        )
        return 0
    out().print(
        facts_table(
            {
                "file": made.path,
                "size": byte_count(made.size_bytes),
                "parameters": f"{cost.parameters:,}, untrained",
                "MACs": count(cost.macs),
                "sha256": made.sha256,
            }
        )
    )
    return 0


def parse_shape(text: str | None) -> Shape | None:
    """Read "3x224x224" (also with commas), None as None.

    Raises:
        UsageError: it has another form.
    """
    if text is None:
        return None
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--input {text!r} is no image", hint="channels, height, width, such as 3x224x224"
        )
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def _json(known: Architecture) -> dict[str, object]:
    from dataclasses import asdict

    costs = {} if known.cost is None else asdict(known.cost)
    return {
        "name": known.name,
        "input": list(known.input_shape),
        "classes": known.classes,
        **costs,
        "problem": known.why or None,
    }
