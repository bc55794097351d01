"""`flatsat candidates`: the networks of a lab, and the import of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatsat.harness.cli.completion import complete_candidates
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, open_lab, out, print_json, working
from flatsat.harness.cli.style import (
    byte_count,
    cell,
    count,
    facts_table,
    make_table,
    percent,
)

if TYPE_CHECKING:
    from flatsat.compressors.candidate import Candidate

candidates = typer.Typer(
    help="The networks of this lab: made by recipes, or imported.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
RIGHT = ("seed", "parameters", "non-zero", "MACs", "bytes", "accuracy")


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(candidates, "list", list_candidates, "flatsat candidates list")
    add_verb(
        candidates,
        "show",
        show_candidate,
        "flatsat candidates show deep",
        "flatsat candidates show 3f9a --json",
        bare_is_help=True,
    )
    add_verb(
        candidates,
        "import",
        import_candidate,
        "flatsat candidates import model.onnx",
        "flatsat candidates import model.onnx --goldens outputs.npz",
        bare_is_help=True,
    )
    app.add_typer(candidates, name="candidates", rich_help_panel="What there is")


def list_candidates(ctx: typer.Context, as_json: JsonFlag = False) -> int:
    """List the candidates of the lab."""
    found = open_lab(ctx).candidates()
    if as_json:
        print_json({"schema": "flatsat.candidates/1", "candidates": [_summary(c) for c in found]})
        return 0
    if not found:
        out().print("no candidates yet; make one with: flatsat compress RECIPE.toml")
        return 0
    out().print(candidates_table(found))
    return 0


def show_candidate(
    ctx: typer.Context,
    candidate: Annotated[
        str,
        typer.Argument(
            autocompletion=complete_candidates,
            help="Name, identifier or start of one, or folder.",
        ),
    ],
    as_json: JsonFlag = False,
) -> int:
    """Show one candidate: its files, its layers, what it cost, where it came from."""
    found = open_lab(ctx).candidate(candidate)
    if as_json:
        print_json({**found.to_json(), "schema": "flatsat.candidate/1"})
        return 0
    console = out()
    console.print(facts_table(_facts(found)))
    files = make_table("file", "role", "bytes", "opset", "sha256", "goldens", right=("bytes",))
    for artifact in found.artifacts:
        files.add_row(
            cell(artifact.file, "cyan"),
            cell(artifact.role),
            byte_count(artifact.size_bytes),
            cell(artifact.opset),
            artifact.sha256[:12],
            "yes" if artifact.goldens else "no",
        )
    console.print(files)
    if found.layers:
        layers = make_table(
            "layer",
            "kind",
            "shape",
            "parameters",
            "kept",
            "MACs",
            right=("parameters", "kept", "MACs"),
        )
        for layer in found.layers:
            params = int(layer.get("params", 0))
            kept = int(layer.get("nonzeros", params)) / params if params else None
            layers.add_row(
                cell(layer.get("name"), "cyan"),
                cell(layer.get("kind")),
                cell(" x ".join(str(n) for n in layer.get("out_shape", layer.get("shape", ())))),
                count(params),
                percent(kept),
                count(layer.get("macs")),
            )
        console.print(layers)
    return 0


def import_candidate(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file.")],
    goldens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Inputs and right outputs: arrays in:NAME and out:NAME, or in:NAME alone.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> int:
    """Take a network that FlatSat did not make into the lab."""
    from flatsat.compressors.importing import import_model

    lab = open_lab(ctx, prepare=True)
    with working(ctx):
        found = import_model(model, goldens, lab.candidates_dir)
    if as_json:
        print_json({**found.to_json(), "schema": "flatsat.candidate/1"})
        return 0
    out().print(candidates_table([found]))
    return 0


def candidates_table(found: list[Candidate]) -> Any:
    """Return a table of candidates, one a row."""
    table = make_table(
        "candidate",
        "role",
        "workload",
        "seed",
        "parameters",
        "non-zero",
        "MACs",
        "bytes",
        "accuracy",
        "id",
        right=RIGHT,
    )
    for candidate in sorted(found, key=lambda c: (c.workload, c.name, c.seed)):
        imported = candidate.role == "imported"
        table.add_row(
            cell(candidate.name, "cyan"),
            candidate.role,
            cell(candidate.workload),
            cell("" if imported else candidate.seed),
            count(candidate.params),
            percent(candidate.nonzeros / candidate.params if candidate.params else None),
            count(candidate.macs),
            byte_count(candidate.size_bytes),
            _judged(candidate, candidate.accuracy_host.get("validation")),
            candidate.candidate_id[:12],
        )
    return table


def _judged(candidate: Candidate, value: float | None) -> str:
    """Return a share with its metric's name, unless that is accuracy as the heading says."""
    from flatsat.datasets.workload import metric_of

    metric = metric_of(candidate.workload)
    return percent(value) + (f" {metric}" if metric != "accuracy" and value is not None else "")


def _facts(candidate: Candidate) -> list[tuple[str, object]]:
    from flatsat.harness.culprit import int8_errors

    cost = candidate.cost
    spent = [
        f"{cost[key]:,.0f} {words}"
        for key, words in (
            ("train_steps", "training steps"),
            ("cpu_s", "CPU s"),
            ("forward_passes", "forward passes"),
        )
        if cost.get(key)
    ]
    steps = [str(entry.get("step", "")) for entry in candidate.history]
    judged = ((_judged(candidate, value), key) for key, value in candidate.accuracy_host.items())
    accuracy = ", ".join(f"{value} on {key}" for value, key in judged)
    int8 = "; ".join(int8_errors(candidate))
    return [
        ("name", candidate.name),
        ("role", candidate.role),
        ("workload", candidate.workload),
        ("steps", ", ".join(filter(None, steps))),
        ("parameters", f"{count(candidate.params)}, {count(candidate.nonzeros)} non-zero"),
        ("MACs", count(candidate.macs)),
        ("accuracy", f"{accuracy} (host; no evidence of a board)" if accuracy else ""),
        *([("int8", int8)] if int8 else []),
        ("cost", ", ".join(spent)),
        ("id", candidate.candidate_id),
        ("folder", candidate.folder),
    ]


def _summary(candidate: Candidate) -> dict[str, object]:
    return {
        "candidate_id": candidate.candidate_id,
        "name": candidate.name,
        "role": candidate.role,
        "workload": candidate.workload,
        "seed": candidate.seed,
        "params": candidate.params,
        "nonzeros": candidate.nonzeros,
        "macs": candidate.macs,
        "bytes": candidate.size_bytes,
        "accuracy_host": dict(candidate.accuracy_host),
        "artifacts": [
            {"sha256": a.sha256, "format": a.format, "role": a.role, "bytes": a.size_bytes}
            for a in candidate.artifacts
        ],
    }
