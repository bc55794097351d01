"""The TFLite converter as a process: its environment, its deadline, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import distribution
from pathlib import Path

import pytest
from filelock import FileLock
from packaging.requirements import Requirement

from flatsat.compressors.converter import call
from flatsat.compressors.converter_env import (
    DISK_MB,
    DOWNLOAD_MB,
    PINS,
    ensure_converter,
    find_converter,
    shared_folders,
)
from flatsat.errors import InfrastructureError, RecipeError
from flatsat.progress import NoProgress


class Told(NoProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def fake(folder: Path, body: str) -> Path:
    """Return a program that stands for the converter's Python; $4 is the script's options."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


REPORT = """
import json, sys
options = json.load(open(sys.argv[-1]))
json.dump(REPORT, open(options["report"], "w"))
"""


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def wait_until_gone(pid: int, deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not gone(pid):
        assert time.monotonic() < end, f"process {pid} still lives"
        threading.Event().wait(0.02)


# The process


def test_a_report_comes_back_and_chatter_stays_away(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = "print('[START] chatter')\n" + REPORT.replace("REPORT", "{'versions': {'a': '1'}}")
    got = call(fake(tmp_path, body), {"verb": "check"}, shared=(), deadline_s=60)
    assert got["versions"] == {"a": "1"}
    assert capfd.readouterr() == ("", "")


def test_what_the_converter_refuses_is_the_recipes_fault(tmp_path: Path) -> None:
    python = fake(tmp_path, REPORT.replace("REPORT", "{'refused': 'no lowering of aten.x'}"))
    with pytest.raises(RecipeError, match=r"can't take this network: no lowering of aten\.x"):
        call(python, {"verb": "convert"}, shared=(), deadline_s=60)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (REPORT.replace("REPORT", "{'error': 'No module named jax'}"), "failed: No module named"),
        ("print('first'); print('boom'); raise SystemExit(3)", r"code 3 .*boom"),
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
    ],
)
def test_what_breaks_is_told_in_one_line(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(InfrastructureError, match=says) as caught:
        call(fake(tmp_path, body), {"verb": "convert"}, shared=(), deadline_s=60)
    assert "\n" not in str(caught.value)


def test_a_converter_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "child.wait()\n"
    )
    with pytest.raises(InfrastructureError, match="not answered for 2 s and was ended"):
        call(fake(tmp_path, body), {"verb": "convert"}, shared=(), deadline_s=2)
    for pid in pids.read_text().split():
        wait_until_gone(int(pid))


@pytest.mark.converter
@pytest.mark.slow
def test_the_converter_ends_with_the_process_that_asked(
    tmp_path: Path, converter_cache: Path
) -> None:
    # It opens a pipe that nobody writes to, and would wait for ever.
    pipe = tmp_path / "network.pt2"
    os.mkfifo(pipe)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from flatsat.compressors.converter import convert\n"
        "from flatsat.progress import NoProgress\n"
        "convert(Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), progress=NoProgress())\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code, str(pipe), str(converter_cache)])
    try:
        # Opening the other end succeeds once the converter waits at its own.
        with pipe.open("wb"):
            children = Path(f"/proc/{asker.pid}/task/{asker.pid}/children").read_text().split()
            assert len(children) == 1
            asker.send_signal(signal.SIGKILL)
            asker.wait()
            wait_until_gone(int(children[0]))
    finally:
        asker.kill()
        asker.wait()


# Its environment


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


@pytest.mark.usefixtures("no_index")
def test_without_an_index_the_converter_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(InfrastructureError, match="converter can't be installed") as caught:
        ensure_converter(tmp_path, told)
    assert "\n" not in str(caught.value)
    # The size was said before pip was asked for anything.
    assert f"{DOWNLOAD_MB} MB to fetch, up to {DISK_MB} MB on disk" in told.lines[0]
    assert find_converter(tmp_path) is None
    assert not [path for path in (tmp_path / "converter").iterdir() if path.suffix != ".lock"]


@pytest.mark.usefixtures("no_index")
def test_what_a_killed_builder_left_is_swept_away(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError):
        ensure_converter(tmp_path, NoProgress())
    (lock,) = (tmp_path / "converter").iterdir()
    half = lock.with_suffix("")
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").write_text("")
    lock.with_suffix(".part").mkdir()
    # A folder without its last file was never whole.
    assert find_converter(tmp_path) is None
    with pytest.raises(InfrastructureError):
        ensure_converter(tmp_path, NoProgress())
    assert list((tmp_path / "converter").iterdir()) == [lock]


@pytest.mark.usefixtures("no_index")
def test_a_second_builder_waits_for_the_first(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError):
        ensure_converter(tmp_path, NoProgress())
    (lock,) = (tmp_path / "converter").iterdir()

    class Release(Told):
        def log(self, message: str) -> None:
            super().log(message)
            held.release()

    told = Release()
    held = FileLock(lock, thread_local=False)
    with held, pytest.raises(InfrastructureError, match="can't be installed"):
        ensure_converter(tmp_path, told)
    assert "waiting" in told.lines[0]


def test_what_is_fetched_is_pinned_exactly_and_the_rest_is_shared() -> None:
    lines = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    pins = [Requirement(line) for line in lines]
    folders = shared_folders()
    for pin in pins:
        if not str(pin.specifier).startswith("=="):
            found = distribution(pin.name)
            assert pin.specifier.contains(found.version), pin
            assert Path(str(found.locate_file(""))).resolve() in folders


@pytest.mark.converter
def test_the_environment_is_as_small_as_was_said(converter_cache: Path) -> None:
    python = ensure_converter(converter_cache, NoProgress())
    folder = python.parent.parent
    size_mb = sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_symlink()) / 1e6
    # Less where binutils could strip its libraries.
    assert 0.6 * DISK_MB < size_mb <= 1.05 * DISK_MB
    assert not list(folder.rglob("site-packages/torch"))
    assert find_converter(converter_cache) == python
