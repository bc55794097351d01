"""Kind `qemu-arm64`: an emulated ARM board, started for a session or kept up by `board up`.

Its clock counts instructions (`virtual`), so that a latency is the same on any machine however
busy; or it follows the host's (`wall`), which only shows that something runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.canonical import sha256_bytes
from flatsat.errors import InfrastructureError
from flatsat.progress import NoProgress
from flatsat.targets.board import Lease, LinkDown
from flatsat.targets.energy import EnergyModel
from flatsat.targets.events import GEOMETRIES, EventsSession, NoMeter, build_plugin
from flatsat.targets.provision import agent_zip, write_agent
from flatsat.targets.qemu_hardware import Hardware
from flatsat.targets.qemu_image import build_image, find_image
from flatsat.targets.qemu_keeper import Kept, find_keeper
from flatsat.targets.qemu_process import Emulator, EmulatorError, find_emulator
from flatsat.targets.qemu_run import Disk, Machine, Plugin, reset_machine
from flatsat.targets.qemu_state import Warm, find_state, make_state, start_machine
from flatsat.targets.session import AgentSession, open_session
from flatsat.targets.ssh import SshLink
from flatsat.targets.wheels import own_sites
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsat.jobspec import JobSpec
    from flatsat.outcome import Health, Outcome
    from flatsat.progress import Progress
    from flatsat.targets.board import BoardIdentity
    from flatsat.targets.links import Link
    from flatsat.targets.qemu_image import Image

CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
"""Cores that were tried: of a Raspberry Pi 3, 4 and 5; the last has dot products of int8."""

_GRACE_S = 120.0
_KEEPALIVE_S = 10.0
_WARM_S = 300.0
_MODULES = {
    "onnxruntime": "onnxruntime",
    "litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}


@dataclass(frozen=True)
class QemuBoard:
    """An emulated ARM board.

    Attributes:
        name: in `lab.toml`.
        cpu: one of `CPUS`.
        clock: "virtual" or "wall".
        memory_mb: MiB of memory.
        shift: on the virtual clock an instruction takes 2**shift ns.
        link: "ssh" or "serial".
        console: how the serial console is reached: "pty" or "socket".
        meter: "events" counts events for energy jobs on a second machine, "none" doesn't.
        energy: joules per counted event.
        cache_dir: where the image lies; by default the user's cache.
    """

    name: str = "qemu-arm64"
    cpu: str = "cortex-a72"
    clock: str = "virtual"
    memory_mb: int = 512
    shift: int = 1
    link: str = "ssh"
    console: str = "pty"
    meter: str = "events"
    energy: EnergyModel = field(default_factory=EnergyModel)
    cache_dir: Path | None = None
    kind: str = "qemu-arm64"
    runs_here: bool = True

    @property
    def time_kind(self) -> TimeKind:
        """What its durations mean."""
        return TimeKind(self.clock)

    @property
    def hardware(self) -> Hardware:
        """What the guest sees."""
        return Hardware(self.cpu, self.time_kind, self.memory_mb, self.shift)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> QemuBoard:
        """Return the board whose `settings` these are."""
        given = dict(settings)
        if given.get("cache_dir") is not None:
            given["cache_dir"] = Path(given["cache_dir"])
        if isinstance(given.get("energy"), dict):
            given["energy"] = EnergyModel(**given["energy"])
        return cls(**given)

    def settings(self) -> dict[str, Any]:
        """Return all that makes this board, JSON-able."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        given["cache_dir"] = None if self.cache_dir is None else str(self.cache_dir)
        given["energy"] = self.energy.to_json()
        return given

    async def prepare(self, progress: Progress | None = None, *, refresh: bool = False) -> Image:
        """Build the image and the meter, and boot the board once, where that was not done yet.

        Args:
            progress: is told about the steps.
            refresh: look for newer packages even if there is an image.

        Raises:
            InfrastructureError: QEMU or another tool is missing, or one of the steps fails.
        """
        image, emulator = await self._image(progress, refresh)
        warm = self.warm()
        if await asyncio.to_thread(find_state, image, self.hardware, emulator, warm) is None:
            await make_state(image, self.hardware, emulator, warm, progress=progress)
        if self.meter != "none":
            try:
                await asyncio.to_thread(build_plugin, self.cache_dir)
            except NoMeter as error:
                # All but energy jobs works without it, and those say so themselves.
                (progress or NoProgress()).log(f"board {self.name}: {error}")
        return image

    async def open(self, lease: Lease) -> QemuSession | EventsSession:
        """Open a session on the machine that `board up` keeps, else on one of its own.

        Energy jobs go to a machine with the event meter, which is started for the first of them.

        The image is built and the board booted for the first time if that was never done, which
        takes minutes; `prepare` does it with progress shown.

        Raises:
            LinkDown: it does not come up, or its agent does not start.
            BoardRefused: the lease is over, or another agent holds the board.
        """
        kept = find_keeper(lease.directory)
        if kept is not None:
            image = self.image_of(kept)
            session = QemuSession(await self.attach(image, kept.ssh_port, kept.console, lease))
        else:
            session = await self._open(lease)
        return self._with_meter(session, lease)

    async def _open(self, lease: Lease, plugin: Plugin | None = None) -> QemuSession:
        """Open a session on a machine of its own, perhaps with a plugin."""
        try:
            machine = await self.start(plugin=plugin)
        except EmulatorError as error:
            raise LinkDown(error.message, hint=error.hint) from error
        try:
            session = await self.attach(machine.image, machine.ssh_port, machine.console, lease)
        except BaseException:
            await machine.stop()
            raise
        return QemuSession(session, machine)

    def _with_meter(self, session: QemuSession, lease: Lease) -> QemuSession | EventsSession:
        if self.meter == "none":
            return session
        geometry = GEOMETRIES[self.cpu]

        async def start() -> tuple[QemuSession, Path]:
            library = await asyncio.to_thread(build_plugin, self.cache_dir)
            # Files go over a second time: by the quick way, whichever the board's own is.
            quick = replace(self, link="ssh")
            metered = await quick._open(lease, Plugin(library, geometry.arguments()))
            assert metered.machine is not None
            assert metered.machine.events_log is not None
            return metered, metered.machine.events_log

        return EventsSession(session, start, self.energy, geometry)

    async def power_cycle(self, lease: Lease) -> None:
        """Cut the power of the machine that `board up` keeps, and wait until it has booted.

        A session's own machine ends with the session: the next one has a fresh one anyway.

        Raises:
            LinkDown: it does not come up again.
        """
        kept = find_keeper(lease.directory)
        if kept is not None:
            try:
                await reset_machine(kept.qmp, kept.ssh_port)
                await self._warm_up(self.image_of(kept), kept.ssh_port, kept.console, lease)
            except InfrastructureError as error:
                raise LinkDown(error.message, hint=f"flatsat board down {self.name}") from error

    def image_of(self, kept: Kept) -> Image:
        """Return the image of a machine that is kept up, if that is this board as it is now.

        Raises:
            LinkDown: it isn't.
        """
        image = find_image(self.cache_dir)
        other = QemuBoard.from_settings(kept.settings)
        same = (other.hardware, other.console) == (self.hardware, self.console)
        if image is None or image.key != kept.image_key or not same:
            raise LinkDown(
                f"board {self.name!r} is up with other settings or an older image",
                hint=f"flatsat board down {self.name}",
            )
        return image

    async def start(
        self, progress: Progress | None = None, plugin: Plugin | None = None
    ) -> Machine:
        """Start a machine of this board from its saved state; both are made if need be.

        Args:
            progress: is told about the steps.
            plugin: to run the machine with; the guest's clock doesn't feel it.

        Raises:
            EmulatorError: QEMU is missing, or the board does not come up.
            InfrastructureError: the image can't be built.
        """
        image, emulator = await self._image(progress)

        async def start(disk: Disk) -> Machine:
            return await Machine.start(
                image, self.hardware, emulator, disk=disk, console=self.console, plugin=plugin
            )

        return await start_machine(
            image, self.hardware, emulator, self.warm(), progress=progress, start=start
        )

    async def attach(self, image: Image, ssh_port: int, console: str, lease: Lease) -> AgentSession:
        """Open a session with the agent of a machine that is up.

        Raises:
            LinkDown, BoardRefused: as `open`.
        """
        try:
            agent = write_agent(lease.directory)
        except OSError as error:
            raise LinkDown(
                f"can't write the agent into {lease.directory}: {error.strerror}",
                hint="free some room there, or choose another lab folder",
            ) from error
        return await open_session(
            self._link(image, ssh_port, console, agent),
            lease,
            kind=self.kind,
            time_kind=self.time_kind,
            grace_s=_GRACE_S,
            facts=self._facts(image),
            # NumPy is in its image.
            sites=own_sites(self.cache_dir),
            # A board that goes on from a saved state still has the date of its saving.
            set_calendar=True,
        )

    async def _image(
        self, progress: Progress | None, refresh: bool = False
    ) -> tuple[Image, Emulator]:
        emulator = await asyncio.to_thread(find_emulator)
        image = None if refresh else find_image(self.cache_dir)
        if image is None:
            image = await asyncio.to_thread(
                build_image, cache_dir=self.cache_dir, progress=progress, refresh=refresh
            )
        return image, emulator

    def _link(self, image: Image, ssh_port: int, console: str, agent: Path) -> Link:
        if self.link == "ssh":
            return self._ssh(image, ssh_port, agent)
        from flatsat.targets.serial_link import SerialLink

        return SerialLink(
            console,
            agent=agent,
            user="root",
            password=image.console_password,
            python=image.python,
            store=image.store,
            sites=image.sites,
        )

    def _ssh(self, image: Image, ssh_port: int, agent: Path) -> SshLink:
        return SshLink(
            "127.0.0.1",
            ssh_port,
            user="root",
            known_hosts=image.host_key,
            keys=(image.user_key,),
            python=image.python,
            store=image.store,
            agent=agent,
            sites=image.sites,
            keepalive_s=_KEEPALIVE_S,
        )

    def _facts(self, image: Image) -> Mapping[str, object]:
        hardware = self.hardware
        counted = hardware.clock is TimeKind.VIRTUAL
        return {
            "qemu_version": find_emulator().version,
            "emulator": {
                "machine": "virt",
                "cpu": hardware.cpu,
                "clock": hardware.clock.value,
                "shift": hardware.shift if counted else None,
                "memory_mb": hardware.memory_mb,
                "smp": 1,
                "image": image.key,
            },
        }

    def warm(self) -> Warm:
        """Return what is done on a machine that has just booted, for its first session's sake."""

        async def run(machine: Machine) -> None:
            lease = Lease(self.name, 0, machine.run_dir / "warm")
            await self._warm_up(machine.image, machine.ssh_port, machine.console, lease)

        # The agent lies on the disk of the state: with another one, the state would lack it.
        return Warm(sha256_bytes(agent_zip()), run)

    async def _warm_up(self, image: Image, ssh_port: int, console: str, lease: Lease) -> None:
        """Start the agent once and import each runtime once: files read stay in memory.

        The first processes after a boot were seen to take up to 0.6 % longer than later ones, and
        with this within 0.01 % as long.
        """
        # Over SSH, which is quicker, also for a board that is measured over its console.
        session = await replace(self, link="ssh").attach(image, ssh_port, console, lease)
        await session.close()
        link = self._ssh(image, ssh_port, write_agent(lease.directory))
        for runtime, site in image.sites.items():
            code = f"import sys; sys.path.insert(0, {site!r}); import {_MODULES[runtime]}"
            result = await link.run_command(f'{image.python} -S -s -c "{code}"', _WARM_S)
            if result.exit_status:
                raise LinkDown(f"the board can't import {runtime}: {result.stderr[-200:]!r}")
        # What waits in memory to be written would be lost with the power.
        await link.run_command("sync", _WARM_S)


class QemuSession:
    """A session; a machine of its own ends with it.

    Attributes:
        machine: None where `board up` keeps it.
    """

    def __init__(self, inner: AgentSession, machine: Machine | None = None) -> None:
        self.inner = inner
        self.machine = machine

    @property
    def identity(self) -> BoardIdentity:
        """Which board this is."""
        return self.inner.identity

    @property
    def welcome(self) -> Mapping[str, Any]:
        """The agent's greeting."""
        return self.inner.welcome

    @property
    def health(self) -> Health:
        """The board's state when the session was opened."""
        return self.inner.health

    async def put(self, sha256: str, source: Path, coded: tuple[str, Path] | None = None) -> None:
        """Have a file on the board. Raises as `Session.put`."""
        try:
            await self.inner.put(sha256, source, coded)
        except LinkDown as error:
            raise await self._explained(error) from error

    async def run(self, job_id: str, spec: JobSpec, *, meter: str = "") -> Outcome:
        """Do a job. Raises as `Session.run`.

        No sign of life is asked for meanwhile, since the answer would count. That QEMU has ended
        is seen all the same; that the board in it hangs, by the job's deadline.
        """
        self._ask_for_life(None)
        try:
            return await self.inner.run(job_id, spec, meter=meter)
        except LinkDown as error:
            raise await self._explained(error) from error
        finally:
            self._ask_for_life(_KEEPALIVE_S)

    def _ask_for_life(self, every_s: float | None) -> None:
        if isinstance(self.inner.link, SshLink):
            self.inner.link.set_keepalive(every_s)

    async def _explained(self, error: LinkDown) -> LinkDown:
        """Say so where QEMU is what ended."""
        words = None if self.machine is None else await self.machine.epitaph()
        return error if words is None else LinkDown(f"{words} ({error.message})", hint=error.hint)

    async def close(self) -> None:
        """End the session and the machine; never raises."""
        try:
            await self.inner.close()
        finally:
            if self.machine is not None:
                await self.machine.stop()
