"""What runs on a board before the agent is there: it looks around and takes the agent's archive.

Other files come the same way where the agent's own link is too slow for them.

This file's source is sent as an argument and run by the board's Python. It answers with one line of
JSON behind a mark, which tells the answer from whatever a shell's start-up files print.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from typing import Any, Dict, Mapping

_PIECE = 1 << 16
_CODES = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
}


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            piece = stream.read(_PIECE)
            if not piece:
                return digest.hexdigest()
            digest.update(piece)


def _offset(partial: str, size: int) -> int:
    """Return how much of an unfinished transfer is here; one that is too long starts anew."""
    try:
        have = os.path.getsize(partial)
    except OSError:
        return 0
    if have > size:
        os.unlink(partial)
        return 0
    return have


def _finish(partial: str, path: str, sha: str) -> bool:
    """Give the archive its name, durably, if its bytes are right; else drop it."""
    if _digest(partial) != sha:
        os.unlink(partial)
        return False
    with open(partial, "rb") as stream:
        os.fsync(stream.fileno())
    os.rename(partial, path)
    return True


def _receive(partial: str, left: int) -> None:
    with open(partial, "ab") as stream:
        while left:
            piece = os.read(0, min(left, _PIECE))
            if not piece:
                return
            stream.write(piece)
            # What has come must outlive a cut of the line.
            stream.flush()
            left -= len(piece)


def work(orders: Mapping[str, Any]) -> Dict[str, Any]:
    """Do what is ordered.

    Args:
        orders: "do" ("look", "take" or "finish"), "store", and the file's "name" and "partial"
            (while it is not whole) in there, "sha" and "size"; for "take" its bytes from "offset"
            come on standard input.

    Returns:
        "store" (absolute), "have" (it is here, whole), "offset" (where an unfinished transfer
        ends), "free_bytes".

    Raises:
        OSError: the store can't be used.
    """
    store = os.path.abspath(os.path.expanduser(orders["store"]))
    os.makedirs(store, 0o700, exist_ok=True)
    path = os.path.join(store, orders["name"])
    partial = os.path.join(store, orders["partial"])
    for folder in (os.path.dirname(path), os.path.dirname(partial)):
        os.makedirs(folder, 0o700, exist_ok=True)
    if orders["do"] == "take":
        _receive(partial, orders["size"] - orders["offset"])
    have = os.path.exists(path) and _digest(path) == orders["sha"]
    offset = 0 if have else _offset(partial, orders["size"])
    if orders["do"] != "look" and not have and offset == orders["size"]:
        have = _finish(partial, path, orders["sha"])
        offset = 0
    # Neither a read-only disk nor a stranger's folder shows before something is written.
    trial = os.path.join(store, ".trial.%d" % os.getpid())
    try:
        with open(trial, "wb") as stream:
            stream.write(b"x" * 4096)
    finally:
        if os.path.exists(trial):
            os.unlink(trial)
    room = os.statvfs(store)
    return {
        "store": store,
        "have": have,
        "offset": offset,
        "free_bytes": room.f_bavail * room.f_frsize,
    }


def answer(orders: Mapping[str, Any]) -> Dict[str, Any]:
    """Return what `work` returns, or the "fault" it met: "disk-full", "permission" or "disk"."""
    about = {"executable": sys.executable, "user": os.getuid()}
    try:
        return dict(about, **work(orders))
    except OSError as error:
        text = "%s: %s" % (error.strerror, error.filename or orders["store"])
        return dict(about, fault=_CODES.get(error.errno or 0, "disk"), text=text)


def main(mark: str, orders: Mapping[str, Any]) -> None:
    """Print the answer on a line of its own, whatever stood before it."""
    sys.stdout.write("\n%s%s\n" % (mark, json.dumps(answer(orders))))
    sys.stdout.flush()
