"""FlatSat's own native code for boards: compiled here, packed as a wheel, installed like one.

Site "native" holds all libraries and needs nothing of the board's Python; the site of runtime
"sparse-c" holds the one that it loads, with NumPy's wheel beside it where the board has none.
"""

from __future__ import annotations

import io
import platform
import zipfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.cache import default_cache_dir
from flatsat.canonical import sha256_bytes, sha256_file, sha256_json
from flatsat.errors import InfrastructureError
from flatsat.files import replace_file
from flatsat.native import build_library
from flatsat.targets.wheels import NATIVE, NoWheel, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.targets.wheels import Interpreter

PACKAGE = "flatsat_native"
VERSION = "1.0"
_SOURCES = ("targets/native/sparse.c", "coded/coder.c")
_FLAGS = ("-O3", "-std=gnu99", "-ffp-contract=fast")
"""GNU's C fuses a multiplication with the addition behind it, which ISO C99 mode would not."""
_MACHINES = ("aarch64", "x86_64")
"""What code is compiled for beside this machine, where there is a cross compiler."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def sources() -> tuple[Path, ...]:
    """Return the C files of the libraries; each becomes lib<its name>.so."""
    root = Path(str(resources.files("flatsat")))
    return tuple(root / file for file in _SOURCES if (root / file).is_file())


def sparse_source() -> Path:
    """Return the C file of runtime `sparse-c`."""
    return sources()[0]


def sparse_library(cache_dir: Path | None = None) -> Path:
    """Return this machine's library of runtime `sparse-c`, compiled on first need.

    Raises:
        InfrastructureError: there is no compiler; the hint is the command that installs it.
    """
    return build_library(sparse_source(), flags=_FLAGS, cache_dir=cache_dir)


def native_wheel(arch: str, files: Sequence[Path], cache_dir: Path | None = None) -> Path:
    """Return a wheel of libraries for a machine, compiled and packed on first need.

    Args:
        arch: as `uname -m` names it.
        files: C files, of `sources()`.
        cache_dir: where it is kept (in `native/`); by default the user's cache.

    Raises:
        NoWheel: FlatSat can't compile for that machine.
        InfrastructureError: the compiler is missing (the hint is the command that installs it) or
            fails, or there is no room.
    """
    machine = None if arch == platform.machine() else arch
    if machine not in (None, *_MACHINES):
        raise NoWheel(
            f"FlatSat's native code can't be compiled for {arch}",
            hint=f"it can for {' and '.join(_MACHINES)}",
        )
    built = [
        build_library(path, machine=machine, flags=_FLAGS, cache_dir=cache_dir) for path in files
    ]
    version = f"{VERSION}+{sha256_json([sha256_file(path) for path in files])[:8]}"
    members = {f"{PACKAGE}/__init__.py": f'__version__ = "{version}"\n'.encode()}
    for source, library in zip(files, built, strict=True):
        members[f"{PACKAGE}/lib{source.stem}.so"] = library.read_bytes()
    data = _packed(members)
    folder = (cache_dir or default_cache_dir()) / "native" / sha256_bytes(data)[:16]
    path = folder / f"{PACKAGE}-{version}-py3-none-linux_{arch}.whl"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda part: part.write_bytes(data))
        except OSError as error:
            raise InfrastructureError(
                f"can't keep FlatSat's native code in {folder}: {error.strerror or error}",
                hint="free some room there, or name another folder in FLATSAT_CACHE",
            ) from error
    return path


def native_site(
    runtime: str,
    interpreter: Interpreter,
    *,
    cache_dir: Path | None = None,
    beside: Site | None = None,
) -> Site:
    """Return site "native", or that of runtime "sparse-c".

    Args:
        runtime: "native" or "sparse-c".
        interpreter: that will load it.
        cache_dir: see `native_wheel`.
        beside: wheels that "sparse-c" is given with it (NumPy's), or None where they are there.

    Raises:
        NoWheel, InfrastructureError: see `native_wheel`.
    """
    files = sources() if runtime == NATIVE else (sparse_source(),)
    own = native_wheel(interpreter.arch, files, cache_dir)
    wheels: Sequence[Path] = (own,)
    hashes: Sequence[str] = (sha256_file(own),)
    if beside is not None and runtime != NATIVE:
        wheels, hashes = (own, *beside.wheels), (hashes[0], *beside.sha256)
    size = sum(path.stat().st_size for path in wheels)
    name = f"{runtime}-{VERSION}-{sha256_json(list(hashes))[:12]}"
    return Site(runtime, name, tuple(wheels), size, tuple(hashes))


def _packed(members: dict[str, bytes]) -> bytes:
    """Return a wheel whose bytes depend on nothing but its members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return out.getvalue()
