"""States of the booted board: made once a hardware, then every machine starts from one in a second.

A state is the memory of a stopped machine and the disk that it had at that moment; neither is
changed again. It fits only the QEMU, the hardware and the image that it was saved with, so all of
these are in the name of its folder: `<image>/states/<key>/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from flatsat.canonical import sha256_json
from flatsat.progress import NoProgress
from flatsat.targets.qemu_hardware import command_line
from flatsat.targets.qemu_process import EmulatorError
from flatsat.targets.qemu_run import BadState, Disk, Machine
from flatsat.targets.qemu_tools import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from flatsat.progress import Progress
    from flatsat.targets.qemu_hardware import Hardware
    from flatsat.targets.qemu_image import Image
    from flatsat.targets.qemu_process import Emulator


@dataclass(frozen=True)
class Warm:
    """What is done on a freshly booted board so that every later machine finds it done.

    Attributes:
        key: changes with what is done; a state that was warmed otherwise is made again.
        run: does it.
    """

    key: str
    run: Callable[[Machine], Awaitable[None]]


FORMAT = 5
"""Counted up when a state comes to hold something else, such as more that was warmed up."""

_ABOUT = "state.json"
_MEMORY = "memory"
_DISK = "disk.qcow2"
_PART = ".part-"
_PART_S = 24 * 3600.0
_UNUSED_S = 30 * 24 * 3600.0
_REPLACED_S = 2 * 3600.0
_STEPS = 4
_LOOK_S = 0.1
_BLOCK = 1 << 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedState:
    """One saved state.

    Attributes:
        key: hash of all that it fits.
        memory: QEMU's migration stream.
        disk: qcow2, on top of the image's disk.
    """

    key: str
    memory: Path
    disk: Path

    @property
    def as_disk(self) -> Disk:
        """What a machine starts from."""
        return Disk(self.disk, self.memory)


def machine_key(image: Image, hardware: Hardware, emulator: Emulator) -> str:
    """Return the hash of all that a saved state must agree with for QEMU to start from it."""
    files = (image.kernel, image.initrd, image.disk)
    return sha256_json(
        {
            "format": FORMAT,
            "image": image.key,
            "host_key": image.host_key,
            "files": [[path.name, path.stat().st_size] for path in files],
            "qemu": emulator.version,
            "arguments": command_line(hardware),
        }
    )


def find_state(
    image: Image, hardware: Hardware, emulator: Emulator, warm: Warm
) -> SavedState | None:
    """Return the state that fits, if it is there and whole.

    Its bytes are checked too: QEMU would start from a damaged memory without a word.
    """
    key = sha256_json([machine_key(image, hardware, emulator), warm.key])
    folder = image.folder / "states" / key[:16]
    try:
        about = json.loads((folder / _ABOUT).read_text())
        if about["key"] != key or _checksum(folder / _MEMORY) != about["memory"]:
            return None
        if (folder / _DISK).stat().st_size != about["disk_bytes"]:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(folder / _ABOUT)
    return SavedState(key, folder / _MEMORY, folder / _DISK)


async def make_state(
    image: Image,
    hardware: Hardware,
    emulator: Emulator,
    warm: Warm,
    *,
    progress: Progress | None = None,
) -> SavedState:
    """Return the state that fits; the board is booted, warmed up and saved if there is none.

    Args:
        image: what is booted.
        hardware: what the guest sees.
        emulator: the installed QEMU.
        warm: what is done before it is saved.
        progress: is told about the steps.

    Raises:
        EmulatorError: the board does not come up, or can't be saved.
    """
    progress = progress or NoProgress()
    folder = image.folder / "states"
    try:
        folder.mkdir(exist_ok=True)
        return await _make(image, hardware, emulator, warm, folder, progress)
    except OSError as error:
        raise EmulatorError(
            f"can't keep the board's state in {folder}: {error.strerror or error}",
            hint="free some room there, or name another folder in FLATSAT_CACHE",
        ) from error


async def _make(
    image: Image,
    hardware: Hardware,
    emulator: Emulator,
    warm: Warm,
    folder: Path,
    progress: Progress,
) -> SavedState:
    machine = machine_key(image, hardware, emulator)
    key = sha256_json([machine, warm.key])
    async with _only_maker(folder / f"{key[:16]}.lock", progress):
        found = await asyncio.to_thread(find_state, image, hardware, emulator, warm)
        if found is not None:
            return found
        _sweep(folder, machine)
        part = Path(tempfile.mkdtemp(dir=folder, prefix=_PART))
        try:
            await _save(image, hardware, emulator, warm, part, progress)
            about = {
                "key": key,
                "machine": machine,
                "memory": await asyncio.to_thread(_checksum, part / _MEMORY),
                "disk_bytes": (part / _DISK).stat().st_size,
            }
            (part / _ABOUT).write_text(json.dumps(about))
            target = folder / key[:16]
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return SavedState(key, target / _MEMORY, target / _DISK)


async def _save(
    image: Image,
    hardware: Hardware,
    emulator: Emulator,
    warm: Warm,
    part: Path,
    progress: Progress,
) -> None:
    task = f"boot {hardware.cpu}"
    progress.update(task, 0, _STEPS, "kernel and SSH server")
    machine = await Machine.start(image, hardware, emulator, console="socket")
    try:
        progress.update(task, 1, _STEPS, "import each runtime once")
        await warm.run(machine)
        progress.update(task, 2, _STEPS, "save the memory")
        await machine.save(part / _MEMORY)
        await machine.power_off()
        progress.update(task, 3, _STEPS, "keep the disk")
        await asyncio.to_thread(_keep_disk, machine.state_disk, part / _DISK, image, emulator)
        for name in (_MEMORY, _DISK):
            (part / name).chmod(0o444)
    finally:
        await machine.stop()
    progress.update(task, _STEPS, _STEPS)


def _keep_disk(source: Path, target: Path, image: Image, emulator: Emulator) -> None:
    """Copy a disk, and let it find the image's disk where both folders are moved together."""
    shutil.copyfile(source, target)
    relative = Path("..", "..", image.disk.name)
    argv = [emulator.image_tool, "rebase", "-u", "-f", "qcow2", "-F", "qcow2"]
    run(*argv, "-b", str(relative), str(target))


async def start_machine(
    image: Image,
    hardware: Hardware,
    emulator: Emulator,
    warm: Warm,
    *,
    progress: Progress | None = None,
    start: Callable[[Disk], Awaitable[Machine]],
) -> Machine:
    """Start a machine from the state that fits, made first if need be.

    A state that QEMU refuses is thrown away and made again; if the new one is refused too, the
    board is booted from its image.

    Args:
        image: what is booted.
        hardware: what the guest sees.
        emulator: the installed QEMU.
        warm: as of `make_state`.
        progress: is told about the steps.
        start: starts a machine from a disk, with whatever else the caller wants of it.
    """
    for _ in range(2):
        state = await asyncio.to_thread(find_state, image, hardware, emulator, warm)
        if state is None:
            state = await make_state(image, hardware, emulator, warm, progress=progress)
        try:
            return await start(state.as_disk)
        except BadState as error:
            _LOG.warning("%s; the board's state is made again", error.message)
            discard_state(state)
    machine = await start(Disk(image.disk))
    try:
        await warm.run(machine)
    except BaseException:
        await machine.stop()
        raise
    return machine


def _sweep(folder: Path, machine: str) -> None:
    """Drop what a killed maker left, and states that nothing was started from for long.

    That is a month; of the machine that is made anew, because of another agent, it is hours.
    """
    now = time.time()
    for part in folder.glob(f"{_PART}*"):
        with contextlib.suppress(OSError):
            if now - part.stat().st_mtime > _PART_S:
                shutil.rmtree(part, ignore_errors=True)
    for about in folder.glob(f"*/{_ABOUT}"):
        with contextlib.suppress(OSError, ValueError):
            same = json.loads(about.read_text()).get("machine") == machine
            if now - about.stat().st_mtime > (_REPLACED_S if same else _UNUSED_S):
                shutil.rmtree(about.parent, ignore_errors=True)


def discard_state(state: SavedState) -> None:
    """Forget a state; machines that run from it go on, since they hold its files open."""
    doomed = state.memory.parent.with_suffix(f".old-{os.getpid()}")
    try:
        state.memory.parent.rename(doomed)
    except OSError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _checksum(path: Path) -> list[int]:
    """Return the file's size and its CRC-32, which costs a tenth of what a SHA-256 would."""
    size, crc = 0, 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, crc]


@asynccontextmanager
async def _only_maker(path: Path, progress: Progress) -> AsyncIterator[None]:
    lock, told = FileLock(path, mode=0o644), False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not told:
                progress.log("another process boots this board for the first time: waiting for it")
            told = True
            await asyncio.sleep(_LOOK_S)
    try:
        yield
    finally:
        lock.release()
