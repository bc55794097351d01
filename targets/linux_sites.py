"""How a Linux board is given its runtimes: over the agent's link, or beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from flatsat.targets.transfer import check_affordable
from flatsat.targets.wheels import Wheels

if TYPE_CHECKING:
    from flatsat.targets.links import Link
    from flatsat.targets.wheels import Interpreter, Site


class LinuxSites:
    """Wheels for a board, and the way that they take.

    Args:
        board: its name, for messages.
        own: runtimes that the board has by itself.
        link: of the agent; one that tells its `bytes_per_s` is asked before wheels go over it.
        carry: puts a site's wheels into the board's store by another way, blocking; or None.
        wheels: where they come from.
    """

    def __init__(
        self,
        board: str,
        own: Collection[str],
        link: Link,
        carry: Callable[[Site], None] | None = None,
        wheels: Wheels | None = None,
    ) -> None:
        self._board = board
        known = wheels or Wheels()
        self._wheels = replace(known, runtimes=known.runtimes - set(own))
        self._link = link
        self._carry = carry

    def site(self, runtime: str, interpreter: Interpreter) -> Site | None:
        """Return a runtime's wheels, or None. Raises NoWheel or InfrastructureError."""
        return self._wheels.site(runtime, interpreter)

    def before_sending(self, site: Site) -> None:
        """Carry the wheels beside the agent's link, or let a link that is fast enough do it.

        Raises:
            ConfigError: the link would take too long; the message says how long.
            LinkDown, BoardRefused: they can't be carried.
        """
        self._wheels.before_sending(site)
        if self._carry is not None:
            self._carry(site)
            return
        check_affordable(
            site.size_bytes,
            getattr(self._link, "bytes_per_s", None),
            site.name,
            board=self._board,
            hint='give the board an SSH link and provision_via = "ssh", or a python that has '
            f"{site.runtime}",
        )
