"""Kinds of time and energy, quantities that refuse to mix them, and the injected clock."""

from __future__ import annotations

import datetime
import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from flatsat.errors import KindMismatchError


class TimeKind(StrEnum):
    """What a duration means: seconds of a real clock, or guest time from counted instructions."""

    WALL = "wall"
    VIRTUAL = "virtual"


class EnergyKind(StrEnum):
    """How an energy was come by: a meter, a formula on measured values, or counted events."""

    METERED = "metered"
    ESTIMATED = "estimated"
    MODELLED = "modelled"


def require_same_kind(left: str, right: str, what: str) -> None:
    """Refuse to put quantities of two kinds together.

    Raises:
        KindMismatchError: the kinds differ.
    """
    if left != right:
        raise KindMismatchError(
            f"can't compare {left} {what} with {right} {what}",
            hint="compare candidates on the same kind of clock or meter",
        )


@dataclass(frozen=True)
class Latency:
    """A latency and the clock that it was read on; wall and virtual never mix.

    Comparison and division raise KindMismatchError across kinds.
    """

    value_ns: float
    kind: TimeKind

    def __lt__(self, other: Latency) -> bool:
        require_same_kind(self.kind, other.kind, "latency")
        return self.value_ns < other.value_ns

    def __le__(self, other: Latency) -> bool:
        require_same_kind(self.kind, other.kind, "latency")
        return self.value_ns <= other.value_ns

    def __truediv__(self, other: Latency) -> float:
        require_same_kind(self.kind, other.kind, "latency")
        return self.value_ns / other.value_ns

    def __add__(self, other: Latency) -> Latency:
        require_same_kind(self.kind, other.kind, "latency")
        return Latency(self.value_ns + other.value_ns, self.kind)


class Clock(Protocol):
    """Where the harness takes time and identifiers from, so that tests can set both."""

    def utc(self) -> str:
        """Return the time now as ISO 8601 in UTC with microseconds."""

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never steps; for deadlines."""

    def new_id(self, prefix: str) -> str:
        """Return an identifier that sorts by time and was never given before."""


class SystemClock:
    """The host's clocks."""

    def utc(self) -> str:
        """Return the time now as ISO 8601 in UTC with microseconds."""
        return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")

    def monotonic_s(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    def new_id(self, prefix: str) -> str:
        """Return `prefix-YYYYMMDDTHHMMSS-xxxxxx` in UTC with six random hex digits."""
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        return f"{prefix}-{stamp}-{secrets.token_hex(3)}"
