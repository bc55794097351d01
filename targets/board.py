"""What a board is to the rest of FlatSat: something lent, opened, given files and jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from flatsat.canonical import sha256_json
from flatsat.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flatsat.jobspec import JobSpec
    from flatsat.outcome import Fault, Health, Outcome
    from flatsat.progress import Progress
    from flatsat.units import TimeKind

IDENTITY_FIELDS = (
    "serial",
    "soc",
    "cpu_model",
    "cpu_flags",
    "os",
    "kernel",
    "firmware",
    "qemu_version",
    "emulator",
    "aslr",
)
"""Facts that make a board this board; a change in one of them is another board in the record."""


class LinkDown(InfrastructureError):  # noqa: N818
    """The link to a board, or the agent at its other end, is gone or does not answer in time."""


class BoardRefused(InfrastructureError):  # noqa: N818
    """The board's agent answered, but refused; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(f"the board refused: {fault.message}", hint=fault.hint or None)
        self.fault = fault


@dataclass(frozen=True)
class Lease:
    """The right to use a board, until another lease with a higher epoch replaces it.

    Attributes:
        board: the board's name.
        epoch: rises with each lease of this board; its agent refuses an older one.
        directory: where the lab keeps files about this board.
    """

    board: str
    epoch: int
    directory: Path


@dataclass(frozen=True)
class BoardIdentity:
    """Which board this is.

    Attributes:
        board_id: hash of the board's kind and of those `facts` that `IDENTITY_FIELDS` lists.
        name: in `lab.toml`.
        kind: "host", ...
        facts: what the board told of itself.
    """

    board_id: str
    name: str
    kind: str
    facts: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_facts(cls, name: str, kind: str, facts: Mapping[str, object]) -> BoardIdentity:
        """Derive the identity from what the board told of itself."""
        chosen = {key: facts.get(key) for key in IDENTITY_FIELDS}
        return cls(sha256_json({"kind": kind, **chosen}), name, kind, dict(facts))


class Session(Protocol):
    """A board in use. One call at a time; a call from a second task waits."""

    @property
    def identity(self) -> BoardIdentity:
        """Which board this is."""

    @property
    def health(self) -> Health:
        """The board's state when the session was opened."""

    async def put(self, sha256: str, source: Path, coded: tuple[str, Path] | None = None) -> None:
        """Have a file on the board; nothing is sent if it is there already.

        Args:
            sha256: of the file.
            source: the file.
            coded: its coded form, by SHA-256 and file, if it has one: what is sent then, and
                decoded on a board that can.

        Raises:
            LinkDown: the link or the agent is gone.
            BoardRefused: the board can't take it, for example because its disk is full.
            DataError: `source` is not the file that `sha256` names, or can't be read.
        """

    async def run(self, job_id: str, spec: JobSpec) -> Outcome:
        """Do a job; its files were put before. Asking twice for one `job_id` measures once.

        Returns:
            Whatever became of it; a candidate's fault is a `Failed`, not an exception.

        Raises:
            LinkDown: the link or the agent is gone; what became of the job is unknown.
        """

    async def close(self) -> None:
        """End the session; never raises for a link that is already gone."""


class Board(Protocol):
    """An entry of `lab.toml`."""

    @property
    def name(self) -> str:
        """As in `lab.toml`."""

    @property
    def kind(self) -> str:
        """As in `lab.toml`."""

    @property
    def time_kind(self) -> TimeKind:
        """What its durations mean."""

    @property
    def meter(self) -> str:
        """What counts energy there: "events", or "none"."""

    @property
    def runs_here(self) -> bool:
        """Whether its work is done by this machine's processors, like an emulator's."""

    async def open(self, lease: Lease) -> Session:
        """Start the agent and greet it.

        Raises:
            LinkDown: it can't be reached, or its agent does not start.
            BoardRefused: the lease is over, or another agent holds the board.
        """


@runtime_checkable
class Powered(Protocol):
    """A board with a power switch that can be reached from here."""

    async def power_cycle(self, lease: Lease) -> None:
        """Cut the power and give it back; the board may take a while to come up after it.

        Raises:
            LinkDown: the switch can't be reached.
        """


@runtime_checkable
class Prepared(Protocol):
    """A board that is made, or started for the first time, before it can be used."""

    async def prepare(self, progress: Progress | None = None) -> object:
        """Do what is done once; a second call is quick.

        Raises:
            InfrastructureError: that fails, or lacks a program.
        """
