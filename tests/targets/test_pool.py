"""Leases: one holder at a time, epochs that only rise, and dead holders that hold nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from flatsat.errors import InfrastructureError
from flatsat.targets.pool import BoardBusy, LocalPool

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from flatsat.targets.pool import LocalPool
with LocalPool(Path(sys.argv[1])).acquire("b") as lease:
    print(lease.epoch, flush=True)
    sys.stdin.read()
"""


NOW = "2026-03-01T12:00:00+00:00"
EPOCH = 1772366400


class Ticking:
    """A clock that goes on by a second each time it is read; its calendar stands still."""

    def __init__(self, utc: str = NOW) -> None:
        self.now = 0.0
        self._utc = utc

    def monotonic_s(self) -> float:
        self.now += 1.0
        return self.now

    def utc(self) -> str:
        return self._utc

    def new_id(self, prefix: str) -> str:
        return prefix


def test_epochs_rise_from_lease_to_lease_and_board_by_board(tmp_path: Path) -> None:
    pool = LocalPool(tmp_path, Ticking())
    epochs = []
    for _ in range(3):
        with pool.acquire("b") as lease:
            epochs.append(lease.epoch)
            assert lease.board == "b"
            with pool.acquire("other") as other:
                assert other.directory != lease.directory
    assert epochs == [EPOCH, EPOCH + 1, EPOCH + 2]
    # Neither does a clock that was set back make a lease older than an earlier one.
    with LocalPool(tmp_path, Ticking("2020-01-01T00:00:00+00:00")).acquire("b") as lease:
        assert lease.epoch == EPOCH + 3


def test_epochs_of_labs_that_share_a_board_rise_by_the_calendar(tmp_path: Path) -> None:
    for minute, lab in enumerate(["one", "two", "one", "three"]):
        clock = Ticking(NOW.replace("12:00", f"12:0{minute}"))
        with LocalPool(tmp_path / lab, clock).acquire("b") as lease:
            assert lease.epoch == EPOCH + 60 * minute


def test_a_damaged_epoch_file_does_not_stop_the_lab(tmp_path: Path) -> None:
    pool = LocalPool(tmp_path, Ticking())
    with pool.acquire("b") as lease:
        (lease.directory / "epoch").write_text("?")
    with pool.acquire("b") as lease:
        assert lease.epoch == EPOCH


def test_a_held_board_is_refused_at_the_deadline_with_its_holder(tmp_path: Path) -> None:
    clock = Ticking()
    waiting = LocalPool(tmp_path, clock).acquire("b", deadline_s=3.0)
    with (
        LocalPool(tmp_path).acquire("b"),
        pytest.raises(BoardBusy, match=r"held by process \d+"),
        waiting,
    ):
        pass
    assert clock.now == 4.0


def test_a_failure_inside_gives_the_board_back(tmp_path: Path) -> None:
    pool = LocalPool(tmp_path, Ticking())
    with pytest.raises(KeyError), pool.acquire("b"):
        raise KeyError
    with pool.acquire("b") as lease:
        assert lease.epoch == EPOCH + 1


def test_the_next_goes_on_when_the_holder_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    first = int(holder.stdout.readline())
    got: list[int] = []

    def wait() -> None:
        with LocalPool(tmp_path).acquire("b", deadline_s=60.0) as lease:
            got.append(lease.epoch)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert got == []
    holder.kill()
    waiter.join(timeout=60)
    holder.communicate()
    assert got[0] > first


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InfrastructureError, match="can't write"), LocalPool(blocker).acquire("b"):
        pass
