"""Giving a board the runtimes that its jobs need, once a session."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from flatsat.errors import DataError, InfrastructureError, UsageError
from flatsat.outcome import Fault, Owner
from flatsat.targets.board import BoardRefused, LinkDown
from flatsat.targets.wheels import NoWheel, interpreter_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flatsat.targets.wheels import Site, SiteProvider


class Installer(Protocol):
    """What a session offers here."""

    welcome: Mapping[str, Any]

    async def install(self, site: Site) -> None:
        """Have a site on the board and use it. Raises LinkDown, BoardRefused or DataError."""

    async def use_installed(self, runtime: str, name: str) -> None:
        """Use a site that is on the board. Raises LinkDown, or BoardRefused if it is not."""


@dataclass
class Provisioning:
    """The runtimes of one session.

    Attributes:
        sites: has the wheels, or None if the board's own Python has every runtime.
        told: per runtime that was asked for, why the board can't have it, or None.
    """

    sites: SiteProvider | None
    told: dict[str, Fault | None] = field(default_factory=dict)

    async def provide(self, runtime: str, session: Installer) -> Fault | None:
        """Have a runtime on the board; return whose fault it is that it can't be there.

        Raises:
            LinkDown: the link or the agent is gone.
            DataError: a wheel was changed while it was sent.
        """
        if self.sites is None:
            return None
        if runtime not in self.told:
            fault = await self._install(self.sites, runtime, session)
            if fault is not None and fault.transient:
                return fault
            self.told[runtime] = fault
        return self.told[runtime]

    async def _install(self, sites: SiteProvider, runtime: str, session: Installer) -> Fault | None:
        try:
            interpreter = interpreter_of(session.welcome)
            site = await asyncio.to_thread(sites.site, runtime, interpreter)
            if site is not None:
                if site.name not in session.welcome["sites"]:
                    # It may carry them by another way, which takes its time.
                    await asyncio.to_thread(sites.before_sending, site)
                await session.install(site)
        except (LinkDown, DataError):
            raise
        except BoardRefused as error:
            return error.fault
        except (NoWheel, UsageError) as error:
            return Fault(Owner.CONFIG, False, "no-runtime", error.message, error.hint or "")
        except InfrastructureError as error:
            if await _use_earlier(runtime, session):
                return None
            return Fault(Owner.HARNESS, False, "no-wheels", error.message, error.hint or "")
        return None


async def _use_earlier(runtime: str, session: Installer) -> bool:
    """Without wheels here, take what an earlier session left on the board."""
    for name in session.welcome.get("sites", ()):
        # "litert-2.3.0-0123456789ab": a version follows the runtime.
        if name.startswith(f"{runtime}-") and name[len(runtime) + 1 :][:1].isdigit():
            with contextlib.suppress(BoardRefused):
                await session.use_installed(runtime, name)
                return True
    return False
