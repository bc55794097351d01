"""`flatsat demo`, `compress`, `run` and `search`: the long work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flatsat.errors import UsageError
from flatsat.harness.cli.candidates import candidates_table
from flatsat.harness.cli.completion import complete_toml
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.runs import Open, OpenOption, show_page
from flatsat.harness.cli.session import (
    JsonFlag,
    interruptible,
    open_lab,
    out,
    print_json,
    say,
    working,
)
from flatsat.harness.cli.style import cell, facts_table
from flatsat.harness.console import duration
from flatsat.harness.records import find_run, open_record

if TYPE_CHECKING:
    from flatsat.compressors.recipe import RecipeSpec
    from flatsat.harness.lab import Lab
    from flatsat.harness.run import RunResult


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        app,
        "demo",
        demo,
        "flatsat demo",
        panel="Work",
    )
    add_verb(
        app,
        "compress",
        compress,
        "flatsat compress recipes.toml",
        "flatsat compress recipes.toml deep --seed 0",
        panel="Work",
        bare_is_help=True,
    )
    add_verb(
        app,
        "run",
        run,
        "flatsat run nightly.toml",
        "flatsat run nightly.toml --dry-run",
        "flatsat run --resume",
        "flatsat run --resume run-20260901T021500-3f9a1c",
        panel="Work",
        bare_is_help=True,
    )
    add_verb(
        app,
        "search",
        search,
        "flatsat search amc.toml",
        "flatsat search amc.toml --resume",
        panel="Work",
        bare_is_help=True,
    )


def demo(ctx: typer.Context, open_: OpenOption = Open.AUTO) -> int:
    """Run the whole loop on real images in a few minutes, and open its report.

    Trains small networks on digits, compresses them in several ways, measures all of them on this
    machine, searches for a better one, and writes one page. Started again it uses what is there.
    """
    from flatsat.harness.demo import run_demo

    lab = open_lab(ctx, prepare=True)
    with interruptible("start it again with: flatsat demo"), working(ctx) as progress:
        result = run_demo(lab, progress=progress)
    _show_run(lab, result, open_)
    return result.exit_code


def compress(
    ctx: typer.Context,
    recipe_file: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE.toml", autocompletion=complete_toml, help="A file of recipes."
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One recipe of it; by default all.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="One seed, instead of those of the recipe.")
    ] = None,
    as_json: JsonFlag = False,
) -> int:
    """Compress networks as recipes say; nothing is measured yet.

    What was built before is not built again.
    """
    from flatsat.harness.run import build_all

    specs = _chosen(recipe_file, name, seed)
    lab = open_lab(ctx, prepare=True)
    with interruptible("start it again to go on"), working(ctx) as progress:
        found, unbuilt = build_all(lab, specs, progress)
    if as_json:
        print_json(
            {
                "schema": "flatsat.compress/1",
                "candidates": [
                    {
                        "candidate_id": c.candidate_id,
                        "name": c.name,
                        "seed": c.seed,
                        "folder": str(c.folder),
                    }
                    for c in found
                ],
                "unbuilt": dict(unbuilt),
            }
        )
    elif found:
        out().print(candidates_table(found))
    for label, why in unbuilt.items():
        say(f"error: {label}: {why}", style="bold red")
    return 2 if unbuilt else 0


def run(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG.toml]", autocompletion=complete_toml, help="What to run."),
    ] = None,
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="With --resume: which run.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Finish a run that was stopped: the one named, or the newest."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and about how long; do nothing.")
    ] = False,
    as_json: JsonFlag = False,
    open_: OpenOption = Open.NO,
) -> int:
    """Compress and measure what a configuration names; record everything; write a report.

    A run that was stopped, even by kill -9, goes on with --resume: nothing is measured twice.
    """
    from flatsat.harness.config import load_run
    from flatsat.harness.run import resume_run, start_run

    if resume:
        if dry_run:
            raise UsageError("--dry-run and --resume exclude each other")
        lab = open_lab(ctx, prepare=True)
        wanted = _resumed(lab, config, run_id)
        with interruptible("go on with: flatsat run --resume"), working(ctx) as progress:
            result = resume_run(lab, wanted, progress=progress)
    else:
        if config is None or run_id is not None:
            raise UsageError("name one configuration", hint="flatsat run CONFIG.toml")
        loaded = load_run(Path(config))
        if dry_run:
            return _show_dry_run(ctx, loaded, as_json=as_json)
        lab = open_lab(ctx, prepare=True)
        with interruptible("go on with: flatsat run --resume"), working(ctx) as progress:
            result = start_run(loaded, lab, progress=progress)
    if as_json:
        print_json(_result_json(result))
    else:
        _show_run(lab, result, open_)
    return result.exit_code


def search(
    ctx: typer.Context,
    config: Annotated[
        Path,
        typer.Argument(metavar="SEARCH.toml", autocompletion=complete_toml, help="What to search."),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the newest search of it stopped.")
    ] = False,
    open_: OpenOption = Open.NO,
) -> int:
    """Search for a better network, steered by measurements on the board."""
    from flatsat.harness.search.study import load_search, run_search

    loaded = load_search(config)
    lab = open_lab(ctx, prepare=True)
    hint = f"go on with: flatsat search {config} --resume"
    with interruptible(hint), working(ctx) as progress:
        result = run_search(loaded, lab, resume=resume, progress=progress)
    _show_run(lab, result, open_, verdict="not met")
    return result.exit_code


def _chosen(path: Path, name: str | None, seed: int | None) -> list[RecipeSpec]:
    """Return the recipes of a file that are to be built."""
    from flatsat.harness.config import choose_recipes

    return choose_recipes(path, name, seed)


def _resumed(lab: Lab, config: str | None, run_id: str | None) -> str | None:
    """Return which run to resume: by identifier, by configuration, or None for the newest."""
    from flatsat.harness.config import load_run
    from flatsat.harness.run import config_sha

    if config is not None and run_id is None and not config.endswith(".toml"):
        config, run_id = None, config
    store = open_record(lab)
    if run_id is not None:
        return find_run(store, run_id).run_id
    if config is None:
        return None
    sha = config_sha(load_run(Path(config)))
    fitting = [r for r in store.runs() if r.config_sha == sha and r.state != "done"]
    if not fitting:
        raise UsageError(
            f"no unfinished run of {config} as it is now",
            hint="if it was edited since, name the run: flatsat run --resume RUN",
        )
    return fitting[-1].run_id


def _show_dry_run(ctx: typer.Context, loaded: object, *, as_json: bool) -> int:
    from dataclasses import asdict

    from flatsat.harness.config import RunConfig
    from flatsat.harness.run import dry_run

    assert isinstance(loaded, RunConfig)
    lab = open_lab(ctx)
    for name in loaded.file.matrix.boards:
        lab.board(name)
    plan = dry_run(loaded, lab)
    if as_json:
        print_json({"schema": "flatsat.dry-run/1", **asdict(plan)})
        return 0
    total = sum(plan.recipes.values())
    recipes = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in plan.recipes.items())
    facts: list[tuple[str, object]] = [
        ("run", loaded.file.run.name),
        ("recipes", recipes),
        ("candidates", f"{total}, {plan.known} of them built already"),
        ("boards", ", ".join(loaded.file.matrix.boards)),
        ("jobs", ", ".join(f"{n} {kind}" for kind, n in plan.jobs.items() if n)),
        ("measuring", f"about {duration(plan.expected_s)}, beside compressing"),
    ]
    out().print(facts_table(facts))
    return 0


def _choice(lab: Lab, run_id: str) -> list[tuple[str, object]]:
    """Return under which budget a run searched, and which candidate it ends with."""
    store = lab.store()
    note = store.notes(run_id).get("search")
    if not isinstance(note, dict):
        return []
    budget, chosen = note["budget"], note.get("chosen")
    unit = f" {budget['unit']}" if budget.get("unit") else ""
    limit = f"{budget['quantity']} of at most {budget['limit']:,.0f}{unit}"
    name = "none" if chosen is None else store.candidate(chosen).name
    return [("budget", limit), ("chosen", name)]


def _show_run(lab: Lab, result: RunResult, open_: Open, verdict: str = "regression") -> None:
    """Write how a run ended: its table, what a gate found, where its page is."""
    from flatsat.harness.cli.summary import show_sections

    console = out()
    show_sections(console, lab, result.run_id)
    tally = result.tally
    parts = [f"{tally.measured} measured"]
    for number, word in (
        (tally.failed, "failed"),
        (tally.inconclusive, "inconclusive"),
        (tally.reused, "reused"),
    ):
        if number:
            parts.append(f"{number} {word}")
    facts: list[tuple[str, object]] = [
        ("run", result.run_id),
        ("jobs", ", ".join(parts)),
        *_choice(lab, result.run_id),
    ]
    console.print(facts_table(facts))
    for label, why in result.unbuilt.items():
        say(f"not built: {label}: {why}", style="yellow")
    for name, why in tally.quarantined.items():
        say(f"board {name} was left alone: {why}", style="bold red")
    for text in result.regressions:
        console.print(cell(f"{verdict}: {text}", "bold red"))
    show_page(result.report, open_)


def _result_json(result: RunResult) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "schema": "flatsat.run-result/1",
        "run_id": result.run_id,
        "exit_code": result.exit_code,
        "report": str(result.report.absolute()),
        "jobs": {k: v for k, v in asdict(result.tally).items() if k != "quarantined"},
        "quarantined": dict(result.tally.quarantined),
        "unbuilt": dict(result.unbuilt),
        "regressions": list(result.regressions),
    }
