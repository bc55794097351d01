"""The meter `events`: an emulator's plugin counts what inferences do; a model gives joules.

Latency and all else is measured on a machine without the plugin. For energy jobs a second machine
of the same board is started with it, when the first such job comes.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any, cast

from flatsat.cache import default_cache_dir
from flatsat.canonical import sha256_bytes
from flatsat.errors import InfrastructureError
from flatsat.files import replace_file
from flatsat.jobspec import JobKind
from flatsat.outcome import Failed, Fault, Inconclusive, Measured, Owner, Samples
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.units import EnergyKind

if TYPE_CHECKING:
    from flatsat.jobspec import JobSpec
    from flatsat.outcome import Health, Outcome
    from flatsat.targets.board import BoardIdentity
    from flatsat.targets.energy import EnergyModel
    from flatsat.targets.qemu import QemuSession

METER = "events"
COUNTED = "counted"
_SOURCES = Path(__file__).parent / "plugin"
_FLAGS = ("-O2", "-shared", "-fPIC", "-std=c11", "-Wall", "-Wextra")
_COMPILE_S = 60.0
_KEPT_ANSWERS = 16
_PLAIN = ("instructions", "loads", "stores", "load_bytes", "store_bytes")


class NoMeter(InfrastructureError):  # noqa: N818
    """The plugin can't be built here."""


@dataclass(frozen=True)
class CacheGeometry:
    """The modelled data caches; sizes in bytes. One line size for both."""

    l1_size: int = 32 << 10
    l1_ways: int = 2
    l2_size: int = 1 << 20
    l2_ways: int = 16
    line: int = 64

    def arguments(self) -> tuple[str, ...]:
        """Return what the plugin is told, the place of its log included."""
        return ("log={log}", *(f"{key}={value}" for key, value in asdict(self).items()))


GEOMETRIES: Mapping[str, CacheGeometry] = {
    "cortex-a53": CacheGeometry(l1_ways=4, l2_size=512 << 10),
    "cortex-a72": CacheGeometry(),
    "cortex-a76": CacheGeometry(l1_size=64 << 10, l1_ways=4, l2_size=512 << 10, l2_ways=8),
}
"""Data caches as documented for the cores of a Raspberry Pi 3, 4 and 5 (without a level 3)."""


def build_plugin(cache_dir: Path | None = None) -> Path:
    """Return the compiled plugin, compiling it where that was not done yet.

    Raises:
        NoMeter: there is no C compiler, or it refuses.
    """
    sources = sorted(_SOURCES.glob("*.[ch]"))
    machine = sysconfig.get_platform().encode()
    key = sha256_bytes(b"".join(path.read_bytes() for path in sources) + machine)[:16]
    target = (cache_dir or default_cache_dir()) / "plugins" / f"events-{key}.so"
    if target.is_file():
        return target
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoMeter("the event meter needs a C compiler", hint="apt-get install gcc libc6-dev")

    def compile_to(part: Path) -> None:
        made = subprocess.run(
            [compiler, *_FLAGS, "-o", str(part), str(_SOURCES / "events.c")],
            capture_output=True,
            text=True,
            timeout=_COMPILE_S,
            check=False,
        )
        if made.returncode:
            first = next(iter(made.stderr.strip().splitlines()), "it said nothing")
            raise NoMeter(
                f"{compiler} can't compile the event meter: {first}",
                hint="apt-get install gcc libc6-dev",
            )

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, compile_to)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoMeter(f"can't build the event meter in {target.parent}: {error}") from error
    return target


class EventLog:
    """What the plugin writes, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._number = 0

    def skip(self) -> None:
        """Forget what was written so far."""
        self.read()

    def read(self) -> list[dict[str, Any]]:
        """Return the windows that were written since the last reading, in order.

        Raises:
            LinkDown: the log is gone, damaged, or lacks a window.
        """
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._at)
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.splitlines()]
            windows = [line for line in lines if "window" in line]
            numbers = [int(window["window"]) for window in windows]
        except (OSError, ValueError, TypeError) as error:
            raise LinkDown(f"the event meter's log can't be read: {error}") from error
        if numbers != list(range(self._number + 1, self._number + 1 + len(numbers))):
            raise LinkDown(f"the event meter's log lacks a window after {self._number}")
        self._at += len(whole)
        self._number += len(numbers)
        return windows


class EventsSession:
    """A session that does energy jobs on a metered sibling of its board, and all else as before.

    Args:
        inner: without the meter.
        start: starts the sibling; returns its session and the plugin's log.
        model: joules per event.
        geometry: of the modelled caches.
    """

    def __init__(
        self,
        inner: QemuSession,
        start: Callable[[], Awaitable[tuple[QemuSession, Path]]],
        model: EnergyModel,
        geometry: CacheGeometry,
    ) -> None:
        self._inner = inner
        self._start = start
        self._model = model
        self._geometry = geometry
        self._sources: dict[str, Path] = {}
        self._metered: tuple[QemuSession, EventLog] | None = None
        self._lock = asyncio.Lock()
        self._answers: dict[str, Outcome] = {}

    @property
    def identity(self) -> BoardIdentity:
        """Which board this is."""
        return self._inner.identity

    @property
    def welcome(self) -> Mapping[str, Any]:
        """The agent's greeting."""
        return self._inner.welcome

    @property
    def health(self) -> Health:
        """The board's state when the session was opened."""
        return self._inner.health

    async def put(self, sha256: str, source: Path, coded: tuple[str, Path] | None = None) -> None:
        """Have a file on the board. Raises as `Session.put`."""
        self._sources[sha256] = source
        await self._inner.put(sha256, source, coded)

    async def run(self, job_id: str, spec: JobSpec) -> Outcome:
        """Do a job. Raises as `Session.run`."""
        if spec.kind is not JobKind.ENERGY:
            return await self._inner.run(job_id, spec)
        async with self._lock:
            # The board answers a second asking without a measurement, so without windows.
            if job_id not in self._answers:
                outcome = await self._count(job_id, spec)
                if isinstance(outcome, Failed) and outcome.fault.transient:
                    return outcome
                self._answers[job_id] = outcome
                while len(self._answers) > _KEPT_ANSWERS:
                    del self._answers[next(iter(self._answers))]
            return self._answers[job_id]

    async def _count(self, job_id: str, spec: JobSpec) -> Outcome:
        try:
            session, log = await self._sibling()
            for sha256 in spec.blobs:
                if sha256 in self._sources:
                    await session.put(sha256, self._sources[sha256])
            log.skip()
            outcome = await session.run(job_id, spec, meter=METER)
            if not isinstance(outcome, Measured):
                return outcome
            return self._counted(outcome, log.read(), alone=spec.threads == 1)
        except NoMeter as error:
            return Failed(Fault(Owner.BOARD, False, "no-meter", error.message, error.hint or ""))
        except BoardRefused as error:
            return Failed(error.fault)
        except BaseException:
            await self._end_metered()
            raise

    async def _sibling(self) -> tuple[QemuSession, EventLog]:
        if self._metered is None:
            session, path = await self._start()
            self._metered = session, EventLog(path)
            if session.identity.board_id != self.identity.board_id:
                raise LinkDown(
                    "the machine with the event meter is not the board that it stands for",
                    hint="close the board and open it again",
                )
        return self._metered

    def _counted(
        self, outcome: Measured, windows: Sequence[Mapping[str, Any]], *, alone: bool
    ) -> Outcome:
        """Add counts and energies to an outcome, if the windows are those that it tells of.

        Args:
            outcome: of the metered machine.
            windows: what its plugin wrote meanwhile.
            alone: the model runs in one thread, so that any other task is another program's; a
                window in which one ran is kept, but does not count.
        """
        processes = cast("Sequence[Mapping[str, Any]]", outcome.evidence["processes"])
        told = processes[0]["windows"]
        # An earlier job that died in its window left it open.
        mine = windows[1:] if windows and windows[0]["fault"] == "reopened" else windows
        wanted = told["empty"] + told["warm_up"] + told["counted"]
        bad = next((window["fault"] for window in mine if window["fault"]), None)
        if len(mine) != wanted or bad:
            seen = f"{len(mine)} windows instead of {wanted}" if not bad else f"a window {bad}"
            return Failed(
                Fault(Owner.BOARD, True, "windows", f"the event meter saw {seen}", "try again"),
                outcome.health,
                outcome.evidence,
            )
        empty = [_counts(window, self._geometry) for window in mine[: told["empty"]]]
        cost = {key: median_low(one[key] for one in empty) for key in empty[0]}
        warm_up, inferences = mine[told["empty"] : -told["counted"]], mine[-told["counted"] :]
        disturbed = [window for window in inferences if alone and window["away"]]
        clean = [window for window in inferences if window not in disturbed]
        table = self._model.to_json()
        evidence = {
            **outcome.evidence,
            "energy": {
                "class": EnergyKind.MODELLED.value,
                "model": table.pop("name"),
                "source": table.pop("source"),
                "table": table,
                "cache": asdict(self._geometry),
                "empty_window": cost,
                "disturbed_windows": len(disturbed),
                "other_tasks_seen": bool(mine[-1]["tracked"]),
            },
        }
        samples = (
            *outcome.samples,
            *self._samples([*warm_up, *disturbed], cost, warm=False),
            *self._samples(clean, cost, warm=True),
        )
        if not clean:
            why = "another program ran on the board in each of the counted windows"
            return Inconclusive(why, samples, outcome.health, evidence)
        return replace(outcome, samples=samples, evidence=evidence)

    def _samples(
        self, windows: Sequence[Mapping[str, Any]], cost: Mapping[str, int], *, warm: bool
    ) -> list[Samples]:
        """Return counts and energies of windows without what opening and closing them costs."""
        if not windows:
            return []
        counts = [
            {key: max(0, value - cost[key]) for key, value in _counts(w, self._geometry).items()}
            for w in windows
        ]
        energies = tuple(round(self._energy_nj(one)) for one in counts)
        return [
            *(
                Samples(quantity, COUNTED, 0, warm, tuple(one[quantity] for one in counts))
                for quantity in cost
            ),
            Samples("energy_nj", EnergyKind.MODELLED.value, 0, warm, energies),
        ]

    def _energy_nj(self, counts: Mapping[str, int]) -> float:
        return self._model.energy_nj(
            instructions=counts["instructions"],
            access_bytes=counts["load_bytes"] + counts["store_bytes"],
            l2_bytes=counts["l2_bytes"],
            dram_bytes=counts["dram_bytes"],
        )

    async def _end_metered(self) -> None:
        metered, self._metered = self._metered, None
        if metered is not None:
            # Not even a second cancellation leaves the machine running.
            await asyncio.shield(metered[0].close())

    async def close(self) -> None:
        """End both sessions; never raises."""
        try:
            await self._end_metered()
        finally:
            await self._inner.close()


def _counts(window: Mapping[str, Any], geometry: CacheGeometry) -> dict[str, int]:
    """Return a window's counts by the names of samples."""
    line = geometry.line
    return {
        **{key: int(window[key]) for key in _PLAIN},
        "cache_misses": int(window["l1_misses"]),
        "l2_bytes": (int(window["l1_misses"]) + int(window["l1_writebacks"])) * line,
        "l2_misses": int(window["l2_misses"]),
        "dram_bytes": (int(window["l2_misses"]) + int(window["l2_writebacks"])) * line,
    }
