"""What the benchmarks of boards share: a board in use, jobs without a record, busy processors."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_file
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Measured
from flatsat.targets.pool import LocalPool
from flatsat.targets.qemu_image import find_image

if TYPE_CHECKING:
    from flatsat.targets.board import Board, Session


def say(text: str) -> None:
    """Tell on standard error what goes on."""
    print(text, file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def in_use(board: Board, folder: Path | None = None) -> AsyncIterator[Session]:
    """Lease and open a board for the length of an `async with` block."""
    with contextlib.ExitStack() as stack:
        where = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lease = stack.enter_context(LocalPool(where).acquire(board.name, 60.0))
        session = await board.open(lease)
        try:
            yield session
        finally:
            await session.close()


async def latencies_ns(
    session: Session, path: Path, plan: MeasurePlan, job_id: str, runtime: str = "onnxruntime"
) -> list[list[int]]:
    """Measure an ONNX file; return each process's counted latencies in ns."""
    sha256 = sha256_file(path)
    await session.put(sha256, path)
    spec = JobSpec(JobKind.LATENCY, sha256, "onnx", "board", runtime=runtime, plan=plan)
    outcome = await session.run(job_id, spec)
    if not isinstance(outcome, Measured):
        raise SystemExit(f"{path.name} was not measured: {outcome}")
    return [list(s.values) for s in outcome.samples if s.quantity == "latency_ns" and s.warm]


def copy_of_image(cache: Path) -> Path:
    """Copy the image without its saved states; return the cache folder to find it in."""
    image = find_image()
    assert image is not None
    boards = image.folder.parent

    def states(folder: str, names: list[str]) -> set[str]:
        return (
            {"states", "downloads"} & set(names)
            if Path(folder) != boards
            else {name for name in names if name not in (image.folder.name, "current.json")}
        )

    shutil.copytree(boards, cache / boards.relative_to(boards.parents[1]), ignore=states)
    return cache


@contextlib.contextmanager
def burners(count: int) -> Iterator[None]:
    """Keep so many processors busy for the length of a `with` block."""
    context = multiprocessing.get_context("spawn")
    running = [
        context.Process(target=_burn, args=(os.getpid(),), daemon=True) for _ in range(count)
    ]
    for process in running:
        process.start()
    try:
        yield
    finally:
        for process in running:
            if process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()


def _burn(parent: int) -> None:
    value = 1.0
    while os.getppid() == parent:
        for _ in range(1_000_000):
            value = value * 1.0000001 % 7.0
