"""Decode damaged coded files under a memory limit, and see that none crashes, swells or hangs.

Real networks are coded by every codec; then each file is damaged again and again: bits, bytes,
stretches removed, repeated, swapped and put in, ends cut off. Half of the damage goes to the
structure (numbers, kinds, counts), whose places the reader tells. Beside those stand files written
to do harm: headers that claim far more than there is. All are decoded in child processes under
RLIMIT_AS, by the compiled coder and by Python's. A damaged file must give one line of error, or
the very model file (bits behind the last symbol may be any).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import results

from flatsat.coded import container
from flatsat.coded.container import decode, read_header
from flatsat.coded.errors import CodedError
from flatsat.compressors.codec import SUFFIX, coder_library, number
from flatsat.compressors.registry import step_class, step_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flatsat.coded.native import Library

MARGIN_BYTES = 64 << 20
"""What decoding may take beside what the process held when it had decoded every sound file."""
SLOW_S = 60.0
PYTHON_SHARE = 0.01
"""Python takes hundreds of times as long: so much of the damage is its share."""
PYTHON_BYTES = 1900
"""It gets small files alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="damaged files by the C coder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    if given.out:
        results.RESULTS = given.out
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder))
        rows = [
            row(file, by, told)
            for (file, by), told in sorted(run(files, given, Path(folder)).items())
        ]
    total = {key: sum(one["told"].get(key, 0) for one in rows) for key in ("refused", "same")}
    bad = sum(one["bad"] for one in rows)
    count = sum(one["count"] for one in rows)
    results.write(
        "hostile_files",
        "Damaged coded files under a memory limit",
        f"{count:,} damaged files, each decoded in a process that may take"
        f" {MARGIN_BYTES >> 20} MiB beside what it held after decoding every sound one:"
        f" {total['refused']:,} refused with one line of error, {total['same']:,} gave the very"
        f" model file, {bad:,} anything else.",
        (
            "file",
            "coder",
            "coded, bytes",
            "damaged",
            "refused",
            "the very model file",
            "anything else",
            "slowest, ms",
            "peak beyond, MiB",
        ),
        [
            (
                one["file"],
                one["by"],
                one["bytes"],
                one["count"],
                one["told"].get("refused", 0),
                one["told"].get("same", 0),
                one["bad"],
                f"{1e3 * one['slowest_s']:.1f}",
                f"{one['beyond_mib']:.0f}",
            )
            for one in rows
        ],
        notes=[
            "The very model file: what was damaged are bits behind the last symbol, or fill in"
            " DEFLATE streams; the SHA-256 of what came out is right.",
            "Anything else: another model file, another exception, no memory, a crash, or more"
            f" than {SLOW_S:g} s; each would be listed in the .json.",
            "Crafted: headers that claim as many levels, entries, columns, counts and tensors as"
            " the format has numbers for, in every coding.",
            "Peak beyond: growth of the process's largest resident size.",
            f"Python decodes {PYTHON_SHARE:.1%} as many, of small files: it is hundreds of times"
            " slower.",
        ],
        data=rows,
    )
    if bad:
        sys.exit(f"{bad} files did something else")


def run(
    files: list[Path], given: argparse.Namespace, folder: Path
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Deal the damage out to child processes; return what each told, by file and coder."""
    native = coder_library() is not None
    jobs: list[tuple[Path, str, int, int]] = []
    small = [file for file in files if 0 < file.stat().st_size <= PYTHON_BYTES]
    for by, chosen, count in (
        ("c", files if native else [], given.count),
        ("python", small, max(round(given.count * PYTHON_SHARE), 1)),
    ):
        for number_, file in enumerate(chosen):
            share = count // len(chosen) + (number_ < count % len(chosen))
            jobs += [(file, by, part, given.seed) for part in split(share, given.workers)]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    running: list[tuple[tuple[Path, str, int, int], Any, Path]] = []
    for place, job in enumerate([*jobs, *[None] * given.workers]):
        while running and (job is None or len(running) >= given.workers):
            done, process, path = running.pop(0)
            process.wait()
            told = read(path, process.returncode, done[2])
            found.setdefault((done[0].name, done[1]), []).append(
                {**told, "bytes": done[0].stat().st_size}
            )
        if job is None:
            continue
        path = folder / f"told-{place}"
        argv = [str(job[0]), job[1], str(job[2]), str(1000 * job[3] + place)]
        with path.open("wb") as out, path.with_suffix(".err").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, __file__, "--child", *argv], stdout=out, stderr=err
            )
        print(*argv[1:], job[0].name, file=sys.stderr, flush=True)
        running.append((job, process, path))
    return found


def split(count: int, parts: int) -> Iterator[int]:
    for part in range(parts):
        share = count // parts + (part < count % parts)
        if share:
            yield share


def read(path: Path, returned: int, count: int) -> dict[str, Any]:
    """Return what a child told; what it did not live to tell is something else."""
    lines = path.read_text().splitlines()
    if returned == 0 and lines:
        told: dict[str, Any] = json.loads(lines[-1])
        return told
    error = path.with_suffix(".err").read_text()[-500:]
    return {
        "count": count,
        "told": {},
        "else": [f"the process ended with {returned}: {error}"],
        "slowest_s": 0.0,
        "beyond_mib": 0.0,
    }


def row(file: str, by: str, told: list[dict[str, Any]]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for one in told:
        counts.update(one["told"])
    bad = sum(max(one["count"] - sum(one["told"].values()), len(one["else"])) for one in told)
    return {
        "file": file.removesuffix(SUFFIX),
        "by": by,
        "bytes": told[0]["bytes"],
        "count": sum(one["count"] for one in told),
        "told": dict(counts),
        "bad": bad,
        "else": [text for one in told for text in one["else"]],
        "slowest_s": max(one["slowest_s"] for one in told),
        "beyond_mib": max(one["beyond_mib"] for one in told),
    }


# What is damaged.


def write_files(folder: Path) -> list[Path]:
    """Code small real networks by every codec; return the files."""
    found = []
    for network, (data, ranges, suffix) in models().items():
        for name in step_names("codec"):
            coded = step_class(name)().encode(data, ranges, suffix)
            path = folder / f"{network}, {name}{SUFFIX}"
            path.write_bytes(coded)
            found.append(path)
    path = folder / f"crafted{SUFFIX}"
    path.write_bytes(b"")
    return [*found, path]


def models() -> dict[str, tuple[bytes, Any, str]]:
    """Return model files of trained networks: shared weights, int8, floats, a sparse program."""
    import torch

    from flatsat.cache import default_cache_dir
    from flatsat.compressors.base import Network, StepContext
    from flatsat.compressors.magnitude import MagnitudePrune
    from flatsat.compressors.onnx_int8 import OnnxInt8
    from flatsat.compressors.onnx_lower import OnnxLower
    from flatsat.compressors.sharing import ShareWeights
    from flatsat.compressors.sparse_lower import SparseLower
    from flatsat.compressors.tensor_ranges import tensor_ranges
    from flatsat.datasets.reference import reference
    from flatsat.datasets.workload import workload

    torch.set_num_threads(1)
    task = workload("mnist-mini")
    splits, cache = task.splits(), default_cache_dir()
    shape = tuple(int(n) for n in splits.train.x.shape[1:])
    context = StepContext.of(task, "lenet5", seed=0, cache_dir=cache)
    made: dict[str, tuple[bytes, Any, str]] = {}

    def keep(name: str, data: bytes, format_: str) -> None:
        made[name] = (data, tensor_ranges(data, format_), format_)

    for width, size in ((0.274, ""), (0.06, "tiny ")):
        trained = reference(task, "lenet5", seed=0, width=width, cache_dir=cache)
        dense = Network(trained.module, shape)
        pruned = MagnitudePrune(MagnitudePrune.Params(sparsity=0.9, epochs=0)).apply(dense, context)
        shared = ShareWeights(
            ShareWeights.Params(bits={"conv": 5, "fc": 4}, epochs=0, biases=8)
        ).apply(pruned, context)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for kind, network in (("shared", shared), ("pruned", pruned)):
                if kind == "shared" or size:
                    lowered = OnnxLower(OnnxLower.Params()).lower(network, folder, context)
                    file = (folder / lowered.file).read_bytes()
                    keep(f"{size}lenet5 {kind} onnx", file, "onnx")
                    if kind == "shared" and not size:
                        int8 = OnnxInt8(OnnxInt8.Params(n=32)).apply(lowered, folder, context)
                        keep("lenet5 int8 onnx", (folder / int8.file).read_bytes(), "onnx")
            if not size:
                program = SparseLower(SparseLower.Params()).lower(shared, folder, context)
                file = (folder / program.file).read_bytes()
                keep("lenet5 shared sparse-c", file, "sparse-c")
    return made


class Places(container._Reader):
    """A reader that remembers where the structure of a file lies."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, None)
        self.places: list[int] = []

    def byte(self) -> int:
        """Read a byte of the structure."""
        self.places.append(self._at)
        return super().byte()


def damaged(data: bytes, places: list[int], chance: random.Random) -> bytes:
    """Return a damaged copy."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        if not out:
            break
        at = chance.choice(places) if chance.random() < 0.5 else chance.randrange(len(out))
        at = min(at, len(out) - 1)
        kind = chance.randrange(8)
        if kind == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[at] = chance.choice((0, 1, 2, 127, 128, 255, chance.randrange(256)))
        elif kind == 2:
            del out[at : at + chance.choice((1, 2, 4, 8, 200))]
        elif kind == 3:
            out[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 4:
            # Another number in place of this one.
            end = at
            while end < len(out) - 1 and out[end] > 127:
                end += 1
            out[at : end + 1] = number(chance.getrandbits(chance.randrange(1, 64)))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            size, target = chance.randrange(1, 64), chance.randrange(len(out))
            out[target : target + size] = out[at : at + size]
        else:
            size, target = chance.randrange(1, 64), chance.randrange(len(out))
            out[target:target] = out[at : at + size]
    return bytes(out)


def crafted(chance: random.Random) -> bytes:
    """Return a file whose header claims as much as it can."""
    tensors = []
    many = chance.choice((1, 1, 3, 200, 2000))
    # What about so many tensors may plausibly stand for, and more than that.
    room = chance.choice((0, 1000, 1 << 18, 1 << 20, (1 << 20) + 4096 * 20 * many, 1 << 40))
    inside = 0
    for _ in range(many):
        coding = chance.randrange(6)
        element = chance.choice((1, 2, 4, 4))
        wide = 4 if element == container.FLOAT32 else 1
        count = chance.choice((0, 1, 64, 1000, room // many // wide, room // many // wide))
        inside += count * wide
        columns = chance.choice((1, max(count, 1), 2))
        told = number(0) + number(count) + bytes([element, coding])
        size = chance.choice((1, 2, 256, 4096, 65536))
        if coding in (container.HUFFMAN, container.CONTEXT, container.RANGE, container.ANS):
            if element == container.FLOAT32:
                told += bytes([container.STEPS]) + number(size) + number(size // 2)
                told += np.array([0.0, 0.125], "<f4").tobytes() + number(0) + b"\0"
            else:
                told += bytes([container.SELF]) + number(chance.randrange(256))
                size = 256
        if coding != container.PLAIN:
            told += number(columns)
        if coding in (container.CONTEXT, container.PLANES):
            told += number(chance.choice((0, 1, columns)))
        elif coding == container.HUFFMAN:
            bits = chance.choice((0, 1, 16))
            lengths = bytearray(size + ((1 << bits) if bits else 0))
            lengths[0] = lengths[-1] = 1
            packed = _deflated(bytes(lengths))
            told += bytes([bits]) + number(count) + number(len(packed)) + packed
            told += number(3) + b"\0\0\0" + (number(2) + b"\1\2" if bits else b"")
        elif coding in (container.RANGE, container.ANS):
            counts = [0] * min(size, 300)
            counts[0] = count
            words = chance.randbytes(4 * chance.randrange(4))
            told += b"".join(map(number, counts)) + number(len(words)) + words
        else:
            packed = _deflated(bytes(chance.choice((0, 10, 1 << 20))))
            told += number(len(packed)) + packed
        tensors.append(told)
    around = chance.choice((0, 100, 100, 1 << 22))
    skeleton = _deflated(bytes(around))
    file_bytes = chance.choice((inside + around, inside + around, room, 1 << 40))
    stream = chance.randbytes(chance.choice((0, 4, 40)))
    return b"".join(
        (
            container.MAGIC,
            bytes([container.VERSION]),
            bytes(32),
            number(file_bytes),
            b"\4onnx",
            number(len(skeleton)) + skeleton,
            number(len(tensors)) + b"".join(tensors),
            number(len(stream)) + stream,
        )
    )


@functools.lru_cache
def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


# The child.


def child(path: str, by: str, count: str, seed: str) -> None:
    """Decode damaged copies of one file under a memory limit; tell what happened."""
    library: Library | None = coder_library() if by == "c" else None
    sound = Path(path).read_bytes()
    places: list[int] = []
    whole = b""
    if sound:
        reader = Places(sound)
        reader.header()
        places = reader.places
        whole = decode(sound, library=library)
    warm(library)
    have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + MARGIN_BYTES, have + MARGIN_BYTES))
    # From here on the highest resident size is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = highest_bytes()
    signal.signal(signal.SIGALRM, _too_slow)
    chance = random.Random(int(seed))
    told: Counter[str] = Counter()
    bad: list[str] = []
    slowest = 0.0
    for _ in range(int(count)):
        data = damaged(sound, places, chance) if sound else crafted(chance)
        begun = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SLOW_S)
        try:
            found = decode(data, library=library)
        except CodedError as error:
            if not str(error) or "\n" in str(error):
                bad.append(f"an error of no or several lines: {error!r}")
            else:
                told["refused"] += 1
        except BaseException as error:
            bad.append(f"{type(error).__name__}: {str(error)[:200]}: {data[:2000].hex()}")
        else:
            if found == whole and sound:
                told["same"] += 1
            else:
                bad.append(f"another model file: {data[:2000].hex()}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - begun)
    answer = {
        "count": int(count),
        "told": told,
        "else": bad[:20] + [""] * max(len(bad) - 20, 0),
        "slowest_s": slowest,
        "beyond_mib": (highest_bytes() - before) / (1 << 20),
    }
    sys.stdout.flush()
    os.write(1, json.dumps(answer).encode() + b"\n")


def highest_bytes() -> int:
    """Return the largest resident size so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def warm(library: Library | None) -> None:
    """Decode one small file of every codec, so that all that is imported is there."""
    from flatsat.compressors.tensor_ranges import TensorRange

    values = np.repeat(np.arange(4, dtype=np.float32), 20).tobytes()
    for name in step_names("codec"):
        coded = step_class(name)().encode(values, [TensorRange(0, 4, (80,))])
        decode(coded, library=library)
        with contextlib.suppress(CodedError):
            read_header(coded[:-1])


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SLOW_S:g} s")


if __name__ == "__main__":
    main()
