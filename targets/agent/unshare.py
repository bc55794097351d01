"""Give a copied process pages of its own before anything in it is timed by counted instructions.

A copy (fork) shares memory with the process that it was copied from, until it writes: then the
kernel copies the page, which takes some 5,000 instructions. Which inference meets how many of these
faults is chance, and for a network of 0.1 ms one is a tenth of its latency. So every page that is
there and may be written is written to beforehand.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from typing import Iterator, Tuple

_PRESENT = 1 << 63
_ENTRY_BYTES = 8
_MADV_POPULATE_WRITE = 23
"""Linux 5.14 and later; an older kernel refuses it, and the pages stay shared."""


def own_pages() -> None:
    """Copy what this process may write and shares; where that can't be done nothing happens.

    Pages that are not there stay away: the process does not grow by what it never touches.
    """
    page = os.sysconf("SC_PAGESIZE")
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        with open("/proc/self/pagemap", "rb", 0) as pagemap:
            for first, last in _writable(page):
                pagemap.seek(_ENTRY_BYTES * first)
                for start, end in _present(pagemap.read(_ENTRY_BYTES * (last - first))):
                    address = (first + start) * page
                    madvise(address, (end - start) * page, _MADV_POPULATE_WRITE)
    except OSError:
        pass


def _writable(page: int) -> Iterator[Tuple[int, int]]:
    """Give the first page number of each private mapping to write to, and that behind its last."""
    with open("/proc/self/maps") as stream:
        lines = stream.read().splitlines()
    for line in lines:
        where, mode = line.split(None, 2)[:2]
        if mode.startswith("rw") and mode.endswith("p"):
            first, last = where.split("-")
            yield int(first, 16) // page, int(last, 16) // page


def _present(data: bytes) -> Iterator[Tuple[int, int]]:
    """Give the runs of pages that are there, by the kernel's 64 bits for each."""
    entries = array("Q", data[: len(data) // _ENTRY_BYTES * _ENTRY_BYTES])
    start = None
    for number, entry in enumerate(entries):
        if entry & _PRESENT:
            start = number if start is None else start
        elif start is not None:
            yield start, number
            start = None
    if start is not None:
        yield start, len(entries)
