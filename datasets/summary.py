"""What a reader wants to know of a workload before choosing it, without torch and without data."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flatsat.cache import default_cache_dir
from flatsat.datasets.workload import Workload, workload
from flatsat.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def workload_summary(
    name: str, path: str | Path | None = None, cache_dir: Path | None = None
) -> dict[str, Any]:
    """Return a JSON-able summary of the workload `name`.

    Args:
        name: see `workload`.
        path: likewise.
        cache_dir: where references are looked for; None for `default_cache_dir()`.

    Returns:
        "name", "title", "classes", "metric", "direction", "input" (shape of one image);
        "source" (the path that was given, or None); "needs_path" (there is no usual place);
        "problem" (why the data can't be read, with
        what to do, or None); "splits" (images by name; the usual ones where there is a problem);
        "networks": for each its "name", "parameters", "weights", "macs", "epochs" and
        "references": those in the cache that were trained with today's settings at width 1, each
        with "seed", "accuracy_validation", "train_s", "cpu_s", "steps". The test split's accuracy
        is never among them.

    Raises:
        UsageError: no such workload.
    """
    chosen = workload(name, path)
    folder = default_cache_dir() if cache_dir is None else cache_dir
    problem: str | None = None
    sizes = dict(chosen.sizes)
    try:
        sizes = chosen.split_sizes()
    except DataError as error:
        problem = str(error)
    return {
        "name": chosen.name,
        "title": chosen.title,
        "source": chosen.source_path,
        "needs_path": chosen.needs_path,
        "problem": problem,
        "classes": chosen.classes,
        "metric": chosen.metric,
        "direction": chosen.direction,
        "input": list(chosen.image_shape),
        "splits": sizes,
        "networks": [
            {
                "name": network,
                **asdict(chosen.cost(network)),
                "epochs": chosen.settings(network).epochs,
                "references": _cached(chosen, network, folder / "references"),
            }
            for network in chosen.networks
        ],
    }


def _cached(chosen: Workload, network: str, folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob(f"{chosen.name}-{network}-w1-s*.json")):
        try:
            read = json.loads(path.read_bytes())
            config, facts = read["config"], read["facts"]
            fits = (
                path.with_suffix(".pt").is_file()
                and (config["workload"], config["network"]) == (chosen.name, network)
                and config["width"] == 1
                and config["training"] == asdict(chosen.settings(network))
            )
            entry = {
                "seed": int(config["seed"]),
                "accuracy_validation": float(facts["accuracy_validation"]),
                "train_s": float(facts["train_s"]),
                "cpu_s": float(facts["cpu_s"]),
                "steps": int(facts["steps"]),
            }
        except (OSError, ValueError, TypeError, KeyError):
            continue  # A damaged note on a reference; the reference itself will be checked.
        if fits:
            found.append(entry)
    return sorted(found, key=lambda entry: entry["seed"])
