"""Row 1: magnitude pruning of both LeNets, accuracy against weights left, over three seeds.

Resumable: finished points are kept in lab/benchmarks and not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import results
import torch

from flatsat.cache import default_cache_dir
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.graph import count
from flatsat.compressors.magnitude import MagnitudeParams, MagnitudePrune
from flatsat.datasets.fit import evaluate
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import workload

KEPT = (1 / 2, 1 / 4, 1 / 8, 1 / 12, 1 / 20, 1 / 40)
ROUNDS = 3
EPOCHS = {"lenet300": 3.0, "lenet5": 1.0}  # of each retraining


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="fashion")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = workload(arguments.workload)
    splits = task.splits()
    checkpoint = results.Checkpoint(Path("lab/benchmarks/prune_curve.json"))
    test = splits.open_test()
    rows, data = [], []
    for network in ("lenet300", "lenet5"):
        points: dict[float, list[dict[str, float]]] = {}
        for seed in range(arguments.seeds):
            dense = reference(task, network, seed=seed, cache_dir=default_cache_dir()).module
            start = {"accuracy": evaluate(dense, test), "seconds": 0.0, "left": 1.0}
            points.setdefault(1.0, []).append(start)
            for kept in KEPT:
                key = {
                    "workload": task.name,
                    "network": network,
                    "seed": seed,
                    "kept": kept,
                    "rounds": ROUNDS,
                    "epochs": EPOCHS[network],
                }
                value = checkpoint.get(key)
                if value is None:
                    value = point(dense, network, task.name, seed, kept)
                    checkpoint.put(key, value)
                assert isinstance(value, dict)
                points.setdefault(kept, []).append(value)
                print(network, seed, kept, value, flush=True)
        dense_mean = float(np.mean([p["accuracy"] for p in points[1.0]]))
        for found in points.values():
            accuracy = np.array([p["accuracy"] for p in found])
            rows.append(
                (
                    network,
                    f"{100 * float(np.mean([p['left'] for p in found])):.2f}",
                    f"{1 / float(np.mean([p['left'] for p in found])):.1f}",
                    f"{100 * accuracy.mean():.2f} ± {100 * accuracy.std(ddof=1):.2f}",
                    f"{100 * (accuracy.mean() - dense_mean):+.2f}",
                    f"{np.mean([p['seconds'] for p in found]):.0f}",
                )
            )
        data.append({"network": network, "points": {str(k): v for k, v in points.items()}})
    results.write(
        f"prune_curve_{task.name}",
        f"Magnitude pruning (Han et al. 2015) on {task.name}: accuracy against weights left",
        f"Every layer keeps the same share, in {ROUNDS} rounds of pruning, each followed by "
        f"{EPOCHS['lenet300']:g} epochs of retraining for LeNet-300-100 and {EPOCHS['lenet5']:g} "
        f"for LeNet-5; accuracy on the {len(test)} test images, mean and standard "
        f"deviation over {arguments.seeds} seeds. The paper's figures are 12x on MNIST at no loss.",
        (
            "network",
            "weights left, %",
            "times fewer",
            "test accuracy, %",
            "against dense, points",
            "compression, CPU s",
        ),
        rows,
        data=data,
    )


def point(
    dense: torch.nn.Module, network: str, name: str, seed: int, kept: float
) -> dict[str, float]:
    """Prune one network to a share of its weights; return accuracy, share left and seconds."""
    task = workload(name)
    splits = task.splits()
    context = StepContext.of(task, network, seed=seed, cache_dir=default_cache_dir())
    shape = tuple(int(n) for n in splits.train.x.shape[1:])
    step = MagnitudePrune(MagnitudeParams(sparsity=1 - kept, rounds=ROUNDS, epochs=EPOCHS[network]))
    before = time.process_time()
    pruned = step.apply(Network(dense, shape), context)
    seconds = time.process_time() - before
    params, nonzeros, _ = count(pruned.module, shape)
    return {
        "accuracy": evaluate(pruned.module, splits.open_test()),
        "left": nonzeros / params,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
