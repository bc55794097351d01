"""Processes that compress end with the process that they work for, even by kill -9."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

BOSS = """
import os, signal
from flatsat.harness.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_dies_with_its_boss() -> None:
    boss = subprocess.run(
        [sys.executable, "-c", BOSS], stdout=subprocess.PIPE, text=True, check=False
    )
    assert boss.returncode == -signal.SIGKILL
    worker = int(boss.stdout)
    try:
        handle = os.pidfd_open(worker)
    except ProcessLookupError:
        return
    with os.fdopen(handle):
        gone, _, _ = select.select([handle], [], [], 30)
    assert gone, f"process {worker} lives on"
