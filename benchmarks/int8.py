"""What int8 is worth: measured speed-up, agreement with float, accuracy, by network and runtime.

Each reference network is lowered to float and int8 files by an ordinary recipe: ONNX (QDQ, by
calibrator) and TFLite (full-integer). All files are measured as ordinary jobs, a fresh process
each, interleaved in rounds; the test split runs on the host through accuracy jobs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import results
from recorded import median_us, runnable
from rich.console import Console

from flatsat.compressors.recipe import from_mapping
from flatsat.harness.console import PlainProgress
from flatsat.harness.lab import Lab
from flatsat.harness.plan import Settings
from flatsat.harness.run import begin_run, build_all, end_run, measure_candidates
from flatsat.jobspec import VIRTUAL_PLAN, VIRTUAL_ROUNDS, JobKind, MeasurePlan
from flatsat.outcome import Measured
from flatsat.reports.compare import compare, compare_accuracy
from flatsat.runtimes import default_runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flatsat.artifact import Artifact
    from flatsat.compressors.candidate import Candidate
    from flatsat.reports.rows import AccuracyRow, OutcomeRow

NETWORKS = ("lenet300", "lenet5", "resnet20", "mobilenet-small")
BUSY_SHARE = 0.1
HOST = "host"
IMAGES = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--formats", nargs="*", default=["onnx", "tflite"])
    parser.add_argument("--boards", nargs="*", default=[HOST], help="beside host: qemu-arm64")
    parser.add_argument(
        "--calibrators", nargs="*", default=["minmax", "entropy", "percentile"], help="of ONNX"
    )
    parser.add_argument("--rounds", type=int, default=20, help="on the host")
    parser.add_argument("--min-s", type=float, default=0.2, help="counted in each process")
    parser.add_argument("--busy", action="store_true", help="take a busy machine; says so")
    parser.add_argument("--out", type=Path, help="folder of the table, instead of docs/results")
    arguments = parser.parse_args()
    if HOST not in arguments.boards:
        parser.error("accuracy is measured on the host: --boards must hold it")
    if arguments.out:
        results.RESULTS = arguments.out
    with tempfile.TemporaryDirectory() as folder:
        measure(Lab(Path(folder) / "lab"), arguments)


def measure(lab: Lab, arguments: argparse.Namespace) -> None:
    progress = PlainProgress(Console(stderr=True))
    lab.prepare()
    store = lab.store()
    recipes = [
        from_mapping(
            network, {"workload": f"{arguments.workload}/{network}", "lower": _lowers(arguments)}
        )
        for network in arguments.networks
    ]
    built, unbuilt = build_all(lab, recipes, progress, workers=1)
    if unbuilt:
        sys.exit("; ".join(f"{name}: {why}" for name, why in unbuilt.items()))
    found: dict[str, list[OutcomeRow]] = {}
    for board in arguments.boards:
        here = board == HOST
        settings = Settings(
            kinds=(JobKind.LATENCY, JobKind.ACCURACY) if here else (JobKind.LATENCY,),
            plan=MeasurePlan(processes=1, min_s=arguments.min_s),
            rounds=arguments.rounds,
            virtual_plan=VIRTUAL_PLAN,
            virtual_rounds=VIRTUAL_ROUNDS,
            comparison="int8",
        )
        run_id = begin_run(lab, store, kind="measure", config={"benchmark": "int8"}, seed=0)
        found[board] = measure_candidates(
            lab, run_id, built, boards=[board], settings=settings, progress=progress
        )
        end_run(lab, store, run_id, "done")
    busy = float(np.mean([runnable(row) > (os.cpu_count() or 1) for row in found[HOST]]))
    if busy > BUSY_SHARE and not arguments.busy:
        sys.exit(f"more processes runnable than cores at {busy:.0%} of jobs: no verdict")
    rows: list[tuple[object, ...]] = []
    data: list[dict[str, object]] = []
    for board in arguments.boards:
        for candidate in built:
            for entry in candidate.history:
                if entry["step"] in ("int8", "tflite-int8"):
                    row, told = _judge(candidate, entry, board, found)
                    rows.append(row)
                    data.append(told)
    images = _accuracy(found[HOST], built[0].artifacts[0])[1].n
    notes = [
        "Speed-up: float over int8 latency in the same runtime, geometric mean over rounds with a"
        " 95 % t interval; above 1 int8 is faster. Faster and slower are said beyond 2 %.",
        f"ONNX: onnxruntime static quantisation (QDQ), {IMAGES} images, weights per channel, by"
        " calibrator. TFLite: litert-quantizer, full-integer, minmax.",
        "Goldens: outputs of the int8 file on the machine that made it, against the measuring"
        " process's; a step is that of the output's quantiser.",
        "Noise: the least signal-to-quantisation-noise ratio of a layer's output, and the layer"
        " that adds the most.",
        f"{busy:.0%} of the host's jobs began with more processes runnable than there are cores.",
    ]
    if arguments.busy:
        notes.append("MADE ON A BUSY MACHINE (--busy): these figures are no evidence.")
    results.write(
        "int8",
        f"int8 against float on {arguments.workload}, as measured",
        f"host: {arguments.rounds} interleaved rounds of fresh processes, one thread,"
        f" {arguments.min_s:g} s counted in each, wall clock; emulated boards: virtual clock."
        f" Accuracy and agreement on the {images} test images, run on the host.",
        (
            *("board", "network", "runtime", "calibrator", "float, us", "int8, us"),
            *("speed-up of the median", "speed-up of p10", "verdict", "times smaller file"),
            *("float accuracy, %", "int8 accuracy, %", "int8 - float, points"),
            *("same answer as float, %", "off the goldens, steps", "noise, dB"),
        ),
        rows,
        notes=notes,
        data=data,
    )


def _lowers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the recipe's files: each format in float, and in int8 by each calibrator."""
    lowers: list[dict[str, Any]] = []
    for name in arguments.formats:
        calibrators = arguments.calibrators if name == "onnx" else ["minmax"]
        lowers.append({"to": name})
        lowers += [{"to": name, "int8": {"calibrator": c, "n": IMAGES}} for c in calibrators]
    return lowers


def _judge(
    candidate: Candidate,
    entry: Mapping[str, Any],
    board: str,
    found: Mapping[str, Sequence[OutcomeRow]],
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the table's row and the raw figures of one int8 file on one board."""
    by_sha = {artifact.sha256: artifact for artifact in candidate.artifacts}
    int8 = by_sha[entry["artifact"]]
    source = by_sha[int8.lowered_from or ""]
    latency = [
        _of_kind([r for r in found[board] if r.job.artifact == each.sha256], JobKind.LATENCY)
        for each in (source, int8)
    ]
    ratios = {
        statistic: compare(latency[0], latency[1], statistic=statistic)
        for statistic in ("p50", "p10")
    }
    answers, right = zip(*(_accuracy(found[HOST], each) for each in (source, int8)), strict=True)
    difference, verdict, _ = compare_accuracy(right[0], right[1])
    same = float(np.mean(answers[0] == answers[1]))
    off = max(_steps_off(row, int8) for row in latency[1])
    layers = entry["layers"]
    least = min((layer["sqnr_db"] for layer in layers), default=None)
    noisiest = max(layers, key=lambda layer: layer["fall_db"], default=None)
    network = candidate.workload.partition("/")[2]
    row = (
        *(board, network, default_runtime(int8.format), entry["params"]["calibrator"]),
        *(f"{median_us(each):.1f}" for each in latency),
        *(_interval(ratios[s].ratio, "{:.2f}") for s in ("p50", "p10")),
        f"{ratios['p50'].verdict}",
        f"{source.size_bytes / int8.size_bytes:.2f}",
        *(f"{100 * each.value:.2f}" for each in right),
        f"{_interval(difference, '{:+.2f}', 100)}: {verdict}",
        f"{100 * same:.2f}",
        f"{off:.1f}",
        "-" if noisiest is None else f"{least:.1f}, {noisiest['layer']}",
    )
    told = {
        "board": board,
        "network": candidate.workload,
        "format": int8.format,
        "params": entry["params"],
        "latency": {name: ratio.to_json() for name, ratio in ratios.items()},
        "accuracy": {"float": right[0].value, "int8": right[1].value},
        "agreement": same,
        "golden_steps": off,
        "culprit": entry.get("culprit"),
        "layers": layers,
        "sizes": {"float": source.size_bytes, "int8": int8.size_bytes},
    }
    return row, told


def _accuracy(rows: Sequence[OutcomeRow], artifact: Artifact) -> tuple[np.ndarray, AccuracyRow]:
    """Return the answers and the accuracy of a file on the test images."""
    mine = [row for row in rows if row.job.artifact == artifact.sha256]
    (row,) = _of_kind(mine, JobKind.ACCURACY)
    return _answers(row), cast("AccuracyRow", row.accuracy)


def _steps_off(row: OutcomeRow, artifact: Artifact) -> float:
    """Return how far the outputs were from the goldens, in steps of the output's quantiser."""
    assert isinstance(row.outcome, Measured)
    assert row.outcome.agreement is not None
    assert artifact.agreement is not None
    return row.outcome.agreement.max_abs / (artifact.agreement.quantum or 1.0)


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


def _interval(interval: object, form: str, scale: float = 1.0) -> str:
    from flatsat.reports.interval import Interval

    assert isinstance(interval, Interval)
    if interval.low is None or interval.high is None:
        return form.format(scale * interval.value)
    low, high = form.format(scale * interval.low), form.format(scale * interval.high)
    return f"{form.format(scale * interval.value)} ({low} to {high})"


if __name__ == "__main__":
    main()
