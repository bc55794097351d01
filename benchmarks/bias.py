"""Does FlatSat's agent measure what a bare loop measures? Interleaved fresh processes, as ratios.

Each pair is one process that FlatSat's agent starts and times, and two bare loops (bare_loop.py),
in an order that is drawn; the two bare loops against each other are the A/A control. A round in
which more processes were runnable than there are cores is thrown away and done again; with too
many of those the program refuses to say anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import models
import numpy as np
import results
from scipy import stats

from flatsat.canonical import sha256_file
from flatsat.harness.lab import Lab
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Measured

if TYPE_CHECKING:
    from flatsat.targets.board import Session

PAIRS = {"20 us": 100, "1 ms": 40, "20 ms": 40}
WINDOW_S = {"20 us": 0.3, "1 ms": 0.5, "20 ms": 1.2}
WARMUP = 40
BARE = Path(__file__).with_name("bare_loop.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", default=list(models.SIZES))
    parser.add_argument("--pairs", type=int, help="pairs for each size, instead of the defaults")
    arguments = parser.parse_args()
    rows, data = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            model = models.SIZES[size](Path(folder) / f"{size.replace(' ', '')}.onnx")
            pairs = arguments.pairs or PAIRS[size]
            found, refused = asyncio.run(measure(Path(folder), model, size, pairs))
            data[size] = found
            for statistic in ("median", "p10"):
                value = {arm: [r[arm][statistic] for r in found] for arm in ("agent", "a", "b")}
                agent = np.log(value["agent"]) - 0.5 * (np.log(value["a"]) + np.log(value["b"]))
                control = np.log(value["a"]) - np.log(value["b"])
                rows.append(
                    (
                        size,
                        statistic,
                        f"{np.median(value['a']) / 1e3:.1f}",
                        pairs,
                        *_interval(agent),
                        *_interval(control),
                        refused,
                    )
                )
    results.write(
        "bias",
        "Bias: FlatSat against a bare onnxruntime loop",
        "Mean log ratio of FlatSat's statistic to that of a bare loop, over interleaved fresh "
        "processes, with its 95 % interval; the A/A ratio of two bare loops stands beside it. "
        "Wanted: the interval inside -1 % to +1 %.",
        (
            "model",
            "statistic",
            "bare, us",
            "pairs",
            "FlatSat / bare - 1, %",
            "95 %",
            "inside ±1 %",
            "A/A - 1, %",
            "95 %",
            "A/A inside",
            "rounds refused for load",
        ),
        rows,
        data=data,
    )


def _interval(logs: np.ndarray) -> tuple[str, str, str]:
    mean = float(np.mean(logs))
    half = float(stats.t.ppf(0.975, len(logs) - 1)) * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    low, high = math.expm1(mean - half) * 100, math.expm1(mean + half) * 100
    inside = "yes" if low > -1 and high < 1 else "no"
    return f"{math.expm1(mean) * 100:+.2f}", f"{low:+.2f} to {high:+.2f}", inside


async def measure(
    folder: Path, model: Path, size: str, pairs: int
) -> tuple[list[dict[str, dict[str, float]]], int]:
    """Return per round and arm the median and p10, and how many rounds were refused."""
    lab = Lab(folder / "lab")
    lab.prepare()
    board = lab.board("host")
    spec = JobSpec(
        JobKind.LATENCY,
        sha256_file(model),
        "onnx",
        "host",
        plan=MeasurePlan(
            processes=1,
            min_inferences=50,
            min_s=WINDOW_S[size],
            warmup="fixed",
            max_warmup=WARMUP,
        ),
    )
    draw = np.random.default_rng(0)
    found: list[dict[str, dict[str, float]]] = []
    refused = 0
    cores = os.cpu_count() or 1
    with lab.pool().acquire("host", 10) as lease:
        session = await board.open(lease)
        await session.put(spec.artifact, model)
        try:
            while len(found) < pairs:
                arms: dict[str, dict[str, float]] = {}
                busiest = 0
                for arm in draw.permutation(["agent", "a", "b"]):
                    label = f"{size}-{len(found)}-{refused}"
                    values, runnable = (
                        await agent(session, label, spec)
                        if arm == "agent"
                        else bare(model, WINDOW_S[size])
                    )
                    busiest = max(busiest, runnable)
                    arms[str(arm)] = {
                        "median": float(np.median(values)),
                        "p10": float(np.quantile(values, 0.1)),
                    }
                if busiest > cores:
                    refused += 1
                    if refused > max(5, pairs):
                        sys.exit(f"{busiest} processes runnable on {cores} cores: no verdict")
                    continue
                found.append(arms)
                print(f"{size}: {len(found)}/{pairs}, {refused} refused", file=sys.stderr)
        finally:
            await session.close()
    return found, refused


async def agent(session: Session, label: str, spec: JobSpec) -> tuple[list[int], int]:
    outcome = await session.run(label, spec)
    assert isinstance(outcome, Measured), outcome
    (samples,) = [s for s in outcome.samples if s.quantity == "latency_ns" and s.warm]
    environment = outcome.evidence["environment"]
    assert isinstance(environment, dict)
    return list(samples.values), int(environment["before"]["runnable"])


def bare(model: Path, seconds: float) -> tuple[list[int], int]:
    command = [sys.executable, str(BARE), str(model), str(WARMUP), "50", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True)
    value = json.loads(done.stdout)
    return value["samples"], value["runnable"]


if __name__ == "__main__":
    main()
