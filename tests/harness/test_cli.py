"""The command line as its users meet it: help, exit codes, one line an error, nothing half-done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flatsat.harness.cli import entry
from flatsat.harness.cli.catalogue import parse_attributes
from flatsat.harness.cli.measure import parse_axes, parse_cpus
from flatsat.harness.cli.style import byte_count, nanosecond_range, nanoseconds

Flatsat = Callable[..., Any]
HEAVY = ("torch", "numpy", "pandas", "plotly", "onnx", "onnxruntime", "sqlalchemy", "scipy")
VERBS = [
    ["demo"],
    ["compress"],
    ["run"],
    ["search"],
    ["sensitivity"],
    ["measure"],
    ["compare"],
    ["validate"],
    ["report"],
    ["runs"],
    ["runs", "list"],
    ["runs", "show"],
    ["candidates"],
    ["candidates", "list"],
    ["candidates", "show"],
    ["candidates", "import"],
    ["board"],
    ["board", "list"],
    ["board", "doctor"],
    ["board", "build"],
    ["board", "up"],
    ["board", "down"],
    ["board", "console"],
    ["workloads"],
    ["networks"],
    ["networks", "list"],
    ["networks", "export"],
    ["compressors"],
    ["compressors", "list"],
    ["compressors", "show"],
]


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["measure", "--help"], ["--version"], ["board", "--help"], ["nope"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = fresh(
        "import sys\n"
        "from flatsat.harness.cli.entry import run\n"
        f"run({arguments!r})\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stdout + done.stderr


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help_with_examples(flatsat: Flatsat, verb: list[str]) -> None:
    said = flatsat(*verb, "--help")
    assert said.code == 0
    assert "Usage: flatsat " + " ".join(verb) in said.out
    if verb not in (["runs"], ["candidates"], ["board"], ["compressors"], ["networks"]):
        assert "flatsat " + " ".join(verb) in said.out.split("Examples")[1]


def test_the_version_is_the_packages(flatsat: Flatsat) -> None:
    import flatsat as package

    assert flatsat("--version").out == f"flatsat {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mesure", "a.onnx"], "mesure"),
        (["measure", "a.onnx", "--treads", "2"], "--treads"),
        (["measure", "a.onnx", "--threads", "0"], "threads"),
        (["measure", "a.onnx", "--threads", "two"], "--threads': must be a valid integer"),
        (["compress", "no.toml"], "no.toml: no such file"),
        (["run", "no.toml"], "no.toml: no such file"),
        (["run"], ""),
        (["compressors", "show", "magnitude"], "did you mean 'magnitude-prune'?"),
        (["measure", "a.onnx", "--axis", "batch"], "NAME=N"),
        (["measure", "a.onnx", "--axis", "batch=0"], "NAME=N"),
        (["measure", "a.onnx", "--affinity", "x"], "--affinity 'x'"),
        (["run", "a.toml", "--resume", "--dry-run"], "exclude each other"),
        (["runs", "show", "last"], "no record in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_2(
    flatsat: Flatsat, tmp_path: Path, arguments: list[str], words: str
) -> None:
    said = flatsat(*arguments)
    assert said.code == 2
    assert not list(tmp_path.iterdir()), "something was written"
    if words:
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert words in said.error


def test_the_lab_may_be_named_anywhere_and_by_the_environment(
    flatsat: Flatsat, tmp_path: Path
) -> None:
    assert str(tmp_path / "lab") in flatsat("runs", "list").error
    assert "elsewhere" in flatsat("runs", "list", "--lab", "elsewhere").error
    assert "elsewhere" in flatsat("--lab=elsewhere", "runs", "list").error
    assert entry.globals_first(["a", "--lab", "x", "--", "--debug"]) == [
        "--lab",
        "x",
        "a",
        "--",
        "--debug",
    ]


def test_a_traceback_shows_only_on_request(flatsat: Flatsat) -> None:
    assert "Traceback" not in flatsat("run", "no.toml").err
    shown = flatsat("run", "no.toml", "--debug")
    assert (shown.code, "Traceback" in shown.err) == (2, True)


def test_an_unexpected_error_is_one_line_too(
    flatsat: Flatsat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ValueError(f"two\nlines \x1b[31m{name}")

    monkeypatch.setattr("flatsat.compressors.registry.entry", broken)
    said = flatsat("compressors", "show", "x")
    assert said.code == 3
    assert "unexpected ValueError: two lines" in said.error
    assert "\x1b" not in said.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "record.db"), 3, "record.db: No space left"),
        (MemoryError(), 3, "out of memory"),
    ],
)
def test_what_happens_to_a_process_has_its_own_code(
    flatsat: Flatsat, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setattr("flatsat.compressors.registry.entry", broken)
    said = flatsat("compressors", "show", "x")
    assert (said.code, words in said.error) == (code, True)


def test_a_reader_that_goes_away_ends_the_program_quietly() -> None:
    code = "from flatsat.harness.cli import main; main()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code, "compressors", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 141


def test_a_full_disk_behind_standard_output_is_told() -> None:
    code = "from flatsat.harness.cli import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "compressors", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("error: can't write: No space left on device")
    assert "Traceback" not in done.stderr


# Catalogue


def test_compressors_are_listed_and_shown(flatsat: Flatsat) -> None:
    listed = json.loads(flatsat("compressors", "list", "--json").out)
    names = [step["name"] for step in listed["compressors"]]
    assert {"magnitude-prune", "fine-tune", "onnx", "int8"} <= set(names)
    table = flatsat("compressors", "list").out
    assert all(name in table for name in names)
    shown = flatsat("compressors", "show", "fine-tune").out
    assert "cross-entropy" in shown
    assert "passes over the split" in shown


def test_attributes_of_a_docstring_become_meanings() -> None:
    prose, meanings = parse_attributes(
        "What it is.\n\nMore.\n\nAttributes:\n    a: one\n        and more: yes.\n    b, c: two.\n"
    )
    assert prose == "What it is.\n\nMore."
    assert meanings == {"a": "one and more: yes.", "b": "two.", "c": "two."}
    assert parse_attributes("Only prose.") == ("Only prose.", {})


# Values


def test_axes_and_cpus_are_read() -> None:
    assert parse_axes(["a=3", "x=y=4"]) == {"a": 3, "x=y": 4}
    assert parse_cpus("0,2-4,2") == (0, 2, 3, 4)
    assert parse_cpus("") == ()


def test_a_range_of_durations_shares_its_unit_where_it_can() -> None:
    assert nanosecond_range(14_300, 14_900) == "14.3 … 14.9 µs"
    assert nanosecond_range(74_100, 3.07e6) == "74.1 µs … 3.07 ms"
    assert nanosecond_range(5, 990) == "5 … 990 ns"
    assert nanosecond_range(None, 3.0) == ""


def test_numbers_read_as_people_write_them() -> None:
    assert [nanoseconds(v) for v in (5, 58_300, 1_020_000, 2.4e9, 123_456, None)] == [
        "5 ns",
        "58.3 µs",
        "1.02 ms",
        "2.40 s",
        "123 µs",
        "-",
    ]
    assert [byte_count(v) for v in (12, 445_000, 1_730_000)] == ["12 B", "445 kB", "1.73 MB"]


# Completion


def complete(words: str, lab: Path) -> list[str]:
    """Return what bash would be offered at the end of `words`."""
    done = subprocess.run(
        [sys.executable, "-c", "from flatsat.harness.cli import main; main()"],
        env={
            **os.environ,
            "_FLATSAT_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "FLATSAT_LAB": str(lab),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_the_shell_completes_names(tmp_path: Path) -> None:
    folder = tmp_path / "candidates" / ("3f" * 32)
    folder.mkdir(parents=True)
    (folder / "candidate.json").write_text('{"name": "deep", "workload": "fashion/lenet5"}')
    (tmp_path / "runs" / "run-1").mkdir(parents=True)
    (tmp_path / "lab.toml").write_text('[board.bench]\nkind = "host"\n')
    assert "measure" in complete("flatsat mea", tmp_path)
    boards = ["bench", "host", "qemu-arm64", "qemu-arm64-a76"]
    assert complete("flatsat measure x --board ", tmp_path) == boards
    assert complete("flatsat candidates show d", tmp_path) == ["deep"]
    assert complete("flatsat candidates show 3f", tmp_path) == ["3f" * 32]
    assert complete("flatsat report r", tmp_path) == ["run-1"]
    assert "magnitude-prune" in complete("flatsat compressors show m", tmp_path)


def test_a_broken_lab_completes_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text("[[[")
    assert complete("flatsat measure x --board ", tmp_path) == []
    assert complete("flatsat report r", tmp_path) == []
