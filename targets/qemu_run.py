"""One emulated board: its life from start to stop, and its power switch."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.targets.qemu_folder import RunFolder
from flatsat.targets.qemu_hardware import KERNEL_LINE, devices
from flatsat.targets.qemu_process import Emulator, EmulatorError, OwnedProcess
from flatsat.targets.qemu_tools import run
from flatsat.targets.qmp import QmpClient, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from flatsat.targets.qemu_hardware import Hardware
    from flatsat.targets.qemu_image import Image

BOOT_S = 180.0
"""How long a cold boot may take on a busy machine; it takes 3 s on a quiet one."""

_GREET_S = 30.0
_RESTORE_S = 60.0
_QUIT_S = 3.0
_BANNER_S = 0.7
_LOOK_S = 0.02
_PORT_TRIALS = 8
_PORT_TAKEN = "host forwarding"
_REFUSED_STATE = "load of migration failed"


class BadState(EmulatorError):  # noqa: N818
    """A saved state can't be started from: it is damaged, or not of this QEMU or this hardware."""


class NeverUp(EmulatorError):  # noqa: N818
    """The board was started, but its SSH server never answered."""


@dataclass(frozen=True)
class Plugin:
    """A TCG plugin to run a machine with, and the arguments it takes.

    Attributes:
        library: the shared object.
        arguments: of the plugin; `{log}` stands for the machine's `events_log`.
    """

    library: Path
    arguments: tuple[str, ...] = ("log={log}",)


@dataclass(frozen=True)
class Disk:
    """What a machine's own disk grows from, and memory to go with it.

    Attributes:
        base: a qcow2 image; never written to.
        memory: a state of the machine saved with this very disk, or None to boot.
    """

    base: Path
    memory: Path | None = None


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Machine:
    """A running QEMU with a booted board. Made by `start`; ends with this process at the latest.

    Attributes:
        ssh_port: on 127.0.0.1.
        console: the serial console: the path of a tty, or "socket://127.0.0.1:PORT".
        qmp: the monitor; closed by `release_monitor`.
        run_dir: its disk, logs and sockets; removed by `stop`.
        events_log: what the plugin writes, or None without one.
    """

    def __init__(
        self,
        image: Image,
        hardware: Hardware,
        emulator: Emulator,
        *,
        console: str,
        plugin: Plugin | None,
        ports: Callable[[], int],
    ) -> None:
        self.image = image
        self.hardware = hardware
        self._emulator = emulator
        self._console_kind = console
        self._plugin = plugin
        self._ports = ports
        self._process: OwnedProcess | None = None
        self._qmp: QmpClient | None = None
        self._folder = RunFolder()
        self.run_dir = self._folder.path
        self.ssh_port = 0
        self.console = ""
        self.events_log = None if plugin is None else self.run_dir / "events.log"

    @classmethod
    async def start(
        cls,
        image: Image,
        hardware: Hardware,
        emulator: Emulator,
        *,
        disk: Disk | None = None,
        console: str = "pty",
        plugin: Plugin | None = None,
        deadline_s: float = BOOT_S,
        ports: Callable[[], int] = free_port,
    ) -> Machine:
        """Start a machine on a fresh disk and wait until its SSH server answers.

        Args:
            image: what it boots.
            hardware: what the guest sees.
            emulator: the installed QEMU.
            disk: what the disk grows from, and a saved state; the image's disk by default.
            console: "pty" or "socket".
            plugin: to run with.
            deadline_s: on the host's clock, for all of it.
            ports: names a port to try.

        Raises:
            BadState: the saved state can't be started from.
            NeverUp: nothing answered in time; the message has the console's last line.
            EmulatorError: QEMU does not start, and why.
        """
        machine = cls(image, hardware, emulator, console=console, plugin=plugin, ports=ports)
        chosen = disk or Disk(image.disk)
        try:
            if chosen.memory is not None and not chosen.base.is_file():
                raise BadState("the board's saved state is gone")
            await asyncio.to_thread(machine._make_disk, chosen.base)
            await machine._power_on(chosen.memory, time.monotonic() + deadline_s)
        except BaseException:
            await machine.stop()
            raise
        return machine

    # What it is.

    @property
    def qmp(self) -> QmpClient:
        """The monitor. Raises QmpError once it was released or the machine has stopped."""
        if self._qmp is None:
            raise QmpError("the machine's monitor is not connected")
        return self._qmp

    @property
    def qmp_path(self) -> Path:
        """The monitor's socket, for another process once `release_monitor` was called."""
        return self.run_dir / "qmp.sock"

    @property
    def pid(self) -> int:
        """QEMU's process id, 0 while it is off."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether QEMU lives; the guest in it may hang all the same."""
        return self._process is not None and self._process.code is None

    @property
    def state_disk(self) -> Path:
        """The machine's own disk."""
        return self.run_dir / "disk.qcow2"

    def console_text(self) -> str:
        """Return what the console has shown so far, with whatever control bytes are in it."""
        try:
            return (self.run_dir / "console.log").read_text("utf-8", "replace")
        except OSError:
            return ""

    async def epitaph(self, patience_s: float = 0.2) -> str | None:
        """Return how QEMU ended, or None while it lives.

        Args:
            patience_s: a link breaks a moment before the end of QEMU can be seen.
        """
        process = self._process
        if process is None or not await process.ended(patience_s):
            return None
        words = process.last_words()
        return f"QEMU ended with code {process.code}" + (f": {words}" if words else "")

    # The power switch.

    async def reset(self, deadline_s: float = BOOT_S) -> None:
        """Cut the power and give it back: memory is lost, what the disk had is kept.

        Raises:
            NeverUp: it does not come up again.
            QmpError: QEMU is gone.
        """
        await _cut_power(self.qmp)
        await self._answers(time.monotonic() + deadline_s)

    async def power_off(self) -> None:
        """Cut the power; `power_on` goes on with the same disk."""
        await self._end(_QUIT_S)

    async def power_on(self, deadline_s: float = BOOT_S) -> None:
        """Boot again after `power_off`, on the same port where that is still free.

        Raises:
            NeverUp: it does not come up.
            EmulatorError: QEMU does not start.
        """
        await self._power_on(None, time.monotonic() + deadline_s)

    async def pause(self) -> None:
        """Stop the board's clock: it hangs."""
        await self.qmp.execute("stop")

    async def resume(self) -> None:
        """Let it go on."""
        await self.qmp.execute("cont")

    async def plug(self, connected: bool) -> None:
        """Put the network cable in, or pull it."""
        await self.qmp.execute("set_link", name="n0", up=connected)

    async def save(self, path: Path, deadline_s: float = _RESTORE_S) -> None:
        """Stop the board and write its state to a file; the disk as it is now belongs to it.

        Raises:
            EmulatorError: it can't be saved, or not in time.
        """
        deadline = time.monotonic() + deadline_s
        await self.qmp.execute("stop")
        await self.qmp.human("migrate_set_parameter max-bandwidth 10G")
        # A shell reads this line.
        await self.qmp.execute("migrate", uri=f"exec:cat > {shlex.quote(str(path.absolute()))}")
        while (found := await self.qmp.execute("query-migrate"))["status"] != "completed":
            if found["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                raise EmulatorError(
                    f"the board's state can't be saved in {path.parent}: {found['status']}",
                    hint="free some room there",
                )
            await asyncio.sleep(_LOOK_S)

    async def release_monitor(self) -> None:
        """Let other processes use the monitor."""
        if self._qmp is not None:
            await self._qmp.close()
            self._qmp = None

    async def stop(self) -> None:
        """End it and remove its files; never raises, also not for one that has ended."""
        try:
            await self._end(_QUIT_S)
        finally:
            if self._process is not None:
                self._process.kill()
            self._folder.remove()

    async def _end(self, patience_s: float) -> None:
        process, qmp = self._process, self._qmp
        self._qmp = None
        try:
            if qmp is not None and self.running:
                # Asked nicely, QEMU writes out what it holds of the disk.
                with contextlib.suppress(QmpError):
                    await qmp.execute("quit", patience_s)
            if process is not None and qmp is not None:
                await process.ended(patience_s)
        finally:
            if process is not None:
                process.kill()
                await process.ended(patience_s)
            if qmp is not None:
                await qmp.close()

    # Starting.

    def _make_disk(self, base: Path) -> None:
        argv = [self._emulator.image_tool, "create", "-q", "-f", "qcow2", "-F", "qcow2"]
        run(*argv, "-b", str(base.absolute()), str(self.state_disk))

    async def _power_on(self, memory: Path | None, deadline: float) -> None:
        for trial in range(_PORT_TRIALS):
            # The port of an earlier life is tried first, so that links to it find it again.
            port = self.ssh_port if self.ssh_port and trial == 0 else self._ports()
            try:
                await self._launch(port, memory)
                break
            except EmulatorError as error:
                await self._end(_QUIT_S)
                if _PORT_TAKEN not in error.message or trial == _PORT_TRIALS - 1:
                    raise
        self.ssh_port = port
        if memory is not None:
            await self._restored(min(deadline, time.monotonic() + _RESTORE_S))
        if self._console_kind == "pty":
            self.console = await self._tty_name()
        await self._answers(deadline)

    async def _launch(self, port: int, memory: Path | None) -> None:
        """Start QEMU and connect to its monitor; both of its sockets are made beforehand."""
        with contextlib.ExitStack() as opened:
            monitor = opened.enter_context(socket.socket(socket.AF_UNIX))
            self.qmp_path.unlink(missing_ok=True)
            monitor.bind(str(self.qmp_path))
            monitor.listen()
            passed = [monitor.fileno()]
            console = "pty"
            if self._console_kind == "socket":
                line = opened.enter_context(socket.socket())
                line.bind(("127.0.0.1", 0))
                line.listen()
                passed.append(line.fileno())
                console = f"socket,fd={line.fileno()},server=on,wait=off"
                self.console = f"socket://127.0.0.1:{line.getsockname()[1]}"
            argv = [self._emulator.program, *self.hardware.arguments()]
            argv += ["-kernel", str(self.image.kernel.absolute())]
            argv += ["-initrd", str(self.image.initrd.absolute()), "-append", KERNEL_LINE]
            argv += devices(port, console)
            argv += ["-chardev", f"socket,id=q0,fd={monitor.fileno()},server=on,wait=off"]
            argv += ["-mon", "chardev=q0,mode=control"]
            argv += self._plugin_arguments()
            if memory is not None:
                try:
                    saved = opened.enter_context(memory.open("rb"))
                except OSError as error:
                    raise BadState(f"can't read {memory}: {error.strerror}") from error
                passed.append(saved.fileno())
                argv += ["-incoming", f"fd:{saved.fileno()}"]
            log = self.run_dir / "qemu.log"
            log.unlink(missing_ok=True)
            self._process = OwnedProcess(argv, folder=self.run_dir, log=log, passed=passed)
        try:
            self._qmp = await QmpClient.connect(self.qmp_path, _GREET_S)
        except QmpError as error:
            gave_up = await self._gave_up(EmulatorError, "QEMU does not start")
            if memory is not None and _REFUSED_STATE in gave_up.message:
                raise BadState(gave_up.message) from error
            raise gave_up from error

    def _plugin_arguments(self) -> list[str]:
        if self._plugin is None:
            return []
        given = [text.format(log=self.events_log) for text in self._plugin.arguments]
        library = str(self._plugin.library.absolute()).replace(",", ",,")
        return ["-plugin", ",".join([f"file={library}", *given])]

    async def _restored(self, deadline: float) -> None:
        """Wait until the saved state was read, then let the board run."""
        try:
            while (await self.qmp.execute("query-status"))["status"] == "inmigrate":
                if time.monotonic() > deadline:
                    raise BadState("the board's saved state was not read in time")
                await asyncio.sleep(_LOOK_S)
            # It was saved stopped.
            await self.qmp.execute("cont")
        except QmpError as error:
            raise await self._gave_up(BadState, "the board's saved state is unusable") from error

    async def _tty_name(self) -> str:
        for device in await self.qmp.execute("query-chardev"):
            if device["label"] == "s0":
                return str(device["filename"]).removeprefix("pty:")
        raise EmulatorError("QEMU made no console")

    async def _answers(self, deadline: float) -> None:
        """Wait for the SSH server's banner.

        QEMU's network takes a connection before the guest listens, and one that came too early
        waits long for a second try: fresh ones, given up soon, see the server first.
        """
        while not await _greets(self.ssh_port):
            if not self.running:
                raise await self._gave_up(NeverUp, "the board went off while it booted")
            if time.monotonic() > deadline:
                raise NeverUp("the board's SSH server does not answer", hint=self._shown())
            await asyncio.sleep(_LOOK_S)

    async def _gave_up(self, kind: type[EmulatorError], what: str) -> EmulatorError:
        words = ""
        if self._process is not None:
            if not await self._process.ended(_QUIT_S):
                self._process.kill()
            words = self._process.last_words()
        return kind(f"{what}: {words}" if words else what, hint=self._shown())

    def _shown(self) -> str | None:
        lines = [line.strip() for line in self.console_text().splitlines() if line.strip()]
        return f"its console's last line: {lines[-1][:120]}" if lines else None


async def reset_machine(qmp_path: Path, ssh_port: int, deadline_s: float = BOOT_S) -> None:
    """Cut and give back the power of a machine that another process owns; wait until it is up.

    Args:
        qmp_path: the monitor's socket.
        ssh_port: the machine's, on 127.0.0.1.
        deadline_s: on the host's clock.

    Raises:
        QmpError: QEMU is gone.
        NeverUp: the board does not come up.
    """
    deadline = time.monotonic() + deadline_s
    qmp = await QmpClient.connect(qmp_path, _GREET_S)
    try:
        await _cut_power(qmp)
    finally:
        await qmp.close()
    while not await _greets(ssh_port):
        if time.monotonic() > deadline:
            raise NeverUp("the board does not come up after its power was cut")
        await asyncio.sleep(_LOOK_S)


async def _cut_power(qmp: QmpClient) -> None:
    """Reset the board, and return once that has happened."""
    qmp.forget_events()
    await qmp.execute("system_reset")
    await qmp.wait_for(lambda event: event["event"] == "RESET", _GREET_S)
    # A board that was stopped stays so over a reset.
    await qmp.execute("cont")


async def _greets(port: int) -> bool:
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_BANNER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            return (await reader.read(4)).startswith(b"SSH-")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()
