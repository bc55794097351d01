"""The emulated board's image: what it holds, and that it is built once, whole, and for good."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from flatsat.canonical import sha256_file
from flatsat.progress import NoProgress
from flatsat.targets.qemu_elf import needed
from flatsat.targets.qemu_image import Image, build_image, find_image
from flatsat.targets.qemu_initramfs import Entry, load_order, newc
from flatsat.targets.qemu_tools import MissingTools, run

if TYPE_CHECKING:
    from flatsat.targets.qemu import QemuBoard


class Told(NoProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        del done, total
        self.lines.append(f"{task} {note}")

    def log(self, message: str) -> None:
        self.lines.append(message)


def without_tools(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Let the search for programs find none of these."""
    real = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **more: None if name in missing else real(name, **more)
    )


# What needs no image


@given(
    graph=st.dictionaries(
        st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh")), max_size=8
    )
)
def test_modules_are_loaded_after_what_they_depend_on(graph: dict[str, set[str]]) -> None:
    # A module depends on later letters only: without circles, as the kernel's are.
    wanted = {name: sorted(d for d in after if d > name) for name, after in graph.items()}
    for depends in list(wanted.values()):
        for name in depends:
            wanted.setdefault(name, [])
    modules = {
        name: b"\0depends=" + ",".join(depends).encode() + b"\0" for name, depends in wanted.items()
    }
    order = load_order(wanted, modules)
    assert sorted(order) == sorted(wanted)
    for name, depends in wanted.items():
        assert all(order.index(one) < order.index(name) for one in depends)


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    entries = [
        Entry("dir", stat.S_IFDIR | 0o755),
        Entry("dir/file", stat.S_IFREG | 0o644, b"seven b"),
        Entry("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
    ]
    reader = next((c for c in ("cpio", "busybox") if _is_there(c)), None)
    data = newc(entries)
    assert data.startswith(b"070701")
    assert data.count(b"070701") == len(entries) + 1
    assert b"TRAILER!!!" in data
    if reader is not None:
        argv = [reader, *(["cpio"] if reader == "busybox" else []), "-i", "-d"]
        subprocess.run(argv, input=data, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "dir" / "file").read_bytes() == b"seven b"


def _is_there(tool: str) -> bool:
    return shutil.which(tool) is not None


def test_a_missing_tool_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tools(monkeypatch, "qemu-system-aarch64", "debugfs")
    with pytest.raises(MissingTools) as caught:
        build_image(cache_dir=tmp_path, progress=NoProgress())
    assert "qemu-system-aarch64, debugfs" in caught.value.message
    hint = str(caught.value.hint)
    assert hint == "apt-get install --no-install-recommends e2fsprogs qemu-system-arm"
    assert not list(tmp_path.rglob("image.json"))


# What looks into the image

pytest_qemu = pytest.mark.qemu


def debugfs(image: Image, folder: Path, *commands: str) -> str:
    """Return what debugfs says of the image's file system."""
    raw = folder / "raw.ext4"
    if not raw.exists():
        run("qemu-img", "convert", "-O", "raw", str(image.disk), str(raw))
    said = [run("debugfs", "-R", command, str(raw)) for command in commands]
    return "\n".join(str(text) for text in said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("image")


@pytest_qemu
def test_every_library_that_a_program_of_the_image_needs_is_in_it(
    board_image: Image, folder: Path
) -> None:
    tree = folder / "tree"
    tree.mkdir()
    debugfs(board_image, folder, f"rdump / {tree}")
    names = {path.name for path in tree.rglob("*")}
    elves = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    checked = 0
    for path in elves:
        with path.open("rb") as stream:
            if stream.read(4) != b"\x7fELF":
                continue
        wanted = needed(path.read_bytes())
        # Runtimes carry some libraries under names of their own.
        assert all(name in names for name in wanted), (path, wanted)
        checked += 1
    assert checked > 100


@pytest_qemu
def test_all_files_are_roots_and_no_machine_has_a_name(board_image: Image, folder: Path) -> None:
    said = debugfs(
        board_image,
        folder,
        "stat /etc/passwd",
        "stat /usr/bin/python3.11",
        "stat /var/lib/flatsat",
        "stat /etc/ssh/ssh_host_ed25519_key",
        "stat /etc/machine-id",
    )
    assert said.count("User:     0   Group:     0") == 4
    assert "/etc/machine-id: File not found" in said or said.count("Inode:") == 4


@pytest_qemu
async def test_the_image_is_read_only_and_a_machine_leaves_it_as_it_is(
    board_image: Image, qemu_board: QemuBoard
) -> None:
    assert stat.S_IMODE(board_image.disk.stat().st_mode) == 0o444
    before = sha256_file(board_image.disk)
    machine = await qemu_board.start()
    await machine.stop()
    assert sha256_file(board_image.disk) == before


@pytest_qemu
def test_secrets_are_for_their_owner_only(board_image: Image) -> None:
    assert stat.S_IMODE(board_image.user_key.stat().st_mode) == 0o600
    assert stat.S_IMODE((board_image.folder / "image.json").stat().st_mode) == 0o600
    assert board_image.host_key.startswith("ssh-ed25519 ")


@pytest_qemu
def test_a_second_call_needs_no_tool_and_no_network(
    board_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tools(monkeypatch, "apt-get", "apt-cache", "dpkg-deb", "mke2fs", "debugfs")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(socket, "socket", None)
    told = Told()
    assert build_image(progress=told) == board_image
    assert told.lines == []


@pytest_qemu
def test_a_damaged_image_is_not_taken_for_one(board_image: Image, tmp_path: Path) -> None:
    copy = tmp_path / "boards" / "qemu-arm64"
    copy.mkdir(parents=True)
    for name in ("current.json",):
        (copy / name).write_bytes((board_image.folder.parent / name).read_bytes())
    half = copy / board_image.folder.name
    half.mkdir()
    for path in board_image.folder.iterdir():
        if path.is_file():
            (half / path.name).symlink_to(path)
    assert find_image(tmp_path) is not None
    (half / "initrd.gz").unlink()
    assert find_image(tmp_path) is None
    with gzip.open(half / "initrd.gz", "wb") as stream:
        stream.write(b"cut")
    assert find_image(tmp_path) is None


class Builder:
    """Another process that builds into a cache of its own and tells how far it is."""

    CODE = """
from flatsat.targets.qemu_image import build_image
class Told:
    def update(self, task, done, total, note=""):
        print(f"{task}: {note}", flush=True)
    def log(self, message):
        print(message, flush=True)
print("key", build_image(progress=Told()).key, flush=True)
"""

    def __init__(self, cache_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            env={**os.environ, "FLATSAT_CACHE": str(cache_dir)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, words: str) -> str:
        """Return the first line that has these words in it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if words in line:
                return line.strip()
        raise AssertionError(f"it ended without {words!r}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def make_builder() -> Iterator[Callable[[Path], Builder]]:
    builders: list[Builder] = []

    def make(cache_dir: Path) -> Builder:
        builders.append(Builder(cache_dir))
        return builders[-1]

    yield make
    for builder in builders:
        builder.kill()


def lend(image: Image, boards: Path) -> None:
    """Put a finished image into another cache."""
    (boards / image.folder.name).symlink_to(image.folder)
    (boards / "current.json").write_bytes((image.folder.parent / "current.json").read_bytes())


@pytest_qemu
def test_a_second_builder_waits_and_takes_what_the_first_built(
    board_image: Image, tmp_path: Path, make_builder: Callable[[Path], Builder]
) -> None:
    boards = tmp_path / "boards" / "qemu-arm64"
    boards.mkdir(parents=True)
    with FileLock(boards / "build.lock"):
        second = make_builder(tmp_path)
        second.wait_for("another process builds")
        lend(board_image, boards)
    assert second.wait_for("key") == f"key {board_image.key}"
    left = {path.name for path in boards.iterdir()}
    assert left == {"build.lock", "current.json", board_image.folder.name}


def downloaded(image: Image, cache_dir: Path) -> None:
    """Let what was once downloaded for the image lie in another cache, too."""
    for folder in (image.folder.parent / "downloads", image.folder.parents[2] / "wheels"):
        there = cache_dir / folder.relative_to(image.folder.parents[2])
        shutil.copytree(folder, there, copy_function=os.link, dirs_exist_ok=True)


@pytest_qemu
@pytest.mark.slow
def test_after_a_killed_build_the_next_one_builds_the_same_from_scratch(
    board_image: Image, tmp_path: Path, make_builder: Callable[[Path], Builder]
) -> None:
    boards = tmp_path / "boards" / "qemu-arm64"
    downloaded(board_image, tmp_path)
    old, young = boards / "old", boards / "young"
    for folder, age_s in ((old, 8 * 24 * 3600), (young, 60)):
        folder.mkdir()
        (folder / "image.json").touch()
        for path in (folder / "image.json", folder):
            os.utime(path, (time.time() - age_s,) * 2)
    killed = make_builder(tmp_path)
    killed.wait_for("unpack runtimes")
    killed.kill()
    parts = list(boards.glob(".part-*"))
    assert [(part / "root").is_dir() for part in parts] == [True]
    assert find_image(tmp_path) is None

    image = build_image(cache_dir=tmp_path)
    assert not list(boards.glob(".part-*"))
    assert find_image(tmp_path) == image
    # Packages, wheels and recipe make the key; what is secret is new with each build.
    packages = [json.loads((one.folder / "image.json").read_text()) for one in (image, board_image)]
    assert (image.key == board_image.key) == (packages[0]["packages"] == packages[1]["packages"])
    assert image.host_key != board_image.host_key
    assert image.console_password != board_image.console_password
    assert image.user_key.read_bytes() != board_image.user_key.read_bytes()
    assert not old.exists()
    assert young.exists()
