"""Progress: plain lines that say enough and not too much; bars that leave one line."""

from __future__ import annotations

import io

from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TextColumn

from flatsat.harness.console import (
    BarProgress,
    PlainProgress,
    duration,
    make_console,
    printable,
    progress_on,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(*, quiet: bool = False) -> tuple[PlainProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return PlainProgress(make_console(stream), quiet=quiet, clock=clock), stream, clock


def test_plain_lines_come_each_tenth_or_ten_seconds_and_tell_the_time_left() -> None:
    progress, stream, clock = plain()
    for done in range(1001):
        clock.now += 0.1
        progress.update("measure", done, 1000, f"job {done}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "measure: 0 %, job 0"
    assert lines[1] == "measure: 10 %, about 90 s left, job 100"
    assert lines[-1] == "measure: 100 %, done in 1 min 40 s, job 1000"
    assert len(lines) == 11


def test_a_slow_task_says_something_every_ten_seconds() -> None:
    progress, stream, clock = plain()
    for done in range(5):
        progress.update("train", done, 1000)
        clock.now += 11
    assert len(stream.getvalue().splitlines()) == 5


def test_a_task_can_be_done_again() -> None:
    progress, stream, _ = plain()
    for _ in range(2):
        progress.update("x", 0, 1)
        progress.update("x", 1, 1)
    assert len(stream.getvalue().splitlines()) == 4


def test_quiet_keeps_what_is_logged() -> None:
    progress, stream, _ = plain(quiet=True)
    progress.update("x", 0, 1)
    progress.log("board em1 gets no more jobs")
    assert stream.getvalue() == "board em1 gets no more jobs\n"


def test_a_pipe_gets_plain_lines_without_escapes() -> None:
    stream = io.StringIO()
    with progress_on(stream) as progress:
        progress.update("x", 1, 2, "[red]not markup[/]")
        progress.log("a\nb\x1b[31m" + "long " * 60)
    first, second = stream.getvalue().splitlines()
    assert first == "x: 50 %, [red]not markup[/]"
    assert second.startswith("a b\\x1b[31mlong")


def test_a_terminal_gets_bars_that_vanish_and_leave_a_line() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    bars = Bars(
        TextColumn("{task.description} {task.fields[left]} {task.fields[note]}"),
        console=console,
        auto_refresh=False,
    )
    progress = BarProgress(bars, clock)
    with bars:
        progress.update("measure", 0, 10, "a [b]")
        clock.now += 5
        progress.update("measure", 5, 10, "c")
        bars.refresh()
        assert "measure 5 s left c" in stream.getvalue()
        clock.now += 5
        progress.update("measure", 10, 10, "d")
        progress.update("quick", 1, 1)
        assert bars.tasks == []
    assert "measure: done in 10 s, d" in stream.getvalue()
    assert "quick: done" not in stream.getvalue()


@example([("a", 5e-324, 1.0, ""), ("a", 1e-323, 10.0, "")])
@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10), st.floats(0, 10), st.text())))
def test_no_report_of_progress_ever_raises(
    reports: list[tuple[str, float, float, str]],
) -> None:
    progress, _, clock = plain()
    bars = Bars(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)
    drawn = BarProgress(bars, clock)
    for task, done, total, note in reports:
        clock.now += 1
        for sink in (progress, drawn):
            sink.update(task, done, total, note)
            sink.log(note)


def test_a_rate_of_nearly_nothing_leaves_an_unknown_time() -> None:
    assert duration(float("inf")) == "an unknown time"


@given(st.text())
def test_printable_text_is_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(character.isprintable() for character in shown)
    assert len(shown.splitlines()) <= 1


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 8, 99, 120, 150, 4000, 7000)] == [
        "0 s",
        "8 s",
        "99 s",
        "2 min",
        "2 min 30 s",
        "67 min",
        "1 h 57 min",
    ]
