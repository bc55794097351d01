"""Reference networks: trained once by seed, kept in the cache, read back without pickle."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from flatsat.cache import default_cache_dir
from flatsat.canonical import canonical_json, sha256_json
from flatsat.datasets.cache import (
    cache_error,
    make_folder,
    write_atomically,
)
from flatsat.datasets.fit import FitStats, evaluate, fit
from flatsat.datasets.nets import build
from flatsat.datasets.pretrained import load_pretrained, weights_file
from flatsat.errors import InfrastructureError, UsageError
from flatsat.progress import NoProgress, Progress
from flatsat.seeds import integer_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from flatsat.datasets.workload import Workload

__all__ = ["Reference", "default_cache_dir", "reference"]

# A change of the loop, the networks or their initialisation needs a new number here.
METHOD_VERSION = 1
_LOCK_DEADLINE_S = 6 * 3600.0


@dataclass(frozen=True, eq=False)
class Reference:
    """A trained dense network.

    Attributes:
        module: in eval mode; the caller's own, to change at will.
        accuracy_validation: on the whole validation split, in [0, 1].
        train_s, cpu_s: wall and processor seconds that its training took when it was made.
        steps, epochs: of that training.
        seed, width: as asked for.
        path: the file in the cache.
        cached: True if it was read, False if it was trained just now.
    """

    module: nn.Module
    accuracy_validation: float
    train_s: float
    cpu_s: float
    steps: int
    epochs: int
    seed: int
    width: float
    path: Path
    cached: bool


def reference(
    workload: Workload,
    network: str,
    *,
    seed: int = 0,
    width: float = 1.0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Reference:
    """Return a reference network, trained on the workload's training split if need be.

    The file's name holds a hash of everything that the weights come from: workload, data,
    network, width, seed, training settings, method version. Of several processes that ask at the
    same time one trains and the others wait. A file that can't be read is replaced by training
    again.

    Args:
        workload: whose train and validation splits are used, and settings.
        network: one of `workload.networks`.
        seed: of weights and order of images.
        width: see `nets.build`.
        cache_dir: None for `default_cache_dir()`.
        progress: told the steps of a training.

    Raises:
        UsageError: an unknown network or width, or a cache that can't be written.
        DataError: the workload's data are missing or damaged.
        InfrastructureError: another process holds the lock for hours.
    """
    progress = NoProgress() if progress is None else progress
    folder = default_cache_dir() if cache_dir is None else cache_dir
    if workload.pretrained:
        return _pretrained(workload, network, seed, width)
    config = _config(workload, network, seed, width, folder)
    label = f"{workload.name}-{network}-w{width:g}-s{seed}"
    path = folder / "references" / f"{label}-{sha256_json(config)[:16]}.pt"
    found = _load(path, workload, config)
    if found is not None:
        return found
    make_folder(path.parent)
    with _locked(path.with_suffix(".lock"), progress):
        found = _load(path, workload, config)
        if found is not None:
            return found
        if path.exists():
            progress.log(f"{path} can't be read and is trained again")
        return _train(path, workload, config, folder, progress)


def _pretrained(workload: Workload, network: str, seed: int, width: float) -> Reference:
    """Return a network that came with its weights: the same one for every seed.

    Its share of right answers is 1, since the labels are its own answers.
    """
    workload.settings(network)  # Refuses another network.
    if width != 1:
        raise UsageError(
            f"{workload.name}/{network} is pretrained: there is no data to train it at width "
            f"{width:g}",
            hint="leave out the step that makes a narrow network",
        )
    return Reference(
        module=load_pretrained(),
        accuracy_validation=1.0,
        train_s=0.0,
        cpu_s=0.0,
        steps=0,
        epochs=0,
        seed=seed,
        width=width,
        path=weights_file(),
        cached=True,
    )


def _config(
    workload: Workload, network: str, seed: int, width: float, folder: Path
) -> dict[str, Any]:
    settings = workload.settings(network)
    workload.cost(network, width)  # Refuses a bad width before any data are read.
    splits = workload.splits(folder)
    return {
        "method": METHOD_VERSION,
        "workload": workload.name,
        "train_sha256": splits.train.sha256,
        "validation_sha256": splits.validation.sha256,
        "network": network,
        "width": width,
        "seed": seed,
        "training": asdict(settings),
    }


def _train(
    path: Path,
    workload: Workload,
    config: Mapping[str, Any],
    folder: Path,
    progress: Progress,
) -> Reference:
    network, width, seed = config["network"], config["width"], config["seed"]
    settings = workload.settings(network)
    splits = workload.splits(folder)
    weights = torch.Generator().manual_seed(integer_seed(seed, "datasets.reference/weights"))
    module = build(
        network,
        classes=workload.classes,
        input_shape=workload.image_shape,
        width=width,
        generator=weights,
    )
    stats = fit(
        module,
        splits.train,
        epochs=settings.epochs,
        lr=settings.lr,
        batch=settings.batch,
        weight_decay=settings.weight_decay,
        seed=seed,
        progress=progress,
        task=f"train {workload.name}/{network}" + ("" if width == 1 else f" at width {width:g}"),
    )
    facts = _facts(stats, evaluate(module, splits.validation), settings.epochs)
    saved = {
        "config": canonical_json(config),
        "facts": canonical_json(facts),
        "weights": module.state_dict(),
    }
    write_atomically(path, lambda stream: torch.save(saved, stream))
    _write_facts(path, config, facts)
    return _reference(module, config, facts, path, cached=False)


def _facts(stats: FitStats, accuracy: float, epochs: int) -> dict[str, Any]:
    return {
        "accuracy_validation": accuracy,
        "train_s": stats.wall_s,
        "cpu_s": stats.cpu_s,
        "steps": stats.steps,
        "epochs": epochs,
    }


def _load(path: Path, workload: Workload, config: Mapping[str, Any]) -> Reference | None:
    """Return the reference at `path`, or None where there is none or it can't be trusted."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        if saved["config"] != canonical_json(config):
            return None
        facts = json.loads(saved["facts"])
        module = build(
            config["network"],
            classes=workload.classes,
            input_shape=workload.image_shape,
            width=config["width"],
            generator=torch.Generator().manual_seed(0),
        )
        module.load_state_dict(saved["weights"])
        if not all(bool(torch.isfinite(value).all()) for value in module.state_dict().values()):
            return None
        found = _reference(module, config, facts, path, cached=True)
    except Exception:
        # A damaged file shows itself in a dozen types of error; all mean that it's of no use.
        return None
    if not path.with_suffix(".json").is_file():
        with contextlib.suppress(UsageError):  # A cache that's shared read-only is good enough.
            _write_facts(path, config, facts)
    return found


def _reference(
    module: nn.Module,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    path: Path,
    *,
    cached: bool,
) -> Reference:
    accuracy = float(facts["accuracy_validation"])
    if not math.isfinite(accuracy):
        raise ValueError("accuracy is not finite")
    return Reference(
        module=module.eval(),
        accuracy_validation=accuracy,
        train_s=float(facts["train_s"]),
        cpu_s=float(facts["cpu_s"]),
        steps=int(facts["steps"]),
        epochs=int(facts["epochs"]),
        seed=config["seed"],
        width=config["width"],
        path=path,
        cached=cached,
    )


def _write_facts(path: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write what `workload_summary` shows beside the weights, so that it needs no torch."""
    text = canonical_json({"config": dict(config), "facts": dict(facts)})

    def write(stream: IO[bytes]) -> None:
        stream.write(text.encode())

    write_atomically(path.with_suffix(".json"), write)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold a lock file; say so when another process is training, and don't wait for ever."""
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.log(f"another process trains {path.stem}; waiting for it")
            lock.acquire(timeout=_LOCK_DEADLINE_S)
    except Timeout as error:
        raise InfrastructureError(
            f"{path} was held for {_LOCK_DEADLINE_S:.0f} s",
            hint="end the process that trains there",
        ) from error
    except OSError as error:
        raise cache_error(path, error) from error
    try:
        yield
    finally:
        lock.release()
