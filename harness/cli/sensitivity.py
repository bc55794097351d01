"""`flatsat sensitivity`: which layer bears how much, before any recipe is written."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatsat.errors import UsageError
from flatsat.harness.cli.completion import complete_workloads
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
from flatsat.harness.cli.style import cell, count, facts_table, make_table, percent
from flatsat.harness.sensitivity import IMAGES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from flatsat.harness.sensitivity import SensitivityResult

WIDE = 110
"""Columns from which a terminal shows every point; a narrower one is spared every second."""


class Method(StrEnum):
    """What is done to a layer."""

    MAGNITUDE = "magnitude"
    FILTERS = "filters"
    BITS = "bits"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    add_verb(
        app,
        "sensitivity",
        sensitivity,
        "flatsat sensitivity mnist-mini/lenet5",
        "flatsat sensitivity fashion/resnet20 --method filters --images 500",
        "flatsat sensitivity mnist-mini/lenet5 --method bits --points 8,4,3,2",
        "flatsat sensitivity cifar10/resnet20 --data ~/cifar-10-batches-bin --csv scan.csv",
        panel="Work",
        bare_is_help=True,
    )


def sensitivity(
    ctx: typer.Context,
    network: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD/NETWORK",
            autocompletion=complete_workloads,
            help="A reference network; it is trained when it is first used.",
        ),
    ],
    method: Annotated[
        Method,
        typer.Option(
            help="What is done to a layer: magnitude (small weights go), filters (channels of "
            "least L1 norm go) or bits (min/max quantisation).",
        ),
    ] = Method.MAGNITUDE,
    images: Annotated[
        int, typer.Option(min=1, help="Images of the validation split at most.")
    ] = IMAGES,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the network, and of which images are taken.")
    ] = 0,
    points: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What is tried, such as 0.5,0.9; by default 0.1 to 0.9 and 0.95, or 8 to 1 bits.",
        ),
    ] = None,
    drop: Annotated[
        float,
        typer.Option(min=0.0, max=100.0, help="Points that a layer may lose in what is suggested."),
    ] = 1.0,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Of the workload's data, as a recipe's key data."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="The page; by default in the lab."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the points as CSV, too.")
    ] = None,
    as_json: JsonFlag = False,
    open_: OpenOption = Open.AUTO,
) -> int:
    """Compress each layer alone, harder and harder, and show what accuracy is left.

    Every other layer stays dense and nothing is retrained; accuracy is taken on the validation
    split. Writes a page with the curves, and ends with a step for a recipe that gives each layer
    the room it has.
    """
    from flatsat.harness.sensitivity import (
        SensitivityRequest,
        check_writable,
        scan_network,
        write_csv,
        write_page,
    )

    request = SensitivityRequest(
        network=network,
        method=method.value,
        images=images,
        seed=seed,
        points=None if points is None else parse_points(points),
        drop=drop,
        data=None if data is None else str(data),
    )
    lab = open_lab(ctx)
    name = f"{network.replace('/', '-')}-{method.value}-s{seed}.html"
    target = lab.root / "sensitivity" / name if page is None else page
    for path in (target, csv):
        if path is not None:
            check_writable(path)
    with interruptible("nothing was written; start it again"), working(ctx) as progress:
        result = scan_network(request, lab.cache_dir, progress)
    write_page(result, target)
    if csv is not None:
        write_csv(result, csv)
    if as_json:
        print_json({**_json(result), "page": str(target.absolute())})
        return 0
    _show(out(), result)
    show_page(target, open_)
    return 0


def parse_points(text: str) -> tuple[float, ...]:
    """Read numbers with commas between.

    Raises:
        UsageError: one is no number.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(
            f"--points {text!r} is no list of numbers", hint="such as 0.5,0.7,0.9"
        ) from None


def _show(console: Console, result: SensitivityResult) -> None:
    scan = result.scan
    console.print(_table(console, result))
    facts: list[tuple[str, object]] = [
        (
            "dense",
            f"{percent(scan.dense)} on {scan.images:,} images of {scan.split}; "
            f"one image is {100 / scan.images:.2g} points",
        ),
        *((name, f"left alone: {why}") for name, why in scan.skipped),
    ]
    if scan.together is not None:
        facts.append(
            ("together", f"{percent(scan.together[1])} with every layer at its room at once")
        )
    if result.milder:
        steps = f"{result.milder} step{'' if result.milder == 1 else 's'} milder"
        held = f"{percent(result.held_accuracy)} with each {steps}"
        facts.append(("", held if result.held else "no milder set of those tried holds at once"))
    console.print(facts_table(facts))
    if scan.recipe:
        console.print("\nAs a step of a recipe:", style="dim")
        console.print(scan.recipe, markup=False, highlight=False, soft_wrap=True)
        console.print()


def _table(console: Console, result: SensitivityResult) -> Table:
    scan = result.scan
    bits = scan.unit == "bits"
    values = sorted({v for curve in scan.curves for v, _ in curve.points}, reverse=bits)
    if console.width < WIDE and len(values) > 6:
        values = values[::-2][::-1]
    heads = [f"{value:g} b" if bits else f"{100 * value:g} %" for value in values]
    room = f"room, {result.request.drop:g} pt"
    table = make_table(
        "layer",
        "weights",
        room,
        *heads,
        right=("weights", room, *heads),
        title=f"{scan.network}: {scan.metric} on {scan.split} in %, one layer at a time by "
        f"{scan.method}",
    )
    least = scan.dense - result.request.drop / 100 - 1e-9
    for curve in scan.curves:
        got = dict(curve.points)
        found = result.room.get(curve.layer)
        has = "-" if found is None else f"{found:g} b" if bits else percent(found, 0)
        named = curve.layer + (f" (+{len(curve.coupled)})" if curve.coupled else "")
        table.add_row(
            cell(named, "cyan"),
            count(curve.weights),
            cell(has, "bold"),
            *(
                cell(f"{100 * got[v]:.1f}", "green" if got[v] >= least else "red")
                if v in got
                else cell(None)
                for v in values
            ),
        )
    return table


def _json(result: SensitivityResult) -> dict[str, object]:
    scan, request = result.scan, result.request
    together = scan.together
    return {
        "schema": "flatsat.sensitivity/1",
        "network": scan.network,
        "seed": request.seed,
        "data": request.data,
        "method": request.method,
        "unit": scan.unit,
        "metric": scan.metric,
        "split": scan.split,
        "images": scan.images,
        "dense": scan.dense,
        "layers": [
            {
                "name": curve.layer,
                "coupled": list(curve.coupled),
                "weights": curve.weights,
                "points": [[value, accuracy] for value, accuracy in curve.points],
                "room": result.room.get(curve.layer),
            }
            for curve in scan.curves
        ],
        "skipped": dict(scan.skipped),
        "drop_points": request.drop,
        "together": None if together is None else together[1],
        "step": {"use": result.step, result.key: result.room},
        "held": {"milder": result.milder, "values": result.held, "accuracy": result.held_accuracy},
        "recipe": scan.recipe,
        "forward_passes": result.forward_passes,
    }
