"""A run's result as tables on a terminal; the page tells more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.text import Text

from flatsat.harness.cli.style import (
    byte_count,
    cell,
    count,
    make_table,
    nanosecond_range,
    nanoseconds,
    percent,
)

if TYPE_CHECKING:
    from rich.console import Console

    from flatsat.harness.lab import Lab
    from flatsat.reports.model import BoardSection, MeasurementReport, RatioReport

COLUMNS: dict[str, Callable[[MeasurementReport], Text]] = {
    "p50": lambda m: Text(nanoseconds(m.p50_ns.value)),
    "95 % interval": lambda m: Text(nanosecond_range(m.p50_ns.low, m.p50_ns.high), style="dim"),
    "p99": lambda m: Text(nanoseconds(m.p99_ns.value)),
    "faster": lambda m: _ratio(m.versus_reference),
    "accuracy": lambda m: _judged(m),
    "file": lambda m: Text(byte_count(m.size_bytes)),
    "memory": lambda m: Text(byte_count(m.memory.median_bytes if m.memory else None)),
    "MACs": lambda m: Text(count(m.macs)),
    "pareto": lambda m: Text("yes" if m.pareto else "", style="green"),
}
NARROW = ("95 % interval", "memory", "MACs")
"""Columns that a terminal of fewer than `WIDE` columns is spared."""
WIDE = 110
COLOURS = {"faster": "green", "slower": "red"}


def show_sections(console: Console, lab: Lab, run_id: str) -> None:
    """Write a table a board: the candidates from the fastest to the slowest."""
    from flatsat.reports.collect import collect

    for section in collect(lab.store(), run_id).sections:
        if section.measurements:
            _show(console, section)


def _show(console: Console, section: BoardSection) -> None:
    timing = "" if section.clock == "wall" else f", {section.clock} time"
    shown = [name for name in COLUMNS if console.width >= WIDE or name not in NARROW]
    place = f"{section.board} ({section.kind}{timing})"
    title = f"{section.workload} on {place}" if section.workload else place
    table = make_table("candidate", *shown, right=shown, title=title)
    for found in section.measurements:
        style = "cyan" if found.role == "compressed" else "dim cyan"
        table.add_row(cell(found.label, style), *(COLUMNS[name](found) for name in shown))
    console.print(table)
    if section.trust.crowded:
        console.print(
            f"  the machine was busy (load {section.trust.load1_max:.1f} on "
            f"{section.trust.cores} cores): these timings don't hold",
            style="yellow",
        )


def _judged(measured: MeasurementReport) -> Text:
    accuracy = measured.accuracy
    if accuracy is None:
        return Text(percent(None))
    metric = "" if accuracy.metric == "accuracy" else f" {accuracy.metric}"
    return Text(percent(accuracy.value) + metric)


def _ratio(ratio: RatioReport | None) -> Text:
    if ratio is None or ratio.value is None:
        return Text("")
    return Text(f"{ratio.value:.2f}x", style=COLOURS.get(ratio.verdict, ""))
