"""Documented caches of ARM cores, for boards whose kernel tells none: emulated ones above all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsat.units import TimeKind

_KIB = 1 << 10


@dataclass(frozen=True)
class Core:
    """A core as it stands in one system-on-chip.

    Attributes:
        name: of the core.
        part: implementer and part number, as /proc/cpuinfo gives them.
        soc: the system-on-chip whose shared caches these are.
        caches: (level, type, size in bytes).
        own_levels: caches up to this level are the same in every chip with this core.
    """

    name: str
    part: str
    soc: str
    caches: tuple[tuple[int, str, int], ...]
    own_levels: int = 1


CORES = (
    Core(
        "Cortex-A53",
        "0x41 0xd03",
        "bcm2837",
        ((1, "Data", 32 * _KIB), (1, "Instruction", 32 * _KIB), (2, "Unified", 512 * _KIB)),
        own_levels=0,
    ),
    Core(
        "Cortex-A72",
        "0x41 0xd08",
        "bcm2711",
        ((1, "Data", 32 * _KIB), (1, "Instruction", 48 * _KIB), (2, "Unified", 1024 * _KIB)),
    ),
    Core(
        "Cortex-A76",
        "0x41 0xd0b",
        "bcm2712",
        (
            (1, "Data", 64 * _KIB),
            (1, "Instruction", 64 * _KIB),
            (2, "Unified", 512 * _KIB),
            (3, "Unified", 2048 * _KIB),
        ),
    ),
)
"""Raspberry Pi 3, 4 and 5. Sources: Arm's technical reference manuals of the cores, Raspberry Pi's
documentation of its processors."""


def completed(
    found: Mapping[str, object], facts: Mapping[str, object], time_kind: TimeKind
) -> dict[str, object]:
    """Return a capability job's evidence with the clock, and with documented caches if it has none.

    An emulated core gets the caches of the chip that it stands for. On a real board with another
    chip only those of the core itself are known.

    Args:
        found: what the agent told.
        facts: of the board's identity.
        time_kind: what the rates' seconds are.
    """
    told: dict[str, object] = {**found, "clock": time_kind.value}
    if found.get("caches"):
        return told
    core = _core(str(facts.get("cpu_model")))
    if core is None:
        return told
    whole = bool(facts.get("emulator")) or core.soc in str(facts.get("soc") or "")
    known = [cache for cache in core.caches if whole or cache[0] <= core.own_levels]
    if not known:
        return told
    told["caches"] = [
        {"level": level, "type": type_, "size_bytes": size} for level, type_, size in known
    ]
    told["caches_source"] = "documented"
    told["caches_of"] = f"{core.name} as in {core.soc.upper()}" if whole else core.name
    return told


def _core(cpu_model: str) -> Core | None:
    part = " ".join(cpu_model.split()[:2])
    return next((core for core in CORES if core.part == part), None)
