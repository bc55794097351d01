"""Compiling FlatSat's own C sources into shared libraries, for this machine or for a board's."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import TYPE_CHECKING

from flatsat.cache import default_cache_dir
from flatsat.canonical import sha256_bytes
from flatsat.errors import InfrastructureError
from flatsat.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_ALWAYS = ("-std=c99", "-shared", "-fPIC", "-ffreestanding", "-nostdlib", "-fno-math-errno")
_COMPILE_S = 120.0
_LIKE = {"arm64": "aarch64", "amd64": "x86_64"}


class NoCompiler(InfrastructureError):  # noqa: N818
    """There is no C compiler for that machine, or it refuses; the hint is how to get one."""


def machine_name(machine: str | None = None) -> str:
    """Return a processor's name as compilers call it; None is this machine's."""
    name = (machine or platform.machine()).lower()
    return _LIKE.get(name, name)


def find_compiler(machine: str | None = None) -> str:
    """Return the path of a C compiler that makes code for `machine` (None: this one).

    Raises:
        NoCompiler: there is none; the hint is the command that installs it.
    """
    wanted = machine_name(machine)
    own = wanted == machine_name()
    names = ("gcc", "cc", "clang") if own else (f"{wanted}-linux-gnu-gcc",)
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    package = "gcc" if own else f"gcc-{wanted.replace('_', '-')}-linux-gnu"
    raise NoCompiler(f"there is no C compiler for {wanted} here", hint=f"apt-get install {package}")


def build_library(
    source: Path,
    *,
    machine: str | None = None,
    flags: Sequence[str] = ("-O3",),
    cache_dir: Path | None = None,
) -> Path:
    """Return a shared library made of one C file, compiling it where that was not done yet.

    The source must do without headers of the C library (`stdint.h` and `stddef.h` are the
    compiler's own), so that a cross compiler alone can make it; what it calls by a declaration of
    its own, such as `memcpy`, is found in the process that loads it.

    Args:
        source: of C99.
        machine: "x86_64", "aarch64", ...; None for this one.
        flags: beside those that every library needs.
        cache_dir: where libraries are kept, by the hash of source, flags and compiler; None for
            the user's cache.

    Raises:
        NoCompiler: no compiler, or it can't compile this.
    """
    compiler = find_compiler(machine)
    told = [machine_name(machine), *_ALWAYS, *flags, _version(compiler)]
    key = sha256_bytes(source.read_bytes() + "\0".join(told).encode())[:16]
    target = (cache_dir or default_cache_dir()) / "native" / key / f"{source.stem}.so"
    if target.is_file():
        return target

    def compile_to(part: Path) -> None:
        made = subprocess.run(
            [compiler, *_ALWAYS, *flags, "-o", str(part), str(source)],
            capture_output=True,
            text=True,
            timeout=_COMPILE_S,
            check=False,
        )
        if made.returncode:
            lines = made.stderr.strip().splitlines()
            first = next((line for line in lines if "error" in line), "it said nothing")
            raise NoCompiler(f"{compiler} can't compile {source.name}: {first}")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, compile_to)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"can't build {source.name} in {target.parent}: {error}") from error
    return target


def _version(compiler: str) -> str:
    try:
        made = subprocess.run(
            [compiler, "-dumpfullversion", "-dumpversion"],
            capture_output=True,
            text=True,
            timeout=_COMPILE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiler(f"{compiler} does not run: {error}") from error
    return made.stdout.strip()
