"""What the doctor says of boards with something wrong; each finding with a way to mend it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Fault, Health, Inconclusive, Measured, Outcome, Owner, Samples
from flatsat.targets.board import BoardIdentity, BoardRefused, Lease, LinkDown
from flatsat.targets.doctor import Finding, examine
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
FAULT = Fault(Owner.BOARD, False, "broken", "it is broken", "mend it")


def samples(quantity: str, *values: int) -> Measured:
    return Measured(
        (Samples(quantity, "wall", 0, True, values),),
        evidence={
            "capability": {"runtime": {"version": "1.2", "providers": ["cpu"]}, "numpy": "2.0"},
            "clock_resolution_ns": 1,
        },
    )


@dataclass
class FakeSession:
    health: Health = field(default_factory=lambda: Health("open", load1=0.1, free_bytes=GIB))
    welcome: dict[str, Any] = field(
        default_factory=lambda: {
            "python": "3.11.2",
            "calendar_s": time.time(),
            "disk_free_bytes": GIB,
            "sites": ["litert-2.3.0-0123456789ab"],
        }
    )
    outcomes: dict[str, Outcome] = field(
        default_factory=lambda: {
            "capability": samples("load_ns", 1),
            "faults": samples("latency_ns", *[200_000] * 20),
            "energy": samples("instructions", 70_000),
        }
    )
    facts: dict[str, object] = field(default_factory=lambda: {"cores": 1, "cpu_model": "A72"})
    link: Exception | None = None

    @property
    def identity(self) -> BoardIdentity:
        return BoardIdentity.from_facts("b", "fake", self.facts)

    async def put(self, sha256: str, source: Path) -> None:
        if self.link is not None:
            raise self.link

    async def run(self, job_id: str, spec: JobSpec) -> Outcome:
        return self.outcomes[spec.kind.value]

    async def close(self) -> None:
        pass


@dataclass
class FakeBoard:
    session: FakeSession
    name: str = "b"
    kind: str = "fake"
    time_kind: TimeKind = TimeKind.WALL
    meter: str = "events"
    runs_here: bool = False

    async def open(self, lease: Lease) -> FakeSession:
        return self.session


async def findings(session: FakeSession, **changes: Any) -> dict[str, Finding]:
    found = await examine(replace(FakeBoard(session), **changes))
    assert all(finding.ok or finding.fix for finding in found), found
    return {finding.check: finding for finding in found}


async def test_a_sound_board_passes_every_check() -> None:
    found = await findings(FakeSession())
    assert all(finding.ok for finding in found.values()), found
    for check in ("link", "agent", "onnxruntime", "litert", "clock", "calendar", "meter", "disk"):
        assert check in found
    assert "tflite-runtime" not in found
    assert "70000 instructions" in found["meter"].detail


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"welcome": {"calendar_s": 0.0}}, "calendar", "date -s"),
        ({"welcome": {"disk_free_bytes": 1 << 20}}, "disk", "free some room"),
        ({"outcomes": {"capability": Failed(FAULT)}}, "onnxruntime", "mend it"),
        ({"outcomes": {"faults": Failed(FAULT)}}, "clock", "mend it"),
        ({"outcomes": {"faults": Inconclusive("odd")}}, "clock", "try again"),
        (
            {"outcomes": {"faults": samples("latency_ns", *[200_000] * 8, 900_000, 900_000)}},
            "clock",
            "end what else",
        ),
        ({"outcomes": {"energy": Failed(FAULT)}}, "meter", "mend it"),
        ({"outcomes": {"energy": samples("instructions", 12)}}, "meter", "plugins"),
        ({"health": Health("open", governor="powersave")}, "governor", "cpupower"),
        ({"health": Health("open", load1=3.0)}, "load", "end what else"),
        ({"health": Health("open", free_bytes=1 << 20)}, "free memory", "end what else"),
        ({"health": Health("open", throttle_bits=0x5)}, "throttling", "power supply"),
    ],
)
async def test_each_trouble_is_found_alone_with_its_fix(
    changes: dict[str, Any], check: str, words: str
) -> None:
    session = FakeSession()
    for name, value in changes.items():
        old = getattr(session, name)
        setattr(session, name, {**old, **value} if isinstance(old, dict) else value)
    found = await findings(session)
    assert words in found[check].fix
    others = {name for name, finding in found.items() if not finding.ok} - {check}
    # Every runtime fails alike in this trial.
    assert others <= {"litert"}


async def test_a_board_without_a_meter_is_no_trouble() -> None:
    session = FakeSession()
    del session.outcomes["energy"]
    found = await findings(session, meter="none")
    assert found["meter"].ok
    assert JobKind.ENERGY.value in found["meter"].detail


async def test_an_emulators_wall_clock_is_called_what_it_is() -> None:
    session = FakeSession()
    session.facts["emulator"] = {"machine": "virt"}
    assert "ranks nothing" in (await findings(session))["clock"].detail
    virtual = await findings(session, time_kind=TimeKind.VIRTUAL)
    assert "ranks nothing" not in virtual["clock"].detail


@pytest.mark.parametrize(
    ("error", "check"),
    [(LinkDown("it went", hint="plug it in"), "link"), (BoardRefused(FAULT), "agent")],
)
async def test_a_link_that_breaks_and_an_agent_that_refuses_are_told_apart(
    error: Exception, check: str
) -> None:
    found = await findings(FakeSession(link=error))
    assert set(found) == {check}
    assert not found[check].ok
