"""What a board tells of itself: what it is, and how it is at this moment.

Everything is read from /proc and /sys; what a board does not tell is None or left out, never zero.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Dict, List, Optional

_CPU0 = "/sys/devices/system/cpu/cpu0/"
_THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"


def read_text(path: str) -> Optional[str]:
    """Return a small file's text without its end of line, or None if it can't be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 20).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return None


def _read_int(path: str, base: int = 10) -> Optional[int]:
    text = read_text(path)
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def cpu_fields() -> Dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo, and of what follows the last."""
    fields: Dict[str, str] = {}
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def meminfo_bytes(key: str) -> Optional[int]:
    """Return an entry of /proc/meminfo in bytes."""
    for line in (read_text("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def status_bytes(key: str) -> Optional[int]:
    """Return an entry of /proc/self/status in bytes, such as VmHWM or VmSize."""
    for line in (read_text("/proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def pss_bytes() -> Optional[int]:
    """Return this process's proportional share of the memory that it has mapped now."""
    for line in (read_text("/proc/self/smaps_rollup") or "").splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.split()[0]) * 1024
    return None


def _soc() -> Optional[str]:
    """Return the system-on-chip: the most general entry of "compatible" is it."""
    names = [name for name in (read_text("/proc/device-tree/compatible") or "").split("\0") if name]
    return names[-1] if names else read_text("/sys/class/dmi/id/product_name")


def _serial() -> str:
    """Return what tells this board from others of its make; a machine id only as a digest."""
    tree = read_text("/proc/device-tree/serial-number")
    if tree:
        return tree
    machine = read_text("/etc/machine-id")
    if machine:
        import hashlib

        return hashlib.sha256(b"flatsat:" + machine.encode()).hexdigest()[:16]
    return ""


def _os_name() -> str:
    for line in (read_text("/etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line[len("PRETTY_NAME=") :].strip('"')
    return os.uname().sysname


def _cpu_model(fields: Dict[str, str]) -> str:
    if "model name" in fields:
        return fields["model name"]
    # ARM kernels give numbers instead of a name.
    parts = [fields.get(key, "") for key in ("CPU implementer", "CPU part", "CPU revision")]
    return " ".join(part for part in parts if part) or os.uname().machine


def identity() -> Dict[str, Any]:
    """Return what stays the same as long as this is the same board with the same system."""
    fields = cpu_fields()
    flags = fields.get("flags", fields.get("Features", ""))
    return {
        "serial": _serial(),
        "model": read_text("/proc/device-tree/model")
        or read_text("/sys/class/dmi/id/product_name"),
        "soc": _soc(),
        "cpu_model": _cpu_model(fields),
        "cpu_flags": sorted(set(flags.split())),
        "arch": os.uname().machine,
        "os": _os_name(),
        "kernel": os.uname().release,
        "firmware": read_text("/sys/class/dmi/id/bios_version")
        or read_text("/proc/device-tree/firmware/version"),
        "cores": os.cpu_count(),
        "memory_bytes": meminfo_bytes("MemTotal"),
        "aslr": _read_int("/proc/sys/kernel/randomize_va_space"),
    }


def set_calendar(now_s: Optional[float]) -> None:
    """Set the calendar clock to seconds since 1970, where that is given and this user may."""
    if now_s is not None:
        try:
            time.clock_settime(time.CLOCK_REALTIME, now_s)
        except OSError:
            pass


def boot_id() -> str:
    """Return the kernel's name for this boot, "" where it has none."""
    return read_text("/proc/sys/kernel/random/boot_id") or ""


def python_version() -> str:
    """Return the interpreter's version, as in "3.8.20"."""
    return "%d.%d.%d" % sys.version_info[:3]


def glibc() -> Optional[List[int]]:
    """Return major and minor of the C library, or None where it isn't glibc."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        return [int(part) for part in version.split(".")[:2]] if name == "glibc" else None
    except (ValueError, OSError):
        return None


def python_arch() -> str:
    """Return the architecture that this interpreter was built for, as `uname -m` names it.

    A 64-bit kernel may run a 32-bit system; only the interpreter's own counts for its modules.
    """
    machine = os.uname().machine
    if sys.maxsize < 1 << 32:
        return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
    return machine


def _temperature_c() -> Optional[float]:
    """Return the hottest zone that can be read; a zone that is powered off reads below zero."""
    hottest: Optional[float] = None
    try:
        zones = sorted(os.listdir("/sys/class/thermal"))
    except OSError:
        return None
    for zone in zones:
        if zone.startswith("thermal_zone"):
            milli = _read_int("/sys/class/thermal/%s/temp" % zone)
            if milli is not None and milli > 0:
                hottest = max(hottest or 0.0, milli / 1000.0)
    return hottest


def _frequency_khz() -> Optional[int]:
    scaling = _read_int(_CPU0 + "cpufreq/scaling_cur_freq")
    if scaling is not None:
        return scaling
    try:
        return int(float(cpu_fields().get("cpu MHz", "")) * 1000)
    except ValueError:
        return None


def free_bytes() -> Optional[int]:
    """Return the memory that could be had without swapping."""
    return meminfo_bytes("MemAvailable")


def health() -> Dict[str, Any]:
    """Return the board's state now; `runnable` counts the processes that want a core."""
    load = (read_text("/proc/loadavg") or "").split()
    return {
        "freq_khz": _frequency_khz(),
        "temp_c": _temperature_c(),
        "throttle_bits": _read_int(_THROTTLED, 16),
        "governor": read_text(_CPU0 + "cpufreq/scaling_governor"),
        "load1": float(load[0]) if load else None,
        "runnable": int(load[3].split("/")[0]) if len(load) > 3 else None,
        "free_bytes": free_bytes(),
    }


def caches() -> List[Dict[str, Any]]:
    """Return the caches of the first core whose size the kernel tells; emulators tell none."""
    found = []
    for index in range(8):
        folder = _CPU0 + "cache/index%d/" % index
        level = _read_int(folder + "level")
        size = _size_bytes(read_text(folder + "size"))
        if level is not None and size is not None:
            found.append(
                {
                    "level": level,
                    "type": read_text(folder + "type"),
                    "size_bytes": size,
                    "shared_by": read_text(folder + "shared_cpu_list"),
                }
            )
    return found


def _size_bytes(text: Optional[str]) -> Optional[int]:
    """Return a cache's size, which the kernel writes as in "32K"."""
    if not text:
        return None
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1], 1)
    digits = text[:-1] if unit > 1 else text
    return int(digits) * unit if digits.isdigit() and int(digits) else None
