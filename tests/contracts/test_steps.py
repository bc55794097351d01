"""What every registered step must hold to; a new technique is tested by being registered.

A step whose defaults don't suffice has its parameters in EXAMPLES.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatsat.artifact import Artifact
from flatsat.cache import default_cache_dir
from flatsat.canonical import canonical_json, sha256_file
from flatsat.compressors.agreement import disagreement
from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.candidate import goldens_path, is_safe_name
from flatsat.compressors.converter_env import ensure_converter
from flatsat.compressors.onnx_model import inspect, run_host
from flatsat.compressors.registry import describe, entry, int8_pass, step_class, step_names
from flatsat.compressors.sparse_read import from_bytes
from flatsat.compressors.tflite_model import inspect as inspect_tflite
from flatsat.datasets.fit import predict
from flatsat.datasets.nets import build
from flatsat.datasets.splits import Split, Splits
from flatsat.datasets.workload import TrainSettings, Workload, workload
from flatsat.errors import FlatSatError, InfrastructureError, RecipeError
from flatsat.progress import NoProgress
from flatsat.tensors import TensorSpec

SIDE = 16
CLASSES = 4
EXAMPLES: dict[str, dict[str, Any]] = {
    "magnitude-prune": {"sparsity": 0.6, "epochs": 1},
    "gradual-prune": {"final_sparsity": 0.6, "frequency": 1, "epochs": 4, "batch": 32},
    "l1-filter-prune": {"ratio": 0.4},
    "neuron-prune": {"ratio": {"fc": 0.5, "conv": 0.2}, "criterion": "activation", "epochs": 1},
    "agent-prune": {"b": 20, "samples": 2, "iterations": 2, "tune_epochs": 0, "epochs": 1},
    "channel-prune": {"keep": {"conv1": 0.5}, "batches": 2},
    "fine-tune": {"epochs": 1},
    "narrow": {"macs_ratio": 0.5},
    "linear-quantise": {"bits": 4, "activations": 8, "n": 32},
    "quantise-aware-train": {"bits": 4, "epochs": 1},
    "share-weights": {"bits": {"conv": 4, "fc": 3}, "epochs": 1},
    "rate-quantise": {"price": 1e-6, "rounds": 2, "epochs": 1, "n": 64},
    "onnx": {"goldens": 24},
    "int8": {"n": 32},
    "tflite": {"goldens": 24},
    "sparse-c": {"goldens": 24},
    "tflite-int8": {"n": 32},
}
TRANSFORMS = step_names("transform")
NETS = ("lenet5", "resnet20")


class Tiny(Workload):
    """Bright corners: four classes of small images, learnt in a few steps."""

    def splits(self, cache_dir: Path | None = None) -> Splits:
        return _tiny_splits()


def _tiny_splits() -> Splits:
    rng = np.random.default_rng(7)
    parts = []
    for name, count in (("train", 96), ("calibration", 48), ("validation", 48)):
        y = rng.integers(0, CLASSES, count)
        x = rng.random((count, 1, SIDE, SIDE), dtype=np.float32) * 0.3
        for image, label in zip(x, y, strict=True):
            row, column = divmod(int(label), 2)
            image[0, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 0.5
        parts.append(Split(name, x, y.astype(np.int64)))
    return Splits(*parts, _load_test=lambda: pytest.fail("a step opened the test split"))


def tiny_workload() -> Workload:
    base = workload("mnist-mini")
    values = {name: getattr(base, name) for name in base.__dataclass_fields__}
    values |= {
        "name": "tiny",
        "classes": CLASSES,
        "input": TensorSpec("image", "float32", ("batch", 1, SIDE, SIDE)),
        "output": TensorSpec("logits", "float32", ("batch", CLASSES)),
        "training": tuple((name, TrainSettings(epochs=1, lr=0.05, batch=32)) for name in NETS),
    }
    return Tiny(**values)


class Bench:
    """A tiny network of one architecture, and the context that steps get."""

    def __init__(self, net: str, cache_dir: Path) -> None:
        self.net = net
        self.cache_dir = cache_dir
        self._lowered: dict[str, Artifact] = {}

    @cached_property
    def ctx(self) -> StepContext:
        tiny = tiny_workload()
        splits = tiny.splits()
        return StepContext(
            workload=tiny,
            network=self.net,
            train=splits.train,
            calibration=splits.calibration,
            validation=splits.validation,
            seed=3,
            cache_dir=self.cache_dir,
        )

    def _link_converter(self) -> None:
        """Use the converter's environment of the user's cache: another one takes its time."""
        try:
            ensure_converter(default_cache_dir(), NoProgress())
        except InfrastructureError as error:
            pytest.skip(f"no TFLite converter: {error}")
        link = self.cache_dir / "converter"
        if not link.exists():
            link.symlink_to(default_cache_dir() / "converter")

    def network(self) -> Network:
        module = build(
            self.net,
            classes=CLASSES,
            input_shape=(1, SIDE, SIDE),
            width=0.25,
            generator=torch.Generator().manual_seed(1),
        )
        return Network(module, (1, SIDE, SIDE))

    def apply(self, name: str, network: Network | None = None, seed: int = 3) -> Network:
        made: Network = make(name).apply(
            self.network() if network is None else network, replace(self.ctx, seed=seed)
        )
        return made

    def lower(self, network: Network, folder: Path, name: str = "onnx") -> Artifact:
        if name == "tflite":
            self._link_converter()
        artifact: Artifact = make(name).lower(network, folder, self.ctx)
        return artifact

    def lowered(self, folder: Path, name: str) -> Artifact:
        """Put the network's own file into a folder; lowered once, since some take their time."""
        kept = self.cache_dir / f"lowered-{name}"
        if name not in self._lowered:
            kept.mkdir()
            self._lowered[name] = self.lower(self.network(), kept, name)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return self._lowered[name]


@pytest.fixture(scope="module", params=NETS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("lenet5", tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str) -> Any:
    cls = step_class(name)
    return cls(cls.Params.model_validate(EXAMPLES.get(name, {})))


def state(network: Network) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.module.state_dict().items()}


def equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def without_times(history: object) -> object:
    if isinstance(history, Mapping):
        return {k: without_times(v) for k, v in history.items() if not str(k).endswith("_s")}
    if isinstance(history, (list, tuple)):
        return [without_times(item) for item in history]
    return history


def require_sound(network: Network, bench: Bench) -> None:
    """Assert what holds of a network after any chain of steps."""
    assert network.input_shape == (1, SIDE, SIDE)
    assert not any(part.training for part in network.module.modules())
    logits = predict(network.module, bench.ctx.validation.x)
    assert (logits.shape, logits.dtype) == ((48, CLASSES), np.float32)
    assert np.isfinite(logits).all()
    parameters = dict(network.module.named_parameters())
    for name, mask in network.masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[name].shape
        assert not parameters[name].detach()[~mask].any()


# Every step


@pytest.mark.parametrize("name", step_names())
def test_step_tells_what_it_is(name: str) -> None:
    cls = step_class(name)
    assert cls.name == name
    assert issubclass(cls.Params, StepParams)
    told = describe(name)
    assert told.entry == entry(name)
    assert len(told.entry.summary) < 100
    assert len(told.text) > 40
    json.dumps(told.schema)


@pytest.mark.parametrize("name", step_names())
def test_step_refuses_unknown_parameters(name: str) -> None:
    with pytest.raises(ValueError, match="no_such_parameter"):
        step_class(name).Params.model_validate({**EXAMPLES.get(name, {}), "no_such_parameter": 1})


# Transforms


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_is_deterministic_by_seed(bench: Bench, name: str) -> None:
    before = torch.get_rng_state()
    first, second = bench.apply(name), bench.apply(name)
    assert equal(state(first), state(second))
    assert equal(first.masks, second.masks)
    assert without_times(first.history) == without_times(second.history)
    # Nothing is drawn from the global generator, and nothing seeds it.
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_leaves_its_input_unchanged(bench: Bench, name: str) -> None:
    network = bench.network()
    before = state(network)
    modes = [part.training for part in network.module.modules()]
    wanted = [parameter.requires_grad for parameter in network.module.parameters()]
    made = bench.apply(name, network)
    assert equal(state(network), before)
    assert (dict(network.masks), network.history, network.frozen) == ({}, (), "")
    assert [part.training for part in network.module.modules()] == modes
    assert [p.requires_grad for p in network.module.parameters()] == wanted
    assert all(p.grad is None for p in network.module.parameters())
    shared = {p.data_ptr() for p in network.module.parameters()}
    assert not shared & {p.data_ptr() for p in made.module.parameters()}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_keeps_the_signature_and_tells_its_story(bench: Bench, name: str) -> None:
    made = bench.apply(name)
    require_sound(made, bench)
    (told,) = made.history
    assert told["step"] == name
    params = step_class(name).Params.model_validate(EXAMPLES.get(name, {}))
    assert told["params"] == params.model_dump(mode="json")
    cost = told["cost"]
    assert isinstance(cost, Mapping)
    assert set(cost) == {"train_steps", "forward_passes"}
    assert all(isinstance(value, int) and value >= 0 for value in cost.values())
    assert isinstance(json.loads(canonical_json(dict(told)))["layers"], list)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformed_network_is_exported_and_agrees(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    made = bench.apply(name)
    artifact = bench.lower(made, tmp_path)
    x = bench.ctx.validation.x.copy()
    found = run_host(tmp_path / artifact.file, {"image": x})["logits"]
    assert artifact.agreement is not None
    assert not disagreement(found, predict(made.module, x), artifact.agreement)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformed_network_survives_save_and_load(bench: Bench, name: str) -> None:
    made = bench.apply(name)
    stream = io.BytesIO()
    torch.save(made.module.state_dict(), stream)
    stream.seek(0)
    again = copy.deepcopy(made.module)
    with torch.no_grad():
        for value in again.state_dict().values():
            value.fill_(1)
    x = bench.ctx.validation.x
    assert not np.array_equal(predict(again, x), predict(made.module, x))
    again.load_state_dict(torch.load(stream, weights_only=True))
    assert np.array_equal(predict(again, x), predict(made.module, x))


@pytest.mark.parametrize("second", TRANSFORMS)
@pytest.mark.parametrize("first", TRANSFORMS)
def test_transforms_compose_or_refuse_with_a_reason(
    lenet: Bench, first: str, second: str, tmp_path: Path
) -> None:
    between = lenet.apply(first)
    before, masks = state(between), {k: v.clone() for k, v in between.masks.items()}
    try:
        made = lenet.apply(second, between)
    except RecipeError as error:
        assert len(str(error)) > 20
        assert "\n" not in str(error)
    else:
        require_sound(made, lenet)
        assert [told["step"] for told in made.history] == [first, second]
        lenet.lower(made, tmp_path)
    assert equal(state(between), before)
    assert equal(between.masks, masks)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_registered_order_is_what_the_step_enforces(lenet: Bench, name: str) -> None:
    found = entry(name)
    if found.first:
        with pytest.raises(RecipeError):
            lenet.apply(name, lenet.apply("fine-tune"))
    if found.last:
        with pytest.raises(RecipeError):
            lenet.apply("fine-tune", lenet.apply(name))
    if not found.first and not found.last:
        lenet.apply("fine-tune", lenet.apply(name, lenet.apply("fine-tune")))


# Lowerings and passes


def require_artifact(artifact: Artifact, folder: Path) -> None:
    path = folder / artifact.file
    assert is_safe_name(artifact.file)
    assert sha256_file(path) == artifact.sha256
    assert path.stat().st_size == artifact.size_bytes
    assert Artifact.from_json(json.loads(canonical_json(artifact.to_json()))) == artifact
    if artifact.format == "onnx":
        info = inspect(path)
        assert (info.opset, info.ir) == (artifact.opset, artifact.ir)
        assert (info.inputs, info.outputs) == (artifact.inputs, artifact.outputs)
    else:
        read = from_bytes if artifact.format == "sparse-c" else inspect_tflite
        told = read(path.read_bytes(), artifact.file)
        assert (told.inputs, told.outputs) == (artifact.inputs, artifact.outputs)
    assert artifact.goldens is not None
    assert artifact.agreement is not None
    goldens = goldens_path(folder, artifact.goldens)
    assert sha256_file(goldens) == artifact.goldens
    with np.load(goldens, allow_pickle=False) as stored:
        names = {f"in:{spec.name}" for spec in artifact.inputs}
        names |= {f"out:{spec.name}" for spec in artifact.outputs}
        assert set(stored.files) == names
        assert {len(stored[name]) for name in names} == {24}


def on_networks(names: tuple[str, ...]) -> pytest.MarkDecorator:
    """Try these steps on each network; where the converter takes its time, on one."""
    cases = [
        pytest.param(net, name, marks=marks(name))
        for name in names
        for net in (NETS[:1] if marks(name) else NETS)
    ]
    return pytest.mark.parametrize(("bench", "name"), cases, indirect=["bench"])


def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
    slow = name in ("tflite", "tflite-int8")
    return (pytest.mark.converter, pytest.mark.slow) if slow else ()


def marked(names: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks(n)) for n in names])


@on_networks(step_names("lower"))
def test_lowering_writes_the_same_file_each_time(bench: Bench, name: str, tmp_path: Path) -> None:
    network = bench.network()
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        made.append(bench.lower(network, folder, name))
        require_artifact(made[-1], folder)
        assert str(folder).encode() not in (folder / made[-1].file).read_bytes()
    assert made[0] == made[1]
    (source,), (target,) = made[0].inputs, made[0].outputs
    assert (source.name, target.name) == (bench.ctx.workload.input.name, "logits")
    if made[0].format == "onnx":
        assert made[0].inputs == (bench.ctx.workload.input,)
        assert made[0].outputs == (bench.ctx.workload.output,)


FORMATS = {int8_pass(lowering): lowering for lowering in ("onnx", "tflite")}
"""Pass -> the lowering whose files it takes."""


@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        pytest.param(name, lowering, marks=marks(lowering))
        for name in FORMATS
        for lowering in step_names("lower")
        if FORMATS[name] != lowering
    ],
)
def test_pass_refuses_the_files_of_another_lowering(
    lenet: Bench, name: str, lowering: str, tmp_path: Path
) -> None:
    source = lenet.lowered(tmp_path, lowering)
    with pytest.raises(RecipeError) as caught:
        make(name).apply(source, tmp_path, lenet.ctx)
    assert "\n" not in str(caught.value)


@on_networks(step_names("pass"))
def test_pass_writes_a_new_file_beside_the_old(bench: Bench, name: str, tmp_path: Path) -> None:
    source = bench.lowered(tmp_path, FORMATS[name])
    data = (tmp_path / source.file).read_bytes()
    made = make(name).apply(source, tmp_path, bench.ctx)
    require_artifact(made, tmp_path)
    assert made.lowered_from == source.sha256
    assert made.sha256 != source.sha256
    if made.format == "onnx":
        assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    else:
        assert {spec.dtype for spec in (*made.inputs, *made.outputs)} == {"int8"}
    assert (tmp_path / source.file).read_bytes() == data
    assert make(name).apply(source, tmp_path, bench.ctx) == made


@marked(step_names("pass"))
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_pass_takes_the_file_of_every_transform(
    lenet: Bench, name: str, transform: str, tmp_path: Path
) -> None:
    source = lenet.lower(lenet.apply(transform), tmp_path, FORMATS[name])
    try:
        made = make(name).apply(source, tmp_path, lenet.ctx)
    except FlatSatError as error:
        assert "\n" not in str(error)
    else:
        require_artifact(made, tmp_path)
