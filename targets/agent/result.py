"""What a worker found, in memory until its window is over and then in one file."""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

if TYPE_CHECKING:
    import resource
    from array import array

LENGTH = struct.Struct("<I")
"""Precedes an order to a worker, and the head of a result file."""


class Result:
    """What one process found, kept in memory until the window is over."""

    def __init__(self) -> None:
        self.head: Dict[str, Any] = {"process": {"pid": os.getpid()}}
        self._arrays: List[Tuple[Dict[str, Any], bytes]] = []

    @property
    def process(self) -> Dict[str, Any]:
        """Facts of this process, for the outcome's evidence."""
        process: Dict[str, Any] = self.head["process"]
        return process

    def add(self, quantity: str, kind: str, warm: bool, values: array[int]) -> None:
        """Keep raw values; `kind` "clock" stands for the clock that durations are read on."""
        if sys.byteorder == "big":
            values = values[:]
            values.byteswap()
        about = {"quantity": quantity, "kind": kind, "warm": warm}
        self._arrays.append((about, values.tobytes()))

    def write(self, path: str) -> None:
        """Write everything to a new file that appears whole or not at all."""
        head = dict(self.head, arrays=[dict(about, bytes=len(raw)) for about, raw in self._arrays])
        text = json.dumps(head).encode()
        with open(path + ".new", "wb") as stream:
            stream.write(LENGTH.pack(len(text)) + text)
            for _, raw in self._arrays:
                stream.write(raw)
        os.replace(path + ".new", path)


def read_result(path: str) -> Tuple[Dict[str, Any], List[Tuple[Dict[str, Any], bytes]]]:
    """Read what `Result.write` wrote.

    Raises:
        OSError: there is no result.
    """
    with open(path, "rb") as stream:
        (size,) = LENGTH.unpack(stream.read(LENGTH.size))
        head = json.loads(stream.read(size))
        arrays = [(about, stream.read(about.pop("bytes"))) for about in head.pop("arrays")]
    return head, arrays


def usage_json(usage: resource.struct_rusage) -> Dict[str, Any]:
    """Return what the kernel counted for a process that has ended; Linux gives kB for its peak."""
    return {
        "ru_maxrss_bytes": usage.ru_maxrss * 1024,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
    }
