"""What int8 is worth on this machine: measured speed-up, agreement with float, accuracy.

Each reference network is lowered to float and to int8 ONNX by an ordinary recipe; all files are
measured as ordinary jobs, a fresh process each, interleaved in rounds, and the test split runs on
the board through accuracy jobs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import results
from rich.console import Console

from flatsat.compressors.recipe import from_mapping
from flatsat.harness.console import PlainProgress
from flatsat.harness.lab import Lab
from flatsat.harness.plan import Settings
from flatsat.harness.run import begin_run, build_all, end_run, measure_candidates
from flatsat.jobspec import JobKind, MeasurePlan
from flatsat.outcome import Measured
from flatsat.reports.compare import compare, compare_accuracy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.rows import AccuracyRow, OutcomeRow

NETWORKS = ("lenet300", "lenet5", "resnet20", "mobilenet-small")
BUSY_SHARE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--min-s", type=float, default=0.2, help="counted in each process")
    parser.add_argument("--calibrator", default="minmax")
    parser.add_argument("--busy", action="store_true", help="take a busy machine; says so")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if arguments.out:
        results.RESULTS = arguments.out
    with tempfile.TemporaryDirectory() as folder:
        measure(Lab(Path(folder) / "lab"), arguments)


def measure(lab: Lab, arguments: argparse.Namespace) -> None:
    progress = PlainProgress(Console(stderr=True))
    lab.prepare()
    store = lab.store()
    int8 = {"calibrator": arguments.calibrator, "n": 256}
    recipes = [
        from_mapping(
            network,
            {
                "workload": f"{arguments.workload}/{network}",
                "lower": [{"to": "onnx"}, {"to": "onnx", "int8": int8}],
            },
        )
        for network in arguments.networks
    ]
    built, unbuilt = build_all(lab, recipes, progress, workers=1)
    if unbuilt:
        sys.exit("; ".join(f"{name}: {why}" for name, why in unbuilt.items()))
    run_id = begin_run(lab, store, kind="measure", config={"benchmark": "int8"}, seed=0)
    settings = Settings(
        kinds=(JobKind.LATENCY, JobKind.ACCURACY),
        plan=MeasurePlan(processes=1, min_s=arguments.min_s),
        rounds=arguments.rounds,
        comparison="int8",
    )
    found = measure_candidates(
        lab, run_id, built, boards=["host"], settings=settings, progress=progress
    )
    end_run(lab, store, run_id, "done")
    busy = float(np.mean([_runnable(row) > (os.cpu_count() or 1) for row in found]))
    if busy > BUSY_SHARE and not arguments.busy:
        sys.exit(f"more processes runnable than cores at {busy:.0%} of jobs: no verdict")
    rows, data = [], []
    for candidate in built:
        artifacts = {artifact.role: artifact for artifact in candidate.artifacts}
        mine = {
            role: [row for row in found if row.job.artifact == artifact.sha256]
            for role, artifact in artifacts.items()
        }
        latency = {role: _of_kind(mine[role], JobKind.LATENCY) for role in mine}
        accuracy = {role: _of_kind(mine[role], JobKind.ACCURACY)[0] for role in mine}
        ratios = {
            statistic: compare(latency["float"], latency["int8"], statistic=statistic)
            for statistic in ("p50", "p10")
        }
        right = {role: cast("AccuracyRow", row.accuracy) for role, row in accuracy.items()}
        difference, verdict, _ = compare_accuracy(right["float"], right["int8"])
        agree = float(np.mean(_answers(accuracy["float"]) == _answers(accuracy["int8"])))
        said = ratios["p50"]
        rows.append(
            (
                candidate.workload.partition("/")[2],
                *(f"{_median_us(latency[role]):.1f}" for role in ("float", "int8")),
                *(_interval(ratios[s].ratio, "{:.2f}") for s in ("p50", "p10")),
                f"{said.verdict}",
                f"{artifacts['float'].size_bytes / artifacts['int8'].size_bytes:.2f}",
                *(f"{100 * right[role].value:.2f}" for role in ("float", "int8")),
                f"{_interval(difference, '{:+.2f}', 100)}: {verdict}",
                f"{100 * agree:.2f}",
            )
        )
        data.append(
            {
                "network": candidate.workload,
                "latency": {name: ratio.to_json() for name, ratio in ratios.items()},
                "accuracy": {role: row.value for role, row in right.items()},
                "agreement": agree,
                "sizes": {role: a.size_bytes for role, a in artifacts.items()},
            }
        )
    notes = [
        "Speed-up: float over int8 latency, geometric mean over rounds with a 95 % t interval;"
        " above 1 int8 is faster. Faster and slower are said beyond 2 %.",
        f"int8: onnxruntime static quantisation (QDQ, {arguments.calibrator} calibrator, 256"
        " images, weights per channel).",
        f"{busy:.0%} of jobs began with more processes runnable than there are cores.",
    ]
    if arguments.busy:
        notes.append("MADE ON A BUSY MACHINE (--busy): these figures are no evidence.")
    results.write(
        "int8",
        f"int8 against float on {arguments.workload}, as measured",
        f"{arguments.rounds} interleaved rounds of fresh processes, one thread,"
        f" {arguments.min_s:g} s counted in each; accuracy and agreement on the {right['float'].n}"
        " test images, run on the board.",
        (
            "network",
            "float, us",
            "int8, us",
            "speed-up of the median",
            "speed-up of p10",
            "verdict",
            "times smaller file",
            "float accuracy, %",
            "int8 accuracy, %",
            "int8 - float, points",
            "same answer, %",
        ),
        rows,
        notes=notes,
        data=data,
    )


def _of_kind(rows: Sequence[OutcomeRow], kind: JobKind) -> list[OutcomeRow]:
    found = [row for row in rows if row.job.kind == kind.value]
    for row in found:
        assert isinstance(row.outcome, Measured), row.outcome
    return found


def _answers(row: OutcomeRow) -> np.ndarray:
    assert isinstance(row.outcome, Measured)
    logits = row.outcome.logits
    assert logits is not None
    values: np.ndarray = np.frombuffer(logits.data, logits.dtype).reshape(logits.shape)
    return np.asarray(values.argmax(axis=1))


def _median_us(rows: Sequence[OutcomeRow]) -> float:
    medians = [
        float(np.median(samples.values)) / 1e3
        for row in rows
        if isinstance(row.outcome, Measured)
        for samples in row.outcome.samples
        if samples.quantity == "latency_ns" and samples.warm
    ]
    return float(np.median(medians))


def _runnable(row: OutcomeRow) -> int:
    assert isinstance(row.outcome, Measured), row.outcome
    environment = row.outcome.evidence["environment"]
    assert isinstance(environment, dict)
    return int(environment["before"]["runnable"])


def _interval(interval: object, form: str, scale: float = 1.0) -> str:
    from flatsat.reports.interval import Interval

    assert isinstance(interval, Interval)
    if interval.low is None or interval.high is None:
        return form.format(scale * interval.value)
    low, high = form.format(scale * interval.low), form.format(scale * interval.high)
    return f"{form.format(scale * interval.value)} ({low} to {high})"


if __name__ == "__main__":
    main()
