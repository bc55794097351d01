"""How the emulated board's kernel, first file system, disk and keys are made; without root."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_json
from flatsat.errors import InfrastructureError
from flatsat.targets import qemu_rootfs as rootfs
from flatsat.targets.qemu_elf import missing_libraries
from flatsat.targets.qemu_files import APPLETS, FILES, FOLDERS, KERNEL, PACKAGES, PYTHON, STORE
from flatsat.targets.qemu_initramfs import INIT, MODULES, initramfs, normal
from flatsat.targets.qemu_packages import Apt, Package, drop_others
from flatsat.targets.qemu_tools import run
from flatsat.targets.wheels import Interpreter, Site, site_for, unpack_site

if TYPE_CHECKING:
    from flatsat.progress import Progress

RUNTIMES = ("onnxruntime", "litert", "tflite-runtime")
"""What is baked into the image, each in a folder of its own."""

INTERPRETER = Interpreter((3, 11), "aarch64", (2, 36))
"""The board's Python and C library, as Debian 12 has them."""

FORMAT = 1
"""Counted up when the same packages and files come to be put together in another way."""

_STEPS = (
    *("unpack packages", "unpack runtimes", "check libraries", "compile Python", "pack kernel"),
    "write disk",
)
_TASK = "build qemu-arm64"


@dataclass(frozen=True)
class Plan:
    """All that an image is made of, known before any of it is unpacked.

    Attributes:
        key: SHA-256 over packages, wheels and own files; equal wherever these are equal.
        packages: of the root file system.
        kernel: the kernel's package.
        sites: runtime -> its wheels.
    """

    key: str
    packages: tuple[Package, ...]
    kernel: Package
    sites: Mapping[str, Site]


def recipe_hash() -> str:
    """Return the hash of what this version of FlatSat asks for; needs neither apt nor network."""
    return sha256_json(_recipe())


def image_key(packages: Sequence[Package], sites: Mapping[str, Site]) -> str:
    """Return the hash of all that an image is made of, wherever its parts lie on this machine."""
    ingredients = {
        "recipe": _recipe(),
        "packages": sorted([one.name, one.version, one.sha256] for one in packages),
        "sites": {runtime: [site.name, sorted(site.sha256)] for runtime, site in sites.items()},
    }
    return sha256_json(ingredients)


def make_plan(downloads: Path, cache_dir: Path | None, progress: Progress) -> Plan:
    """Bring packages and wheels here and say what the image will be.

    Args:
        downloads: where packages and apt's lists are kept between builds.
        cache_dir: of FlatSat, for the wheels.
        progress: is told about downloads.

    Raises:
        InfrastructureError: something can't be fetched.
    """
    apt = Apt(downloads / "apt")
    progress.update("read package lists", 0, 1, "apt")
    apt.refresh()
    kernel = apt.kernel(KERNEL)
    found = apt.resolve((*PACKAGES, kernel))
    progress.update("read package lists", 1, 1, "apt")
    debs = downloads / "debs"
    apt.fetch(found, debs, progress)
    drop_others(found, debs)
    sites = {
        runtime: site_for(runtime, INTERPRETER, cache_dir=cache_dir, progress=progress)
        for runtime in RUNTIMES
    }
    return Plan(
        image_key(found, sites),
        tuple(package for package in found if package.name != kernel),
        next(package for package in found if package.name == kernel),
        sites,
    )


def make_image(plan: Plan, debs: Path, folder: Path, progress: Progress) -> dict[str, object]:
    """Fill the empty `folder` with an image and return what describes it.

    Raises:
        InfrastructureError: a tool failed, or a library is missing.
    """
    done = 0

    def step() -> None:
        nonlocal done
        progress.update(_TASK, done, len(_STEPS), _STEPS[done])
        done += 1

    root, work = folder / "root", folder / "work"
    password = secrets.token_urlsafe(12)
    user_key, user_public = _key_pair("flatsat")
    host_key, host_public = _key_pair("qemu-arm64")
    step()
    rootfs.unpack([debs / package.file for package in plan.packages], root)
    rootfs.furnish(
        root,
        [
            ("etc/shadow", 0o600, _shadow(password)),
            ("etc/ssh/ssh_host_ed25519_key", 0o600, host_key),
            ("etc/ssh/ssh_host_ed25519_key.pub", 0o644, host_public),
            ("root/.ssh/authorized_keys", 0o600, user_public),
        ],
    )
    step()
    sites = {runtime: f"{STORE}/sites/{site.name}" for runtime, site in plan.sites.items()}
    for runtime, site in plan.sites.items():
        place = root / sites[runtime].lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        unpack_site(site, place)
    step()
    if lost := missing_libraries(root):
        name, needed = sorted(lost.items())[0]
        raise InfrastructureError(
            f"the board's {name} needs {', '.join(needed)}, which no package of the recipe brings",
            hint="add the package that holds it to PACKAGES in qemu_files.py",
        )
    step()
    folders = ["usr/lib/python3.11", STORE.lstrip("/")]
    if not rootfs.precompile(root, folders):
        progress.log("no Python 3.11 on this machine: the board's first imports will be slow")
    rootfs.even_out(root, folders)
    step()
    _pack_kernel(debs / plan.kernel.file, root / "usr/bin/busybox", work, folder)
    step()
    rootfs.make_disk(root, folder / "rootfs.qcow2", plan.key)
    (folder / "user_key").touch(mode=0o600)
    (folder / "user_key").write_text(user_key)
    for scratch in (root, work):
        shutil.rmtree(scratch)
    progress.update(_TASK, len(_STEPS), len(_STEPS))
    return {
        "key": plan.key,
        "kernel": "Image",
        "initrd": "initrd.gz",
        "disk": "rootfs.qcow2",
        "user_key": "user_key",
        "host_key": " ".join(host_public.split()[:2]),
        "console_password": password,
        "sites": sites,
        "python": PYTHON,
        "store": STORE,
        "packages": {package.name: package.version for package in (*plan.packages, plan.kernel)},
    }


def _pack_kernel(deb: Path, busybox: Path, work: Path, folder: Path) -> None:
    """Write the kernel and its first file system into `folder`; `work` is left to throw away."""
    modules = ("*/virtio/*.ko", "*/virtio*.ko", "*/*failover.ko")
    rootfs.unpack_parts(deb, work, "--wildcards", "./boot/vmlinuz-*", *modules)
    next(work.glob("boot/vmlinuz-*")).replace(folder / "Image")
    files = {normal(path.name): path.read_bytes() for path in work.rglob("*.ko")}
    (folder / "initrd.gz").write_bytes(initramfs(busybox.read_bytes(), files))


def _recipe() -> dict[str, object]:
    return {
        "format": FORMAT,
        "packages": sorted(PACKAGES),
        "kernel": KERNEL,
        "applets": sorted(APPLETS),
        "files": {name: [mode, text] for name, (mode, text) in FILES.items()},
        "folders": dict(FOLDERS),
        "modules": list(MODULES),
        "init": INIT,
        "runtimes": list(RUNTIMES),
        "python": PYTHON,
        "store": STORE,
        "free_bytes": rootfs.FREE_BYTES,
    }


def _key_pair(comment: str) -> tuple[str, str]:
    """Return a new ed25519 key: private in OpenSSH's format, public as one line."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    return key.export_private_key().decode(), key.export_public_key().decode()


def _shadow(password: str) -> str:
    hashed = run("openssl", "passwd", "-6", "-stdin", text=password).strip()
    return f"root:{hashed}:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nnobody:*:19000::::::\n"
