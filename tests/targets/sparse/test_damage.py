"""Files that are no programs, damaged or hostile: an answer and nothing else, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flatsat.compressors.sparse_program import FORMATS, Op, to_bytes
from flatsat.targets.agent.runtime_sparse import Program, SparseLibrary

MUTANTS = 30_000
# Runs in a process of its own: a crash is seen by its exit. What the library takes for a program
# is run, and what PyTorch's reader takes must be the same.
SCRIPT = """
import json, random, resource, struct, sys
import numpy as np
from flatsat.compressors.sparse_read import from_bytes
from flatsat.errors import ModelError
from flatsat.targets.agent.runtime_sparse import Program, SparseLibrary

library = SparseLibrary(sys.argv[1])
seeds = [bytes.fromhex(line) for line in sys.stdin.read().split()]
limit = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit + (1 << 32), limit + (1 << 32)))
rng = random.Random(int(sys.argv[3]))
told = {"sound": 0, "run": 0, "differ": []}
words = (0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 1 << 24, 1 << 28, (1 << 31) - 1, (1 << 32) - 1)
for n in range(int(sys.argv[2])):
    data = bytearray(rng.choice(seeds))
    values, ops = struct.unpack_from("<2I", data, 16)
    tables = 64 + 16 * values + 128 * ops
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        at = rng.randrange(min(tables, len(data)) if rng.random() < 0.8 else len(data))
        if kind < 0.5:
            at -= at % 4
            word = rng.choice(words) if rng.random() < 0.7 else rng.randrange(64)
            data[at : at + 4] = struct.pack("<I", word)
        elif kind < 0.8:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.9:
            del data[at:]
            if len(data) > 16 and rng.random() < 0.5:
                data[12:16] = struct.pack("<I", len(data))
        else:
            data[at:at] = bytes(rng.randrange(1, 9))
        if len(data) < 24:
            break
    try:
        loaded = Program(library, bytes(data))
    except MemoryError:
        continue
    except ValueError as error:
        loaded = None
        why = str(error)
    try:
        from_bytes(bytes(data))
        reads = True
    except ModelError as error:
        reads = False
        why = str(error)
    except MemoryError:
        continue
    if (loaded is not None) != reads and "names" not in why and "memory" not in why:
        told["differ"].append([why, bytes(data).hex()])
    if loaded is None:
        continue
    told["sound"] += 1
    if loaded.work < 1 << 24:
        loaded.run(np.ones((2,) + tuple(loaded.source.shape[1:]), np.float32))
        told["run"] += 1
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def files(programs: Any) -> list[bytes]:
    made = [programs.everything(format_) for format_ in FORMATS]
    window = {"kernel": (3, 2), "stride": (2, 3), "before": (1, 0), "behind": (2, 1)}
    made += [programs.conv((4, 9, 9), 6, f, groups=2, **window) for f in FORMATS]
    wide = Op("stretch", 1, (0,), stride=(2, 3))
    made.append(programs.one(wide, (2, 4, 5), (2, 7, 13)))
    return [to_bytes(program) for program in made]


def test_mutated_programs_neither_crash_nor_run_away(
    library_path: Path, files: list[bytes]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library_path), str(MUTANTS), "11"],
        input="\n".join(data.hex() for data in files),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["differ"] == []
    # Enough of them are still programs for the running of such to be tried.
    assert told["run"] > MUTANTS / 50


def test_what_is_wrong_is_told_by_its_operation(library: SparseLibrary, files: list[bytes]) -> None:
    with pytest.raises(ValueError, match="no sparse program"):
        Program(library, b"x" * 100)
    with pytest.raises(ValueError, match="cut short"):
        Program(library, b"")
    data = bytearray(files[1])
    values = int.from_bytes(data[16:20], "little")
    third = 64 + 16 * values + 128 * 3
    data[third : third + 4] = (99).to_bytes(4, "little")
    with pytest.raises(ValueError, match="operation 3: an operation is unknown"):
        Program(library, bytes(data))


def test_a_program_beyond_any_memory_is_refused(library: SparseLibrary, programs: Any) -> None:
    data = bytearray(to_bytes(programs.everything()))
    # The input and the values made of it by copies would take a gigabyte each.
    for value in range(8):
        data[64 + 16 * value : 80 + 16 * value] = b"".join(
            n.to_bytes(4, "little") for n in (3, 1, 1 << 14, 1 << 15)
        )
    with pytest.raises(ValueError, match="shape"):
        Program(library, bytes(data))
