"""The TFLite converter's own environment: made on first need, as small as it can be.

The converter's pins fight FlatSat's, so it lives apart; but it shares every distribution of
FlatSat's environment that fits (torch among them), and its dependencies are left out where a
conversion never imports them. That makes a quarter of what pip would install.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from packaging.requirements import Requirement

from flatsat.canonical import canonical_json, sha256_json
from flatsat.compressors.candidate import writing
from flatsat.errors import InfrastructureError
from flatsat.files import replace_file

if TYPE_CHECKING:
    from flatsat.progress import Progress

PINS = Path(__file__).with_name("converter_pins.txt")
SCRIPT = Path(__file__).with_name("converter_script.py")
# Of the pins on Linux x86-64 where torch is shared; as measured, before libraries are stripped.
DOWNLOAD_MB = 165
DISK_MB = 710
# The debug symbols of these libraries are a quarter of their size, and nobody debugs them.
_STRIP_OVER_BYTES = 50_000_000

_FORMAT = 1
_TASK = "make the TFLite converter"
_DEADLINE_S = 3600.0
_CHECK_DEADLINE_S = 300.0
_LOOK_S = 0.2
_HEADER = re.compile(r"(?:Downloading|Using cached|Processing) (\S+)")
_SIZE = re.compile(r"\(([\d.]+) ([kM])B\)")
_NO_NETWORK = re.compile(
    r"Retrying \(|Connection ?(Error|refused|reset|aborted)|NewConnectionError|Temporary failure"
    r"|Name or service not known|timed? ?out|SSLError|ProxyError|HTTP error|Network is unreachable"
)
_NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")


@dataclass(frozen=True)
class _Parts:
    """What is installed, and where the rest is shared from."""

    wanted: tuple[str, ...]
    shared: tuple[Path, ...]

    def key(self) -> str:
        """Return what tells two environments apart, as 16 hex digits."""
        return sha256_json(
            [_FORMAT, list(self.wanted), sys.version, sys.base_prefix, os.uname().machine]
        )[:16]


def ensure_converter(cache_dir: Path, progress: Progress) -> Path:
    """Return the converter's Python, making its environment first if need be.

    A second call is instant. Of several processes one makes it and the others wait. The folder
    `<cache_dir>/converter/<key>` appears whole or not at all.

    Args:
        cache_dir: where it is kept.
        progress: told the size before anything is fetched, then what is done.

    Raises:
        InfrastructureError: pip is missing, the package index can't be reached or lacks a wheel,
            the disk is full, or the environment doesn't work; the message says which.
    """
    parts = _parts()
    folder = cache_dir / "converter" / parts.key()
    python = folder / "bin" / "python"
    if _is_whole(folder):
        return python
    with writing(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, progress):
            if not _is_whole(folder):
                _make(folder, parts, progress)
    return python


def shared_folders() -> tuple[Path, ...]:
    """Return the folders of FlatSat's own environment that the converter's Python may look in."""
    return _parts().shared


def find_converter(cache_dir: Path) -> Path | None:
    """Return the converter's Python if its environment was made before, else None."""
    folder = cache_dir / "converter" / _parts().key()
    return folder / "bin" / "python" if _is_whole(folder) else None


def _parts() -> _Parts:
    wanted: list[str] = []
    shared: dict[Path, None] = {}
    for line in PINS.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = Requirement(line)
        try:
            found = distribution(pin.name)
        except PackageNotFoundError:
            wanted.append(line)
            continue
        if pin.specifier.contains(found.version, prereleases=True):
            shared[Path(str(found.locate_file(""))).resolve()] = None
        else:
            wanted.append(line)
    return _Parts(tuple(wanted), tuple(shared))


def _is_whole(folder: Path) -> bool:
    return (folder / "environment.json").is_file() and (folder / "bin" / "python").exists()


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.log("another process makes the TFLite converter's environment: waiting for it")
        try:
            lock.acquire(timeout=_DEADLINE_S)
        except Timeout:
            raise InfrastructureError(
                "another process has been making the TFLite converter's environment for an hour",
                hint=f"end it, or remove {lock.lock_file}",
            ) from None
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, parts: _Parts, progress: Progress) -> None:
    # With the lock held, what lies there is of a builder that was killed.
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    free_mb = shutil.disk_usage(folder.parent).free / 1e6
    progress.log(
        f"the TFLite converter needs an environment of its own, made once: about {DOWNLOAD_MB} MB"
        f" to fetch, up to {DISK_MB} MB on disk, in {folder}"
    )
    if free_mb < DISK_MB + DOWNLOAD_MB:
        raise InfrastructureError(
            f"the TFLite converter needs {DISK_MB + DOWNLOAD_MB} MB while it is made, and"
            f" {folder.parent} has {free_mb:.0f} MB",
            hint="free some space, or set FLATSAT_CACHE to another disk",
        )
    begin = time.monotonic()
    try:
        try:
            venv.create(part, symlinks=True, with_pip=False)
        except subprocess.CalledProcessError as error:
            raise InfrastructureError(f"can't make a virtual environment: {error}") from error
        python = part / "bin" / "python"
        _install(python, parts, progress)
        _strip(part)
        versions = _check(python, parts)
        # Last: a folder with this file is whole.
        made = {"format": _FORMAT, "pins": list(parts.wanted), "versions": versions}
        replace_file(
            part / "environment.json", lambda path: path.write_text(canonical_json(made) + "\n")
        )
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size_mb = sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_symlink()) / 1e6
    progress.update(_TASK, DOWNLOAD_MB, DOWNLOAD_MB)
    progress.log(
        f"the TFLite converter is ready ({size_mb:.0f} MB, {time.monotonic() - begin:.0f} s)"
    )


def _install(python: Path, parts: _Parts, progress: Progress) -> None:
    if find_spec("pip") is None:
        raise InfrastructureError(
            "pip is needed to make the TFLite converter's environment, and isn't installed",
            hint=f"{sys.executable} -m ensurepip",
        )
    argv = [
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"),
        *("--no-compile", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"),
        *("--no-warn-script-location", "--progress-bar", "off", "--retries", "2", *parts.wanted),
    ]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        begin = time.monotonic()
        try:
            while True:
                progress.update(_TASK, *_told(_read(said)))
                try:
                    code = process.wait(_LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() - begin > _DEADLINE_S:
                        raise InfrastructureError(
                            "making the TFLite converter's environment took longer than an hour",
                            hint="try again: what pip has fetched is in its cache",
                        ) from None
        finally:
            # pip works in a process of its own for another Python.
            kill_group(process)
        if code != 0:
            raise _refused(_read(said))


def _read(stream: object) -> str:
    """Return what a process has written so far, without moving where it writes."""
    descriptor: int = stream.fileno()  # type: ignore[attr-defined]
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode("utf-8", "replace")


def _told(text: str) -> tuple[float, float, str]:
    """Return megabytes done, megabytes in all and a note from pip's words."""
    done = last = 0.0
    note = "asking the package index"
    for line in text.splitlines():
        if found := _HEADER.search(line):
            done += last
            note = Path(found[1]).name.split("-")[0]
            size = _SIZE.search(line)
            last = 0.0 if size is None else float(size[1]) / (1000.0 if size[2] == "k" else 1.0)
        elif line.startswith("Installing collected"):
            done, last, note = done + last, 0.0, "unpacking"
    return min(done, DOWNLOAD_MB - 1.0), float(DOWNLOAD_MB), note


def _refused(text: str) -> InfrastructureError:
    """Return the error for what pip said."""
    if _NO_NETWORK.search(text):
        return InfrastructureError(
            "can't fetch the TFLite converter: the package index can't be reached",
            hint="connect this machine once, or set pip's index or proxy; ONNX needs no converter",
        )
    if missing := _NO_WHEEL.search(text):
        version = ".".join(map(str, sys.version_info[:2]))
        return InfrastructureError(
            f"the TFLite converter can't be installed: the package index has no {missing[1]} for"
            f" Python {version} on {os.uname().machine}",
            hint="connect this machine or name another index to pip; ONNX needs no converter",
        )
    lines = text.splitlines() or ["it said nothing"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return InfrastructureError(
        f"pip can't install the TFLite converter: {' '.join((errors or lines)[-1].split())[:300]}"
    )


def _strip(folder: Path) -> None:
    """Remove debug symbols where binutils is there to do it: a quarter of the disk space."""
    tool = shutil.which("strip")
    if tool is None:
        return
    for path in folder.rglob("*.so"):
        if path.stat().st_size > _STRIP_OVER_BYTES:
            smaller = path.with_suffix(".stripped")
            argv: Sequence[str] = (tool, "--strip-unneeded", "-o", str(smaller), str(path))
            done = subprocess.run(argv, check=False, capture_output=True, timeout=_CHECK_DEADLINE_S)
            if done.returncode == 0:
                smaller.replace(path)
            else:
                smaller.unlink(missing_ok=True)


def _check(python: Path, parts: _Parts) -> dict[str, str]:
    """Import all that a conversion does; that also compiles it, and nothing else."""
    from flatsat.compressors.converter import call

    report = call(
        python, {"verb": "check"}, shared=parts.shared, deadline_s=_CHECK_DEADLINE_S, bytecode=True
    )
    return {str(name): str(version) for name, version in report["versions"].items()}


def kill_group(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process that leads a session, with all that it started, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
