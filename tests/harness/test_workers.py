"""Worker processes end without a word when work is interrupted, and are missed when killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flatsat.errors import InfrastructureError
from flatsat.harness.workers import worker_pool

INTERRUPTED = """
import signal
from concurrent.futures import wait
from flatsat.harness.workers import worker_pool

if __name__ == "__main__":
    try:
        with worker_pool(2) as pool:
            wait([pool.submit(pow, 2, 3), pool.submit(pow, 2, 4)])
            futures = [pool.submit(signal.pause) for _ in range(2)]
            print("ready", flush=True)
            wait(futures)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_workers_do_what_they_are_given() -> None:
    with worker_pool(1) as pool:
        assert pool.submit(pow, 2, 5).result() == 32


def test_a_worker_that_is_killed_is_told_in_one_line() -> None:
    with pytest.raises(InfrastructureError, match="was killed"), worker_pool(1) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()


@pytest.mark.slow
def test_ctrl_c_ends_workers_without_a_word(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    # Both streams end only when the last process that holds them is gone.
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
