"""`flatsat board`: what can be measured on, whether it is fit, and the emulated boards' power."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flatsat.errors import UsageError
from flatsat.harness.cli.completion import complete_boards
from flatsat.harness.cli.examples import add_verb
from flatsat.harness.cli.session import (
    JsonFlag,
    interruptible,
    open_lab,
    out,
    print_json,
    say,
    working,
)
from flatsat.harness.cli.style import cell, facts_table, make_table

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.harness.lab import Lab
    from flatsat.targets.qemu import QemuBoard
    from flatsat.targets.qemu_keeper import Kept

DEFAULT = "qemu-arm64"

board = typer.Typer(
    help="The boards of this lab: the built-in ones, and those of LAB/lab.toml.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

BoardName = Annotated[
    str, typer.Argument(metavar="BOARD", autocompletion=complete_boards, help="Board name.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the command line."""
    add_verb(board, "list", list_boards, "flatsat board list")
    add_verb(
        board,
        "doctor",
        doctor,
        "flatsat board doctor host",
        "flatsat board doctor qemu-arm64 --json",
    )
    add_verb(board, "build", build, "flatsat board build", "flatsat board build --refresh")
    add_verb(
        board, "up", up, "flatsat board up qemu-arm64", "flatsat board up qemu-arm64 --foreground"
    )
    add_verb(board, "down", down, "flatsat board down qemu-arm64")
    add_verb(board, "console", console, "flatsat board console qemu-arm64")
    app.add_typer(board, name="board", rich_help_panel="What there is")


def list_boards(ctx: typer.Context, as_json: JsonFlag = False) -> int:
    """List the boards by name, kind and clock; the emulated ones with their state."""
    lab = open_lab(ctx)
    rows = [_row(lab, name) for name in lab.board_names()]
    if as_json:
        print_json({"schema": "flatsat.boards/1", "boards": rows})
        return 0
    columns = ("kind", "clock", "from", "image", "state")
    table = make_table("board", *columns)
    for row in rows:
        texts = {**row, "image": {True: "built", False: "not built"}.get(row["built"])}
        texts["state"] = None if row["up"] is None else "down"
        if row["up"]:
            texts["state"] = f"up by process {row['up']['pid']}"
        table.add_row(cell(row["name"], "cyan"), *(cell(texts[key]) for key in columns))
    out().print(table)
    return 0


def _row(lab: Lab, name: str) -> dict[str, Any]:
    from flatsat.targets.qemu import QemuBoard
    from flatsat.targets.qemu_image import find_image
    from flatsat.targets.qemu_keeper import find_keeper

    found = lab.board(name)
    row: dict[str, Any] = {
        "name": name,
        "kind": found.kind,
        "clock": found.time_kind.value,
        "from": "lab.toml" if name in lab.boards else "built in",
        "built": None,
        "up": None,
    }
    if isinstance(found, QemuBoard):
        kept = find_keeper(_folder(lab, name))
        row["built"] = find_image(found.cache_dir) is not None
        row["up"] = kept is not None and _reached(kept)
    return row


def doctor(ctx: typer.Context, name: BoardName = "host", as_json: JsonFlag = False) -> int:
    """Examine a board: link, agent, runtimes, clock, what would spoil a measurement.

    Exit code 0 when all checks pass, 3 when one fails.
    """
    from flatsat.targets.doctor import examine

    lab = open_lab(ctx, prepare=True)
    chosen = lab.board(name)
    with working(ctx) as progress, lab.pool().acquire(name) as lease:
        findings = asyncio.run(examine(chosen, lease, progress))
    if as_json:
        print_json(
            {
                "schema": "flatsat.doctor/1",
                "board": name,
                "findings": [
                    {"check": f.check, "ok": f.ok, "detail": f.detail, "fix": f.fix}
                    for f in findings
                ],
            }
        )
    else:
        table = make_table("", "check", "found", "to mend it")
        for finding in findings:
            mark = cell("ok", "green") if finding.ok else cell("!!", "bold red")
            table.add_row(mark, cell(finding.check), cell(finding.detail), cell(finding.fix or " "))
        out().print(table)
    return 0 if all(finding.ok for finding in findings) else 3


def build(
    ctx: typer.Context,
    name: BoardName = DEFAULT,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Look for newer packages, and build anew with them.")
    ] = False,
    as_json: JsonFlag = False,
) -> int:
    """Build the emulated board's image and boot it once; what is there already is kept.

    Needs QEMU, e2fsprogs and a network for the first time, but no root. The image lies in the
    cache ($FLATSAT_CACHE) and serves every emulated board; each kind of core is booted once and
    then starts from that state in a second.
    """
    chosen = _emulated(open_lab(ctx), name)
    with working(ctx) as progress, interruptible("run it again, it goes on where it was"):
        image = asyncio.run(chosen.prepare(progress, refresh=refresh))
    size_bytes = sum(path.stat().st_size for path in image.folder.rglob("*") if path.is_file())
    if as_json:
        print_json(
            {
                "schema": "flatsat.board-image/1",
                "key": image.key,
                "folder": str(image.folder),
                "size_bytes": size_bytes,
                "sites": dict(image.sites),
            }
        )
        return 0
    facts = {
        "image": image.key[:16],
        "in": image.folder,
        "size": f"{size_bytes / 1e6:.0f} MB",
        "runtimes": ", ".join(image.sites),
        "next": f"flatsat board up {name}, or measure with --board {name}",
    }
    out().print(facts_table(facts))
    return 0


def up(
    ctx: typer.Context,
    name: BoardName = DEFAULT,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and take the board down on Ctrl-C.")
    ] = False,
    as_json: JsonFlag = False,
) -> int:
    """Start an emulated board and keep it up: every later command uses it until `board down`.

    Without this, each session starts a board of its own, which takes a second or two.
    """
    from flatsat.targets.qemu_keeper import find_keeper, keep, start_keeper

    lab = open_lab(ctx, prepare=True)
    chosen = _emulated(lab, name)
    folder = _folder(lab, name)
    kept = find_keeper(folder)
    if kept is not None:
        chosen.image_of(kept)
        say(f"{name} is up already")
        _show(name, kept, as_json)
        return 0
    with working(ctx) as progress, interruptible("run it again, it goes on where it was"):
        asyncio.run(chosen.prepare(progress))
        if not foreground:
            kept = start_keeper(chosen, folder)
    if kept is not None:
        _show(name, kept, as_json)
        return 0

    def shown(kept: Kept) -> None:
        _show(name, kept, as_json)
        say("Ctrl-C takes it down")

    asyncio.run(keep(chosen, folder, shown))
    return 0


def down(
    ctx: typer.Context,
    name: BoardName = DEFAULT,
    force: Annotated[
        bool, typer.Option("--force", help="Also while another process measures on it.")
    ] = False,
) -> int:
    """Take a board down that `board up` keeps."""
    import contextlib

    from flatsat.targets.qemu_keeper import stop_keeper

    lab = open_lab(ctx, prepare=True)
    _emulated(lab, name)
    with contextlib.nullcontext() if force else lab.pool().acquire(name):
        was_up = stop_keeper(_folder(lab, name))
    say(f"{name} is down" if was_up else f"{name} was not up")
    return 0


def console(ctx: typer.Context, name: BoardName = DEFAULT) -> int:
    """Attach this terminal to a board's serial console; Ctrl-] leaves it.

    The board must be up. Typing there disturbs what is measured meanwhile.
    """
    from flatsat.harness.cli.terminal import relay
    from flatsat.targets.qemu_image import find_image
    from flatsat.targets.qemu_keeper import find_keeper

    lab = open_lab(ctx)
    chosen = _emulated(lab, name)
    kept = find_keeper(_folder(lab, name))
    if kept is None:
        raise UsageError(f"board {name!r} is not up", hint=f"flatsat board up {name}")
    image = find_image(chosen.cache_dir)
    if image is not None:
        say(f"{name}'s console: log in as root, password {image.console_password}")
    say("Ctrl-] leaves it; Enter shows the prompt")
    relay(kept.console)
    return 0


def _folder(lab: Lab, name: str) -> Path:
    """Return where a board's keeper writes: beside its leases."""
    return lab.locks_dir / name


def _emulated(lab: Lab, name: str) -> QemuBoard:
    from flatsat.targets.qemu import QemuBoard

    chosen = lab.board(name)
    if isinstance(chosen, QemuBoard):
        return chosen
    known = [other for other in lab.board_names() if isinstance(lab.board(other), QemuBoard)]
    raise UsageError(
        f"board {name!r} is of kind {chosen.kind!r}, not an emulated one",
        hint=f"emulated are: {', '.join(known)}",
    )


def _reached(kept: Kept) -> dict[str, Any]:
    return {
        "pid": kept.pid,
        "qemu_pid": kept.qemu_pid,
        "ssh_port": kept.ssh_port,
        "ssh": list(kept.ssh_command),
        "console": kept.console,
        "qmp": str(kept.qmp),
    }


def _show(name: str, kept: Kept, as_json: bool) -> None:
    if as_json:
        print_json({"schema": "flatsat.board-up/1", "name": name, **_reached(kept)})
        return
    import shlex

    facts = {
        name: f"up, kept by process {kept.pid}",
        "log in": shlex.join(kept.ssh_command),
        "console": f"flatsat board console {name} ({kept.console})",
        "end it": f"flatsat board down {name}",
    }
    for key, value in facts.items():
        # Not in a table: a command that is broken in two can't be copied.
        out().print(f"{key:12} {value}", markup=False, soft_wrap=True)
