"""The archive has the same bytes each time, and runs by itself."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from flatsat.targets import provision
from flatsat.targets.provision import agent_zip, write_agent

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_bytes_in_another_process_and_time_zone(tmp_path: Path) -> None:
    code = (
        "import sys; from flatsat.targets.provision import agent_zip\n"
        "sys.stdout.buffer.write(agent_zip())"
    )
    env = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)
    assert out.stdout == agent_zip()


def test_members_are_sources_and_nothing_else(tmp_path: Path) -> None:
    path = write_agent(tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert names == sorted(names)
    assert "__main__.py" in names
    assert f"{provision.PACKAGE}/supervisor.py" in names
    assert all(name.endswith(".py") for name in names)


def test_writing_twice_writes_once(tmp_path: Path) -> None:
    path = write_agent(tmp_path / "new")
    before = path.stat().st_mtime_ns
    assert write_agent(tmp_path / "new") == path
    assert path.stat().st_mtime_ns == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_it_explains_itself_without_any_site_packages(tmp_path: Path) -> None:
    argv = [sys.executable, "-I", "-S", str(write_agent(tmp_path)), "--help"]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "--store" in shown.stdout + shown.stderr
