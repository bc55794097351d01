"""Time from wanting the emulated board to its first result, and which step takes it.

Cold, with the image there and no saved state, so that the board is booted, warmed up and saved
first; from the saved state; and several boards at once from one state.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from pathlib import Path
from statistics import median

import models
import on_board
import results

from flatsat.canonical import sha256_file
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Measured
from flatsat.targets.pool import LocalPool
from flatsat.targets.qemu import QemuBoard

BOOT = ("boot", "warm up", "save")
PARTS = ("restore", "SSH", "agent", "upload", "job")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cold", type=int, default=2, help="cold starts")
    parser.add_argument("--warm", type=int, default=6, help="starts from the saved state")
    parser.add_argument("--together", type=int, default=3, help="boards at once")
    parser.add_argument("--rounds", type=int, default=2, help="starts of several boards at once")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    with tempfile.TemporaryDirectory() as folder:
        write(asyncio.run(measure(Path(folder), arguments)), arguments)


async def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return for each way to start the seconds that each part of each start took."""
    network = models.mlp(folder / "mlp.onnx")
    board = QemuBoard()
    # The image is built and a state saved, where that was not done yet; neither is counted.
    await board.prepare()
    found: dict[str, list[dict[str, float]]] = {"cold": [], "from the saved state": []}
    for number in range(arguments.cold):
        on_board.say(f"cold start {number + 1} of {arguments.cold}")
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            fresh = QemuBoard(cache_dir=on_board.copy_of_image(Path(cache)), meter="none")
            steps = Steps()
            begin = time.perf_counter()
            await fresh.prepare(steps)
            booted = time.perf_counter() - begin
            parts = await start(fresh, network, folder / f"cold-{number}")
        parts["total"] += booted
        found["cold"].append({**steps.seconds(), **parts})
    for number in range(arguments.warm):
        on_board.say(f"start {number + 1} of {arguments.warm} from the saved state")
        found["from the saved state"].append(await start(board, network, folder / f"warm-{number}"))
    name = f"{arguments.together} at once, each"
    found[name] = []
    for number in range(arguments.rounds):
        on_board.say(f"{arguments.together} boards at once, {number + 1} of {arguments.rounds}")
        found[name] += await asyncio.gather(
            *(
                start(board, network, folder / f"together-{number}-{which}", alone=False)
                for which in range(arguments.together)
            )
        )
    return found


class Steps:
    """Takes the progress of a first boot and remembers when its steps began."""

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}

    def update(self, task: str, done: float, total: float, note: str = "") -> None:
        """Take the time where a step of booting begins."""
        del total, note
        if task.startswith("boot "):
            self._begun[int(done)] = time.perf_counter()

    def log(self, message: str) -> None:
        """Pass it on."""
        on_board.say(message)

    def seconds(self) -> dict[str, float]:
        """Return how long booting, warming up and saving took."""
        at = self._begun
        return dict(zip(BOOT, (at[1] - at[0], at[2] - at[1], at[4] - at[2]), strict=True))


class LoggedIn(logging.Handler):
    """Remembers when asyncssh last said that a login succeeded."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.at: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take the time."""
        if "succeeded" in record.getMessage():
            self.at = time.perf_counter()


async def start(
    board: QemuBoard, network: Path, folder: Path, *, alone: bool = True
) -> dict[str, float]:
    """Start a machine from the saved state, measure `network` on it; return seconds by part.

    Args:
        board: whose state is there.
        network: not on the board yet.
        folder: of the lease.
        alone: no other board starts, so that logins can be told apart.
    """
    logger, logged_in = logging.getLogger("asyncssh"), LoggedIn()
    if alone:
        logger.addHandler(logged_in)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    sha256 = sha256_file(network)
    spec = JobSpec(JobKind.LATENCY, sha256, "onnx", board.name, plan=VIRTUAL_PLAN)
    with LocalPool(folder).acquire(board.name, 60.0) as lease:
        at = [time.perf_counter()]
        machine = await board.start()
        try:
            at.append(time.perf_counter())
            session = await board.attach(machine.image, machine.ssh_port, machine.console, lease)
            at.append(time.perf_counter())
            await session.put(sha256, network)
            at.append(time.perf_counter())
            outcome = await session.run("first", spec)
            at.append(time.perf_counter())
            await session.close()
        finally:
            await machine.stop()
            logger.removeHandler(logged_in)
    if not isinstance(outcome, Measured):
        raise SystemExit(f"{network.name} was not measured: {outcome}")
    if logged_in.at is None:
        parts = {"SSH and agent": at[2] - at[1]}
    else:
        parts = {"SSH": logged_in.at - at[1], "agent": at[2] - logged_in.at}
    return {
        "restore": at[1] - at[0],
        **parts,
        "upload": at[3] - at[2],
        "job": at[4] - at[3],
        "total": at[4] - at[0],
    }


def write(found: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    rows = []
    for name, starts in found.items():
        totals = [one["total"] for one in starts]
        if not totals:
            continue
        row = [
            name,
            len(starts),
            f"{median(totals):.2f} ({min(totals):.2f} to {max(totals):.2f})",
        ]
        together = "SSH and agent" in starts[0]
        for part in (*BOOT, *PARTS):
            key = "SSH and agent" if together and part == "agent" else part
            values = [one[key] for one in starts if key in one]
            row.append(f"{median(values):.2f}" if values else "in agent" if part == "SSH" else "")
        rows.append(row)
    results.write(
        "board_start",
        "Time from wanting the emulated board to its first result",
        "Board qemu-arm64 (virtual clock, SSH), a network of dense layers 784-300-100-10 (1 MB); "
        "seconds of wall time, medians.",
        ["start", "times", "to the first result, s (range)", *BOOT, *PARTS],
        rows,
        notes=[
            "Cold: the image is there and no state of the booted board; the first use boots it, "
            "imports each runtime once and saves the state, and then starts from that.",
            "restore: the saved state's checksum, QEMU's start, reading the state, until the SSH "
            "server greets. agent: it is found on the board, started and greeted. job: a latency "
            f"job, {VIRTUAL_PLAN.max_warmup} + {VIRTUAL_PLAN.min_inferences} inferences in a "
            "fresh process. Ending the machine is not counted.",
            f"{arguments.together} at once: from one state, in one process of the host; each "
            "board's time counts from the moment at which all were wanted.",
            "What the command line itself takes to start is in startup.md.",
        ],
        data=found,
    )


if __name__ == "__main__":
    main()
