from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flatsat.cache import default_cache_dir
from flatsat.datasets import cache as cache_module
from flatsat.datasets import reference as reference_module
from flatsat.datasets.cache import write_atomically
from flatsat.datasets.fit import evaluate
from flatsat.datasets.reference import reference
from flatsat.datasets.summary import workload_summary
from flatsat.datasets.workload import TrainSettings, Workload
from flatsat.errors import UsageError

# Each child makes the workload of the fixture `quick` by itself.
CHILD = """
import sys, signal
from dataclasses import replace
from pathlib import Path
import torch
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import TrainSettings, workload
torch.set_num_threads(1)
settings = TrainSettings(epochs=2, lr=0.05, batch=32)
quick = replace(workload("mnist", sys.argv[1]), training=(("lenet300", settings),))
class Stop:
    def log(self, message): pass
    def update(self, *told):
        if sys.argv[3] == "hang":
            print("training", flush=True)
            signal.pause()
found = reference(quick, "lenet300", cache_dir=Path(sys.argv[2]), progress=Stop())
print(found.cached, found.accuracy_validation)
"""


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps = 0

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        self.steps += 1

    def log(self, message: str) -> None:
        self.lines.append(message)


def child(data: Path, cache_dir: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(data), str(cache_dir), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_second_call_reads_what_the_first_trained(quick: Workload, tmp_path: Path) -> None:
    first = reference(quick, "lenet300", cache_dir=tmp_path)
    told = Told()
    second = reference(quick, "lenet300", cache_dir=tmp_path, progress=told)
    assert (first.cached, second.cached, told.steps) == (False, True, 0)
    assert second.accuracy_validation == first.accuracy_validation
    assert second.accuracy_validation == evaluate(second.module, quick.splits().validation)
    assert (second.steps, second.epochs, second.train_s) == (first.steps, 2, first.train_s)
    assert second.module is not first.module
    assert not second.module.training
    for left, right in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(left, right)


def test_each_seed_width_and_setting_has_its_own_file(quick: Workload, tmp_path: Path) -> None:
    slower = replace(quick, training=(("lenet300", TrainSettings(2, 0.04, 32)),))
    found = [
        reference(quick, "lenet300", cache_dir=tmp_path),
        reference(quick, "lenet300", cache_dir=tmp_path, seed=1),
        reference(quick, "lenet300", cache_dir=tmp_path, width=0.1),
        reference(slower, "lenet300", cache_dir=tmp_path),
    ]
    assert not any(each.cached for each in found)
    assert len({each.path for each in found}) == 4
    assert found[2].module.fc1.out_features == 30


def test_training_again_gives_the_same_weights(quick: Workload, tmp_path: Path) -> None:
    one = reference(quick, "lenet300", cache_dir=tmp_path / "a")
    two = reference(quick, "lenet300", cache_dir=tmp_path / "b")
    for left, right in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_damaged_file_is_trained_again(quick: Workload, tmp_path: Path) -> None:
    first = reference(quick, "lenet300", cache_dir=tmp_path, width=0.05)
    whole = first.path.read_bytes()
    middle = len(whole) // 2
    saved = torch.load(first.path, weights_only=True)
    poisoned = {key: value.clone() for key, value in saved["weights"].items()}
    poisoned["fc1.weight"][0, 0] = float("nan")
    others = []
    for wrong in (
        {**saved, "weights": poisoned},
        {**saved, "weights": {}},
        {**saved, "config": "{}"},
        {**saved, "facts": "[]"},
        {**saved, "facts": json.dumps({**json.loads(saved["facts"]), "accuracy_validation": "x"})},
        ["no mapping"],
    ):
        torch.save(wrong, tmp_path / "wrong.pt")
        others.append((tmp_path / "wrong.pt").read_bytes())
    for damaged in (b"", b"PK", whole[:middle], whole[:-1], os.urandom(500), *others):
        first.path.write_bytes(damaged)
        told = Told()
        again = reference(quick, "lenet300", cache_dir=tmp_path, width=0.05, progress=told)
        assert not again.cached
        assert again.accuracy_validation == first.accuracy_validation
        assert any(str(first.path) in line for line in told.lines)
        assert reference(quick, "lenet300", cache_dir=tmp_path, width=0.05).cached


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def test_a_pickle_in_the_cache_is_never_run(quick: Workload, tmp_path: Path) -> None:
    first = reference(quick, "lenet300", cache_dir=tmp_path, width=0.05)
    torch.save({"config": "", "bomb": Bomb(tmp_path / "ran")}, first.path)
    assert not reference(quick, "lenet300", cache_dir=tmp_path, width=0.05).cached
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_of_many_processes_one_trains(small_mnist: Path, tmp_path: Path) -> None:
    children = [child(small_mnist, tmp_path, "train") for _ in range(3)]
    said = [each.communicate(timeout=120)[0].split() for each in children]
    assert [each.returncode for each in children] == [0, 0, 0]
    assert sorted(cached for cached, _ in said) == ["False", "True", "True"]
    assert len({accuracy for _, accuracy in said}) == 1


def test_a_killed_trainer_leaves_the_cache_usable(
    quick: Workload, small_mnist: Path, tmp_path: Path
) -> None:
    hanging = child(small_mnist, tmp_path, "hang")
    assert hanging.stdout is not None
    assert hanging.stdout.readline() == "training\n"
    hanging.send_signal(signal.SIGKILL)
    hanging.wait(timeout=60)
    assert not reference(quick, "lenet300", cache_dir=tmp_path).cached
    assert reference(quick, "lenet300", cache_dir=tmp_path).cached


def test_waiting_for_another_trainer_is_said_and_has_an_end(
    quick: Workload, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "_LOCK_DEADLINE_S", 0.1)
    hanging = child(small_mnist, tmp_path, "hang")
    try:
        assert hanging.stdout is not None
        assert hanging.stdout.readline() == "training\n"
        told = Told()
        with pytest.raises(reference_module.InfrastructureError, match="was held"):
            reference(quick, "lenet300", cache_dir=tmp_path, progress=told)
        assert "another process trains" in told.lines[0]
    finally:
        hanging.kill()
        hanging.wait(timeout=60)


def test_a_cache_that_cant_be_written_is_one_line_before_any_training(
    quick: Workload, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    told = Told()
    with pytest.raises(UsageError, match="FLATSAT_CACHE"):
        reference(quick, "lenet300", cache_dir=blocked, progress=told)
    assert told.steps == 0


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "kept"
    target.write_bytes(b"before")
    monkeypatch.setattr(cache_module.os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        write_atomically(target, lambda stream: stream.write(b"after") and None)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert target.read_bytes() == b"before"


def test_summary_shows_the_cached_reference_and_survives_a_damaged_note(
    small_mnist: Path, quick: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatsat.datasets.summary.workload", lambda *_: quick)

    def shown() -> list[dict[str, object]]:
        (network,) = workload_summary("mnist", small_mnist, tmp_path)["networks"]
        return network["references"]

    found = reference(quick, "lenet300", cache_dir=tmp_path)
    reference(quick, "lenet300", cache_dir=tmp_path, width=0.1)
    (entry,) = shown()
    assert entry == {
        "seed": 0,
        "accuracy_validation": found.accuracy_validation,
        "train_s": found.train_s,
        "cpu_s": found.cpu_s,
        "steps": found.steps,
    }
    note = found.path.with_suffix(".json")
    for damaged in (b"", b"[]", b"{}", b'{"config": 1, "facts": 2}', b"\xff"):
        note.write_bytes(damaged)
        assert shown() == []
    note.unlink()
    reference(quick, "lenet300", cache_dir=tmp_path)  # Writes it again.
    assert shown() == [entry]
    found.path.unlink()
    assert shown() == []


def test_default_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.delenv("FLATSAT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == Path("/home/a/.cache/flatsat")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/flatsat")
    monkeypatch.setenv("FLATSAT_CACHE", "/y")
    assert default_cache_dir() == Path("/y")
