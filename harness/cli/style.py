"""How numbers and tables look on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flatsat.harness.console import printable

DASH = "-"


def nanoseconds(value: float | None, digits: int = 3) -> str:
    """Return a duration with a unit that suits it: "58.3 µs", "1.02 ms", "2.4 s"."""
    if value is None:
        return DASH
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if abs(value) >= scale:
            return f"{_significant(value / scale, digits)} {unit}"
    return f"{value:.0f} ns"


def nanosecond_range(low: float | None, high: float | None) -> str:
    """Return two durations, with one unit where that suits both: "14.3 … 14.9 µs"."""
    if low is None or high is None:
        return ""
    first, last = nanoseconds(low), nanoseconds(high)
    number, _, unit = first.partition(" ")
    return f"{number if last.endswith(f' {unit}') else first} … {last}"


def byte_count(value: float | None) -> str:
    """Return a size with a decimal unit: "445 kB", "1.73 MB"."""
    if value is None:
        return DASH
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{_significant(value / scale)} {unit}"
    return f"{value:.0f} B"


def count(value: float | None) -> str:
    """Return a count with thousands set apart, or in millions where it is large."""
    if value is None:
        return DASH
    return f"{value / 1e6:.2f} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as per cent."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def make_table(*columns: str, right: Iterable[str] = (), title: str | None = None) -> Table:
    """Return an empty table.

    Args:
        columns: headings.
        right: those whose values are numbers.
        title: above the table.
    """
    table = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False
    )
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", min_width=2
        )
    return table


def cell(value: object, style: str = "") -> Text:
    """Return a value as plain text: nothing in it is read as markup."""
    return Text(DASH if value is None or value == "" else printable(str(value)), style=style)


def facts_table(facts: Mapping[str, object] | Sequence[tuple[str, object]]) -> Table:
    """Return two columns without a heading: what, and its value."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in facts.items() if isinstance(facts, Mapping) else facts:
        table.add_row(key, cell(value))
    return table


def _significant(value: float, digits: int = 3) -> str:
    """Return at least one and at most `digits` significant digits, without an exponent."""
    magnitude = len(str(int(abs(value))))
    return f"{value:.{max(0, digits - magnitude)}f}"


def state_text(state: str) -> Text:
    """Return a run's state in a colour."""
    colours = {"done": "green", "running": "cyan", "failed": "red"}
    return Text(printable(state), style=colours.get(state, "yellow"))
