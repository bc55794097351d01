"""A sensitivity scan of a reference network, from its name to its page."""

from __future__ import annotations

import contextlib
import csv
import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flatsat.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from flatsat.compressors.sensitivity import Scan, ScanMethod, Scanner
    from flatsat.progress import Progress
    from flatsat.reports.figures_sensitivity import SensitivityScan

IMAGES = 1000
_WORTH_THREADS_MACS = 20_000_000


@dataclass(frozen=True)
class SensitivityRequest:
    """What is to be scanned.

    Attributes:
        network: "workload/network".
        method: a name in `flatsat.compressors.sensitivity.METHODS`.
        images: of the validation split at most.
        seed: of the reference network, and of which images are taken.
        points: shares or bits; None for the method's own.
        drop: points of accuracy that each layer alone may lose in the suggested recipe.
        data: where the workload's data lie, or None for the usual place.
    """

    network: str
    method: str = "magnitude"
    images: int = IMAGES
    seed: int = 0
    points: tuple[float, ...] | None = None
    drop: float = 1.0
    data: str | None = None


@dataclass(frozen=True)
class SensitivityResult:
    """A scan, and what it suggests.

    Attributes:
        request: what was asked.
        scan: as the page shows it.
        step, key: of the recipe's step that does the same: its name, and its table by layer.
        room: layer -> the hardest value up to which it alone never lost more than `request.drop`;
            layers without one are missing.
        milder: so many of the tried values less than its room each layer has in `held`.
        held: layer -> value: all at once lose no more than `request.drop`; empty where nothing
            does.
        held_accuracy: of that, None where `held` is empty.
        forward_passes: images that went through a network.
    """

    request: SensitivityRequest
    scan: SensitivityScan
    step: str
    key: str
    room: dict[str, float]
    milder: int
    held: dict[str, float]
    held_accuracy: float | None
    forward_passes: int


def scan_network(
    request: SensitivityRequest, cache_dir: Path, progress: Progress
) -> SensitivityResult:
    """Train or load the reference network and scan it.

    Raises:
        UsageError: an unknown workload, network or method, or a point that can't be tried.
        DataError: the workload's data are missing or damaged.
    """
    from flatsat.compressors.base import Network, StepContext
    from flatsat.compressors.sensitivity import Scanner, checked_values, scan_method
    from flatsat.datasets.reference import reference
    from flatsat.datasets.workload import parse_ref

    method = scan_method(request.method)
    values = checked_values(method, method.values if request.points is None else request.points)
    workload, network = parse_ref(request.network, request.data)
    workload.settings(network)  # Refuses a network that the workload lacks.
    trained = reference(
        workload, network, seed=request.seed, cache_dir=cache_dir, progress=progress
    )
    ctx = StepContext.of(
        workload, network, seed=request.seed, cache_dir=cache_dir, progress=progress
    )
    with _threads(workload.cost(network).macs):
        scanner = Scanner(
            Network(trained.module, workload.image_shape),
            ctx,
            method=method.name,
            images=request.images,
        )
        return suggest(request, scanner, scanner.scan(values), workload.metric)


@contextlib.contextmanager
def _threads(macs: int) -> Iterator[None]:
    """Use one thread for a network so small that a second one only waits for the first."""
    import torch

    before = torch.get_num_threads()
    if macs < _WORTH_THREADS_MACS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_page(result: SensitivityResult, out: Path) -> None:
    """Write the page; an older one stays whole until the new one is complete.

    Raises:
        UsageError: the folder can't be written.
    """
    from flatsat.reports.figures_sensitivity import render_sensitivity

    try:
        render_sensitivity(result.scan, out)
    except OSError as error:
        raise _unwritable(out, error) from error


def write_csv(result: SensitivityResult, out: Path) -> None:
    """Write a row a layer and value; an older file stays whole until the new one is complete.

    Raises:
        UsageError: the folder can't be written.
    """
    from flatsat.files import replace_file

    scan, request = result.scan, result.request
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = "network seed method layer weights value accuracy dense split images"
    writer.writerow(heads.split())
    for curve in scan.curves:
        about = (scan.network, request.seed, request.method, curve.layer, curve.weights)
        for value, accuracy in curve.points:
            writer.writerow((*about, f"{value:g}", accuracy, scan.dense, scan.split, scan.images))
    try:
        replace_file(out, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
    except OSError as error:
        raise _unwritable(out, error) from error


def check_writable(path: Path) -> None:
    """Refuse a place for a file before the long work; nothing is written.

    Raises:
        UsageError: it is a folder, or below something that is no folder or can't be written.
    """
    import os

    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file in it")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"can't write {path}: {parent} can't be written to")


def _unwritable(path: Path, error: OSError) -> UsageError | InfrastructureError:
    from flatsat.compressors.candidate import FULL

    text = f"can't write {path}: {error.strerror or error}"
    if error.errno in FULL:
        return InfrastructureError(text, hint="free some space and run again")
    return UsageError(text, hint="name another file")


def suggest(
    request: SensitivityRequest, scanner: Scanner, found: Scan, metric: str
) -> SensitivityResult:
    """Return what a scan suggests: each layer's room, and what the layers bear at once.

    Args:
        request: what was asked.
        scanner: that made the scan; it tries the layers together.
        found: the scan.
        metric: of the workload.
    """
    from flatsat.reports.figures_sensitivity import (
        SensitivityCurve,
        SensitivityScan,
        tolerated,
    )

    method = found.method
    curves = tuple(
        SensitivityCurve(
            layer.target.name, layer.target.weights, layer.points, layer.target.coupled
        )
        for layer in found.layers
    )
    scan = SensitivityScan(
        network=request.network,
        method=method.title,
        split="validation",
        images=found.images,
        dense=found.dense,
        curves=curves,
        skipped=found.skipped,
        unit=method.unit,
        what=method.what,
        metric=metric,
    )
    loss = request.drop / 100
    rooms = {curve.layer: tolerated(curve, found.dense, loss) for curve in curves}
    room = {layer: value for layer, value in rooms.items() if value is not None}
    milder, held, held_accuracy = 0, room, scanner.accuracy(room)
    assert held_accuracy is not None  # Each was measured alone.
    if room:
        scan = replace(scan, together=(loss, held_accuracy))
    tried = {curve.layer: [value for value, _ in curve.points] for curve in curves}
    while held and (held_accuracy is None or found.dense - held_accuracy > loss + 1e-9):
        milder += 1
        held = _milder(room, tried, milder)
        held_accuracy = scanner.accuracy(held)
    left = [curve.layer for curve in curves] + [name for name, _ in found.skipped]
    return SensitivityResult(
        request=request,
        scan=replace(scan, recipe=_recipe(method, scan, room, held if milder else {}, left)),
        step=method.step,
        key=method.key,
        room=room,
        milder=milder,
        held=held,
        held_accuracy=held_accuracy if held else None,
        forward_passes=scanner.forward_passes,
    )


def _milder(
    room: Mapping[str, float], tried: Mapping[str, Sequence[float]], steps: int
) -> dict[str, float]:
    """Return each layer so many values before its room; one that had fewer stays dense."""
    places = {layer: tried[layer].index(value) - steps for layer, value in room.items()}
    return {layer: tried[layer][place] for layer, place in places.items() if place >= 0}


def _recipe(
    method: ScanMethod,
    scan: SensitivityScan,
    room: Mapping[str, float],
    held: Mapping[str, float],
    layers: Sequence[str],
) -> str:
    """Return a recipe's step that gives each layer its room, with what holds at once beside it."""
    from flatsat.reports.toml_text import inline

    if scan.together is None:
        return ""
    loss, together = scan.together
    points = f"{100 * loss:g} {'point' if loss == 0.01 else 'points'}"
    lines = [
        "[[recipe.NAME.step]]",
        f"use = {inline(method.step)}",
        f"# Each alone loses at most {points}; all at once leave {100 * together:.1f} % before "
        "retraining.",
        *_table(method, room, layers),
    ]
    if held:
        lines.append(f"# All at once lose at most {points} with these instead:")
        lines += [f"# {line}" for line in _table(method, held, layers)]
    return "\n".join(lines)


def _table(method: ScanMethod, values: Mapping[str, float], layers: Sequence[str]) -> list[str]:
    from flatsat.reports.toml_text import inline

    if method.unit == "share":
        return [f"{method.key} = {inline(dict(values))}"]
    bits = {name: int(value) for name, value in values.items()}
    left = [layer for layer in layers if layer not in values]
    return [*([f"skip = {inline(left)}"] if left else []), f"{method.key} = {inline(bits)}"]
