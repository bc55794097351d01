"""What every benchmark program shares: its table in docs/results, and what it ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import flatsat
from flatsat.canonical import sha256_json

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def write(
    name: str,
    title: str,
    text: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    notes: Sequence[str] = (),
    data: object = None,
) -> Path:
    """Write docs/results/NAME.md and NAME.json with the command that made them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", "", text, ""]
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + " --- |" * len(columns))
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    lines.append("")
    lines += [f"- {note}" for note in notes]
    if notes:
        lines.append("")
    command = "python " + shlex.join(
        [f"benchmarks/{Path(sys.argv[0]).name}", *(_shown(a) for a in sys.argv[1:])]
    )
    lines.append(f"Made by `{command}` on {machine()}; {versions()}.")
    path = RESULTS / f"{name}.md"
    path.write_text("\n".join(lines) + "\n")
    record = {
        "title": title,
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "notes": list(notes),
        "data": data,
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    print(path.read_text())
    return path


def machine() -> str:
    """Return the processor, the cores, and the day."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{model}, {os.cpu_count()} cores, {day}"


def versions() -> str:
    """Return the versions that a figure depends on."""
    from importlib.metadata import version

    return ", ".join(
        [f"FlatSat {flatsat.__version__}", f"Python {platform.python_version()}"]
        + [f"{name} {version(name)}" for name in ("onnxruntime", "torch", "numpy")]
    )


class Checkpoint:
    """Finished pieces of a long benchmark; a program that is started again goes on after them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, object] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, key: Mapping[str, object]) -> object:
        """Return what was kept for `key`, or None."""
        return self._done.get(sha256_json(key))

    def put(self, key: Mapping[str, object], value: object) -> None:
        """Keep a finished piece."""
        self._done[sha256_json(key)] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._done))
        temporary.replace(self._path)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _shown(argument: str) -> str:
    """Leave this machine's folders out of what is published."""
    return Path(argument).name if argument.startswith("/") else argument
