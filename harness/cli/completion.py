"""What the shell may complete: names of boards, workloads, candidates, runs, steps.

A completion must never fail or write anything: what can't be read completes to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flatsat.harness.lab import DEFAULT_ROOT, ROOT_VARIABLE, Lab

if TYPE_CHECKING:
    from flatsat.harness.cli.session import Options

Complete = Callable[[typer.Context, str], list[tuple[str, str]]]


def complete_boards(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return boards of the lab that start like this."""
    return _found(incomplete, lambda: _boards(_lab(ctx)))


def complete_workloads(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return workloads with their networks."""
    del ctx
    return _found(incomplete, _workloads)


def complete_workload_names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return workloads."""
    del ctx
    return _found(incomplete, _workload_names)


def complete_networks(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the reference architectures."""
    del ctx
    return _found(incomplete, _networks)


def complete_candidates(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return names of the lab's candidates, and identifiers when those are typed."""
    return _found(incomplete, lambda: _candidates(_lab(ctx), incomplete))


def complete_runs(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the runs of the lab, the newest first."""
    return _found(incomplete, lambda: _runs(_lab(ctx)))


def complete_steps(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return the names of compressors."""
    del ctx
    return _found(incomplete, _steps)


def complete_models(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return model files that start like this, and candidates."""
    files = _found(incomplete, lambda: _files(incomplete, (".onnx", ".tflite", ".fscw")))
    return [*files, *complete_candidates(ctx, incomplete)]


def complete_coded(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return files of coded weights that start like this."""
    del ctx
    return _found(incomplete, lambda: _files(incomplete, (".fscw",)))


def complete_compared(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return candidates and runs."""
    return [*complete_candidates(ctx, incomplete), *complete_runs(ctx, incomplete)]


def complete_toml(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return TOML files that start like this."""
    del ctx
    return _found(incomplete, lambda: _files(incomplete, (".toml",)))


def _found(
    incomplete: str, source: Callable[[], Iterable[tuple[str, str]]]
) -> list[tuple[str, str]]:
    try:
        return [pair for pair in source() if pair[0].startswith(incomplete)]
    except Exception:
        return []


def _lab(ctx: typer.Context) -> Lab:
    from flatsat.harness.config import load_lab_boards

    given: Options | None = ctx.find_root().obj
    root = ctx.find_root().params.get("lab") if given is None else given.lab
    folder = Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    return Lab(folder, load_lab_boards(folder))


def _boards(lab: Lab) -> Iterator[tuple[str, str]]:
    for name in lab.board_names():
        yield name, str(lab.boards.get(name, {}).get("kind", name))


def _workloads() -> Iterator[tuple[str, str]]:
    from flatsat.datasets.workload import workload, workload_names

    for name in workload_names():
        found = workload(name)
        for network in found.networks:
            yield f"{name}/{network}", found.title


def _workload_names() -> Iterator[tuple[str, str]]:
    from flatsat.datasets.workload import workload, workload_names

    for name in workload_names():
        yield name, workload(name).title


def _networks() -> Iterator[tuple[str, str]]:
    from flatsat.datasets.architectures import network_names

    for name in network_names():
        yield name, ""


def _candidates(lab: Lab, incomplete: str) -> Iterator[tuple[str, str]]:
    import json

    for path in sorted(lab.candidates_dir.glob("*/candidate.json")):
        told = json.loads(path.read_text())
        yield str(told["name"]), str(told.get("workload", ""))
        if incomplete:
            yield path.parent.name, str(told["name"])


def _runs(lab: Lab) -> Iterator[tuple[str, str]]:
    for folder in sorted(lab.runs_dir.iterdir(), reverse=True):
        if folder.is_dir():
            yield folder.name, ""


def _steps() -> Iterator[tuple[str, str]]:
    from flatsat.compressors.registry import entry, step_names

    for name in step_names():
        yield name, entry(name).summary


def _files(incomplete: str, endings: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield files that fit, and folders that may hold some; the shell adds no files of its own."""
    parent = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    shown = "" if str(parent) == "." and not incomplete.startswith("./") else f"{parent}/"
    for path in sorted(parent.iterdir()):
        if path.is_dir():
            yield f"{shown.replace('//', '/')}{path.name}/", "folder"
        elif path.name.endswith(endings):
            yield f"{shown.replace('//', '/')}{path.name}", "file"
