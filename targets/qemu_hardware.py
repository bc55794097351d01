"""What an emulated board is made of, as QEMU's command line says it."""

from __future__ import annotations

from dataclasses import dataclass

from flatsat.units import TimeKind

KERNEL_LINE = "console=ttyAMA0 quiet panic=-1"
"""A kernel that panics boots again at once."""


@dataclass(frozen=True)
class Hardware:
    """What the guest sees of its board.

    Attributes:
        cpu: QEMU's name of the core.
        clock: virtual counts instructions (`-icount`), wall follows the host's clock.
        memory_mb: MiB of memory.
        shift: on the virtual clock an instruction takes 2**shift ns.
    """

    cpu: str = "cortex-a72"
    clock: TimeKind = TimeKind.VIRTUAL
    memory_mb: int = 512
    shift: int = 1

    def arguments(self) -> list[str]:
        """Return QEMU's options for the board without its disks and lines.

        One core: under `-icount` QEMU runs cores in turn, so more of them would only add noise.
        `sleep=on` lets an idle guest sleep in real time; without it idle time is skipped, and
        the guest's time-outs pass in no time.
        """
        counting = ["-icount", f"shift={self.shift},sleep=on"]
        return [
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-M", "virt", "-cpu", self.cpu, "-smp", "1", "-m", str(self.memory_mb)),
            *("-accel", "tcg"),
            *(counting if self.clock is TimeKind.VIRTUAL else []),
        ]


def command_line(hardware: Hardware) -> list[str]:
    """Return what a saved state must agree with: the options without ports and host's files."""
    return [*hardware.arguments(), "-append", KERNEL_LINE, *devices(0, "null")]


def devices(port: int, console: str) -> list[str]:
    """Return QEMU's options for the disk, the network, the console and the monitor.

    Without `restrict=on` programs on the board could reach this machine's network.

    Args:
        port: TCP port on 127.0.0.1 that leads to the board's SSH server.
        console: the backend of the serial console, as a `-chardev` without its id.
    """
    return [
        *("-drive", "if=none,id=d0,file=disk.qcow2,format=qcow2,cache=unsafe"),
        *("-device", "virtio-blk-device,drive=d0"),
        *("-netdev", f"user,id=n0,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-device,netdev=n0"),
        *("-object", "rng-builtin,id=r0", "-device", "virtio-rng-device,rng=r0"),
        *("-chardev", f"{console},id=s0,logfile=console.log", "-serial", "chardev:s0"),
    ]
