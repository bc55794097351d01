"""Processes for CPU-heavy work: one torch thread each, and gone at once when it is interrupted."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from flatsat.errors import InfrastructureError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def worker_pool(size: int) -> Iterator[Executor]:
    """Lend an executor of `size` fresh processes.

    Ctrl-C reaches the workers, too, as a terminal sends it to all of a job's processes: they end
    without a word. Whatever else ends the block early ends them as well; what they were writing
    is left unpublished in its temporary place.

    Raises:
        InfrastructureError: a worker was killed, most likely for want of memory.
    """
    known = {process.pid for process in multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=size, mp_context=context, initializer=_start)
    try:
        with _held_back():
            # A worker inherits the mask: no signal can reach it before it is ready for one.
            for _ in range(size):
                pool.submit(_nothing)
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process.pid not in known:
                process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise InfrastructureError(
                "a process that compresses was killed, most likely for want of memory",
                hint="free some memory, then start it again: what was built is kept",
            ) from error
        raise


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold SIGINT back for a moment; it comes when the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Without this a worker would wait for ever for work from a process that was killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch

    torch.set_num_threads(1)


def _nothing() -> None:
    """Start a worker."""
