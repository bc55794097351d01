"""`flatsat board` on emulated boards: built, up, on the console, down; what it says when not."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Flatsat = Callable[..., Any]
qemu = pytest.mark.qemu
slow = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    folder.mkdir()
    return folder


def test_boards_are_listed_with_image_and_state(flatsat: Flatsat, lab: Path) -> None:
    cache = json.dumps(str(lab / "cache"))
    (lab / "lab.toml").write_text(
        f'[board.pi5]\nkind = "qemu-arm64"\ncpu = "cortex-a76"\ncache_dir = {cache}\n'
    )
    listed = json.loads(flatsat("--lab", str(lab), "board", "list", "--json").out)
    assert listed["schema"] == "flatsat.boards/1"
    boards = {row["name"]: row for row in listed["boards"]}
    assert set(boards) == {"host", "qemu-arm64", "qemu-arm64-a76", "pi5"}
    assert boards["host"]["built"] is None
    assert boards["pi5"] == {
        "name": "pi5",
        "kind": "qemu-arm64",
        "clock": "virtual",
        "from": "lab.toml",
        "built": False,
        "up": False,
    }
    said = flatsat("--lab", str(lab), "board", "list")
    assert "not built" in said.out
    assert "down" in said.out


@pytest.mark.parametrize("verb", ["build", "up", "down", "console"])
def test_a_real_board_has_no_image_and_no_power_switch(
    flatsat: Flatsat, lab: Path, verb: str
) -> None:
    said = flatsat("--lab", str(lab), "board", verb, "host")
    assert said.code == 2
    assert "is of kind 'host', not an emulated one" in said.err
    assert "emulated are: qemu-arm64, qemu-arm64-a76" in said.err


def test_an_unknown_board_is_told(flatsat: Flatsat, lab: Path) -> None:
    said = flatsat("--lab", str(lab), "board", "up", "qemu-arm46")
    assert said.code == 2
    assert "no board is called 'qemu-arm46'" in said.err


def test_down_of_what_is_not_up_is_no_error(flatsat: Flatsat, lab: Path) -> None:
    said = flatsat("--lab", str(lab), "board", "down", "qemu-arm64")
    assert (said.code, said.out) == (0, "")
    assert "was not up" in said.err


def test_the_console_of_what_is_not_up_says_how_to_start_it(flatsat: Flatsat, lab: Path) -> None:
    said = flatsat("--lab", str(lab), "board", "console", "qemu-arm64")
    assert said.code == 2
    assert "flatsat board up qemu-arm64" in said.err


@pytest.mark.parametrize("verb", ["build", "up"])
def test_a_missing_qemu_is_named_with_the_command_that_installs_it(
    flatsat: Flatsat, lab: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("PATH", str(lab))
    said = flatsat("--lab", str(lab), "board", verb, "qemu-arm64")
    assert said.code == 3
    assert "qemu-system-aarch64" in said.err
    assert "apt-get install --no-install-recommends qemu-system-arm" in said.err


def test_the_doctor_names_a_missing_qemu(
    flatsat: Flatsat, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(lab))
    said = flatsat("--lab", str(lab), "board", "doctor", "qemu-arm64", "--json")
    assert said.code == 3
    (finding,) = json.loads(said.out)["findings"]
    assert not finding["ok"]
    assert "qemu-system-arm" in finding["fix"]


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flatsat.harness.cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    def shows(self, words: bytes, deadline_s: float = 90.0, nudge: bytes = b"") -> bool:
        """Wait until the terminal shows `words`; type `nudge` whenever it is quiet for long."""
        deadline = time.monotonic() + deadline_s
        while words not in self.shown and time.monotonic() < deadline:
            if select.select([self._ours], [], [], 1.0)[0]:
                try:
                    self.shown += os.read(self._ours, 4096)
                except OSError:
                    break
            elif nudge:
                self.type(nudge)
        return words in self.shown

    def code(self, deadline_s: float = 60.0) -> int:
        """Wait for its end."""
        return self._process.wait(deadline_s)

    def interrupt(self) -> None:
        os.kill(self._process.pid, signal.SIGINT)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


@qemu
@slow
def test_a_board_goes_up_serves_its_console_and_goes_down(
    flatsat: Flatsat, lab: Path, qemu_board: Any, terminal: Callable[..., Terminal]
) -> None:
    del qemu_board
    told = flatsat("--lab", str(lab), "board", "up", "qemu-arm64", "--json")
    try:
        assert told.code == 0, told.err
        up = json.loads(told.out)
        assert up["schema"] == "flatsat.board-up/1"
        logged = subprocess.run(
            [*up["ssh"], "cat /etc/hostname"], capture_output=True, text=True, check=False
        )
        assert logged.stdout == "qemu-arm64\n", logged.stderr
        assert "is up already" in flatsat("--lab", str(lab), "board", "up", "qemu-arm64").err
        console = terminal("--lab", str(lab), "board", "console", "qemu-arm64")
        assert console.shows(b"Ctrl-]")
        assert console.shows(b"login:", nudge=b"\r")
        console.type(b"\x1d")
        assert console.code() == 0
        listed = json.loads(flatsat("--lab", str(lab), "board", "list", "--json").out)
        rows = {row["name"]: row["up"] for row in listed["boards"]}
        assert rows["qemu-arm64"]["pid"] == up["pid"]
        assert rows["qemu-arm64-a76"] is False
    finally:
        down = flatsat("--lab", str(lab), "board", "down", "qemu-arm64")
    assert "qemu-arm64 is down" in down.err
    assert not Path(f"/proc/{up['qemu_pid']}").exists()


@qemu
@slow
def test_in_the_foreground_an_interrupt_takes_it_down(
    lab: Path, qemu_board: Any, terminal: Callable[..., Terminal]
) -> None:
    del qemu_board
    shown = terminal("--lab", str(lab), "board", "up", "qemu-arm64", "--foreground")
    assert shown.shows(b"takes it down")
    about = json.loads((lab / "locks" / "qemu-arm64" / "keeper.json").read_text())
    shown.interrupt()
    assert shown.code() == 0
    deadline = time.monotonic() + 30.0
    while Path(f"/proc/{about['qemu_pid']}").exists() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    assert not Path(f"/proc/{about['qemu_pid']}").exists()


@qemu
@slow
def test_a_second_build_builds_nothing(
    flatsat: Flatsat, lab: Path, board_image: Any, qemu_board: Any
) -> None:
    del qemu_board
    before = written(board_image.folder)
    built = flatsat("--lab", str(lab), "board", "build", "qemu-arm64", "--json")
    assert built.code == 0, built.err
    told = json.loads(built.out)
    assert told["key"] == board_image.key
    assert {"onnxruntime", "tflite-runtime"} <= set(told["sites"])
    assert told["folder"] == str(board_image.folder)
    assert written(board_image.folder) == before


def written(folder: Path) -> dict[Path, int]:
    """Return when each file was written; a state's list is touched at each use."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "state.json"]
    return {path: path.stat().st_mtime_ns for path in files}
