"""Runtimes that the host brought: a folder each, unpacked from wheels, whole or not there.

The host unpacks sites into a board's image by the same function as the agent on a board.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from typing import Any, Callable, Collection, Dict, List, Optional, Sequence, Tuple

MARKER = ".complete"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_PIECE = 1 << 20
_BLOCK = 4096
_NEVER_IMPORTED = re.compile(
    r"numpy/(.*/)?tests/|.*\.pyi$|.*\.data/(scripts|headers|data)/"
    r"|onnxruntime/(tools|transformers|quantization)/"
    r"|ai_edge_litert/(tools|vendors|aot)/|ai_edge_litert/libLiteRtWebGpuAccelerator\.so$"
)
"""Members that no inference imports; together they are a third of the bytes on the disk."""
_INSTALLED = re.compile(r"[^/]+\.data/(?:pure|plat)lib/")
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError)
"""What zipfile raises for an archive that is none, damaged, encrypted or packed strangely."""
_OF_THE_WHEEL = (errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Errors of the system that a wheel brings about (places in it that can't be, names that clash)."""
Wheel = Tuple[str, str]
"""A wheel's file name, and where its bytes lie."""


class SiteError(Exception):
    """Wheels can't become a site; `code` names why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_name(name: object) -> str:
    """Return `name` if it can be a folder's name.

    Raises:
        SiteError: ("bad-request") it can't.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SiteError("bad-request", "not a site's name: %.80r" % (name,))
    return name


def _members(archive: zipfile.ZipFile, file: str) -> List[Tuple[zipfile.ZipInfo, str]]:
    """Return the members that are unpacked, each with its path in the site.

    Raises:
        SiteError: ("bad-wheel") a path leads out of the site.
    """
    chosen = []
    for info in archive.infolist():
        path = info.filename
        parts = path.rstrip("/").split("/")
        if not path or path[0] == "/" or "\\" in path or "\0" in path or ".." in parts:
            raise SiteError("bad-wheel", "%s: member %.80r leads out of its folder" % (file, path))
        if not path.endswith("/") and not _NEVER_IMPORTED.match(path):
            chosen.append((info, _INSTALLED.sub("", path, 1)))
    return chosen


def size_bytes(wheels: Sequence[Wheel]) -> int:
    """Return how many bytes the site of these wheels takes, rounded up to blocks.

    Raises:
        SiteError: ("bad-wheel") one is no wheel.
        OSError: one can't be read.
    """
    total = 0
    for file, path in wheels:
        with _opened(file, path) as archive:
            for info, _ in _members(archive, file):
                total += -(-info.file_size // _BLOCK) * _BLOCK
    return total


def _opened(file: str, path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise SiteError("bad-wheel", "%s: %s" % (file, error)) from error


def unpack(wheels: Sequence[Wheel], folder: str, about: Dict[str, Any]) -> None:
    """Make the site `folder` from wheels, in one step from not there to whole.

    Args:
        wheels: names and paths.
        folder: the site; a damaged one that is there is replaced.
        about: JSON-able facts for its marker, such as runtime and name.

    Raises:
        SiteError: ("bad-wheel") one is no wheel, or cut short; nothing is left behind.
        OSError: the disk is full, or fails; nothing is left behind.
    """
    parent, name = os.path.split(os.path.abspath(folder))
    fresh = os.path.join(parent, ".%s.%d.tmp" % (name, os.getpid()))
    shutil.rmtree(fresh, ignore_errors=True)
    os.makedirs(fresh, mode=0o755)
    try:
        for file, path in wheels:
            _unpack_one(file, path, fresh)
        files, total = _count(fresh)
        # The marker must not reach the disk before what it vouches for.
        os.sync()
        with open(os.path.join(fresh, MARKER), "w") as stream:
            json.dump(dict(about, files=files, bytes=total), stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _unpack_one(file: str, wheel: str, folder: str) -> None:
    with _opened(file, wheel) as archive:
        for info, path in _members(archive, file):
            target = os.path.join(folder, path)
            try:
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                with archive.open(info) as source, open(target, "wb") as stream:
                    shutil.copyfileobj(source, stream, _PIECE)
            except OSError as error:
                if error.errno not in _OF_THE_WHEEL:
                    raise
                raise SiteError("bad-wheel", "%s: %s: %s" % (file, path, error)) from error
            except _DAMAGE as error:
                raise SiteError("bad-wheel", "%s: %s: %s" % (file, path, error)) from error


def _count(folder: str) -> Tuple[int, int]:
    """Return files and bytes of a site, without its marker and what the interpreter compiled."""
    files = total = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [entry for entry in folders if entry != "__pycache__"]
        for name in names:
            if place != folder or name != MARKER:
                files += 1
                total += os.path.getsize(os.path.join(place, name))
    return files, total


def read_marker(folder: str) -> Optional[Dict[str, Any]]:
    """Return the facts of a site that was unpacked to its end, else None."""
    try:
        with open(os.path.join(folder, MARKER), encoding="utf-8") as stream:
            about = json.load(stream)
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def is_whole(folder: str) -> bool:
    """Return whether the site is complete, and its files still as many and as long as then."""
    about = read_marker(folder)
    try:
        return about is not None and _count(folder) == (about.get("files"), about.get("bytes"))
    except OSError:
        return False


class Shelf:
    """The sites of one board, under one root.

    Args:
        root: their folder; made when the first site is.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._whole: Dict[str, bool] = {}

    def path(self, name: str) -> str:
        """Return where a site lies, whether it is there or not."""
        return os.path.join(self._root, check_name(name))

    def names_of(self, folders: Sequence[str]) -> List[str]:
        """Return the names of those folders that are sites of this shelf, whole or not."""
        root = os.path.realpath(self._root)
        pairs = [os.path.split(os.path.realpath(folder)) for folder in folders]
        return [name for parent, name in pairs if parent == root]

    def names(self) -> List[str]:
        """Return the sites that were unpacked to their end."""
        return [name for _, name in sorted(self._by_age(), reverse=True)]

    def _by_age(self) -> List[Tuple[float, str]]:
        found = []
        for name in self._entries():
            marker = os.path.join(self._root, name, MARKER)
            if not name.startswith(".") and os.path.exists(marker):
                found.append((os.path.getmtime(marker), name))
        return sorted(found)

    def _entries(self) -> List[str]:
        return os.listdir(self._root) if os.path.isdir(self._root) else []

    def has(self, name: str) -> bool:
        """Return whether a site is here and whole; its files are looked at once per agent."""
        if not self._whole.get(name):
            self._whole[name] = is_whole(self.path(name))
        return self._whole[name]

    def touch(self, name: str) -> None:
        """Note that a site is used."""
        os.utime(os.path.join(self.path(name), MARKER))

    def droppable_bytes(self, keep: Collection[str]) -> int:
        """Return what the sites but those in `keep` take."""
        names = [name for name in self.names() if name not in keep]
        return sum(int((read_marker(self.path(name)) or {}).get("bytes", 0)) for name in names)

    def drop_oldest(
        self, needed_bytes: int, keep: Collection[str], free: Callable[[], int]
    ) -> None:
        """Remove what was longest unused until so much is free, but for the sites in `keep`."""
        for _, name in self._by_age():
            if free() >= needed_bytes:
                return
            if name not in keep:
                self._whole.pop(name, None)
                # The marker goes first: what is left of a removal cut short is no site.
                os.unlink(os.path.join(self.path(name), MARKER))
                shutil.rmtree(self.path(name), ignore_errors=True)

    def sweep(self) -> None:
        """Remove what an agent left that was killed while it unpacked or removed a site."""
        for name in self._entries():
            path = os.path.join(self._root, name)
            if not os.path.exists(os.path.join(path, MARKER)):
                shutil.rmtree(path, ignore_errors=True)
