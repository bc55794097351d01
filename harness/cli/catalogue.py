"""`flatsat workloads` and `flatsat compressors`: what there is to work with."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatsat.errors import UsageError
from flatsat.harness.cli.completion import complete_steps, complete_workload_names
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, out, print_json
from flatsat.harness.cli.style import cell, count, facts_table, make_table, percent
from flatsat.harness.console import duration

if TYPE_CHECKING:
    from rich.table import Table

compressors = typer.Typer(
    help="The techniques that recipes are made of.", no_args_is_help=True, rich_markup_mode="rich"
)


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        app,
        "workloads",
        workloads,
        "flatsat workloads",
        "flatsat workloads images --data ~/photos",
        "flatsat workloads --json",
        panel="What there is",
    )
    add_verb(compressors, "list", list_compressors, "flatsat compressors list")
    add_verb(
        compressors,
        "show",
        show_compressor,
        "flatsat compressors show magnitude-prune",
        bare_is_help=True,
    )
    app.add_typer(compressors, name="compressors", rich_help_panel="What there is")


def workloads(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", autocompletion=complete_workload_names, help="By default all."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Of that workload's data, as a recipe's key data."),
    ] = None,
    as_json: JsonFlag = False,
) -> int:
    """List the workloads: splits, metric, reference networks with accuracy and time to train.

    With --data it says what a recipe would find there; images are read when a recipe is built.
    """
    from flatsat.datasets.summary import workload_summary
    from flatsat.datasets.workload import workload, workload_names

    if data is not None:
        if name is None:
            raise UsageError("name the workload of --data", hint="flatsat workloads NAME --data ..")
        workload(name, data).split_sizes()  # Data that were given must be there.
    chosen = workload_names() if name is None else (workload(name).name,)
    rows = [workload_summary(found, data) for found in chosen]
    if as_json:
        print_json({"schema": "flatsat.workloads/1", "workloads": rows})
        return 0
    console = out()
    for row in rows:
        splits = ", ".join(f"{key} {size:,}" for key, size in row["splits"].items()) or "yours"
        console.print(cell(f"{row['name']}  ", "bold"), cell(row["title"]), sep="")
        console.print(
            f"  [dim]images[/] {splits}   [dim]classes[/] {row['classes']:,}   "
            f"[dim]metric[/] {row['metric']}"
        )
        if row["problem"] and row["needs_path"]:
            console.print(cell(f"  needs a path: {row['problem']}", "yellow"), soft_wrap=True)
        elif row["problem"]:
            console.print(cell(f"  not here: {row['problem']}", "yellow"), soft_wrap=True)
        console.print(_networks(row))
    console.print(
        "accuracy: on the validation split, of references that this machine has trained; "
        "the others are trained when first used",
        style="dim",
    )
    return 0


def _networks(row: dict[str, Any]) -> Table:
    right = ("parameters", "MACs", row["metric"], "to train")
    table = make_table("network", *right, right=right)
    for network in row["networks"]:
        references = network["references"]
        values = [reference["accuracy_validation"] for reference in references]
        seconds = [reference["train_s"] for reference in references]
        seeds = f" ({len(references)} seeds)" if len(references) > 1 else ""
        table.add_row(
            cell(f"{row['name']}/{network['name']}", "cyan"),
            count(network["parameters"]),
            count(network["macs"]),
            percent(sum(values) / len(values)) + seeds if values else "-",
            duration(sum(seconds) / len(seconds)) if seconds else "-",
        )
    return table


def list_compressors(as_json: JsonFlag = False) -> int:
    """List the steps that a recipe may use."""
    from flatsat.compressors.registry import entry, step_names

    entries = [entry(name) for name in step_names()]
    if as_json:
        rows = [{"name": e.name, "kind": e.kind, "summary": e.summary} for e in entries]
        print_json({"schema": "flatsat.compressors/1", "compressors": rows})
        return 0
    table = make_table("name", "kind", "what it does")
    for found in entries:
        table.add_row(cell(found.name, "cyan"), found.kind, cell(found.summary))
    out().print(table)
    return 0


def show_compressor(
    name: Annotated[str, typer.Argument(autocompletion=complete_steps, help="Name of the step.")],
    as_json: JsonFlag = False,
) -> int:
    """Show a step: what it does, by which equations, and its parameters."""
    from flatsat.compressors.registry import describe, entry

    entry(name)  # A misspelt name is told before the step's libraries are loaded.
    described = describe(name)
    if as_json:
        print_json(
            {
                "schema": "flatsat.compressor/1",
                "name": described.entry.name,
                "kind": described.entry.kind,
                "summary": described.entry.summary,
                "text": described.text,
                "parameters": described.schema,
            }
        )
        return 0
    console = out()
    console.print(f"[bold cyan]{name}[/]  [dim]{described.entry.kind}[/]\n")
    console.print(described.text, markup=False)
    about, meanings = parse_attributes(described.schema.get("description", ""))
    if about:
        console.print(f"\n{about}", markup=False)
    parameters = described.schema.get("properties", {})
    required = described.schema.get("required", [])
    if parameters:
        table = make_table("parameter", "type", "default", "meaning")
        for key, schema in parameters.items():
            table.add_row(
                cell(key, "cyan"),
                cell(_type(schema)),
                cell("required" if key in required else _default(schema)),
                cell(schema.get("description") or meanings.get(key, "")),
            )
        console.print()
        console.print(table)
    else:
        console.print(facts_table([("parameters", "none")]))
    return 0


def parse_attributes(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the meanings under "Attributes:", by name."""
    prose, _, listed = text.partition("\nAttributes:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(listed).splitlines():
        head, colon, rest = line.partition(":")
        if colon and not line.startswith(" "):
            names = [name.strip() for name in head.split(",")]
            meanings |= dict.fromkeys(names, rest.strip())
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return prose.strip(), meanings


def _type(schema: dict[str, Any]) -> str:
    """Return a JSON schema's type in a word or two."""
    if "anyOf" in schema:
        return " or ".join(
            _type(member) for member in schema["anyOf"] if member != {"type": "null"}
        )
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    names = {"integer": "whole number", "boolean": "true or false", "string": "text"}
    kind = str(schema.get("type", "table"))
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"array of {_type(schema['items'])}"
    return {"object": "table", **names}.get(kind, kind)


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
