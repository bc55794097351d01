"""Processes that end with their owner, whichever way and whenever that one ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flatsat.targets.qemu_process import EmulatorError, OwnedProcess, find_emulator

OWNER = """
import signal, sys, time
from pathlib import Path
# What was started in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from flatsat.targets.qemu_process import OwnedProcess
folder = Path(sys.argv[1])
owned = [OwnedProcess(["/bin/sleep", "600"], folder=folder, log=folder / "log") for _ in range(3)]
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_end_with_their_owner(tmp_path: Path, family: Any, number: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        env=family.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    # One that is just becoming another program shows no environment for a moment.
    deadline = time.monotonic() + 30.0
    seen = 0
    while seen < 4 and time.monotonic() < deadline:
        seen = len(family.alive())
    assert seen >= 4
    owner.send_signal(number)
    try:
        owner.communicate(timeout=30.0)
    finally:
        owner.kill()
    assert family.all_gone()


def test_children_end_with_an_owner_that_dies_at_any_moment(tmp_path: Path, family: Any) -> None:
    chance = random.Random(7)
    for _ in range(12):
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path)],
            env=family.environment,
            stdout=subprocess.PIPE,
        )
        try:
            owner.wait(chance.uniform(0.0, 0.4))
        except subprocess.TimeoutExpired:
            owner.kill()
        owner.communicate()
        assert family.all_gone()


async def test_it_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    made: list[OwnedProcess] = []

    def make() -> None:
        made.append(OwnedProcess(["/bin/sleep", "600"], folder=tmp_path, log=tmp_path / "log"))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert not await made[0].ended(0.3)
    made[0].kill()
    assert await made[0].ended(30.0)
    assert made[0].code == -signal.SIGKILL
    made[0].kill()


async def test_its_words_and_its_code_are_kept(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", "echo first; echo '/bin/sh: last' >&2; exit 7"]
    process = OwnedProcess(argv, folder=tmp_path, log=tmp_path / "log")
    assert await process.ended(30.0)
    assert (process.code, process.last_words()) == (7, "last")


async def test_it_inherits_what_is_passed_and_no_more(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    stray, other = os.pipe()
    os.set_inheritable(stray, True)
    argv = ["/bin/sh", "-c", f"echo told > /proc/self/fd/{theirs}; ls /proc/self/fd"]
    process = OwnedProcess(argv, folder=tmp_path, log=tmp_path / "log", passed=[theirs])
    os.close(theirs)
    assert os.read(ours, 100) == b"told\n"
    assert await process.ended(30.0)
    assert str(stray) not in (tmp_path / "log").read_text().split()
    for handle in (ours, stray, other):
        os.close(handle)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmulatorError, match="can't start /bin/sleep"):
        OwnedProcess(["/bin/sleep", "1"], folder=tmp_path / "none", log=tmp_path / "log")


def fake_qemu(folder: Path, script: str) -> None:
    for name in ("qemu-system-aarch64", "qemu-img"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def test_a_missing_qemu_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match="qemu-system-aarch64 and qemu-img") as raised:
        find_emulator()
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("apt-get install")
    assert "qemu-system-arm" in raised.value.hint


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('echo "QEMU emulator version 5.2.0 (Debian 1:5.2)"', "5.2.0 .* is too old"),
        ('echo "something else"', "tells no version"),
        ("exit 3", "does not run"),
    ],
)
def test_a_qemu_that_will_not_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    fake_qemu(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=words):
        find_emulator()


def test_the_version_is_told_with_the_packagers_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu(tmp_path, 'echo "QEMU emulator version 9.0.1 (Debian 1:9.0.1+ds-1)"')
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_emulator()
    assert found.version == "9.0.1 (Debian 1:9.0.1+ds-1)"
    assert found.program == str(tmp_path / "qemu-system-aarch64")
    fake_qemu(tmp_path, 'echo "QEMU emulator version 8.2.0"')
    assert find_emulator().version == "8.2.0"
