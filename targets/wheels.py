"""Runtimes for boards without internet: wheels for their Python, fetched here and kept."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from flatsat.cache import default_cache_dir
from flatsat.canonical import sha256_file, sha256_json
from flatsat.errors import ConfigError, InfrastructureError
from flatsat.progress import NoProgress
from flatsat.targets.agent import sites
from flatsat.targets.agent.faults import one_line

if TYPE_CHECKING:
    from flatsat.progress import Progress

NATIVE = "native"
SPARSE = "sparse-c"
_OLDEST_GLIBC = (2, 17)
_DEADLINE_S = 3600.0
_LOOK_S = 0.25
_LIST = "site.json"
_FORMAT = 1


@dataclass(frozen=True)
class Interpreter:
    """What decides which wheels a Python loads.

    Attributes:
        version: major and minor of a CPython.
        arch: of the interpreter, as `uname -m` names it ("aarch64", "x86_64", "armv7l").
        glibc: major and minor; (0, 0) where the C library is another one.
    """

    version: tuple[int, int]
    arch: str
    glibc: tuple[int, int]

    def __str__(self) -> str:
        return f"Python {self.version[0]}.{self.version[1]} on {self.arch}"


@dataclass(frozen=True)
class Site:
    """The wheels that together are a runtime for one kind of interpreter.

    Attributes:
        runtime: which (a name of `flatsat.runtimes`).
        name: of the folder on a board; runtime, version and 12 hex digits of the wheels' hashes.
        wheels: files on this machine.
        size_bytes: of the wheels, as they travel.
        sha256: of each wheel, in the order of `wheels`.
    """

    runtime: str
    name: str
    wheels: tuple[Path, ...]
    size_bytes: int
    sha256: tuple[str, ...]


class SiteProvider(Protocol):
    """Knows which runtimes a board is to be given, and has their wheels."""

    def site(self, runtime: str, interpreter: Interpreter) -> Site | None:
        """Return the site of a runtime, or None if the board's own Python is to have it.

        May download, so that it takes its time.

        Raises:
            NoWheel, InfrastructureError: see `site_for`.
        """

    def before_sending(self, site: Site) -> None:
        """Be told, in a thread, that a site's wheels are about to go over the link.

        Raises:
            BoardRefused, ConfigError: they shall not, for example because it would take too long.
        """


class NoWheel(InfrastructureError):  # noqa: N818
    """Nobody has built this runtime for that interpreter."""


@dataclass(frozen=True)
class _Needs:
    """What is downloaded for a runtime, the runtime itself first, and about how much that is.

    Everything that the modules of an inference import is here; what the wheels name beside it
    (protobuf, flatbuffers, tqdm ...) serves their other tools.
    """

    requirements: tuple[str, ...]
    about_bytes: int


_NEEDS: Mapping[str, _Needs] = MappingProxyType(
    {
        "onnxruntime": _Needs(("onnxruntime<=1.32.0", "numpy<=2.4.6"), 45_000_000),
        "litert": _Needs(("ai-edge-litert<=2.3.0", "numpy<=2.4.6"), 38_000_000),
        # Its extension modules were compiled against NumPy 1.
        "tflite-runtime": _Needs(("tflite-runtime==2.14.0", "numpy<2"), 21_000_000),
        # Its own library is compiled here: see `native_sites`.
        SPARSE: _Needs(("numpy<=2.4.6",), 17_000_000),
    }
)
_OWN = frozenset({NATIVE, SPARSE})
"""Sites of FlatSat's own code, which no Python has by itself."""


@dataclass(frozen=True)
class Wheels:
    """Gives a board every runtime that wheels are known for.

    Attributes:
        runtimes: the ones that are given; others are left to the board's own Python.
        cache_dir: see `site_for`.
        progress: see `site_for`.
        numpy: the site of "sparse-c" brings NumPy, since nothing on the board has it.
    """

    runtimes: frozenset[str] = frozenset(_NEEDS) | _OWN
    cache_dir: Path | None = None
    progress: Progress | None = None
    numpy: bool = True

    def site(self, runtime: str, interpreter: Interpreter) -> Site | None:
        """Return the site of a runtime, or None. Raises NoWheel or InfrastructureError."""
        if runtime not in self.runtimes:
            return None
        if runtime in _OWN:
            return self._own(runtime, interpreter)
        return site_for(runtime, interpreter, cache_dir=self.cache_dir, progress=self.progress)

    def _own(self, runtime: str, interpreter: Interpreter) -> Site:
        from flatsat.targets.native_sites import native_site

        beside = None
        if runtime == SPARSE and self.numpy:
            beside = site_for(
                runtime, interpreter, cache_dir=self.cache_dir, progress=self.progress
            )
        return native_site(runtime, interpreter, cache_dir=self.cache_dir, beside=beside)

    def before_sending(self, site: Site) -> None:
        """Say it."""
        if self.progress is not None:
            size_mb = site.size_bytes / 1e6
            self.progress.log(f"the board is given {site.name} ({size_mb:.0f} MB, once)")


def host_sites(cache_dir: Path | None = None) -> Wheels:
    """Return what board `host` is given: FlatSat's own code, and tflite-runtime.

    The latter's NumPy is older than FlatSat's own. The other runtimes come from the environment
    that FlatSat runs in.
    """
    return Wheels(_OWN | {"tflite-runtime"}, cache_dir, numpy=False)


def own_sites(cache_dir: Path | None = None) -> Wheels:
    """Return what a board is given whose Python has its runtimes, and NumPy: FlatSat's own code."""
    return Wheels(_OWN, cache_dir, numpy=False)


def interpreter_of(welcome: Mapping[str, Any]) -> Interpreter:
    """Return the interpreter of an agent from its greeting."""
    major, minor = str(welcome["python"]).split(".")[:2]
    glibc = welcome.get("glibc") or (0, 0)
    return Interpreter(
        (int(major), int(minor)), str(welcome["arch"]), (int(glibc[0]), int(glibc[1]))
    )


def host_interpreter() -> Interpreter:
    """Return the interpreter that runs this."""
    from flatsat.targets.agent import facts

    glibc = facts.glibc()
    return Interpreter(
        (sys.version_info[0], sys.version_info[1]),
        facts.python_arch(),
        (0, 0) if glibc is None else (glibc[0], glibc[1]),
    )


def platforms(interpreter: Interpreter) -> tuple[str, ...]:
    """Return the platform tags of wheels that load there, the newest first.

    pip does not know that a newer C library runs what was built for an older one, so that every
    rung is named (PEP 600, PEP 599).
    """
    arch = interpreter.arch
    oldest = _OLDEST_GLIBC[1]
    rungs = [f"manylinux_2_{minor}_{arch}" for minor in range(interpreter.glibc[1], oldest - 1, -1)]
    if rungs:
        rungs.append(f"manylinux2014_{arch}")
    if arch == "x86_64":
        rungs += [f"manylinux2010_{arch}", f"manylinux1_{arch}"]
    if arch.startswith("armv"):
        rungs.append(f"linux_{arch}")
    return tuple(rungs)


def site_for(
    runtime: str,
    interpreter: Interpreter,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Site:
    """Return the wheels of a runtime for an interpreter; downloaded once, then offline.

    Args:
        runtime: a name of `flatsat.runtimes`.
        interpreter: that will load them.
        cache_dir: where they are kept (in `wheels/`); by default the user's cache.
        progress: is told about the download.

    Raises:
        ConfigError: nobody knows the runtime.
        NoWheel: nobody has built the runtime for that interpreter.
        InfrastructureError: there is no network, no pip, or no room.
    """
    needs = _NEEDS.get(runtime)
    if needs is None:
        raise ConfigError(
            f"no wheels are known for runtime {runtime!r}", hint="known: " + ", ".join(_NEEDS)
        )
    if interpreter.glibc < _OLDEST_GLIBC:
        raise NoWheel(
            f"there are no wheels of {runtime} for {interpreter} with its C library",
            hint="install the runtime there, and name its Python in the board's settings",
        )
    wanted = {
        "format": _FORMAT,
        "requirements": needs.requirements,
        "version": interpreter.version,
        "platforms": platforms(interpreter),
    }
    tag = f"{interpreter.arch}-cp{interpreter.version[0]}{interpreter.version[1]}"
    root = (cache_dir or default_cache_dir()) / "wheels"
    folder = root / f"{runtime}-{tag}-{sha256_json(wanted)[:12]}"
    found = _read(folder, runtime)
    if found is not None:
        return found
    from filelock import FileLock

    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):
            found = _read(folder, runtime)
            if found is None:
                found = _download(folder, runtime, needs, interpreter, progress or NoProgress())
            return found
    except OSError as error:
        raise InfrastructureError(
            f"can't keep the wheels of {runtime} in {root}: {error.strerror or error}",
            hint="free some room there, or name another folder in FLATSAT_CACHE",
        ) from error


def unpack_site(site: Site, folder: Path) -> None:
    """Make the site's folder as an agent does it, marker included.

    Raises:
        InfrastructureError: a wheel is damaged.
        OSError: the folder can't be written.
    """
    about = {"runtime": site.runtime, "name": site.name}
    try:
        sites.unpack([(w.name, str(w)) for w in site.wheels], str(folder), about)
    except sites.SiteError as error:
        raise InfrastructureError(
            f"can't unpack {site.name}: {error}", hint=f"remove {site.wheels[0].parent} to renew it"
        ) from error


def _read(folder: Path, runtime: str) -> Site | None:
    """Return what an earlier download left, if every byte is still right."""
    try:
        listed = json.loads((folder / _LIST).read_text())
        paths = tuple(folder / entry["file"] for entry in listed["wheels"])
        hashes = tuple(str(entry["sha256"]) for entry in listed["wheels"])
        if tuple(sha256_file(path) for path in paths) != hashes:
            return None
        return Site(
            runtime, str(listed["name"]), paths, sum(p.stat().st_size for p in paths), hashes
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _download(
    folder: Path, runtime: str, needs: _Needs, interpreter: Interpreter, progress: Progress
) -> Site:
    # Whoever was killed while it fetched holds the lock no longer.
    for old in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):
        shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        _pip(part, runtime, needs, interpreter, progress)
        first = re.split("[<=]", needs.requirements[0])[0].replace("-", "_")
        wheels = sorted(part.glob("*.whl"), key=lambda path: not path.name.startswith(first))
        entries = [{"file": path.name, "sha256": sha256_file(path)} for path in wheels]
        version = wheels[0].name.split("-")[1]
        name = f"{runtime}-{version}-{sha256_json([e['sha256'] for e in entries])[:12]}"
        (part / _LIST).write_text(json.dumps({"name": name, "wheels": entries}, indent=1))
        part.chmod(0o755)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    found = _read(folder, runtime)
    if found is None:
        raise InfrastructureError(f"the disk lost what was just written to {folder}")
    progress.log(f"fetched {name} for {interpreter} ({found.size_bytes / 1e6:.0f} MB)")
    return found


def _pip(
    part: Path, runtime: str, needs: _Needs, interpreter: Interpreter, progress: Progress
) -> None:
    """Download the wheels into `part`."""
    version, arch = interpreter.version, interpreter.arch
    argv = [
        *_pip_command(),
        *("download", "--disable-pip-version-check", "--no-input", "--no-deps"),
        *("--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", f"{version[0]}.{version[1]}"),
        *("--abi", f"cp{version[0]}{version[1]}{'m' if version < (3, 8) else ''}"),
    ]
    for platform in platforms(interpreter):
        argv += ["--platform", platform]
    argv += ["--dest", str(part), "--progress-bar", "off", *needs.requirements]
    task = f"fetch {runtime} for {arch}"
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            while True:
                done = sum(path.stat().st_size for path in part.glob("*.whl"))
                progress.update(task, done, max(needs.about_bytes, done + 1), "wheels")
                try:
                    code = process.wait(_LOOK_S)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() - begin > _DEADLINE_S:
                        raise InfrastructureError(
                            f"fetching {runtime} took longer than {_DEADLINE_S / 60:.0f} min",
                            hint="try again: what pip has fetched is in its cache",
                        ) from None
        finally:
            process.kill()
            process.wait()
        progress.update(task, needs.about_bytes, needs.about_bytes, "")
        if code != 0:
            said.seek(0)
            raise _refused(said.read(), runtime, interpreter)


def _pip_command() -> Sequence[str]:
    if find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    if found := shutil.which("pip") or shutil.which("pip3"):
        return (found,)
    raise InfrastructureError(
        "pip is needed to fetch a runtime for a board, and isn't installed",
        hint=f"{sys.executable} -m ensurepip",
    )


_NO_NETWORK = re.compile(
    r"Retrying \(|Connection ?(Error|refused|reset|aborted)|NewConnectionError|Temporary failure"
    r"|Name or service not known|timed? ?out|SSLError|ProxyError|HTTP error|Network is unreachable"
)
_NO_WHEEL = re.compile(r"No matching distribution found for (\S+)")


def _refused(text: str, runtime: str, interpreter: Interpreter) -> InfrastructureError:
    """Return the error for what pip said."""
    if _NO_NETWORK.search(text):
        return InfrastructureError(
            f"can't fetch {runtime} for {interpreter}: the package index can't be reached",
            hint="connect this machine once (boards need no network), or set pip's index or proxy",
        )
    if missing := _NO_WHEEL.search(text):
        glibc = ".".join(map(str, interpreter.glibc))
        return NoWheel(
            f"{runtime} has no wheel for {interpreter} with glibc {glibc}"
            f" (looked for {missing[1]})",
            hint="choose another runtime or another Python there;"
            " an index that has the wheel can be named in PIP_EXTRA_INDEX_URL",
        )
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return InfrastructureError(
        f"pip can't fetch {runtime} for {interpreter}: {one_line((errors or [text])[-1])}",
        hint="try the same with pip download by hand",
    )
