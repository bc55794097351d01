"""Kind `linux`: any board over SSH or a serial line, from `lab.toml`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.errors import ConfigError
from flatsat.targets.board import LinkDown
from flatsat.targets.linux_sites import LinuxSites
from flatsat.targets.provision import write_agent
from flatsat.targets.session import AgentSession, open_session
from flatsat.targets.ssh import SshLink
from flatsat.targets.ssh_carrier import carry_files
from flatsat.targets.ssh_connection import SshAddress
from flatsat.targets.wheels import own_sites
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.targets.board import Lease
    from flatsat.targets.links import Link
    from flatsat.targets.wheels import Site

STORE = "~/.cache/flatsat"

_CARRY_S = 120.0
_SLOWEST_BYTES_PER_S = 50_000


@dataclass(frozen=True)
class SshWay:
    """A board's SSH server.

    Attributes:
        host, port, user: where, and as whom.
        known_hosts: a file, lines of it, or the server's public key.
        keys: private key files; () tries the agent's keys and the usual files.
        password_env: the environment variable that holds the password, or None for no password.
        keepalive_s: after so long without a byte the server is asked for a sign of life.
    """

    host: str
    user: str
    port: int = 22
    known_hosts: str = "~/.ssh/known_hosts"
    keys: tuple[Path, ...] = ()
    password_env: str | None = None
    keepalive_s: float = 15.0
    via: str = "ssh"


@dataclass(frozen=True)
class SerialWay:
    """A board's serial console.

    Attributes:
        port: a device such as "/dev/ttyUSB0", or "socket://HOST:PORT".
        baud: bits a second.
        user: to log in as where it asks.
        password_env: the environment variable that holds the password, or None for no password.
    """

    port: str
    baud: int = 115200
    user: str = "root"
    password_env: str | None = None
    via: str = "serial"


@dataclass(frozen=True)
class LinuxBoard:
    """A Linux board.

    Attributes:
        name: in `lab.toml`.
        ways: to reach it, one or more.
        link: which of them carries the agent ("ssh" or "serial"); by default the first.
        provision_via: which of them carries runtimes; by default the agent's.
        python: the board's interpreter, whose runtimes are used as they are (but for FlatSat's
            own, which it is given); None finds one and gives it the runtimes that jobs need.
        store: the agent's folder on the board.
        sites: per runtime, a folder on the board that its modules lie in.
    """

    name: str
    ways: tuple[SshWay | SerialWay, ...]
    link: str | None = None
    provision_via: str | None = None
    python: str | None = None
    store: str = STORE
    sites: Mapping[str, str] = field(default_factory=dict)
    kind: str = "linux"
    time_kind: TimeKind = TimeKind.WALL
    meter: str = "none"
    runs_here: bool = False

    async def open(self, lease: Lease) -> AgentSession:
        """Bring the agent there if need be, start it and greet it.

        Raises:
            LinkDown, BoardRefused: see `Board.open`.
            ConfigError: the board has no link, or an environment variable that it needs is not set.
        """
        try:
            agent = write_agent(lease.directory)
        except OSError as error:
            raise LinkDown(
                f"can't write the agent into {lease.directory}: {error.strerror}",
                hint="free some room there, or choose another lab folder",
            ) from error
        way = self.way(self.link)
        link = self._link(way, agent)
        return await open_session(
            link,
            lease,
            kind=self.kind,
            time_kind=self.time_kind,
            sites=self._sites(way, link),
        )

    def way(self, via: str | None) -> SshWay | SerialWay:
        """Return the way of that kind, or the first.

        Raises:
            ConfigError: there is none.
        """
        for way in self.ways:
            if via in (None, way.via):
                return way
        raise ConfigError(
            f"board {self.name!r} has no link" + (f" via {via!r}" if via else ""),
            hint='links = [{ via = "ssh", host = "...", user = "..." }]',
        )

    def _link(self, way: SshWay | SerialWay, agent: Path) -> Link:
        password = self._password(way.password_env)
        if isinstance(way, SshWay):
            return SshLink(
                way.host,
                way.port,
                user=way.user,
                known_hosts=way.known_hosts,
                keys=way.keys,
                password=password,
                python=self.python,
                store=self.store,
                agent=agent,
                sites=self.sites,
                keepalive_s=way.keepalive_s,
            )
        from flatsat.targets.serial_link import SerialLink

        return SerialLink(
            way.port,
            baud=way.baud,
            user=way.user,
            password=password,
            python=self.python,
            store=self.store,
            agent=agent,
            sites=self.sites,
        )

    def _password(self, variable: str | None) -> str | None:
        if variable is None:
            return None
        password = os.environ.get(variable)
        if password is None:
            raise ConfigError(
                f"board {self.name!r}: the environment has no {variable}",
                hint="set it to the password, or take password_env out of lab.toml",
            )
        return password

    def _sites(self, way: SshWay | SerialWay, link: Link) -> LinuxSites:
        other = self.way(self.provision_via or way.via)
        carry = None
        if isinstance(other, SshWay) and other is not way:

            def carry(site: Site) -> None:
                # Called in a thread of its own.
                asyncio.run(self._carry(site, other))

        # The board's own interpreter has the usual runtimes; FlatSat's own code it can't have.
        wheels = None if self.python is None else own_sites()
        return LinuxSites(self.name, self.sites.keys(), link, carry, wheels)

    async def _carry(self, site: Site, way: SshWay) -> None:
        """Put a runtime's wheels into the agent's store over SSH, whatever carries the agent.

        Raises:
            LinkDown, BoardRefused: they can't be put there.
        """
        address = SshAddress(
            way.host,
            way.port,
            way.user,
            way.known_hosts,
            way.keys,
            self._password(way.password_env),
        )
        files = dict(zip(site.sha256, site.wheels, strict=True))
        deadline_s = _CARRY_S + site.size_bytes / _SLOWEST_BYTES_PER_S
        await carry_files(address, self.store, files, deadline_s=deadline_s)
