"""A run's result as tables on a terminal; the page tells more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from flatsat.harness.cli.style import (
    byte_count,
    cell,
    count,
    make_table,
    nanoseconds,
    percent,
)

if TYPE_CHECKING:
    from rich.console import Console

    from flatsat.harness.lab import Lab
    from flatsat.reports.model import BoardSection, MeasurementReport, RatioReport

RIGHT = ("p50", "95 % interval", "p99", "faster", "accuracy", "memory", "file", "MACs")
COLOURS = {"faster": "green", "slower": "red"}


def show_sections(console: Console, lab: Lab, run_id: str) -> None:
    """Write a table a board: the candidates from the fastest to the slowest."""
    from flatsat.reports.collect import collect

    for section in collect(lab.store(), run_id).sections:
        if section.measurements:
            _show(console, section)


def _show(console: Console, section: BoardSection) -> None:
    timing = "" if section.clock == "wall" else f", {section.clock} time"
    table = make_table(
        "candidate",
        *RIGHT,
        "",
        right=RIGHT,
        title=f"{section.board} ({section.kind}{timing})",
    )
    several = len({m.threads for m in section.measurements}) > 1
    for found in section.measurements:
        label = f"{found.label} x{found.threads}" if several else found.label
        table.add_row(
            cell(label, "cyan" if found.role == "compressed" else "dim cyan"),
            nanoseconds(found.p50_ns.value),
            _interval(found),
            nanoseconds(found.p99_ns.value),
            _ratio(found.versus_reference),
            percent(found.accuracy.value if found.accuracy else None),
            byte_count(found.memory.median_bytes if found.memory else None),
            byte_count(found.size_bytes),
            count(found.macs),
            cell("pareto" if found.pareto else " ", "green"),
        )
    console.print(table)
    if section.trust.crowded:
        console.print(
            f"  the machine was busy (load {section.trust.load1_max:.1f} on "
            f"{section.trust.cores} cores): these timings don't hold",
            style="yellow",
        )


def _interval(found: MeasurementReport) -> Text:
    low, high = found.p50_ns.low, found.p50_ns.high
    if low is None or high is None:
        return Text("")
    return Text(f"{nanoseconds(low)} … {nanoseconds(high)}", style="dim")


def _ratio(ratio: RatioReport | None) -> Text:
    if ratio is None or ratio.value is None:
        return Text("")
    return Text(f"{ratio.value:.2f}x", style=COLOURS.get(ratio.verdict, ""))
