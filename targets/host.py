"""Board `host`: this machine, with the agent in a process of its own behind a pipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from flatsat.targets.board import LinkDown
from flatsat.targets.links import PipeLink
from flatsat.targets.provision import write_agent
from flatsat.targets.session import AgentSession, open_session
from flatsat.targets.wheels import host_sites, own_sites
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flatsat.targets.board import Lease
    from flatsat.targets.wheels import SiteProvider


@dataclass(frozen=True)
class HostBoard:
    """The machine that FlatSat itself runs on.

    Attributes:
        name: in `lab.toml`.
        python: the interpreter that the agent and its workers run in.
        store: the agent's folder, or None for one beside the lease's files.
        sites: per runtime, a folder that its modules lie in.
    """

    name: str = "host"
    python: str = sys.executable
    store: Path | None = None
    sites: Mapping[str, str] = field(default_factory=dict)
    kind: str = "host"
    time_kind: TimeKind = TimeKind.WALL
    meter: str = "none"
    runs_here: bool = True

    async def open(self, lease: Lease) -> AgentSession:
        """Start the agent and greet it. Raises LinkDown or BoardRefused."""
        store = self.store or lease.directory / "store"
        try:
            agent = write_agent(lease.directory)
        except OSError as error:
            raise LinkDown(
                f"can't write the agent into {lease.directory}: {error.strerror}",
                hint="free some room there, or choose another lab folder",
            ) from error
        argv = [self.python, str(agent), "--store", str(store)]
        for runtime, folder in self.sites.items():
            argv += ["--site", f"{runtime}={folder}"]
        return await open_session(
            PipeLink(argv),
            lease,
            kind=self.kind,
            time_kind=self.time_kind,
            sites=self._provider(),
        )

    def _provider(self) -> SiteProvider:
        """Return what gives FlatSat's own Python its runtimes; another one uses what it has."""
        provider = host_sites() if self.python == sys.executable else own_sites()
        return replace(provider, runtimes=provider.runtimes - self.sites.keys())
