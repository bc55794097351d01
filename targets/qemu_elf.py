"""Which shared libraries programs ask for, read from their ELF files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB = 1, 5


def needed(data: bytes) -> tuple[str, ...]:
    """Return the names of the libraries that a 64-bit little-endian ELF file needs.

    Raises:
        ValueError: it is not such a file, or is damaged.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("not a 64-bit little-endian ELF file")
    try:
        return _needed(data)
    except struct.error as error:
        raise ValueError("a damaged ELF file") from error


def missing_libraries(root: Path) -> dict[str, tuple[str, ...]]:
    """Return what can't be loaded below `root`: file -> needed names that no file there has."""
    wanted: dict[str, tuple[str, ...]] = {}
    names: set[str] = set()
    for folder, _, files in os.walk(root):
        names.update(files)
        for name in files:
            path = Path(folder, name)
            if path.is_symlink():
                continue
            with path.open("rb") as stream:
                if stream.read(len(_MAGIC)) != _MAGIC:
                    continue
                stream.seek(0)
                wanted[str(path.relative_to(root))] = needed(stream.read())
    lost = {
        path: tuple(name for name in libraries if name not in names)
        for path, libraries in wanted.items()
    }
    return {path: libraries for path, libraries in lost.items() if libraries}


def _needed(data: bytes) -> tuple[str, ...]:
    start, _, _, _, size, count = struct.unpack_from("<QQIHHH", data, 32)
    segments = []
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from(
            "<IIQQQQ", data, start + number * size
        )
        segments.append((kind, offset, address, length))
    for kind, offset, _, length in segments:
        if kind != _DYNAMIC:
            continue
        entries = list(struct.iter_unpack("<QQ", data[offset : offset + length // 16 * 16]))
        table = next((value for tag, value in entries if tag == _STRTAB), 0)
        where = next(
            (
                begin + table - address
                for sort, begin, address, extent in segments
                if sort == _LOAD and address <= table < address + extent
            ),
            None,
        )
        if where is None:
            raise ValueError("a damaged ELF file")
        return tuple(_text(data, where + value) for tag, value in entries if tag == _NEEDED)
    return ()


def _text(data: bytes, begin: int) -> str:
    end = data.find(b"\0", begin)
    if end < 0:
        raise ValueError("a damaged ELF file")
    return data[begin:end].decode(errors="replace")
