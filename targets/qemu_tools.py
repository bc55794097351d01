"""The programs that the emulated board is built and run with, and what installs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO

from flatsat.errors import InfrastructureError

_REMEDIES = MappingProxyType(
    {
        "qemu-system-aarch64": "qemu-system-arm",
        "qemu-img": "qemu-utils",
        "mke2fs": "e2fsprogs",
        "debugfs": "e2fsprogs",
        "dpkg-deb": "dpkg",
        "apt-get": "apt",
        "apt-cache": "apt",
        "tar": "tar",
        "openssl": "openssl",
    }
)
_DEADLINE_S = 900.0


class MissingTools(InfrastructureError):  # noqa: N818 - reads as what it is
    """Programs that the emulated board needs aren't installed on this machine."""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with the folders where only root looks for programs."""
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, "PATH": f"{path}:/usr/sbin:/sbin", "LC_ALL": "C", **(more or {})}


def missing_tools() -> list[tuple[str, str]]:
    """Return the programs that building or running the board lacks, each with what installs it."""
    path = environment()["PATH"]
    return [
        (tool, install_command([package]))
        for tool, package in _REMEDIES.items()
        if shutil.which(tool, path=path) is None
    ]


def require_tools() -> None:
    """Make sure that everything is there.

    Raises:
        MissingTools: it isn't; the hint is the one command that installs all that is missing.
    """
    if missing := [tool for tool, _ in missing_tools()]:
        raise MissingTools(
            f"the emulated board needs {', '.join(missing)}",
            hint=install_command(sorted({_REMEDIES[tool] for tool in missing})),
        )


def install_command(packages: list[str]) -> str:
    """Return the command that installs Debian packages, without what they merely suggest."""
    return f"apt-get install --no-install-recommends {' '.join(packages)}"


def run(
    *command: str,
    stdin: IO[bytes] | None = None,
    text: str | None = None,
    more: Mapping[str, str] | None = None,
    complaints: bool = False,
) -> str:
    """Run a tool to its end and return what it printed.

    Args:
        command: the program and its arguments.
        stdin: what it reads.
        text: what it reads, instead.
        more: variables for its environment.
        complaints: return what it says on its error stream, too.

    Raises:
        InfrastructureError: it failed or hangs; its last words are in the message.
    """
    try:
        done = subprocess.run(
            command,
            input=None if text is None else text.encode(),
            stdin=(stdin or subprocess.DEVNULL) if text is None else None,
            env=environment(more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if complaints else subprocess.PIPE,
            timeout=_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise MissingTools(f"there is no {command[0]} on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(f"{command[0]} hangs") from error
    if done.returncode:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().rpartition("\n")[2]
        raise InfrastructureError(f"{command[0]}: {words or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")
