"""From a recipe to a candidate's folder: reference, transforms, files, figures."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock

import flatsat
from flatsat.artifact import Coded
from flatsat.canonical import canonical_json, sha256_bytes
from flatsat.compressors.agreement import top1_agreement
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.candidate import (
    BUILDING,
    Candidate,
    candidate_id,
    goldens_path,
    load,
    publish,
    put_masks,
    save,
    writing,
)
from flatsat.compressors.codec import SUFFIX
from flatsat.compressors.graph import count, layers
from flatsat.compressors.layer_errors import LayerError, compare_files, culprit
from flatsat.compressors.onnx_model import run_host
from flatsat.compressors.pictures import first_dense, pictures, put_pictures
from flatsat.compressors.recipe import (
    LowerSpec,
    RecipeKeyError,
    RecipeSpec,
    check,
    data_sha256,
    recipe_id,
    role_of,
)
from flatsat.compressors.registry import entry, int8_pass, step_class
from flatsat.compressors.storage import bytes_by_coding
from flatsat.compressors.tensor_ranges import tensor_ranges
from flatsat.compressors.tflite_lower import accuracy
from flatsat.datasets.fit import evaluate
from flatsat.datasets.nets import build as build_net
from flatsat.datasets.reference import reference
from flatsat.datasets.workload import Workload, parse_ref
from flatsat.errors import ModelError, RecipeError
from flatsat.seeds import integer_seed

if TYPE_CHECKING:
    from flatsat.artifact import Artifact
    from flatsat.progress import Progress

BY_RECIPE = "by-recipe"
_LAYER_IMAGES = 16
"""Goldens whose activations between all layers are held at once."""
_EVALUATION_BATCH = 500


def build_candidate(
    spec: RecipeSpec, seed: int, *, candidates_dir: Path, cache_dir: Path, progress: Progress
) -> Path:
    """Do what `recipe.build` says."""
    workload = check(spec)
    identity = recipe_id(spec, seed)
    found = find_built(candidates_dir, identity)
    if found is not None:
        return found
    with writing(candidates_dir):
        (candidates_dir / BY_RECIPE).mkdir(parents=True, exist_ok=True)
        (candidates_dir / BUILDING).mkdir(exist_ok=True)
        lock = FileLock(candidates_dir / BUILDING / f"{identity}.lock")
        lock.acquire()
    try:
        found = find_built(candidates_dir, identity)
        if found is not None:
            return found
        folder = candidates_dir / BUILDING / identity
        try:
            # With the lock held, what lies there is of a builder that was killed.
            with writing(candidates_dir):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                candidate = _make(spec, seed, workload, folder, cache_dir, progress)
                candidate = publish(candidate, candidates_dir)
                _remember(candidates_dir, identity, candidate)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return candidate.folder
    finally:
        lock.release()


def find_built(candidates_dir: Path, identity: str) -> Path | None:
    """Return the folder that a recipe_id was built in, or None if there is no sound one."""
    index = candidates_dir / BY_RECIPE / identity
    try:
        folder = candidates_dir / str(json.loads(index.read_text())["candidate_id"])
        load(folder)
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None
    return folder


def _remember(candidates_dir: Path, identity: str, candidate: Candidate) -> None:
    index = candidates_dir / BY_RECIPE / identity
    temporary = candidates_dir / BUILDING / f"{identity}.{os.getpid()}.tmp"
    temporary.write_text(canonical_json({"candidate_id": candidate.candidate_id}) + "\n")
    temporary.replace(index)


def _make(
    spec: RecipeSpec,
    seed: int,
    workload: Workload,
    folder: Path,
    cache_dir: Path,
    progress: Progress,
) -> Candidate:
    """Fill `folder` and return its candidate."""
    network_name = parse_ref(spec.workload, spec.data)[1]
    content = data_sha256(spec)
    ctx = StepContext.of(workload, network_name, seed=seed, cache_dir=cache_dir, progress=progress)
    network, reference_train_s = _start(spec, ctx)
    before = network.module if network.history else None
    cpu_started = time.process_time()
    network = _transform(spec, network, ctx)
    artifacts, passes = _lower(spec, network, folder, ctx)
    artifacts, coded = _code(spec, artifacts, folder)
    cpu_s = time.process_time() - cpu_started + sum(map(_cached_cpu_s, network.history))
    found = layers(network.module, network.input_shape)
    params, nonzeros, macs = count(network.module, network.input_shape)
    put_masks(folder, first_dense(network, found))
    put_pictures(folder, pictures(network, found, before))
    history = (*network.history, *passes, *coded)
    on_host = {"validation": evaluate(network.module, ctx.validation)}
    for told in passes:
        key = f"validation/{told['role']}"
        if key in on_host:
            key += f"/{told['format']}"
        on_host[key] = float(told["accuracy_validation"])
    candidate = Candidate(
        candidate_id=candidate_id(artifacts),
        recipe_id=recipe_id(spec, seed),
        recipe={
            **spec.to_json(),
            "code_version": flatsat.__version__,
            **({} if content is None else {"data_sha256": content}),
        },
        name=spec.name,
        workload=spec.workload,
        seed=seed,
        parent=None,
        artifacts=artifacts,
        params=params,
        nonzeros=nonzeros,
        macs=macs,
        size_bytes=sum(artifact.size_bytes for artifact in artifacts),
        cost={
            "train_steps": _summed(history, "train_steps"),
            "forward_passes": _summed(history, "forward_passes"),
            "cpu_s": cpu_s,
            "reference_train_s": reference_train_s,
        },
        accuracy_host=on_host,
        layers=tuple(_plain(asdict(info)) for info in found),
        role=role_of(spec),
        folder=folder,
        splits={s.name: s.sha256 for s in (ctx.train, ctx.calibration, ctx.validation)},
        bytes_by_coding=bytes_by_coding(network.module, network.history),
        history=tuple(_plain(dict(told)) for told in history),
    )
    save(candidate)
    return candidate


def _start(spec: RecipeSpec, ctx: StepContext) -> tuple[Network, float]:
    """Return the network that the first step takes, and how long its training once took."""
    shape = ctx.workload.image_shape
    if spec.steps and entry(spec.steps[0].use).first:
        # The step trains a network of its own; it is told the architecture only.
        weights = torch.Generator().manual_seed(integer_seed(ctx.seed, "compressors/untrained"))
        module = build_net(ctx.network, classes=ctx.classes, input_shape=shape, generator=weights)
        return Network(module, shape), 0.0
    trained = reference(
        ctx.workload,
        ctx.network,
        seed=ctx.seed,
        cache_dir=ctx.cache_dir,
        progress=ctx.progress,
    )
    told = {
        "step": "reference",
        "params": {"network": ctx.network, "seed": ctx.seed, "epochs": trained.epochs},
        "layers": [],
        "cost": {"train_steps": 0, "forward_passes": 0},
        "train_steps": trained.steps,
        "train_s": trained.train_s,
        "accuracy_validation": trained.accuracy_validation,
    }
    return Network(trained.module, shape, history=(told,)), trained.train_s


def _transform(spec: RecipeSpec, network: Network, ctx: StepContext) -> Network:
    total = len(spec.steps) + len(spec.lowers)
    for index, step in enumerate(spec.steps):
        ctx.progress.update(f"compress {spec.name}", index, total, step.use)
        cls = step_class(step.use, "transform")
        started = time.process_time()
        with _placed("step", index):
            network = cls(cls.Params.model_validate(dict(step.params))).apply(network, ctx)
        told = network.history[-1]
        told = {**told, "cpu_s": time.process_time() - started + _cached_cpu_s(told)}
        network = replace(network, history=(*network.history[:-1], told))
    return network


def _lower(
    spec: RecipeSpec, network: Network, folder: Path, ctx: StepContext
) -> tuple[tuple[Artifact, ...], list[dict[str, Any]]]:
    """Write every file of the recipe; return the artifacts and what the passes tell."""
    floats: dict[str, Artifact] = {}
    kept: list[Artifact] = []
    told: list[dict[str, Any]] = []
    total = len(spec.steps) + len(spec.lowers)
    for index, lower in enumerate(spec.lowers):
        task = f"compress {spec.name}"
        ctx.progress.update(task, len(spec.steps) + index, total, f"lower to {lower.to}")
        key = canonical_json({"to": lower.to, "params": dict(lower.params)})
        if key not in floats:
            cls = step_class(lower.to, "lower")
            lowering = cls(cls.Params.model_validate(dict(lower.params)))
            with _placed("lower", index):
                floats[key] = lowering.lower(network, folder, ctx)
        artifact = floats[key]
        if lower.int8 is not None:
            with _placed("lower", index):
                artifact, entry_of_pass = _int8(lower, artifact, folder, ctx)
            told.append(entry_of_pass)
        if artifact not in kept:
            kept.append(artifact)
    for artifact in floats.values():
        if artifact not in kept:
            (folder / artifact.file).unlink(missing_ok=True)
            if artifact.goldens not in {a.goldens for a in kept} and artifact.goldens:
                goldens_path(folder, artifact.goldens).unlink(missing_ok=True)
    ctx.progress.update(f"compress {spec.name}", total, total)
    return tuple(kept), told


def _int8(
    lower: LowerSpec, source: Artifact, folder: Path, ctx: StepContext
) -> tuple[Artifact, dict[str, Any]]:
    name = int8_pass(lower.to)
    cls = step_class(name, "pass")
    params = cls.Params.model_validate(dict(lower.int8 or {}))
    started = time.process_time()
    artifact: Artifact = cls(params).apply(source, folder, ctx)
    used_s = time.process_time() - started
    errors = _layer_errors(folder, source, artifact)
    jumps = culprit(errors)
    return artifact, {
        "step": name,
        "params": params.model_dump(mode="json"),
        "layers": [
            {"layer": e.layer, "sqnr_db": round(e.sqnr_db, 1), "fall_db": round(e.fall_db, 1)}
            for e in errors
        ],
        "culprit": None if jumps is None else jumps.layer,
        "cost": {"train_steps": 0, "forward_passes": min(params.n, len(ctx.calibration))},
        "cpu_s": used_s,
        "role": artifact.role,
        "format": artifact.format,
        "artifact": artifact.sha256,
        "top1_agreement_with_float": _goldens_agree(folder, source, artifact),
        "accuracy_validation": _host_accuracy(folder / artifact.file, artifact, ctx),
    }


def _code(
    spec: RecipeSpec, artifacts: tuple[Artifact, ...], folder: Path
) -> tuple[tuple[Artifact, ...], list[dict[str, Any]]]:
    """Write each file's coded form, if the recipe has a codec; return what the coder tells."""
    if spec.code is None:
        return artifacts, []
    name = str(spec.code["with"])
    cls = step_class(name, "codec")
    params = cls.Params.model_validate({k: v for k, v in spec.code.items() if k != "with"})
    made, told = [], []
    for artifact in artifacts:
        started = time.process_time()
        data = (folder / artifact.file).read_bytes()
        with _placed("code"):
            coded = cls(params).encode(
                data, tensor_ranges(data, artifact.format), artifact.file.rpartition(".")[2]
            )
        form = Coded(name, artifact.file + SUFFIX, sha256_bytes(coded), len(coded))
        (folder / form.file).write_bytes(coded)
        made.append(replace(artifact, coded=form))
        told.append(
            {
                "step": "code",
                "params": {"with": name, **params.model_dump(mode="json")},
                "layers": [],
                "cost": {"train_steps": 0, "forward_passes": 0},
                "cpu_s": time.process_time() - started,
                "role": artifact.role,
                "format": artifact.format,
                "artifact": artifact.sha256,
                "size_bytes": form.size_bytes,
            }
        )
    return tuple(made), told


@contextlib.contextmanager
def _placed(*path: str | int) -> Iterator[None]:
    """Let a refusal say which table of the recipe it is about."""
    try:
        yield
    except RecipeKeyError:
        raise
    except RecipeError as error:
        raise RecipeKeyError(error.message, path, hint=error.hint) from error


def _goldens_agree(folder: Path, left: Artifact, right: Artifact) -> float:
    """Return the share of goldens that two files of one network give the same class."""
    outputs = []
    for artifact in (left, right):
        assert artifact.goldens is not None
        with np.load(goldens_path(folder, artifact.goldens), allow_pickle=False) as stored:
            outputs.append(stored[f"out:{artifact.outputs[0].name}"])
    return top1_agreement(outputs[1], outputs[0])


def _layer_errors(folder: Path, source: Artifact, made: Artifact) -> tuple[LayerError, ...]:
    """Return how far each layer of an int8 ONNX file is from the float file's."""
    if made.format != "onnx" or source.goldens is None:
        return ()
    name = source.inputs[0].name
    with np.load(goldens_path(folder, source.goldens), allow_pickle=False) as stored:
        inputs = {name: stored[f"in:{name}"][:_LAYER_IMAGES]}
    files = [(folder / artifact.file).read_bytes() for artifact in (source, made)]
    return compare_files(files[0], files[1], inputs)


def _host_accuracy(path: Path, artifact: Artifact, ctx: StepContext) -> float:
    """Return a file's accuracy on the validation split, executed here."""
    source, target = artifact.inputs[0].name, artifact.outputs[0].name
    split = ctx.validation
    if artifact.format == "tflite":
        return accuracy(path.read_bytes(), artifact.inputs[0], split.x, split.y)
    right = 0
    for start in range(0, len(split), _EVALUATION_BATCH):
        end = start + _EVALUATION_BATCH
        logits = run_host(path, {source: np.array(split.x[start:end])})[target]
        right += int((logits.argmax(axis=1) == split.y[start:end]).sum())
    return right / len(split)


def _cached_cpu_s(told: Mapping[str, object]) -> float:
    """Return the processor seconds of a training that a step found in the cache."""
    found = told.get("cached_cpu_s", 0.0)
    return found if isinstance(found, float) else 0.0


def _summed(history: tuple[Mapping[str, object], ...], key: str) -> int:
    costs = [entry_of_step.get("cost", {}) for entry_of_step in history]
    return sum(int(cost.get(key, 0)) for cost in costs if isinstance(cost, Mapping))


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
