"""The emulated board's image: what it holds, and that it is built once, whole, and for good."""

from __future__ import annotations

import gzip
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.canonical import sha256_file
from flatsat.progress import NoProgress
from flatsat.targets.qemu_elf import needed
from flatsat.targets.qemu_image import Image, build_image, find_image
from flatsat.targets.qemu_initramfs import Entry, load_order, newc
from flatsat.targets.qemu_tools import MissingTools, environment, run

if TYPE_CHECKING:
    from flatsat.targets.qemu import QemuBoard


class Told(NoProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def without_tools(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Let the search for programs find none of these."""
    import shutil

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
    import shutil

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
    board_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tools(monkeypatch, "apt-get", "apt-cache", "dpkg-deb", "mke2fs", "debugfs")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    told = Told()
    again = build_image(progress=told)
    assert again == board_image
    assert not any("fetch" in line for line in told.lines)


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


@pytest_qemu
@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_half_made(
    board_image: Image, tmp_path: Path
) -> None:
    del board_image  # There: so that this machine can build one.
    code = (
        "from flatsat.targets.qemu_image import build_image\n"
        "import sys\n"
        "class Told:\n"
        "    def update(self, task, done, total, note=''):\n"
        "        print(task, flush=True)\n"
        "    def log(self, message):\n"
        "        print(message, flush=True)\n"
        "build_image(progress=Told())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environment(), "FLATSAT_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert find_image(tmp_path) is None
    assert not list(tmp_path.rglob("image.json"))
