"""A copied process that has pages of its own meets no page faults where it writes to old memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import mmap, os, resource, sys
from flatsat.targets.agent.unshare import own_pages
MIB = 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")
memory = mmap.mmap(-1, 8 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
# Else one fault would serve 2 MiB.
memory.madvise(mmap.MADV_NOHUGEPAGE)
half = 4 * MIB
for at in range(0, half, PAGE):
    memory[at] = 1

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * PAGE

def look(own):
    if own:
        own_pages()
    grown, before = resident(), faults()
    for at in range(0, half, PAGE):
        memory[at] = 2
    return [faults() - before, half // PAGE, grown]

told = []
for own in (False, True):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, repr(look(own)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    told.append(eval(os.read(read, 4096)))
import json
print(json.dumps({"told": told, "still": memory[0]}))
"""


def test_no_page_is_copied_later_and_none_is_added() -> None:
    release = tuple(int(part) for part in _kernel().split(".")[:2])
    if release < (5, 14):
        pytest.skip(f"Linux {release[0]}.{release[1]} can't write to pages beforehand")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    said = json.loads(done.stdout)
    (shared, pages, plain), (owned, _, grown) = said["told"]
    assert shared >= pages
    assert owned < pages // 20
    # The other half of the mapping was never touched.
    assert grown - plain < (1 << 20)
    assert said["still"] == 1


def _kernel() -> str:
    import platform

    return platform.release()
