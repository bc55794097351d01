"""The first file system that the emulated board's kernel sees: drivers, then on to the disk.

The kernel brings ext4 but no virtio, so its modules are loaded before the disk is mounted.
"""

from __future__ import annotations

import gzip
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng")
"""What the board's devices need; their dependencies come by themselves."""

INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for module in {modules}; do
    /bin/busybox insmod /modules/$module.ko || echo "flatsat: no module $module"
done
turns=0
while [ ! -b /dev/vda ] && [ $turns -lt 100 ]; do
    /bin/busybox usleep 20000
    turns=$((turns + 1))
done
# A shell here would leave the caller waiting; power off and say why.
/bin/busybox mount -t ext4 -o ro /dev/vda /root || {{
    echo "flatsat: the root file system can't be mounted"
    /bin/busybox poweroff -f
}}
for folder in dev proc sys; do
    /bin/busybox mount --move /$folder /root/$folder
done
exec /bin/busybox switch_root /root /sbin/init
echo "flatsat: the root file system has no init"
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    Attributes:
        name: its path without a leading slash.
        mode: type and permissions, as in `st_mode`.
        data: its bytes; none for folders and devices.
        device: major and minor number of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def newc(entries: Iterable[Entry]) -> bytes:
    """Return a cpio archive of the kind that kernels unpack, all owned by root and dated 0.

    Device nodes are plain records here, which is why no root is needed.
    """
    parts = []
    for number, entry in enumerate((*entries, Entry("TRAILER!!!", 0)), start=1):
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device)
        header = b"070701" + b"".join(b"%08X" % field for field in (*fields, len(name), 0))
        parts += [_padded(header + name), _padded(entry.data)]
    return b"".join(parts)


def depends(module: bytes) -> tuple[str, ...]:
    """Return the modules that a `.ko` file says it needs, by their normal names."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    names = found[1].decode().split(",") if found else []
    return tuple(normal(name) for name in names if name)


def normal(name: str) -> str:
    """Return a module's name as the kernel counts it: `virtio-rng` and `virtio_rng` are one."""
    return name.removesuffix(".ko").replace("-", "_")


def load_order(wanted: Iterable[str], modules: Mapping[str, bytes]) -> list[str]:
    """Return `wanted` and all that they depend on, each after what it needs.

    Args:
        wanted: normal names.
        modules: normal name -> bytes of the `.ko`.

    Raises:
        KeyError: a module is named that isn't there.
    """
    order: list[str] = []
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        for needed in depends(modules[name]):
            visit(needed)
        order.append(name)

    for name in wanted:
        visit(normal(name))
    return order


def initramfs(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """Return the compressed archive: busybox, modules in their order, `init`.

    Args:
        busybox: a static arm64 busybox.
        modules: normal name -> bytes of the `.ko`, at least `MODULES` and what they need.
    """
    order = load_order(MODULES, modules)
    folders = ("bin", "dev", "proc", "sys", "root", "modules")
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in folders]
    entries += [
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        Entry("init", stat.S_IFREG | 0o755, INIT.format(modules=" ".join(order)).encode()),
    ]
    entries += [Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, modules[name]) for name in order]
    return gzip.compress(newc(entries), compresslevel=6, mtime=0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
