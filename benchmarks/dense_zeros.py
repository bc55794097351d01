"""What a pruned network's zeros are worth: dense runtimes and sparse-c on the same weights.

LeNet-300-100 and LeNet-5, dense and magnitude-pruned (a recipe with one `magnitude-prune` step),
are lowered to ONNX, TFLite and sparse-c. All files are measured as ordinary jobs in interleaved
rounds of fresh processes; the speed-up compares the pruned network with the dense one in the same
runtime, and sparse-c with onnxruntime on the pruned network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import results
from recorded import median_us
from rich.console import Console

from flatsat.compressors.recipe import from_mapping
from flatsat.harness.console import PlainProgress
from flatsat.harness.lab import Lab
from flatsat.harness.plan import Settings
from flatsat.harness.run import begin_run, build_all, end_run, measure_candidates
from flatsat.jobspec import VIRTUAL_PLAN, VIRTUAL_ROUNDS, JobKind, MeasurePlan
from flatsat.outcome import Measured
from flatsat.reports.compare import compare
from flatsat.runtimes import default_runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.rows import OutcomeRow

NETWORKS = ("lenet300", "lenet5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--sparsity", type=float, default=0.92)
    parser.add_argument("--epochs", type=int, default=2, help="of retraining; no matter for speed")
    parser.add_argument("--boards", nargs="*", default=["host", "qemu-arm64"])
    parser.add_argument("--formats", nargs="*", default=["onnx", "tflite", "sparse-c"])
    parser.add_argument("--rounds", type=int, default=10, help="on the host")
    parser.add_argument("--min-s", type=float, default=0.1, help="counted in each process")
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
    lowers = [{"to": name} for name in arguments.formats]
    prune = {"use": "magnitude-prune", "sparsity": arguments.sparsity, "epochs": arguments.epochs}
    recipes = [
        from_mapping(
            f"{network}-{word}",
            {"workload": f"{arguments.workload}/{network}", "step": steps, "lower": lowers},
        )
        for network in NETWORKS
        for word, steps in (("dense", []), ("pruned", [prune]))
    ]
    built, unbuilt = build_all(lab, recipes, progress, workers=1)
    if unbuilt:
        sys.exit("; ".join(f"{name}: {why}" for name, why in unbuilt.items()))
    by_name = {candidate.name: candidate for candidate in built}
    rows: list[list[object]] = []
    data: list[dict[str, Any]] = []
    for board in arguments.boards:
        wall = board == "host"
        settings = Settings(
            kinds=(JobKind.LATENCY,),
            plan=MeasurePlan(processes=1, min_s=arguments.min_s) if wall else VIRTUAL_PLAN,
            rounds=arguments.rounds if wall else VIRTUAL_ROUNDS,
            comparison="zeros",
        )
        run_id = begin_run(lab, store, kind="measure", config={"benchmark": "zeros"}, seed=0)
        found = measure_candidates(
            lab, run_id, built, boards=[board], settings=settings, progress=progress
        )
        end_run(lab, store, run_id, "done")
        for network in NETWORKS:
            dense, pruned = by_name[f"{network}-dense"], by_name[f"{network}-pruned"]
            fastest = _of(found, pruned.artifacts[0].sha256)
            for old, new in zip(dense.artifacts, pruned.artifacts, strict=True):
                before, after = _of(found, old.sha256), _of(found, new.sha256)
                gain = compare(before, after, statistic="p50")
                over = median_us(fastest) / median_us(after)
                rows.append(
                    [
                        *(board, network, default_runtime(new.format)),
                        f"{100 * pruned.nonzeros / pruned.params:.1f}",
                        *(f"{median_us(each):.1f}" for each in (before, after)),
                        _ratio(gain.ratio) or f"{median_us(before) / median_us(after):.2f}",
                        f"{over:.2f}",
                        *(old.size_bytes, new.size_bytes),
                    ]
                )
                data.append(
                    {
                        "board": board,
                        "network": network,
                        "format": new.format,
                        "gain": gain.to_json(),
                        "over_onnxruntime": over,
                    }
                )
    results.write(
        "dense_zeros",
        "Dense runtimes gain nothing from zeros; sparse-c does",
        f"Both LeNets on {arguments.workload}, dense and magnitude-pruned"
        f" ({arguments.sparsity:.0%} of the weights zero); batch 1, one thread. host: wall clock,"
        f" {arguments.rounds} interleaved rounds of fresh processes; qemu-arm64: virtual clock."
        " Speed-ups by the zeros are geometric means over rounds with a 95 % interval where rounds"
        " allow one; those over onnxruntime are ratios of medians. Above 1 is faster.",
        (
            *("board", "network", "runtime", "weights left, %", "dense, us", "pruned, us"),
            "speed-up by the zeros",
            "pruned: speed-up over onnxruntime",
            *("dense file, bytes", "pruned file, bytes"),
        ),
        rows,
        data=data,
    )


def _of(rows: Sequence[OutcomeRow], artifact: str) -> list[OutcomeRow]:
    found = [row for row in rows if row.job.artifact == artifact]
    for row in found:
        assert isinstance(row.outcome, Measured), row.outcome
    return found


def _ratio(ratio: Any) -> str:
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


if __name__ == "__main__":
    main()
