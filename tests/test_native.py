"""C sources become libraries once, for this machine and for another."""

from __future__ import annotations

import ctypes
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flatsat.native import NoCompiler, build_library

SOURCE = "#include <stdint.h>\nint32_t answer(int32_t x) { return 6 * x; }\n"

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sum.c"
    path.write_text(SOURCE)
    return path


@needs_gcc
def test_library_is_made_once_and_runs(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: build_library(source, cache_dir=tmp_path), range(4)))
    (path,) = made
    assert ctypes.CDLL(str(path)).answer(7) == 42
    changed = path.stat().st_mtime_ns
    assert build_library(source, cache_dir=tmp_path) == path
    assert path.stat().st_mtime_ns == changed
    assert build_library(source, flags=("-O1",), cache_dir=tmp_path) != path
    assert [p.name for p in path.parent.iterdir()] == ["sum.so"]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="no cross compiler")
def test_library_for_a_board_is_of_its_machine(source: Path, tmp_path: Path) -> None:
    made = build_library(source, machine="aarch64", cache_dir=tmp_path).read_bytes()
    assert made[:4] == b"\x7fELF"
    # e_machine of the ELF header.
    assert int.from_bytes(made[18:20], "little") == 183


@needs_gcc
def test_source_that_does_not_compile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.c"
    path.write_text("int broken(")
    with pytest.raises(NoCompiler, match=r"can't compile bad\.c: .*error") as caught:
        build_library(path, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.so"))


def test_missing_compiler_is_told_with_what_installs_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler) as caught:
        build_library(source, machine="aarch64", cache_dir=tmp_path)
    assert caught.value.hint == "apt-get install gcc-aarch64-linux-gnu"
    with pytest.raises(NoCompiler) as caught:
        build_library(source, cache_dir=tmp_path)
    assert caught.value.hint == "apt-get install gcc"
