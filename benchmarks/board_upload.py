"""How fast files reach a board: over SSH beside `scp`, over serial beside the line's own rate.

SSH: one file of random bytes after the other goes to the emulated board by an open FlatSat session
and by `scp`, with the same key through the same port, interleaved in an order that is drawn.
Serial: to an agent of this machine over a pseudo-terminal that lets only so many bytes through a
second (tests/targets/serial/uart_shim.py), and to the emulated board over its own console.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import on_board
import results

from flatsat.canonical import sha256_file
from flatsat.reports.stats import mean_log_ratio
from flatsat.targets.pool import LocalPool
from flatsat.targets.provision import write_agent
from flatsat.targets.qemu import QemuBoard, QemuSession
from flatsat.targets.serial_link import SerialLink
from flatsat.targets.serial_port import SerialPort
from flatsat.targets.session import AgentSession, open_session
from flatsat.units import TimeKind

if TYPE_CHECKING:
    from flatsat.targets.qemu_run import Machine

SHIM = Path(__file__).resolve().parents[1] / "tests" / "targets" / "serial" / "uart_shim.py"
BITS_A_BYTE = 10
"""On a serial line: eight, one that starts and one that ends it."""
LINES: dict[str, tuple[int, dict[str, float], int]] = {
    "115200 baud": (115_200, {}, 64 << 10),
    "1 Mbaud": (1_000_000, {}, 512 << 10),
    "1 Mbaud, 1e-4 of bytes flipped": (1_000_000, {"flip": 1e-4}, 256 << 10),
    "1 Mbaud, 1 % of bytes lost too": (1_000_000, {"flip": 1e-4, "lose": 0.01}, 64 << 10),
    "no limit": (0, {}, 1 << 20),
}
"""Name -> bits a second (0: none), what the line does to bytes, size of a file."""
SINK = """
import os, sys, tty
tty.setraw(0)
left = int(sys.argv[1])
os.write(1, b"!")
while left:
    left -= len(os.read(0, 65536))
os.write(1, b"!")
"""
"""Runs at the line's other end: takes so many bytes, without any protocol, and says so."""
CONSOLE_BYTES = 128 << 10
SSH_ARMS = ("FlatSat, open session", "scp, open connection", "scp, new connection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=8.0, help="size of a file over SSH")
    parser.add_argument("--rounds", type=int, default=6, help="files over SSH by each way")
    parser.add_argument("--serial-rounds", type=int, default=3, help="files over each serial line")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    if shutil.which("scp") is None:
        sys.exit("there is no scp to compare with: install openssh-client")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), arguments))


async def measure(folder: Path, arguments: argparse.Namespace) -> None:
    board = QemuBoard()
    await board.prepare()
    size = int(arguments.mib * (1 << 20))
    ssh = await over_ssh(board, folder, size, arguments.rounds)
    lines: dict[str, dict[str, Any]] = {}
    for name, (baud, faults, length) in LINES.items():
        on_board.say(f"serial line, {name}")
        async with line_session(folder / f"line-{baud}-{len(faults)}", baud, faults) as (
            session,
            told,
        ):
            lines[name] = await over_serial(session, folder, length, arguments.serial_rounds)
            lines[name]["line"] = told()
            lines[name]["nominal_bytes_per_s"] = baud / BITS_A_BYTE or None
        if not faults:
            lines[name]["bare_s"] = await bare(folder, baud, length)
    for console in ("pty", "socket"):
        on_board.say(f"the emulated board's console as {console}")
        serial = replace(board, link="serial", console=console, meter="none")
        async with on_board.in_use(serial, folder / console) as session:
            assert isinstance(session, QemuSession)
            name = f"emulated console ({console})"
            lines[name] = await over_serial(
                session.inner, folder, CONSOLE_BYTES, arguments.serial_rounds
            )
            lines[name]["nominal_bytes_per_s"] = None
    write(ssh, lines, size, arguments)


# Over SSH.


async def over_ssh(
    board: QemuBoard, folder: Path, size: int, rounds: int
) -> dict[str, list[float]]:
    """Return for each way the seconds that a file took, by rounds."""
    draw = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {arm: [] for arm in SSH_ARMS}
    machine = await board.start()
    try:
        with LocalPool(folder / "locks").acquire(board.name, 60.0) as lease:
            session = await board.attach(machine.image, machine.ssh_port, machine.console, lease)
            with scp(machine, folder) as copy:
                # The first of each reads programs from the board's disk.
                for arm in SSH_ARMS:
                    await send(arm, session, copy, random_file(folder, 1 << 16))
                for number in range(rounds):
                    on_board.say(f"SSH, round {number + 1} of {rounds}")
                    for arm in map(str, draw.permutation(SSH_ARMS)):
                        path = random_file(folder, size)
                        seconds[arm].append(await send(arm, session, copy, path))
            await session.close()
    finally:
        await machine.stop()
    return seconds


async def send(
    arm: str, session: AgentSession, copy: Callable[[Path, bool], None], path: Path
) -> float:
    """Have a file on the board by one way; return the seconds that it took."""
    sha256 = sha256_file(path)
    begin = time.perf_counter()
    if arm.startswith("FlatSat"):
        await session.put(sha256, path)
    else:
        await asyncio.to_thread(copy, path, "open" in arm)
    took = time.perf_counter() - begin
    path.unlink()
    return took


@contextlib.contextmanager
def scp(machine: Machine, folder: Path) -> Iterator[Callable[[Path, bool], None]]:
    """Give a function that copies a file there, over the connection that is open or a new one."""
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{machine.ssh_port} {machine.image.host_key}\n")
    options = [
        *("-F", os.devnull, "-i", str(machine.image.user_key)),
        *("-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes"),
        *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
    ]
    shared = ["-o", f"ControlPath={folder / 'ssh.sock'}"]
    there = "root@127.0.0.1"
    port = str(machine.ssh_port)
    master = ["ssh", *options, *shared, "-p", port, "-o", "ControlMaster=yes", "-fN", there]
    subprocess.run(master, check=True, stderr=subprocess.DEVNULL)

    def copy(path: Path, kept: bool) -> None:
        more = shared if kept else []
        target = f"{there}:{machine.image.store}/copied"
        subprocess.run(["scp", "-q", *options, *more, "-P", port, path, target], check=True)

    try:
        yield copy
    finally:
        end = ["ssh", *options, *shared, "-p", port, "-O", "exit", there]
        subprocess.run(end, check=False, stderr=subprocess.DEVNULL)


# Over serial.


@contextlib.asynccontextmanager
async def line_session(
    folder: Path, baud: int, faults: dict[str, float]
) -> AsyncIterator[tuple[AgentSession, Callable[[], Any]]]:
    """Give a session with an agent of this machine over such a line, and what the line has done."""
    folder.mkdir()
    with (
        shim(folder, baud, faults, ["/bin/sh", "-i"]) as (port, told),
        LocalPool(folder / "locks").acquire("line", 60.0) as lease,
    ):
        link = SerialLink(
            port,
            agent=write_agent(folder),
            baud=baud or 115_200,
            python=sys.executable,
            store=str(folder / "store"),
        )
        session = await open_session(link, lease, kind="linux", time_kind=TimeKind.WALL)
        yield session, told
        await session.close()


@contextlib.contextmanager
def shim(
    folder: Path, baud: int, faults: dict[str, float], command: list[str]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Run a command behind a line; give the line's port, and what tells what it has done."""
    settings = json.dumps({"rate": baud / BITS_A_BYTE, **faults})
    plain = {"HOME": str(folder), "TERM": "dumb", "ENV": "", "PS1": "# "}
    with subprocess.Popen(
        [sys.executable, SHIM, settings, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **plain},
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        port = json.loads(stdout.readline())["port"]

        def told() -> Any:
            stdin.write('{"ask": true}\n')
            stdin.flush()
            return json.loads(stdout.readline())

        try:
            yield port, told
        finally:
            stdin.close()


async def bare(folder: Path, baud: int, size: int) -> float:
    """Return the seconds that bytes without any protocol take through such a line."""
    with shim(folder, baud, {}, [sys.executable, "-c", SINK, str(size)]) as (name, _):
        port = SerialPort(name, baud or 115_200)
        await port.open(30.0)
        try:
            await port.read(30.0)
            begin = time.perf_counter()
            await port.write(os.urandom(size), 300.0)
            await port.read(300.0)
            return time.perf_counter() - begin
        finally:
            await port.close()


async def over_serial(
    session: AgentSession, folder: Path, size: int, rounds: int
) -> dict[str, Any]:
    """Return the size, the seconds of each file, and what the link itself measured at its start."""
    link = session.link
    assert isinstance(link, SerialLink)
    seconds = []
    for _ in range(rounds):
        path = random_file(folder, size)
        sha256 = sha256_file(path)
        begin = time.perf_counter()
        await session.put(sha256, path)
        seconds.append(time.perf_counter() - begin)
        path.unlink()
    return {"size": size, "seconds": seconds, "measured_bytes_per_s": link.bytes_per_s}


def random_file(folder: Path, size: int) -> Path:
    """Write a file that nothing can pack and no board has."""
    path = folder / "random"
    path.write_bytes(os.urandom(size))
    return path


# The table.


def write(
    ssh: dict[str, list[float]],
    lines: dict[str, dict[str, Any]],
    size: int,
    arguments: argparse.Namespace,
) -> None:
    rows = []
    ours = ssh[SSH_ARMS[0]]
    for arm, seconds in ssh.items():
        ratio = "" if arm == SSH_ARMS[0] else ratio_text(ours, seconds)
        rows.append(["SSH", arm, *rates(size, seconds), "", ratio])
    for name, found in lines.items():
        nominal = found["nominal_bytes_per_s"]
        share = f"{found['size'] / median(found['seconds']) / nominal:.1%}" if nominal else ""
        if nominal and "bare_s" in found:
            share += f" (bare bytes {found['size'] / found['bare_s'] / nominal:.1%})"
        rows.append(["serial", name, *rates(found["size"], found["seconds"]), share, ""])
    results.write(
        "board_upload",
        "Upload to a board over SSH and over serial",
        f"Files of random bytes. SSH: {size / (1 << 20):g} MiB each to board qemu-arm64 (virtual "
        f"clock), {arguments.rounds} interleaved rounds. Serial: over a pseudo-terminal with a "
        "limited rate to an agent of this machine, and over the emulated board's console.",
        [
            "link",
            "way or line",
            "file, KiB",
            "s, median (range)",
            "kB/s",
            "of the line's rate",
            "FlatSat's time over this (95 %)",
        ],
        rows,
        notes=[
            "FlatSat's time includes that the board checks the file's SHA-256 and stores it under "
            "that; scp checks nothing. Below 1 FlatSat is quicker. Geometric mean of ratios "
            "paired by round, with a t interval.",
            "scp over an open connection is the like of an open session; a new connection "
            "exchanges keys and logs in on the emulated processor.",
            "The emulated processor decrypts, so that both are far below a real board's rate.",
            f"Rate of a line: its bits a second over {BITS_A_BYTE}. Beside the share stands what "
            "bytes without any protocol reach through the same program, which limits the rate and "
            "is no more exact; the rest is framing, acknowledging and waiting. Without a limit it "
            "is what the protocol and that program can do on this machine.",
            "The emulated console has no bit rate of its own: what it carries is what the "
            "guest's driver and QEMU get through.",
        ],
        data={"ssh": ssh, "serial": lines},
    )


def rates(size: int, seconds: list[float]) -> list[str]:
    middle = median(seconds)
    return [
        f"{size / 1024:g}",
        f"{middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
        f"{size / middle / 1e3:,.1f}",
    ]


def ratio_text(top: list[float], bottom: list[float]) -> str:
    found = mean_log_ratio(top, bottom)
    assert found is not None
    if found.low is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    main()
