"""The agent's folder on the board: model and data files by SHA-256, and room for one job's work."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from typing import IO, Collection, List, Optional, Set, Tuple

from .sites import Shelf

_SHA = re.compile(r"[0-9a-f]{64}")
_PIECE = 1 << 20
_KEPT_BYTES = 4 << 30
_KEPT_PARTIAL_S = 7 * 24 * 3600


class StoreError(Exception):
    """A blob can't be taken or given; `code` names why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_sha(sha: object) -> str:
    """Return `sha` if it is 64 hex digits; it becomes a file name.

    Raises:
        StoreError: it is not.
    """
    if not isinstance(sha, str) or not _SHA.fullmatch(sha):
        raise StoreError("bad-request", "not a SHA-256: %.80r" % (sha,))
    return sha


def digest_of(path: str) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            piece = stream.read(_PIECE)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)


class Store:
    """Files under one root; a blob counts only after its bytes gave its name."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._blobs = os.path.join(self.root, "blobs")
        self._partial = os.path.join(self.root, "partial")
        self.work = os.path.join(self.root, "work")
        self.sites = Shelf(os.path.join(self.root, "sites"))
        self._checked: Set[str] = set()
        self._lock: Optional[IO[str]] = None
        for folder in (self._blobs, self._partial):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def path(self, sha: str) -> str:
        """Return where a blob lies, whether it is there or not."""
        return os.path.join(self._blobs, check_sha(sha))

    def has(self, sha: str) -> bool:
        """Return whether the blob is here and whole; its bytes are hashed once per agent."""
        path = self.path(sha)
        try:
            # Its age is that of its last use.
            os.utime(path)
            if sha in self._checked:
                return True
            whole = digest_of(path) == sha
        except OSError:
            return False
        if whole:
            self._checked.add(sha)
        else:
            os.unlink(path)
        return whole

    def offset(self, sha: str, size: int) -> int:
        """Return how many bytes of an unfinished transfer are here."""
        path = os.path.join(self._partial, check_sha(sha))
        try:
            have = os.path.getsize(path)
        except OSError:
            return 0
        if have > size:
            os.unlink(path)
            return 0
        return have

    def append(self, sha: str, offset: int, data: bytes) -> int:
        """Add bytes at the end of an unfinished blob and return its new length.

        Raises:
            StoreError: `offset` is not where the bytes so far end.
            OSError: the disk is full, or fails.
        """
        path = os.path.join(self._partial, check_sha(sha))
        with open(path, "ab") as stream:
            have = stream.seek(0, os.SEEK_END)
            if have != offset:
                raise StoreError(
                    "bad-offset", "chunk at %d, but %d bytes are here" % (offset, have)
                )
            try:
                stream.write(data)
                stream.flush()
            except OSError:
                os.ftruncate(stream.fileno(), have)
                raise
            return have + len(data)

    def finish(self, sha: str) -> bool:
        """Take a complete transfer into the store; False, and nothing kept, if its hash differs."""
        partial = os.path.join(self._partial, check_sha(sha))
        if not os.path.exists(partial):
            open(partial, "wb").close()
        if digest_of(partial) != sha:
            os.unlink(partial)
            return False
        os.replace(partial, self.path(sha))
        self._checked.add(sha)
        return True

    def scratch(self, sha: str) -> str:
        """Return where a blob is put together, from nothing; `finish` takes it into the store."""
        path = os.path.join(self._partial, check_sha(sha))
        if os.path.exists(path):
            os.unlink(path)
        return path

    def adopt(self, path: str) -> Tuple[str, int]:
        """Move a file that a worker wrote into the store; return its SHA-256 and size."""
        sha, size = digest_of(path), os.path.getsize(path)
        os.replace(path, self.path(sha))
        self._checked.add(sha)
        return sha, size

    def free_bytes(self) -> int:
        """Return the room that is left on this disk."""
        return shutil.disk_usage(self.root).free

    def drop(self, sha: str) -> None:
        """Remove a blob, if it is here."""
        if os.path.exists(self.path(sha)):
            os.unlink(self.path(sha))

    def droppable_bytes(self, keep: Collection[str]) -> int:
        """Return what blobs and unfinished transfers but those in `keep` take."""
        entries = self._by_age(self._partial) + self._by_age(self._blobs)
        return sum(size for _, size, name in entries if name not in keep)

    def drop_oldest(self, needed_bytes: int, keep: Collection[str]) -> None:
        """Remove unfinished transfers, then blobs, the oldest first, until so much is free.

        Those in `keep` stay.
        """
        for folder in (self._partial, self._blobs):
            for _, _, name in self._by_age(folder):
                if self.free_bytes() >= needed_bytes:
                    return
                if name not in keep:
                    os.unlink(os.path.join(folder, name))

    def _by_age(self, folder: str) -> List[Tuple[float, int, str]]:
        """Return time of last use, size and name of a folder's files, the oldest first."""
        entries = []
        for name in os.listdir(folder):
            status = os.stat(os.path.join(folder, name))
            entries.append((status.st_mtime, status.st_size, name))
        return sorted(entries)

    def prune(self, keep_bytes: int = _KEPT_BYTES) -> None:
        """Drop the blobs that were longest not used beyond `keep_bytes`, or beyond half the disk.

        Transfers that nobody went on with for a week go, too.
        """
        entries = self._by_age(self._blobs)
        left = min(keep_bytes, (sum(entry[1] for entry in entries) + self.free_bytes()) // 2)
        for _, size, name in reversed(entries):
            left -= size
            if left < 0:
                os.unlink(os.path.join(self._blobs, name))
        for name in os.listdir(self._partial):
            path = os.path.join(self._partial, name)
            if time.time() - os.path.getmtime(path) > _KEPT_PARTIAL_S:
                os.unlink(path)

    def fresh_work(self) -> str:
        """Return the work folder, emptied of what an earlier job left."""
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work, mode=0o700)
        return self.work

    def epoch(self) -> int:
        """Return the newest epoch that this board was leased under."""
        try:
            with open(os.path.join(self.root, "epoch")) as stream:
                return int(stream.read())
        except (OSError, ValueError):
            return 0

    def set_epoch(self, epoch: int) -> None:
        """Keep the epoch, so that an older lease is refused after a restart, too."""
        path = os.path.join(self.root, "epoch")
        with open(path + ".new", "w") as stream:
            stream.write("%d\n" % epoch)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(path + ".new", path)

    def try_lock(self) -> Optional[int]:
        """Become the board's one agent: return None, or the process id of the other one (or 0)."""
        if self._lock is not None:
            return None
        path = os.path.join(self.root, "agent.lock")
        stream = open(path, "a+")  # noqa: SIM115  (held until this process ends)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            text = stream.read().strip()
            stream.close()
            return int(text) if text.isdigit() else 0
        stream.seek(0)
        stream.truncate()
        stream.write("%d\n" % os.getpid())
        stream.flush()
        self._lock = stream
        return None
