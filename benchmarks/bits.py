"""Row 6: weights on 2^b levels between minimum and maximum, from 8 bits to 1, over three seeds.

Resumable: finished points are kept in lab/benchmarks and not computed again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import results
import torch

from flatsat.cache import default_cache_dir
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.bias_correction import BiasCorrect
from flatsat.compressors.equalise import Equalise
from flatsat.compressors.linear_quant import LinearQuantise
from flatsat.compressors.qat import QuantiseAwareTrain
from flatsat.compressors.storage import bytes_by_coding
from flatsat.datasets.fit import evaluate
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import Workload, workload
from flatsat.errors import UsageError

NETWORKS = ("lenet300", "lenet5", "mobilenet-small", "resnet20")
BITS = (8, 7, 6, 5, 4, 3, 2, 1)
PER = ("layer", "channel")
AWARE_BITS = (3, 2, 1)  # More bits lose next to nothing without training.
AWARE = {"epochs": 3.0, "lr": 0.01, "activations": None}
EXECUTED = {8: "yes: int8 files of onnxruntime and TFLite"}
Point = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="mnist-mini")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = workload(arguments.workload)
    test = task.splits().open_test()
    checkpoint = results.Checkpoint(Path("lab/benchmarks/bits.json"))
    rows: list[tuple[object, ...]] = []
    data = []
    for network in arguments.networks:
        dense: list[float] = []
        found: dict[str, dict[str, list[Point]]] = {}
        for seed in range(arguments.seeds):
            trained = reference(task, network, seed=seed, cache_dir=default_cache_dir())
            start = Network(trained.module, task.image_shape)
            dense.append(evaluate(trained.module, test))
            size = bytes_by_coding(trained.module)["dense_fp32"]
            for form, way, params in forms():
                key = {"workload": task.name, "network": network, "seed": seed}
                key |= {"way": way, "params": params}
                value = checkpoint.get(key)
                if value is None:
                    value = point(start, task, network, seed, way, params)
                    checkpoint.put(key, value)
                    print(network, seed, form, way, value, flush=True)
                assert isinstance(value, dict)
                found.setdefault(form, {}).setdefault(way, []).append(value)
        rows.append((network, "32", "", shown(dense), "", "", "", size, "1.0", "yes: float files"))
        for form, ways in found.items():
            bits, per = form.split(", ", 1)
            weights = ways["weights"]
            stored = weights[0]["bytes"]
            rows.append(
                (
                    network,
                    bits,
                    per,
                    *(
                        told(ways[way]) if way in ways else ""
                        for way in ("weights", "mended", "activations", "aware")
                    ),
                    int(stored),
                    f"{size / stored:.1f}",
                    EXECUTED.get(int(bits), "no: storage only"),
                )
            )
        data.append({"network": network, "dense": dense, "points": found})
    results.write(
        "bits" if task.name == "mnist-mini" else f"bits_{task.name}",
        f"Min/max quantisation on {task.name}: accuracy from 8 bits to 1",
        "Each layer (or output channel) has 2^b levels from its smallest to its largest weight; "
        "sign x scale is mean|w| with the weight's sign. Accuracy on the "
        f"{len(test)} test images in %, mean and standard deviation over {arguments.seeds} seeds: "
        "weights alone quantised after training; the same between cross-layer equalisation and "
        "bias correction on 256 calibration images (Nagel et al. 2019); inputs of layers and the "
        "output on 2^b levels as well; and weights alone after training with the rounding "
        f"({AWARE['epochs']:g} epochs, learning rate {AWARE['lr']:g}). Biases and batch norm stay "
        "in float.",
        (
            "network",
            "bits",
            "levels",
            "weights after training",
            "equalised and corrected",
            "weights and activations",
            "weights in training",
            "bytes",
            "times smaller",
            "executed",
        ),
        rows,
        notes=(
            f"One test image is {100 / len(test):g} points, and the standard error of one seed's "
            "accuracy near 97 % is "
            f"{100 * (0.97 * 0.03 / len(test)) ** 0.5:.1f} points.",
            "Bytes are those of codes, ranges, and what stays in float, for weights quantised "
            "after training: no file's headers, and no entropy code. Equalisation folds batch "
            "norms, which saves their bytes.",
            "Levels at the minimum and maximum alone (1 bit) follow the two most extreme weights: "
            "training with them can diverge or stay at chance, as here without batch norm.",
            "The survey's figure is 4 times smaller at 8 bits.",
        ),
        data=data,
    )


def forms() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield (row, way, parameters) of every point of one network and seed."""
    for bits in BITS:
        for per in PER:
            for kind in ("range", "sign") if bits == 1 else ("range",):
                name = f"{bits}, " + ("sign x scale" if kind == "sign" else "min/max") + f" a {per}"
                plain: dict[str, object] = {"bits": bits, "per": per, "one_bit": kind}
                yield name, "weights", plain
                yield name, "mended", plain
                yield name, "activations", {**plain, "activations": bits}
                if bits in AWARE_BITS:
                    grid = "symmetric" if kind == "sign" else "minmax"
                    yield name, "aware", {"bits": bits, "per": per, "grid": grid, **AWARE}


def point(
    start: Network, task: Workload, network: str, seed: int, way: str, params: dict[str, object]
) -> Point:
    """Quantise one network; return its accuracy and bytes."""
    splits = task.splits()
    context = StepContext.of(task, network, seed=seed, cache_dir=default_cache_dir())
    try:
        if way == "aware":
            aware = QuantiseAwareTrain(QuantiseAwareTrain.Params.model_validate(params))
            made = aware.apply(start, context)
        else:
            quantise = LinearQuantise(LinearQuantise.Params.model_validate(params))
            if way == "mended":
                start = Equalise(Equalise.Params()).apply(start, context)
            made = quantise.apply(start, context)
            if way == "mended":
                made = BiasCorrect(BiasCorrect.Params()).apply(made, context)
    except UsageError as error:
        if "diverged" not in error.message:
            raise
        return {"diverged": 1.0}
    return {
        "accuracy": evaluate(made.module, splits.open_test()),
        "bytes": bytes_by_coding(made.module, made.history)["linear"],
    }


def told(points: list[Point]) -> str:
    """Return mean and standard deviation in % of the trainings that ended, and how many didn't."""
    ended = [p["accuracy"] for p in points if "accuracy" in p]
    lost = len(points) - len(ended)
    parts = [shown(ended)] if ended else []
    return ", ".join([*parts, *([f"{lost} of {len(points)} diverged"] if lost else [])])


def shown(accuracy: list[float]) -> str:
    """Return mean and standard deviation in %."""
    values = 100 * np.array(accuracy)
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread}"


if __name__ == "__main__":
    main()
