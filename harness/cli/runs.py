"""`flatsat runs` and `flatsat report`: what was measured before."""

from __future__ import annotations

import datetime
import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flatsat.harness.cli.completion import complete_runs
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import JsonFlag, open_lab, out, print_json, working
from flatsat.harness.cli.style import cell, facts_table, make_table, state_text
from flatsat.harness.records import find_run, open_record

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.reports.rows import RunCounts, RunRow

runs = typer.Typer(
    help="The runs that the record holds.", no_args_is_help=True, rich_markup_mode="rich"
)
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        autocompletion=complete_runs,
        help="A run's identifier or the start of one; 'last' is the newest.",
    ),
]


class Open(StrEnum):
    """Whether a page opens in the browser."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


OpenOption = Annotated[
    Open,
    typer.Option("--open", help="Open the page in a browser; auto: on a terminal with a display."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(
        app,
        "report",
        report,
        "flatsat report last",
        "flatsat report run-20260901 --open no",
        panel="Work",
        bare_is_help=True,
    )
    add_verb(runs, "list", list_runs, "flatsat runs list", "flatsat runs list --json")
    add_verb(runs, "show", show_run, "flatsat runs show last", bare_is_help=True)
    app.add_typer(runs, name="runs", rich_help_panel="What there is")


def report(ctx: typer.Context, run: RunArgument, open_: OpenOption = Open.AUTO) -> int:
    """Write the page and the tables of a run anew from the record, and open the page."""
    from flatsat.harness import publish

    lab = open_lab(ctx)
    store = open_record(lab)
    row = find_run(store, run)
    lab.prepare()
    with working(ctx):
        lab.run_dir(row.run_id).mkdir(parents=True, exist_ok=True)
        page = publish.report(lab, store, row.run_id)
    show_page(page, open_)
    return 0


def list_runs(ctx: typer.Context, as_json: JsonFlag = False) -> int:
    """List the runs, the newest first."""
    store = open_record(open_lab(ctx))
    counts = store.counts()
    found = list(reversed(store.runs()))
    if as_json:
        print_json(
            {
                "schema": "flatsat.runs/1",
                "runs": [_run_json(run, counts.get(run.run_id)) for run in found],
            }
        )
        return 0
    if not found:
        out().print("no runs yet; start one with: flatsat demo")
        return 0
    table = make_table(
        "run", "what", "started", "state", "jobs", "failed", right=("jobs", "failed")
    )
    for run in found:
        count = counts.get(run.run_id)
        failed = 0 if count is None else count.failed
        table.add_row(
            cell(run.run_id, "cyan"),
            cell(run_title(run)),
            local_time(run.started_utc),
            state_text(run.state),
            "" if count is None else f"{count.done}/{count.jobs}",
            cell(failed or "", "red"),
        )
    out().print(table)
    return 0


def show_run(ctx: typer.Context, run: RunArgument, as_json: JsonFlag = False) -> int:
    """Show one run: where, when, what became of its jobs, where its pages are."""
    lab = open_lab(ctx)
    store = open_record(lab)
    row = find_run(store, run)
    count = store.counts(row.run_id).get(row.run_id)
    if as_json:
        print_json({"schema": "flatsat.run/1", **_run_json(row, count)})
        return 0
    console = out()
    page = lab.run_dir(row.run_id) / "report.html"
    facts: list[tuple[str, object]] = [
        ("run", row.run_id),
        ("what", f"{row.kind} {run_title(row)}".rstrip()),
        ("state", row.state),
        ("started", local_time(row.started_utc)),
        ("finished", local_time(row.finished_utc)),
        ("seed", row.seed),
        ("FlatSat", row.code_version),
        ("boards", ", ".join(f"{b.name} ({b.board_id[:12]})" for b in store.boards(row.run_id))),
        ("page", page if page.is_file() else f"none yet; write it with: flatsat report {run}"),
    ]
    if count is not None:
        jobs = (
            f"{count.done} of {count.jobs} done: {count.measured} measured, "
            f"{count.failed} failed, {count.inconclusive} inconclusive, {count.reused} reused"
        )
        facts.insert(5, ("jobs", jobs))
    console.print(facts_table(facts))
    table = make_table("candidate", "role", "workload", "seed", "id", right=("seed",))
    for candidate in store.candidates(row.run_id):
        table.add_row(
            cell(candidate.name, "cyan"),
            candidate.role,
            cell(candidate.workload),
            cell(candidate.seed),
            candidate.candidate_id[:12],
        )
    console.print(table)
    return 0


def run_title(run: RunRow) -> str:
    """Return what a run's configuration calls it, or ""."""
    config = json.loads(run.config_json)
    table = config.get("file", {}).get("run", {}) if isinstance(config, dict) else {}
    return str(table.get("name") or config.get("name") or config.get("model") or "")


def show_page(page: Path, open_: Open) -> None:
    """Say where a page is, and open it in a browser where that is wanted and can work."""
    out().print(f"report: {page.absolute()}", markup=False, soft_wrap=True)
    if open_ is Open.NO or (open_ is Open.AUTO and not _has_screen()):
        return
    import webbrowser

    webbrowser.open(page.absolute().as_uri())


def local_time(utc: str | None) -> str:
    """Return a time of the record on this machine's clock, to the minute."""
    if utc is None:
        return ""
    return datetime.datetime.fromisoformat(utc).astimezone().strftime("%Y-%m-%d %H:%M")


def _has_screen() -> bool:
    import os

    display = (
        sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return sys.stdout.isatty() and bool(display)


def _run_json(run: RunRow, count: RunCounts | None) -> dict[str, object]:
    from dataclasses import asdict

    value = asdict(run)
    del value["config_json"]
    return {**value, "name": run_title(run), "jobs": None if count is None else asdict(count)}
