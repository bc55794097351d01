"""The emulated ARM board's image: found at once when it is there, built once when it isn't.

It lies in `<cache>/boards/qemu-arm64/<key>/` and is never changed: boards run on overlays.
"""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock, Timeout

from flatsat.cache import default_cache_dir
from flatsat.errors import InfrastructureError
from flatsat.files import replace_file
from flatsat.progress import NoProgress, Progress
from flatsat.targets.qemu_build import make_image, make_plan, recipe_hash
from flatsat.targets.qemu_tools import MissingTools, missing_tools, require_tools

__all__ = ["Image", "MissingTools", "build_image", "find_image", "missing_tools"]

_FOLDER = Path("boards", "qemu-arm64")
_LIST = "image.json"
_CURRENT = "current.json"
_PART = ".part-"
_SHORT = 16
_PATIENCE_S = 3600.0
_KEPT_RECIPES = 3
_KEPT_S = 7 * 24 * 3600
_FILES = ("Image", "initrd.gz", "rootfs.qcow2", "user_key")


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        folder: where all of it lies.
        key: SHA-256 over the packages, wheels and own files that went in.
        kernel: the arm64 kernel.
        initrd: its first file system.
        disk: the root file system, qcow2, readable only.
        user_key: private SSH key of root, readable by its owner only.
        host_key: the board's public key, `ssh-ed25519 ...`.
        console_password: of root on the serial console.
        sites: runtime -> folder of its modules on the board.
        python: the board's interpreter.
        store: the agent's folder on the board.
    """

    folder: Path
    key: str
    kernel: Path
    initrd: Path
    disk: Path
    user_key: Path
    host_key: str
    console_password: str
    sites: Mapping[str, str]
    python: str
    store: str


def find_image(cache_dir: Path | None = None) -> Image | None:
    """Return the image that this version of FlatSat wants, if it is there and whole; at once."""
    root = _root(cache_dir)
    try:
        key = json.loads((root / _CURRENT).read_text())[recipe_hash()]
        return _read(root / str(key)[:_SHORT])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def build_image(
    *, cache_dir: Path | None = None, progress: Progress | None = None, refresh: bool = False
) -> Image:
    """Return the image; it is built from Debian's packages and aarch64 wheels if need be.

    Args:
        cache_dir: by default the user's cache.
        progress: is told about downloads and steps.
        refresh: look for newer packages even if there is an image.

    Raises:
        MissingTools: a program isn't installed; the hint is the command that installs it.
        InfrastructureError: something can't be fetched, or a tool failed.
    """
    progress = progress or NoProgress()
    if not refresh and (found := find_image(cache_dir)):
        return found
    require_tools()
    root = _root(cache_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _only_builder(root, progress):
            # Whoever built while this one waited built the same.
            if not refresh and (found := find_image(cache_dir)):
                return found
            return _build(root, cache_dir, progress)
    except OSError as error:
        raise InfrastructureError(
            f"can't build in {root}: {error.strerror or error}",
            hint="free some room there, or name another folder in FLATSAT_CACHE",
        ) from error


def _root(cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()).absolute() / _FOLDER


@contextmanager
def _only_builder(root: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(root / "build.lock", mode=0o644)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.log("another process builds the board's image: waiting for it")
        try:
            lock.acquire(timeout=_PATIENCE_S)
        except Timeout:
            raise InfrastructureError(
                "another process has been building the board's image for "
                f"{_PATIENCE_S / 60:.0f} min",
                hint=f"see who holds {lock.lock_file}",
            ) from None
    try:
        yield
    finally:
        lock.release()


def _build(root: Path, cache_dir: Path | None, progress: Progress) -> Image:
    for left in root.glob(f"{_PART}*"):
        shutil.rmtree(left, ignore_errors=True)
    downloads = root / "downloads"
    plan = make_plan(downloads, cache_dir, progress)
    folder = root / plan.key[:_SHORT]
    image = _read(folder)
    if image is None:
        part = Path(tempfile.mkdtemp(dir=root, prefix=_PART))
        try:
            about = make_image(plan, downloads / "debs", part, progress)
            files = {name: (part / name).stat().st_size for name in _FILES}
            (part / _LIST).touch(mode=0o600)
            (part / _LIST).write_text(json.dumps(about | {"files": files}, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        image = _read(folder)
        if image is None:
            raise InfrastructureError(f"the disk lost what was just written to {folder}")
        progress.log(f"built the board's image {plan.key[:_SHORT]}")
    _note(root / _CURRENT, plan.key)
    return image


def _note(path: Path, key: str) -> None:
    """Remember which image this version's recipe led to, beside those of other versions."""
    try:
        known = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    known.pop(recipe_hash(), None)
    kept = [*list(known.items())[1 - _KEPT_RECIPES :], (recipe_hash(), key)]
    text = json.dumps(dict(kept), indent=1)
    replace_file(path, lambda part: part.write_text(text))
    _drop_old(path.parent, {key for _, key in kept})


def _drop_old(root: Path, keep: set[str]) -> None:
    """Remove images that no recipe leads to and that nothing was written beside for a week."""
    for list_ in root.glob(f"*/{_LIST}"):
        folder = list_.parent
        if folder.name in {key[:_SHORT] for key in keep}:
            continue
        with suppress(OSError):
            used_s = max(entry.stat().st_mtime for entry in (folder, *folder.iterdir()))
            if time.time() - used_s > _KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> Image | None:
    """Return the image in `folder`, or None if a file is missing, cut short or open to change."""
    try:
        about = json.loads((folder / _LIST).read_text())
        for name, size_bytes in about["files"].items():
            if (folder / name).stat().st_size != size_bytes:
                return None
        disk = folder / about["disk"]
        if stat.S_IMODE(disk.stat().st_mode) & 0o222:
            return None
        return Image(
            folder=folder,
            key=about["key"],
            kernel=folder / about["kernel"],
            initrd=folder / about["initrd"],
            disk=disk,
            user_key=folder / about["user_key"],
            host_key=about["host_key"],
            console_password=about["console_password"],
            sites=MappingProxyType(dict(about["sites"])),
            python=about["python"],
            store=about["store"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
