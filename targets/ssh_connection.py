"""An SSH connection with strict host keys, and what to say when there is none."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.targets.board import LinkDown

if TYPE_CHECKING:
    import asyncssh

_KEEPALIVES_LOST = 3
_KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


@dataclass(frozen=True)
class SshAddress:
    """Where an SSH server is, who it must be, and who we are to it.

    Attributes:
        host, port: of the server.
        user: to log in as.
        known_hosts: a file in OpenSSH's format, one or more lines of it, or a bare public key
            ("ssh-ed25519 AAAA..."). The server must show a key that stands there.
        keys: private key files; () tries the agent's keys and the usual files of `~/.ssh`.
        password: tried after the keys, or None.
    """

    host: str
    port: int
    user: str
    known_hosts: str | Path
    keys: tuple[Path, ...] = ()
    password: str | None = None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


async def connect(
    address: SshAddress, deadline_s: float, keepalive_s: float | None
) -> asyncssh.SSHClientConnection:
    """Connect, check the host key and log in.

    Args:
        address: of the server.
        deadline_s: for all of it.
        keepalive_s: after so long without a byte the server is asked for a sign of life; after
            three without an answer the connection is closed. None never asks.

    Raises:
        LinkDown: there is no such server, it is not the one that it should be, or it does not let
            us in; the message says which, the hint what to do.
    """
    import asyncssh

    trusted = _trusted(address)
    shown: list[asyncssh.SSHKey] = []

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(
            self, host: str, addr: str, port: int, key: asyncssh.SSHKey
        ) -> bool:
            del host, addr, port
            shown.append(key)
            return False

    keys, agent = _identities(address)
    try:
        async with asyncio.timeout(deadline_s):
            connection, _ = await asyncssh.create_connection(
                Client,
                address.host,
                address.port,
                username=address.user,
                known_hosts=trusted,
                client_keys=keys,
                agent_path=agent,
                password=address.password,
                preferred_auth="publickey,password,keyboard-interactive",
                # What is not said in the lab's own files must not steer a measurement.
                config=None,
                connect_timeout=None,
                login_timeout=0,
                keepalive_interval=keepalive_s or 0,
                keepalive_count_max=_KEEPALIVES_LOST,
                # A new exchange of keys within a measurement would be a disturbance.
                rekey_seconds=0,
            )
    except TimeoutError as error:
        raise LinkDown(
            f"{address}: no SSH server answered within {deadline_s:.0f} s",
            hint="is the board up, and this its address?",
        ) from error
    except (OSError, asyncssh.Error, UnicodeError, ValueError) as error:
        raise _explained(error, address, shown, trusted) from error
    return connection


def explain(error: BaseException, address: SshAddress) -> LinkDown:
    """Return what broke an established connection, in a line."""
    text = str(error).strip() or type(error).__name__
    return LinkDown(f"{address}: the connection broke: {text}")


def _trusted(address: SshAddress) -> Any:
    """Return the known hosts as asyncssh takes them.

    Raises:
        LinkDown: there are none, or not in OpenSSH's format.
    """
    import asyncssh

    given = address.known_hosts
    where = "known_hosts"
    try:
        if isinstance(given, str) and given.lstrip().startswith(_KEY_TYPES):
            return [asyncssh.import_public_key(given)], [], []
        if isinstance(given, str) and " " in given.strip() and not Path(given).exists():
            return asyncssh.import_known_hosts(given)
        where = str(given)
        return asyncssh.import_known_hosts(Path(given).expanduser().read_text("utf-8", "replace"))
    except OSError as error:
        raise LinkDown(
            f"{address}: can't read the file of known hosts {where}: {error.strerror}",
            hint=_how_to_know(address, str(given)),
        ) from error
    except ValueError as error:
        raise LinkDown(
            f"{address}: {where} is not in OpenSSH's format: {error}",
            hint='give a file of known hosts, or a public key such as "ssh-ed25519 AAAA..."',
        ) from error


def _how_to_know(address: SshAddress, file: str) -> str:
    scan = shlex.join(["ssh-keyscan", "-p", str(address.port), address.host])
    return (
        f"make it with `{scan} >> {shlex.quote(file)}`, then compare its fingerprint with the "
        "board's own (ssh-keygen -lf)"
    )


def _identities(address: SshAddress) -> tuple[Any, Any]:
    """Return client keys and agent as asyncssh takes them; a key file that is named is read.

    Raises:
        LinkDown: a key file can't be used.
    """
    import asyncssh

    agent = os.environ.get("SSH_AUTH_SOCK") or None
    if not address.keys:
        return (), agent
    loaded = []
    locked = False
    for path in address.keys:
        try:
            loaded.append(asyncssh.read_private_key(path.expanduser()))
        except OSError as error:
            raise LinkDown(
                f"{address}: can't read the key {path}: {error.strerror}",
                hint="check the board's key setting",
            ) from error
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            if "assphrase" in str(error) and agent:
                locked = True
                continue
            hint = "start ssh-agent and ssh-add it" if "assphrase" in str(error) else None
            raise LinkDown(f"{address}: can't use the key {path}: {error}", hint=hint) from error
    # With a key in hand the agent's are not offered: a server counts each as an attempt.
    return loaded, agent if locked else None


def _explained(
    error: Exception, address: SshAddress, shown: Sequence[Any], trusted: Any
) -> LinkDown:
    import asyncssh

    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _not_the_host(error, address, shown, trusted)
    if isinstance(error, asyncssh.PermissionDenied):
        tried = ", ".join(str(key) for key in address.keys) or "the agent's and ~/.ssh's keys"
        tried += " and a password" if address.password is not None else ""
        return LinkDown(
            f"{address}: the server lets us in with none of what was tried ({tried})",
            hint="check user and key; the public key belongs into the board's authorized_keys",
        )
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return LinkDown(
            f"{address}: no common ground for encryption: {error.reason}",
            hint="known_hosts may hold a key of a type that the server no longer shows",
        )
    if isinstance(error, socket.gaierror):
        return LinkDown(
            f"{address}: no host is called {address.host!r}", hint="check the board's host setting"
        )
    if isinstance(error, ConnectionRefusedError):
        return LinkDown(
            f"{address}: nothing listens on port {address.port}",
            hint="is the board up, its SSH server started, and this its port?",
        )
    if isinstance(error, ConnectionError | asyncssh.ConnectionLost | asyncssh.ProtocolError):
        return LinkDown(
            f"{address}: the server ended the connection: {_reason(error)}",
            hint="is it an SSH server, and may this user log in?",
        )
    return LinkDown(
        f"{address}: can't connect: {_reason(error)}", hint="is the board up, and this its address?"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:300] or type(error).__name__


def _not_the_host(
    error: Exception, address: SshAddress, shown: Sequence[Any], trusted: Any
) -> LinkDown:
    import asyncssh

    print_ = f"; it shows {shown[-1].get_fingerprint()}" if shown else ""
    if isinstance(trusted, tuple):
        known = trusted[0]
    else:
        port = address.port if address.port != 22 else None
        known = list(asyncssh.match_known_hosts(trusted, address.host, "", port)[0])
    given = address.known_hosts
    written = isinstance(given, str) and (isinstance(trusted, tuple) or " " in given.strip())
    file = "the known_hosts setting" if written else str(given)
    if "revoked" in str(error):
        return LinkDown(f"{address}: the server's key is revoked in {file}{print_}")
    if known:
        return LinkDown(
            f"{address}: the server's host key has CHANGED{print_}, not "
            f"{known[0].get_fingerprint()}",
            hint=f"if the board was set up anew, replace the key in {file}; "
            "otherwise another machine answers in its place",
        )
    return LinkDown(
        f"{address}: the server's host key is not known{print_}",
        hint=_how_to_know(address, "known_hosts" if written else str(given)),
    )
