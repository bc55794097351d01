"""The emulated board's root file system: packages unpacked into a folder, then made into a disk.

No maintainer script runs and nothing is emulated: what the scripts would do is in `qemu_files`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import MappingProxyType

from flatsat.canonical import sha256_file
from flatsat.errors import InfrastructureError
from flatsat.targets.qemu_files import APPLETS, FILES, FOLDERS, PYTHON
from flatsat.targets.qemu_tools import environment, run

MTIME_S = 1_700_000_000
"""The date of every file, so that equal inputs give equal disks."""

FREE_BYTES = 384 << 20
"""Room on the disk for what a board is given: models, results, other runtimes."""

_MERGED = ("bin", "sbin", "lib")
_LEFT_OUT = tuple(
    f"./usr/share/{name}" for name in ("doc", "man", "locale", "lintian", "info", "bug")
)
_PYTHON_3_11_MAGIC = (3495).to_bytes(2, "little") + b"\r\n"
_INODE_SIZE_BYTES = 256
_BLOCK_BYTES = 4096
_SHARED_BYTES = 16 << 10
_DEADLINE_S = 600.0
_NO_COMPLAINT = ("debugfs 1.", 'debugfs: sif "')
_DATED = MappingProxyType({"E2FSPROGS_FAKE_TIME": str(MTIME_S)})


def unpack(debs: Sequence[Path], root: Path) -> None:
    """Unpack packages into `root`, without what only a reader of manuals would miss.

    Raises:
        InfrastructureError: a package is damaged, or the disk is full.
    """
    (root / "usr").mkdir(parents=True)
    for name in _MERGED:
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        # The last option keeps a package's own ./lib from replacing the link.
        unpack_parts(
            deb,
            root,
            *(f"--exclude={path}" for path in _LEFT_OUT),
            "--keep-directory-symlink",
        )


def unpack_parts(deb: Path, folder: Path, *options: str) -> None:
    """Unpack a package's files into `folder` as tar's further options say.

    Raises:
        InfrastructureError: the package is damaged, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", deb],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as reader:
        try:
            run("tar", "-xp", "--no-same-owner", "-C", str(folder), *options, stdin=reader.stdout)
        except InfrastructureError as error:
            raise InfrastructureError(f"can't unpack {deb.name}: {error.message}") from error
    if reader.returncode:
        raise InfrastructureError(f"can't unpack {deb.name}: dpkg-deb finds it damaged")


def furnish(root: Path, secrets: Iterable[tuple[str, int, str]]) -> None:
    """Write the board's own files and links.

    Args:
        root: of the file system.
        secrets: path, permissions and text of what is new with each build.
    """
    for name, mode in FOLDERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(mode)
    own = ((name, mode, text) for name, (mode, text) in FILES.items())
    for name, mode, text in (*own, *secrets):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
    for applet in APPLETS:
        where = [root / "usr" / folder / applet for folder in ("bin", "sbin")]
        if not any(os.path.lexists(path) for path in where):
            where[applet == "init"].symlink_to("../bin/busybox")
    for name in ("python3", "python"):
        link = root / "usr/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(Path(PYTHON).name)


def precompile(root: Path, folders: Sequence[str]) -> bool:
    """Compile Python files for the board's Python, so that its first import isn't its slowest.

    Args:
        root: of the file system.
        folders: below it, without a leading slash.

    Returns:
        Whether it was done: it takes a Python 3.11 on this machine.
    """
    python = _matching_python()
    if python is None:
        return False
    where = [str(root / folder) for folder in folders]
    # A few packages carry files that are wrong on purpose; so the exit code says nothing.
    subprocess.run(
        [
            *(python, "-I", "-m", "compileall", "-qq", "-j", "0", "-s", str(root), "-p", "/"),
            *("--invalidation-mode", "unchecked-hash", *where),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    return True


def even_out(root: Path, folders: Sequence[str]) -> None:
    """Let all read what the builder wrote below these folders, and keep equal files once.

    The builder's umask must not show on the board, and runtimes share numpy.
    """
    known: dict[tuple[int, str], Path] = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            about = path.lstat()
            if stat.S_ISLNK(about.st_mode):
                continue
            owner = stat.S_IMODE(about.st_mode) & 0o700
            path.chmod(owner | (owner & 0o500) >> 3 | (owner & 0o500) >> 6)
            if not path.is_file() or about.st_size < _SHARED_BYTES:
                continue
            twin = known.setdefault((owner, sha256_file(path)), path)
            if twin is not path:
                path.unlink()
                path.hardlink_to(twin)


def make_disk(root: Path, disk: Path, key: str) -> None:
    """Make a qcow2 disk of the folder `root`: ext4, with a small journal, everything root's.

    Args:
        root: of the file system; its files are dated alike.
        disk: to write, readable by all and writable by none.
        key: what the file system's own names are derived from.

    Raises:
        InfrastructureError: a tool failed; its words are in the message.
    """
    paths, size_bytes = _walk(root)
    raw = disk.with_suffix(".ext4")
    blocks = (size_bytes + FREE_BYTES) // _BLOCK_BYTES
    name = str(uuid.UUID(bytes=hashlib.sha256(key.encode()).digest()[:16]))
    run(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-U", name, "-m", "0"),
        *("-O", "^metadata_csum,^64bit", "-J", "size=8", "-I", str(_INODE_SIZE_BYTES)),
        *("-E", f"root_owner=0:0,lazy_itable_init=0,hash_seed={name}"),
        *("-N", str(len(paths) + 16384), "-b", str(_BLOCK_BYTES), str(raw), str(blocks)),
        more=_DATED,
    )
    _own_all(raw, paths)
    # Compressing takes as long as writing would; boards read it as fast.
    run(
        *("qemu-img", "convert", "-c", "-o", "compression_type=zstd"),
        *("-f", "raw", "-O", "qcow2", str(raw), str(disk)),
    )
    raw.unlink()
    disk.chmod(0o444)


def _own_all(raw: Path, paths: Sequence[str]) -> None:
    """Make every file in the file system `raw` root's; the one who builds need not be root."""
    commands = raw.with_suffix(".owners")
    commands.write_text(
        "".join(f'sif "{_quoted(path)}" {what} 0\n' for path in paths for what in ("uid", "gid"))
    )
    said = run("debugfs", "-w", "-f", str(commands), str(raw), more=_DATED, complaints=True)
    # Its exit code is 0 whatever happens; all is well if it says its version, repeats the
    # commands, and says nothing else.
    if failed := [line for line in said.splitlines() if not line.startswith(_NO_COMPLAINT)]:
        raise InfrastructureError(f"debugfs can't set owners: {failed[0]}")
    commands.unlink()


def _walk(root: Path) -> tuple[list[str], int]:
    paths, size_bytes = [], 0
    for folder, names, files in os.walk(root):
        for name in sorted((*names, *files)):
            path = Path(folder, name)
            os.utime(path, (MTIME_S, MTIME_S), follow_symlinks=False)
            paths.append("/" + str(path.relative_to(root)))
            size = path.lstat().st_size
            size_bytes += -(-size // _BLOCK_BYTES) * _BLOCK_BYTES + _INODE_SIZE_BYTES
    os.utime(root, (MTIME_S, MTIME_S))
    return paths, size_bytes


def _quoted(path: str) -> str:
    return path.replace('"', '""')


def _matching_python() -> str | None:
    if importlib.util.MAGIC_NUMBER == _PYTHON_3_11_MAGIC:
        return sys.executable
    return shutil.which("python3.11")
