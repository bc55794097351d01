"""How progress looks: live bars with the time left on a terminal, plain lines elsewhere.

All of it goes to standard error; standard output carries results only.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from flatsat.progress import Progress

PLAIN_WIDTH = 160
"""Columns of what is written to a file or a pipe; a terminal tells its own width."""
PLAIN_EVERY_S = 10.0
PLAIN_EVERY_SHARE = 0.1
WORTH_A_LINE_S = 1.0
"""A task that took less leaves no trace on a terminal."""


def make_console(stream: TextIO) -> Console:
    """Return a console for `stream` that breaks no lines of a pipe at 80 columns."""
    console = Console(file=stream, highlight=False, emoji=False)
    if not console.is_terminal and console.width == 80:
        console = Console(file=stream, highlight=False, emoji=False, width=PLAIN_WIDTH)
    return console


def printable(text: str) -> str:
    """Return `text` on one line, with control characters shown instead of obeyed.

    Names in model files and messages of other programs may hold anything.
    """
    one_line = " ".join(text.split("\n"))
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in one_line)


def duration(seconds: float) -> str:
    """Return a duration as a reader says it: "8 s", "2 min 30 s", "40 min", "1 h 20 min".

    A rate that rounds to nothing leaves no finite time: "an unknown time".
    """
    if not math.isfinite(seconds):
        return "an unknown time"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextlib.contextmanager
def progress_on(stream: TextIO | None = None, *, quiet: bool = False) -> Iterator[Progress]:
    """Lend a progress sink for as long as work goes on.

    Args:
        stream: where to draw; standard error by default.
        quiet: keep logged lines, drop the rest.
    """
    console = make_console(stream or sys.stderr)
    if quiet or not console.is_terminal:
        yield PlainProgress(console, quiet=quiet)
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    bars = Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("[cyan]{task.fields[left]}"),
        TextColumn(
            "[dim]{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        transient=False,
    )
    with bars:
        yield BarProgress(bars)


class _TimeLeft:
    """Estimates how long a task still takes, from its pace so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started: dict[str, tuple[float, float]] = {}

    def left_s(self, task: str, done: float, total: float) -> float | None:
        """Return the seconds left, or None while nobody can know."""
        started, at_start = self._started.setdefault(task, (self._clock(), done))
        if done <= at_start or done >= total:
            return None
        return (self._clock() - started) * (total - done) / (done - at_start)

    def end(self, task: str) -> float:
        """Forget the task; return how long it took."""
        started, _ = self._started.pop(task, (self._clock(), 0.0))
        return self._clock() - started


class BarProgress:
    """A live bar a task; a task that ended leaves one line."""

    def __init__(self, bars: Bars, clock: Callable[[], float] = time.monotonic) -> None:
        self._bars = bars
        self._left = _TimeLeft(clock)
        self._tasks: dict[str, TaskID] = {}

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Move the bar of `task`; equal numbers end it."""
        left = self._left.left_s(task, done, total)
        text = "" if left is None else f"{duration(left)} left"
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(printable(task), left="", note="")
        self._bars.update(
            self._tasks[task],
            completed=done,
            total=total or 1.0,
            left=text,
            note=_escaped(note),
        )
        if done >= total:
            took_s = self._left.end(task)
            self._bars.remove_task(self._tasks.pop(task))
            if took_s >= WORTH_A_LINE_S:
                self.log(f"{task}: done in {duration(took_s)}{f', {note}' if note else ''}")

    def log(self, message: str) -> None:
        """Print one line above the bars."""
        self._bars.console.print(printable(message), markup=False, soft_wrap=True)


class PlainProgress:
    """A line now and then: at a task's start, every tenth or every ten seconds, and at its end."""

    def __init__(
        self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._left = _TimeLeft(clock)
        self._said: dict[str, tuple[float, float]] = {}

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Say where `task` stands, unless that was said a moment ago."""
        if self._quiet:
            return
        left = self._left.left_s(task, done, total)
        share = done / total if total else 1.0
        now = self._clock()
        ended = done >= total
        known = task in self._said
        if known and not ended:
            said_at, said_share = self._said[task]
            if now - said_at < PLAIN_EVERY_S and share - said_share < PLAIN_EVERY_SHARE:
                return
        self._said[task] = (now, share)
        parts = [f"{task}: {100 * share:.0f} %"]
        if ended:
            took_s = self._left.end(task)
            # A task that is first heard of when it ends tells nothing of how long it took.
            parts += [f"done in {duration(took_s)}"] if known else []
            del self._said[task]
        elif left is not None:
            parts.append(f"about {duration(left)} left")
        self.log(", ".join([*parts, note] if note else parts))

    def log(self, message: str) -> None:
        """Print one line."""
        self._console.print(printable(message), markup=False, soft_wrap=True)


def _escaped(note: str) -> str:
    from rich.markup import escape

    return escape(printable(note))
