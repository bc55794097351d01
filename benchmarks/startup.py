"""How long `flatsat --help` takes, beside an interpreter that does nothing."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import results

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "flatsat --version": [str(Path(sys.executable).with_name("flatsat")), "--version"],
    "flatsat --help": [str(Path(sys.executable).with_name("flatsat")), "--help"],
    "flatsat measure --help": [str(Path(sys.executable).with_name("flatsat")), "measure", "-h"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    draw = np.random.default_rng(0)
    for _ in range(rounds):
        for name in draw.permutation(list(COMMANDS)):
            start = time.perf_counter()
            subprocess.run(COMMANDS[str(name)], check=True, capture_output=True)
            seconds[str(name)].append(time.perf_counter() - start)
    base = np.array(seconds["python -c pass"])
    rows = [
        (
            name,
            f"{np.median(values):.3f}",
            f"{np.quantile(values, 0.9):.3f}",
            f"{np.median(np.array(values) / base):.1f}",
        )
        for name, values in seconds.items()
    ]
    results.write(
        "startup",
        "Start-up of the command line",
        f"Wall time of fresh processes, {rounds} interleaved rounds. Wanted: under 0.5 s.",
        ("command", "median, s", "p90, s", "times `python -c pass` (median ratio)"),
        rows,
        data=seconds,
    )


if __name__ == "__main__":
    main()
