"""Disks that fill, data that are cut short, recipes that can't apply, Ctrl-C: told and survived."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Flatsat = Callable[..., Any]
Onnx = Callable[..., Path]
PROGRAM = (sys.executable, "-m", "flatsat.harness.cli")
ROUNDS = 6
RUN = f"""
schema = 1
[run]
name = "two"
[matrix]
candidates = ["one", "two"]
boards = ["bench"]
jobs = ["latency"]
[plan.wall]
processes = 1
min_inferences = 4000
min_s = 0.001
rounds = {ROUNDS}
warmup = "fixed"
max_warmup = 5
"""


def idx(values: bytes, *shape: int) -> bytes:
    head = struct.pack(">HBB", 0, 8, len(shape)) + b"".join(struct.pack(">I", n) for n in shape)
    return gzip.compress(head + values)


# Data and recipes


def test_truncated_images_are_one_line_and_leave_no_candidate(
    flatsat: Flatsat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for part, n in (("train", 60), ("t10k", 60)):
        images = bytes(n * 28 * 28)
        cut = images[:-1000] if part == "train" else images
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(cut, n, 28, 28))
        labels = bytes(i % 10 for i in range(n))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels, n))
    monkeypatch.setenv("FLATSAT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FLATSAT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.toml").write_text('[recipe.d]\nworkload = "mnist/lenet300"\n')
    said = flatsat("compress", "a.toml", "--quiet")
    assert said.code == 2
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "train-images-idx3-ubyte.gz" in lines[0]
    assert "Traceback" not in said.err
    assert json.loads(flatsat("candidates", "list", "--json").out)["candidates"] == []


def test_a_recipe_that_cannot_apply_stops_before_any_work(flatsat: Flatsat, tmp_path: Path) -> None:
    text = (
        '[recipe.d]\nworkload = "mnist-mini/lenet5"\n'
        '[[recipe.d.step]]\nuse = "linear-quantise"\n'
        '[[recipe.d.step]]\nuse = "l1-filter-prune"\nratio = 0.5\n'
    )
    (tmp_path / "a.toml").write_text(text)
    said = flatsat("compress", "a.toml")
    assert said.code == 2
    assert "a.toml:6: " in said.error
    assert "can't follow" in said.error
    assert not (tmp_path / "lab").exists()


def test_a_dry_run_writes_nothing(flatsat: Flatsat, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[run]\nname = "n"\n[recipe.d]\nworkload = "mnist-mini/lenet5"\nseeds = [0, 1]\n'
    )
    said = flatsat("run", "a.toml", "--dry-run", "--json")
    assert said.code == 0
    plan = json.loads(said.out)
    assert plan["recipes"] == {"d": 2}
    assert plan["jobs"]["latency"] == 2 * 5
    assert plan["expected_s"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
    assert "candidates" in flatsat("run", "a.toml", "--dry-run").out


# Full disks


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount a disk of that size at `folder`; False where that isn't allowed here."""
    folder.mkdir()
    program = shutil.which("mount")
    arguments = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = program is not None and (
        subprocess.run([program, *arguments], capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def call(*arguments: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process whose files may not grow beyond `limit` bytes."""

    def before() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=before,
    )


def outcomes(lab: Path) -> dict[str, tuple[str, int]]:
    """Return job -> when it was measured and its number of samples."""
    from flatsat.harness.lab import Lab
    from flatsat.outcome import Measured

    store = Lab(lab).store()
    found = {}
    for row in store.outcomes():
        assert isinstance(row.outcome, Measured)
        n = sum(len(s.values) for s in row.outcome.samples if s.quantity == "latency_ns")
        found[row.job.job_id] = (row.started_utc, n)
    return found


@pytest.fixture
def two_candidates(dense_file: Onnx, tmp_path: Path) -> Callable[[Path], Path]:
    """Import two networks into a lab; return the configuration that measures both."""

    def make(lab: Path) -> Path:
        for name, hidden in (("one", 8), ("two", 16)):
            path = dense_file(f"{name}.onnx", hidden)
            done = call("--lab", str(lab), "candidates", "import", str(path))
            assert done.returncode == 0, done.stderr
        config = tmp_path / "two.toml"
        config.write_text(RUN)
        return config

    return make


@pytest.mark.slow
def test_a_disk_that_fills_in_mid_run_loses_nothing(
    tmp_path: Path, two_candidates: Callable[[Path], Path]
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "8m") as is_small:
        lab = disk / "lab"
        lab.mkdir()
        # The agent's files lie elsewhere, so that it is the record which meets the full disk.
        store = tmp_path / "store"
        (lab / "lab.toml").write_text(f'[board.bench]\nkind = "host"\nstore = "{store}"\n')
        config = two_candidates(lab)
        ballast = disk / "ballast"
        if is_small:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
            ballast.write_bytes(bytes(free - (1100 << 10)))
        else:
            ballast.write_bytes(b"")
        limit = None if is_small else 700 << 10
        first = call("--lab", str(lab), "run", str(config), "--quiet", limit=limit)
        ballast.unlink()

        assert first.returncode == 3, first.stderr
        assert "Traceback" not in first.stderr
        told = [line for line in first.stderr.splitlines() if line.startswith("error: ")]
        assert len(told) == 1, first.stderr
        before = outcomes(lab)
        assert 0 < len(before) < 2 * ROUNDS, "the disk was to fill in the middle"

        second = call("--lab", str(lab), "run", "--resume", "--quiet")
        assert second.returncode == 0, second.stderr
        after = outcomes(lab)
        assert len(after) == 2 * ROUNDS
        assert before.items() <= after.items()


# Interruption


def test_ctrl_c_ends_a_measurement_in_one_line(dense_file: Onnx, tmp_path: Path) -> None:
    path, lab = dense_file(), tmp_path / "lab"
    process = subprocess.Popen(
        [*PROGRAM, "--lab", str(lab), "measure", str(path), "--min-s", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What was started in the background of a shell would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("measure: 0 %")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err == "interrupted\n"
    listed = json.loads(call("--lab", str(lab), "runs", "list", "--json").stdout)
    assert [run["state"] for run in listed["runs"]] == ["interrupted"]
    # The board is free again.
    quick = ("--processes", "1", "--min-s", "0", "--min-inferences", "5")
    assert call("--lab", str(lab), "measure", str(path), *quick).returncode == 0
