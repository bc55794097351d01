"""Wheels for boards: chosen for their Python, fetched once, whole or not there."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.errors import ConfigError, InfrastructureError
from flatsat.targets.wheels import (
    Interpreter,
    NoWheel,
    Site,
    host_interpreter,
    host_sites,
    interpreter_of,
    platforms,
    site_for,
    unpack_site,
)

PI = Interpreter((3, 11), "aarch64", (2, 36))
MakeWheel = Callable[..., Path]


class Log:
    """Keeps what long work reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shares: list[float] = []

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        self.shares.append(done / total)

    def log(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def index(tmp_path: Path, make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that pip takes for the only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for minor in (17, 28, 34):
        tag = f"cp311-cp311-manylinux_2_{minor}_aarch64"
        make_wheel(folder, "onnxruntime", tag=tag, members={"onnxruntime/rung": b"%d" % minor})
    make_wheel(folder, "onnxruntime", "99.0", tag="cp311-cp311-manylinux_2_17_aarch64")
    make_wheel(folder, "numpy", tag="cp311-cp311-manylinux_2_17_aarch64")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    return folder


@given(st.integers(17, 60), st.sampled_from(["aarch64", "x86_64", "armv7l"]))
def test_every_rung_down_to_the_oldest_is_named_and_none_above(minor: int, arch: str) -> None:
    tags = platforms(Interpreter((3, 11), arch, (2, minor)))
    rungs = [int(tag.split("_")[2]) for tag in tags if tag.startswith("manylinux_")]
    assert rungs == list(range(minor, 16, -1))
    assert f"manylinux2014_{arch}" in tags
    assert all(tag.endswith(arch) for tag in tags)


def test_a_greeting_tells_the_interpreter() -> None:
    told = {"python": "3.8.20", "arch": "armv7l", "glibc": [2, 31]}
    assert interpreter_of(told) == Interpreter((3, 8), "armv7l", (2, 31))
    assert interpreter_of({**told, "glibc": None}).glibc == (0, 0)
    assert host_interpreter().version == sys.version_info[:2]


@pytest.mark.parametrize(("minor", "rung"), [(36, b"34"), (31, b"28"), (20, b"17")])
def test_the_newest_rung_that_loads_is_taken(
    index: Path, tmp_path: Path, minor: int, rung: bytes
) -> None:
    site = site_for("onnxruntime", replace(PI, glibc=(2, minor)), cache_dir=tmp_path / "cache")
    assert [path.name.split("-")[0] for path in site.wheels] == ["onnxruntime", "numpy"]
    assert site.name.startswith("onnxruntime-1.0-")
    assert site.size_bytes == sum(path.stat().st_size for path in site.wheels)
    unpack_site(site, tmp_path / "sites" / site.name)
    assert (tmp_path / "sites" / site.name / "onnxruntime" / "rung").read_bytes() == rung


def test_the_second_time_needs_no_index(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    first = site_for("onnxruntime", PI, cache_dir=tmp_path / "cache", progress=log)
    assert log.lines
    assert log.shares[-1] == 1.0
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    again = Log()
    assert site_for("onnxruntime", PI, cache_dir=tmp_path / "cache", progress=again) == first
    assert not again.lines
    with pytest.raises(NoWheel):
        site_for("onnxruntime", replace(PI, version=(3, 12)), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("damage", ["changed", "lost", "list lost", "list cut"])
def test_a_damaged_cache_is_renewed(index: Path, tmp_path: Path, damage: str) -> None:
    site = site_for("onnxruntime", PI, cache_dir=tmp_path / "cache")
    listed = site.wheels[0].parent / "site.json"
    if damage == "changed":
        data = bytearray(site.wheels[0].read_bytes())
        data[50] ^= 1
        site.wheels[0].write_bytes(data)
    elif damage == "list cut":
        listed.write_text(listed.read_text()[:-20])
    else:
        (site.wheels[0] if damage == "lost" else listed).unlink()
    log = Log()
    assert site_for("onnxruntime", PI, cache_dir=tmp_path / "cache", progress=log) == site
    assert log.lines
    unpack_site(site, tmp_path / "site")


def test_two_at_once_fetch_once(index: Path, tmp_path: Path) -> None:
    log = Log()
    found: list[Site] = []

    def fetch() -> None:
        found.append(site_for("onnxruntime", PI, cache_dir=tmp_path / "cache", progress=log))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(log.lines) == 1


def test_what_a_killed_fetch_left_goes_with_the_next(index: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    site = site_for("onnxruntime", PI, cache_dir=cache)
    folder = site.wheels[0].parent
    left = folder.with_name(f".{folder.name}.abcd.tmp")
    folder.rename(left)
    (left / "site.json").unlink()
    assert site_for("onnxruntime", PI, cache_dir=cache) == site
    assert not left.exists()


@pytest.mark.parametrize("missing", ["onnxruntime", "numpy"])
def test_without_a_wheel_python_and_architecture_are_named(
    index: Path, tmp_path: Path, missing: str
) -> None:
    for path in index.glob(f"{missing}-*"):
        path.unlink()
    with pytest.raises(NoWheel) as caught:
        site_for("onnxruntime", PI, cache_dir=tmp_path / "cache")
    for word in ("onnxruntime", "Python 3.11", "aarch64", "glibc 2.36", missing):
        assert word in caught.value.message
    assert caught.value.hint
    assert list((tmp_path / "cache" / "wheels").glob("*onnxruntime*/")) == []


def test_another_c_library_has_none(tmp_path: Path) -> None:
    with pytest.raises(NoWheel, match="C library"):
        site_for("onnxruntime", replace(PI, glibc=(0, 0)), cache_dir=tmp_path)


def test_without_a_network_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InfrastructureError, match="can't be reached") as caught:
        site_for("onnxruntime", PI, cache_dir=tmp_path)
    assert not isinstance(caught.value, NoWheel)
    assert caught.value.hint


def test_an_unknown_runtime_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch") as caught:
        site_for("torch", PI, cache_dir=tmp_path)
    assert "onnxruntime" in (caught.value.hint or "")


def test_a_cache_that_can_not_be_written_is_said(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InfrastructureError, match="can't keep the wheels"):
        site_for("onnxruntime", PI, cache_dir=tmp_path / "file")


def test_a_wheel_cut_short_makes_no_site(index: Path, tmp_path: Path) -> None:
    site = site_for("onnxruntime", PI, cache_dir=tmp_path / "cache")
    site.wheels[0].write_bytes(site.wheels[0].read_bytes()[:-30])
    with pytest.raises(InfrastructureError, match="can't unpack"):
        unpack_site(site, tmp_path / "sites" / "x")
    assert list((tmp_path / "sites").iterdir()) == []


def test_the_host_is_given_only_what_its_environment_lacks(tmp_path: Path) -> None:
    provider = host_sites(tmp_path)
    assert provider.site("litert", host_interpreter()) is None
    assert provider.site("onnxruntime", host_interpreter()) is None
    assert provider.runtimes == {"tflite-runtime", "sparse-c", "native"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "module"),
    [
        ("onnxruntime", "onnxruntime"),
        ("litert", "ai_edge_litert.interpreter"),
        ("tflite-runtime", "tflite_runtime.interpreter"),
    ],
)
def test_a_bare_interpreter_imports_a_runtime_from_its_site_alone(
    tmp_path: Path, runtime: str, module: str
) -> None:
    try:
        site = site_for(runtime, host_interpreter())
    except InfrastructureError as error:
        pytest.skip(f"no wheels of {runtime} here: {error.message}")
    unpack_site(site, tmp_path / "site")
    python = getattr(sys, "_base_executable", sys.executable)
    code = f"import sys; sys.path.append({str(tmp_path / 'site')!r}); import {module}, numpy"
    subprocess.run([python, "-I", "-S", "-c", code], check=True)
