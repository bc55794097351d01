"""A process that keeps an emulated board up between sessions: what `board up` leaves behind.

It owns the board's QEMU, and the kernel ends that QEMU when it dies. In the board's folder of the
lab it holds `keeper.lock`, which is how others know that it lives, and says in `keeper.json` how
the board is reached. It goes when it is told to (SIGTERM), when QEMU goes, or when the lab goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.errors import FlatSatError, InfrastructureError
from flatsat.files import replace_file

if TYPE_CHECKING:
    from flatsat.targets.qemu import QemuBoard
    from flatsat.targets.qemu_run import Machine

_LOCK = "keeper.lock"
_ABOUT = "keeper.json"
_LOG = "keeper.log"
_UP_S = 300.0
_LOOK_S = 0.05
_WATCH_S = 0.5


class KeeperError(InfrastructureError):
    """A board can't be kept up, or taken down."""


@dataclass(frozen=True)
class Kept:
    """A board that is up.

    Attributes:
        pid: of its keeper.
        qemu_pid: of its QEMU.
        settings: of the board, as its keeper was given them.
        image_key: of the image it runs.
        ssh_port: on 127.0.0.1.
        console: path of a tty, or "socket://127.0.0.1:PORT".
        qmp: the monitor's socket.
        ssh_config: for an SSH client, which then finds the board under its name.
    """

    pid: int
    qemu_pid: int
    settings: Mapping[str, Any]
    image_key: str
    ssh_port: int
    console: str
    qmp: Path
    ssh_config: Path

    @property
    def ssh_command(self) -> tuple[str, ...]:
        """How a person logs in."""
        return ("ssh", "-F", str(self.ssh_config), str(self.settings["name"]))


def find_keeper(directory: Path) -> Kept | None:
    """Return the board that is kept up from a board's folder of a lab, or None.

    A keeper takes a moment to see that its QEMU has ended; the board is down all the same.
    """
    if not _held(directory):
        return None
    try:
        about = json.loads((directory / _ABOUT).read_text())
        for name in ("qmp", "ssh_config"):
            about[name] = Path(about[name])
        kept = Kept(**about)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if _lives(kept.qemu_pid) else None


def start_keeper(board: QemuBoard, directory: Path, deadline_s: float = _UP_S) -> Kept:
    """Start a keeper that outlives this process, and return once the board is up.

    Raises:
        KeeperError: it is up already, or does not come up; the message says why.
    """
    if _held(directory):
        raise KeeperError(f"board {board.name!r} is up already, or coming up")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _ABOUT).unlink(missing_ok=True)
    with (directory / _LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(directory.absolute())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:
        stream.write(json.dumps(board.settings()).encode())
    deadline = time.monotonic() + deadline_s
    try:
        while time.monotonic() < deadline:
            kept = find_keeper(directory)
            if kept is not None and kept.pid == process.pid:
                return kept
            if process.poll() is not None:
                raise _explained(directory, board.name)
            time.sleep(_LOOK_S)
        raise KeeperError(f"board {board.name!r} was not up within {deadline_s:.0f} s")
    except BaseException:
        process.kill()
        process.wait()
        raise


def stop_keeper(directory: Path, deadline_s: float = 20.0) -> bool:
    """Take a board down; return whether it was up.

    Raises:
        KeeperError: its keeper does not go.
    """
    if not _held(directory):
        return False
    deadline = time.monotonic() + deadline_s
    sent = 0
    while _held(directory):
        left = deadline - time.monotonic()
        if left <= 0:
            raise KeeperError(f"the keeper in {directory} does not go", hint="end it by hand")
        # Patience for the first half; a keeper that is stuck is killed, and QEMU with it.
        number = signal.SIGTERM if left > deadline_s / 2 else signal.SIGKILL
        if number != sent and (pid := _holder(directory)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            sent = number
        time.sleep(_LOOK_S)
    return True


async def keep(board: QemuBoard, directory: Path, up: Callable[[Kept], None]) -> None:
    """Keep the board up until this process is told to end, QEMU ends, or the folder goes.

    Args:
        board: to start.
        directory: the board's folder of the lab.
        up: told once it is up.

    Raises:
        KeeperError: another process keeps it.
        InfrastructureError: it does not come up.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _hold(directory, board.name):
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        about = directory / _ABOUT
        about.unlink(missing_ok=True)
        starting = asyncio.create_task(board.start())
        stopping = asyncio.create_task(told.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return
        machine = await starting
        try:
            # The monitor is for whoever holds the board's lease and wants its power cut.
            await machine.release_monitor()
            kept = Kept(
                os.getpid(),
                machine.pid,
                board.settings(),
                machine.image.key,
                machine.ssh_port,
                machine.console,
                machine.qmp_path,
                _write_ssh_config(board.name, machine, directory.absolute()),
            )
            text = json.dumps(dataclasses.asdict(kept), default=str)
            replace_file(about, lambda part: part.write_text(text), durable=False)
            up(kept)
            while machine.running and about.exists() and not told.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WATCH_S):
                        await told.wait()
        finally:
            stopping.cancel()
            about.unlink(missing_ok=True)
            await machine.stop()


def _write_ssh_config(name: str, machine: Machine, directory: Path) -> Path:
    known, path = directory / "known_hosts", directory / "ssh_config"
    known.write_text(f"[127.0.0.1]:{machine.ssh_port} {machine.image.host_key}\n")
    options = {
        "HostName": "127.0.0.1",
        "Port": machine.ssh_port,
        "User": "root",
        "IdentityFile": f'"{machine.image.user_key.absolute()}"',
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{known}"',
        "StrictHostKeyChecking": "yes",
    }
    lines = [f"Host {name}", *(f"    {key} {value}" for key, value in options.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def _held(directory: Path) -> bool:
    """Return whether a keeper lives; the kernel lets go of its lock when it dies."""
    try:
        handle = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _holder(directory: Path) -> int:
    try:
        return int((directory / _LOCK).read_text())
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def _hold(directory: Path, name: str) -> Iterator[None]:
    handle = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Somebody who looks whether it is held holds it for a moment.
        deadline = time.monotonic() + 1.0
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise KeeperError(f"board {name!r} is up already, or coming up") from None
                time.sleep(_LOOK_S)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _explained(directory: Path, name: str) -> KeeperError:
    try:
        about = json.loads((directory / _ABOUT).read_text())
        return KeeperError(str(about["error"]), hint=about["hint"])
    except (OSError, ValueError, KeyError):
        return KeeperError(f"board {name!r} did not come up", hint=f"see {directory / _LOG}")


def main(arguments: list[str]) -> int:
    """Keep the board that standard input describes; the only argument is its folder."""
    from flatsat.targets.qemu import QemuBoard

    directory = Path(arguments[0])
    board = QemuBoard.from_settings(json.load(sys.stdin))
    try:
        asyncio.run(keep(board, directory, lambda _: None))
    except FlatSatError as error:
        text = json.dumps({"error": error.message, "hint": error.hint})
        replace_file(directory / _ABOUT, lambda part: part.write_text(text), durable=False)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
