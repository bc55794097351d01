"""Debian's arm64 packages, fetched with this machine's own apt: its sources, its signatures.

A private apt state beside the packages holds the arm64 lists, so that neither root nor a foreign
architecture on this machine is needed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from flatsat.canonical import sha256_file
from flatsat.errors import InfrastructureError
from flatsat.targets.qemu_tools import MissingTools, environment, run

if TYPE_CHECKING:
    from flatsat.progress import Progress

_CONFIG = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{cache}";
APT::Sandbox::User "";
Debug::NoLocking "1";
Acquire::Languages "none";
Acquire::Retries "2";
"""
_URI = re.compile(r"^'\S+' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$", re.M)
_HINT = "is the network up, and do this machine's apt sources offer Debian 12 for arm64?"
_TASK = "fetch arm64 packages"
_FETCH_DEADLINE_S = 3600.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Package:
    """One package as apt offers it.

    Attributes:
        name: such as `libc6`.
        version: Debian's.
        sha256: of the `.deb`, from the signed lists.
        size_bytes: of the `.deb`.
        file: its name on the disk.
    """

    name: str
    version: str
    sha256: str
    size_bytes: int
    file: str


class Apt:
    """The machine's apt, asked about arm64, with all of its state in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._config = self._folder / "apt.conf"
        state, cache = self._folder / "state", self._folder / "cache"
        for part in (state / "lists" / "partial", cache / "archives" / "partial"):
            part.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        self._config.write_text(_CONFIG.format(state=state, cache=cache))

    def refresh(self) -> None:
        """Fetch the lists of packages; where a source can't be reached, older lists go on serving.

        Raises:
            InfrastructureError: a source's signature doesn't hold.
        """
        self._run("apt-get", "update", "-q")

    def kernel(self, meta: str) -> str:
        """Return the package that the meta-package `meta` stands for now."""
        try:
            text = self._run("apt-cache", "depends", "--important", meta)
        except MissingTools:
            raise
        except InfrastructureError as error:
            raise InfrastructureError(f"apt offers no arm64 package {meta}", hint=_HINT) from error
        if found := re.search(r"Depends: (linux-image-\S+)", text):
            return found[1]
        raise InfrastructureError(f"apt: {meta} names no kernel", hint=_HINT)

    def resolve(self, names: Sequence[str]) -> tuple[Package, ...]:
        """Return what apt would fetch for `names`, sorted by name."""
        text = self._run("apt-get", "download", "--print-uris", "-q", *names)
        found = []
        for match in _URI.finditer(text):
            name, version, _ = match["file"].split("_")
            size = int(match["size"])
            found.append(Package(name, unquote(version), match["sha256"], size, match["file"]))
        if lost := sorted(set(names) - {package.name for package in found}):
            raise InfrastructureError(f"apt offers no arm64 package {', '.join(lost)}", hint=_HINT)
        return tuple(sorted(found, key=lambda package: package.name))

    def fetch(self, packages: Sequence[Package], folder: Path, progress: Progress) -> None:
        """Bring the packages that `folder` lacks, each whole and checked before it is there.

        Raises:
            InfrastructureError: a package can't be fetched, or isn't what the lists promise.
        """
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [package for package in packages if not _whole(folder / package.file, package)]
        if not wanted:
            return
        total = sum(package.size_bytes for package in wanted)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as name:
            part = Path(name)
            self._download(wanted, part, total, progress)
            for package in wanted:
                if not _whole(part / package.file, package):
                    raise InfrastructureError(
                        f"apt: {package.file} isn't what the signed lists promise", hint=_HINT
                    )
                (part / package.file).replace(folder / package.file)
        progress.update(_TASK, total, total, f"{len(wanted)} packages")

    def _download(
        self, wanted: Sequence[Package], part: Path, total: int, progress: Progress
    ) -> None:
        names = [f"{package.name}={package.version}" for package in wanted]
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                ["apt-get", "download", "-q", *names],
                cwd=part,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            ) as process,
        ):
            try:
                for _ in range(int(_FETCH_DEADLINE_S / _POLL_S)):
                    try:
                        process.wait(_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        done = sum(entry.stat().st_size for entry in part.glob("*.deb"))
                        progress.update(_TASK, min(done, total - 1), total, "")
            finally:
                if process.poll() is None:
                    process.kill()
            if process.returncode:
                said.seek(0)
                words = said.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise InfrastructureError(f"apt-get: {words}", hint=_HINT)

    def _environment(self) -> dict[str, str]:
        return environment({"APT_CONFIG": str(self._config)})

    def _run(self, *command: str) -> str:
        try:
            return run(*command, more={"APT_CONFIG": str(self._config)})
        except MissingTools:
            raise
        except InfrastructureError as error:
            raise InfrastructureError(error.message, hint=_HINT) from error


def drop_others(packages: Sequence[Package], folder: Path) -> None:
    """Remove what lies in `folder` beside these packages: older versions, parts of killed runs."""
    keep = {package.file for package in packages}
    for entry in folder.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _whole(path: Path, package: Package) -> bool:
    try:
        size_bytes = path.stat().st_size
        return size_bytes == package.size_bytes and sha256_file(path) == package.sha256
    except OSError:
        return False
