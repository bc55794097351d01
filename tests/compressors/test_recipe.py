"""Recipes: what they may hold, checked as a whole, named by intent; and how they are built."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatsat.canonical import sha256_bytes
from flatsat.coded.container import decode
from flatsat.compressors.candidate import load_candidate
from flatsat.compressors.recipe import (
    LowerSpec,
    RecipeKeyError,
    RecipeSpec,
    StepSpec,
    build,
    check,
    from_mapping,
    recipe_id,
    role_of,
)
from flatsat.errors import InfrastructureError, ModelError, RecipeError, UsageError

DEEP: dict[str, Any] = {
    "workload": "mnist-mini/lenet300",
    "seeds": [0, 1],
    "step": [
        {"use": "magnitude-prune", "quality": {"fc": 1.2}, "epochs": 1},
        {"use": "fine-tune", "epochs": 1},
    ],
    "lower": [{"to": "onnx"}, {"to": "onnx", "int8": {"calibrator": "entropy", "n": 64}}],
}
CHEAP: dict[str, Any] = {
    "workload": "mnist-mini/lenet300",
    "step": [{"use": "linear-quantise", "bits": 4}],
    "lower": [{"to": "onnx", "goldens": 16}],
}


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def changed(**changes: Any) -> dict[str, Any]:
    return {**DEEP, **changes}


def test_a_recipe_is_read_with_every_default() -> None:
    spec = from_mapping("deep", DEEP)
    check(spec)
    assert (spec.name, spec.workload, spec.seeds) == ("deep", "mnist-mini/lenet300", (0, 1))
    assert [step.use for step in spec.steps] == ["magnitude-prune", "fine-tune"]
    assert spec.steps[0].params["quality"] == {"fc": 1.2}
    assert spec.steps[0].params["rounds"] == 1
    assert spec.lowers[0] == LowerSpec("onnx", {"opset": 17, "goldens": 256})
    assert spec.lowers[1].int8 is not None
    assert spec.lowers[1].int8["calibrator"] == "entropy"
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert from_mapping("d", {"workload": "mnist-mini/lenet5"}).lowers[0].to == "onnx"


@pytest.mark.parametrize(
    ("mapping", "path", "says"),
    [
        (changed(sead=[1]), ("sead",), r"sead: unknown key \(did you mean 'seeds'\?\)"),
        (changed(seeds=[-1]), ("seeds", 0), r"seeds\[0\]: must be greater than or equal to 0"),
        (changed(seeds=[]), ("seeds",), "seeds: .*at least 1"),
        (changed(seeds=[1, 1]), ("seeds",), "names a seed twice"),
        (changed(step="prune"), ("step",), "step: must be an array, not 'prune'"),
        (changed(step=[{"quality": 1}]), ("step", 0), r"step\[0\]: needs 'use' with a name"),
        (
            changed(step=[{"use": "magnitude-prun"}]),
            ("step", 0, "use"),
            r"step\[0\].use: .*'magnitude-prun' \(did you mean 'magnitude-prune'\?\)",
        ),
        (
            changed(step=[{"use": "onnx"}]),
            ("step", 0, "use"),
            "there is no transform named 'onnx'",
        ),
        (
            changed(step=[*DEEP["step"], {"use": "fine-tune", "epoch": 3}]),
            ("step", 2, "epoch"),
            r"step\[2\].epoch: unknown key \(did you mean 'epochs'\?\)",
        ),
        (
            changed(step=[{"use": "magnitude-prune", "quality": "high"}]),
            ("step", 0, "quality"),
            r"step\[0\].quality: must be a table, not 'high'",
        ),
        (
            changed(step=[{"use": "magnitude-prune", "sparsity": {"fc": "all"}}]),
            ("step", 0, "sparsity", "fc"),
            r"step\[0\].sparsity.fc: must be a valid number",
        ),
        (
            changed(step=[{"use": "magnitude-prune"}]),
            ("step", 0),
            r"step\[0\]: give exactly one of quality, sparsity and global_sparsity",
        ),
        (changed(lower=[]), ("lower",), "lower: .*at least 1"),
        (changed(lower=[{"to": "onxx"}]), ("lower", 0, "to"), "did you mean 'onnx'"),
        (changed(lower=[{"to": "int8"}]), ("lower", 0, "to"), "no lower named 'int8'"),
        (changed(lower=[{"to": "onnx", "int8": True}]), ("lower", 0, "int8"), "must be a table"),
        (
            changed(lower=[{"to": "onnx", "in8": {}}]),
            ("lower", 0, "in8"),
            "did you mean 'int8'",
        ),
        (
            changed(lower=[{"to": "onnx", "int8": {"calibrator": "entropi"}}]),
            ("lower", 0, "int8", "calibrator"),
            r"lower\[0\].int8.calibrator: must be .*, not 'entropi' \(did you mean 'entropy'\?\)",
        ),
        ({"step": []}, ("workload",), "workload: is missing"),
    ],
)
def test_faults_name_their_place(
    mapping: Mapping[str, Any], path: tuple[str | int, ...], says: str
) -> None:
    with pytest.raises(RecipeKeyError, match=says) as caught:
        from_mapping("r", mapping)
    assert caught.value.key_path == path
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "path", "says"),
    [
        (changed(workload="mnist-min/lenet5"), ("workload",), "did you mean 'mnist-mini'"),
        (changed(workload="mnist-mini/lenet55"), ("workload",), "did you mean 'lenet5'"),
        (changed(workload="mnist-mini"), ("workload",), "expected workload/network"),
        (
            changed(step=[*DEEP["step"], {"use": "narrow", "macs": 1000}]),
            ("step", 2, "use"),
            "narrow makes the network itself and must come first",
        ),
        (
            changed(step=[{"use": "linear-quantise"}, {"use": "fine-tune"}]),
            ("step", 1, "use"),
            "fine-tune can't follow linear-quantise",
        ),
        (
            changed(lower=[{"to": "onnx", "int8": {"n": 501}}]),
            ("lower", 0, "int8", "n"),
            "501 images are asked for, the calibration split has 500",
        ),
        (changed(lower=[{"to": "onnx"}, {"to": "onnx"}]), ("lower", 1), "same file"),
    ],
)
def test_a_recipe_is_checked_as_a_whole(
    mapping: Mapping[str, Any], path: tuple[str | int, ...], says: str
) -> None:
    spec = from_mapping("r", mapping)
    with pytest.raises(RecipeKeyError, match=says) as caught:
        check(spec)
    assert caught.value.key_path == path
    assert "\n" not in str(caught.value)


def test_nothing_is_built_of_a_wrong_recipe(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("r", changed(lower=[{"to": "onnx"}, {"to": "onnx"}]))
    with pytest.raises(RecipeError, match="same file"):
        build(spec, 0, candidates_dir=tmp_path / "c", cache_dir=cache_dir)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("code", "path", "says"),
    [
        ({"with": "contxt"}, ("code", "with"), "did you mean 'context'"),
        ({"with": 3}, ("code",), "needs 'with' with a name"),
        ({"with": "fine-tune"}, ("code", "with"), "no codec named 'fine-tune'"),
        ({"with": "huffman", "index_bits": 5}, ("code", "index_bits"), "did you mean"),
        ({"with": "huffman", "index_bits_fc": 99}, ("code", "index_bits_fc"), "16"),
    ],
)
def test_a_wrong_codec_is_told_with_its_place(
    code: dict[str, Any], path: tuple[str, ...], says: str
) -> None:
    with pytest.raises(RecipeKeyError, match=says) as caught:
        from_mapping("r", changed(code=code))
    assert caught.value.key_path == path


def test_code_writes_a_coded_form_beside_each_file(tmp_path: Path, cache_dir: Path) -> None:
    plain = from_mapping("plain", CHEAP)
    coded = from_mapping("coded", {**CHEAP, "code": {}})
    assert coded.code == {"with": "context"}
    assert recipe_id(plain, 0) != recipe_id(coded, 0)
    before = load_candidate(build(plain, 0, candidates_dir=tmp_path, cache_dir=cache_dir))
    made = load_candidate(build(coded, 0, candidates_dir=tmp_path, cache_dir=cache_dir))
    # The same model file, and a candidate of its own: it has one file more.
    assert made.candidate_id != before.candidate_id
    assert [one.sha256 for one in made.artifacts] == [one.sha256 for one in before.artifacts]
    for artifact in made.artifacts:
        path = made.coded_path(artifact)
        assert path is not None
        assert artifact.coded is not None
        data = path.read_bytes()
        assert (len(data), sha256_bytes(data)) == (artifact.coded.size_bytes, artifact.coded.sha256)
        assert decode(data) == made.path(artifact).read_bytes()
        assert len(data) < artifact.size_bytes
    told = [entry for entry in made.history if entry["step"] == "code"]
    assert [entry["artifact"] for entry in told] == [one.sha256 for one in made.artifacts]
    path.write_bytes(data[:-1])
    with pytest.raises(ModelError, match="was changed"):
        load_candidate(made.folder)


def test_recipe_id_is_the_intent() -> None:
    spec = from_mapping("deep", DEEP)
    same = from_mapping("other", changed(seeds=[7]))
    assert recipe_id(spec, 0) == recipe_id(same, 0)
    # Naming a default changes nothing.
    spelt = changed(step=[{**DEEP["step"][0], "rounds": 1}, DEEP["step"][1]])
    assert recipe_id(spec, 0) == recipe_id(from_mapping("deep", spelt), 0)
    others = [
        recipe_id(spec, 1),
        recipe_id(from_mapping("d", changed(workload="mnist-mini/lenet5")), 0),
        recipe_id(from_mapping("d", changed(step=DEEP["step"][::-1])), 0),
        recipe_id(from_mapping("d", changed(lower=DEEP["lower"][:1])), 0),
        recipe_id(from_mapping("d", changed(step=[{**DEEP["step"][0], "rounds": 2}])), 0),
    ]
    assert len({recipe_id(spec, 0), *others}) == 6


def test_roles() -> None:
    assert role_of(RecipeSpec("r", "mnist-mini/lenet5")) == "reference"
    only_int8 = (LowerSpec("onnx", {}, {"n": 5}),)
    assert role_of(RecipeSpec("r", "mnist-mini/lenet5", lowers=only_int8)) == "compressed"
    narrow = RecipeSpec("r", "mnist-mini/lenet5", steps=(StepSpec("narrow", {"macs": 100}),))
    assert role_of(narrow) == "equal-macs"
    assert role_of(from_mapping("deep", DEEP)) == "compressed"


def test_a_deep_recipe_makes_two_artifacts_with_their_story(
    tmp_path: Path, cache_dir: Path
) -> None:
    spec = from_mapping("deep", DEEP)
    folder = build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)
    made = load_candidate(folder)
    assert folder == tmp_path / made.candidate_id
    assert [artifact.role for artifact in made.artifacts] == ["float", "int8"]
    assert made.artifacts[1].lowered_from == made.artifacts[0].sha256
    assert (made.name, made.role, made.workload, made.seed) == (
        "deep",
        "compressed",
        "mnist-mini/lenet300",
        0,
    )
    assert made.recipe_id == recipe_id(spec, 0)
    assert (made.params, made.macs) == (266610, 266200)
    assert made.nonzeros < 0.25 * made.params
    assert [layer["kind"] for layer in made.layers] == ["fc", "fc", "fc"]
    assert made.nonzeros == sum(layer["nonzeros"] for layer in made.layers)
    assert [told["step"] for told in made.history] == [
        "reference",
        "magnitude-prune",
        "fine-tune",
        "int8",
    ]
    # Two retrainings of one epoch: 3,000 images in batches of 64.
    assert made.cost["train_steps"] == 2 * (3000 // 64)
    assert made.cost["forward_passes"] == 64
    assert made.cost["cpu_s"] > 0
    assert made.cost["reference_train_s"] > 0
    assert made.accuracy_host["validation"] > 0.85
    assert abs(made.accuracy_host["validation/int8"] - made.accuracy_host["validation"]) < 0.03
    assert made.history[-1]["top1_agreement_with_float"] > 0.97
    assert made.history[-1]["culprit"] is None
    assert min(layer["sqnr_db"] for layer in made.history[-1]["layers"]) > 20
    mask = made.masks()["fc1"]
    assert mask.shape == (300, 784)
    first = made.history[1]["rounds"][-1]["layers"][0]
    assert abs(mask.mean() - (1 - first["sparsity"])) < 0.02
    assert made.bytes_by_coding["bitmap_fp32"] < 0.4 * made.bytes_by_coding["dense_fp32"]
    assert set(made.splits) == {"train", "calibration", "validation"}
    assert made.size_bytes == sum((folder / a.file).stat().st_size for a in made.artifacts)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {
        "candidate.json",
        "masks.npz",
        "pictures.npz",
        *(a.file for a in made.artifacts),
        *(f"goldens/{a.goldens}.npz" for a in made.artifacts),
    }


def test_reference_and_narrow_baseline(tmp_path: Path, cache_dir: Path) -> None:
    dense = from_mapping("dense", {"workload": "mnist-mini/lenet300"})
    reference = load_candidate(build(dense, 0, candidates_dir=tmp_path, cache_dir=cache_dir))
    assert reference.role == "reference"
    assert reference.cost["train_steps"] == 0
    assert reference.masks()["fc1"].mean() > 0.99
    spec = from_mapping(
        "narrow", {**CHEAP, "step": [{"use": "narrow", "macs": 20_000}], "lower": [{"to": "onnx"}]}
    )
    narrow = load_candidate(build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir))
    assert narrow.role == "equal-macs"
    assert narrow.macs is not None
    assert 18_000 < narrow.macs <= 20_000
    # In another lab the same cache spares the training, not what it cost.
    again = load_candidate(build(spec, 0, candidates_dir=tmp_path / "b", cache_dir=cache_dir))
    trained_s = again.history[0]["cached_cpu_s"]
    assert again.cost["cpu_s"] > trained_s > 0
    assert again.history[0]["cpu_s"] > trained_s
    assert narrow.cost["train_steps"] > 0
    assert narrow.cost["reference_train_s"] == 0.0


def test_int8_alone_keeps_no_float_file(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("q", {**CHEAP, "step": [], "lower": [{"to": "onnx", "int8": {"n": 32}}]})
    made = load_candidate(build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir))
    assert [artifact.role for artifact in made.artifacts] == ["int8"]
    assert made.role == "compressed"
    assert len(list(made.folder.glob("*.onnx"))) == 1
    assert len(list(made.folder.glob("goldens/*"))) == 1


@pytest.mark.converter
@pytest.mark.slow
def test_the_int8_files_of_two_formats_tell_their_own_story(
    tmp_path: Path, cache_dir: Path, converter_cache: Path
) -> None:
    if not (cache_dir / "converter").exists():
        (cache_dir / "converter").symlink_to(converter_cache / "converter")
    lower = [{"to": to, "int8": {"n": 64}} for to in ("onnx", "tflite")]
    spec = from_mapping("two", {**CHEAP, "step": [], "lower": lower})
    made = load_candidate(build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir))
    assert [(a.format, a.role) for a in made.artifacts] == [("onnx", "int8"), ("tflite", "int8")]
    told = {entry["step"]: entry for entry in made.history[1:]}
    assert list(told) == ["int8", "tflite-int8"]
    for (step, entry), artifact in zip(told.items(), made.artifacts, strict=True):
        assert (entry["artifact"], entry["format"]) == (artifact.sha256, artifact.format), step
        assert entry["top1_agreement_with_float"] > 0.97
    accuracy = made.accuracy_host
    assert accuracy["validation/int8/tflite"] == told["tflite-int8"]["accuracy_validation"]
    assert abs(accuracy["validation/int8"] - accuracy["validation"]) < 0.02
    assert abs(accuracy["validation/int8/tflite"] - accuracy["validation"]) < 0.02
    # The float files were only on the way.
    assert len(list(made.folder.glob("*.tflite"))) == len(list(made.folder.glob("*.onnx"))) == 1
    assert len(list(made.folder.glob("goldens/*"))) == 2


def test_building_again_does_no_work(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("cheap", CHEAP)
    folder = build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    # Without any data to work on, only the index can answer.
    again = build(spec, 0, candidates_dir=tmp_path, cache_dir=tmp_path / "nowhere")
    assert again == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert not (tmp_path / "nowhere").exists()


def test_a_changed_candidate_is_built_again(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("cheap", CHEAP)
    folder = build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)
    made = load_candidate(folder)
    path = made.path(made.artifacts[0])
    path.write_bytes(path.read_bytes()[:-1])
    assert build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir) == folder
    assert load_candidate(folder).artifacts == made.artifacts


def test_the_same_recipe_gives_the_same_candidate(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("cheap", CHEAP)
    first = build(spec, 0, candidates_dir=tmp_path / "a", cache_dir=cache_dir)
    second = build(spec, 0, candidates_dir=tmp_path / "b", cache_dir=cache_dir)
    assert first.name == second.name
    told = [json.loads((folder / "candidate.json").read_text()) for folder in (first, second)]
    for value in told:
        value["cost"].pop("cpu_s")
        for entry in value["history"]:
            entry.pop("cpu_s", None)
    assert told[0] == told[1]


@pytest.mark.slow
def test_builders_in_several_processes_make_one_candidate(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("cheap", CHEAP)
    with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
        jobs = [
            pool.submit(build, spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)
            for _ in range(3)
        ]
        folders = {job.result() for job in jobs}
    assert len(folders) == 1
    load_candidate(folders.pop())
    assert len(list(tmp_path.glob("*/candidate.json"))) == 1


_KILLED = """
import os, pathlib, signal, sys
from flatsat.compressors import building
from flatsat.compressors.recipe import build, from_mapping
import json
real = getattr(building, sys.argv[1])
def die(*args, **kwargs):
    if sys.argv[1] == "publish":
        (args[0].folder / "half").write_text("made")
    os.kill(os.getpid(), signal.SIGKILL)
setattr(building, sys.argv[1], die)
build(from_mapping("cheap", json.loads(sys.argv[2])), 0,
      candidates_dir=pathlib.Path(sys.argv[3]), cache_dir=pathlib.Path(sys.argv[4]))
"""


@pytest.mark.parametrize("point", ["put_masks", "save", "publish", "_remember"])
def test_a_builder_killed_half_way_leaves_nothing_to_pick_up(
    tmp_path: Path, cache_dir: Path, point: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, point, json.dumps(CHEAP), tmp_path, cache_dir],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    left = list(tmp_path.glob("*/candidate.json"))
    assert len(left) == (point == "_remember")
    assert not list((tmp_path / "by-recipe").iterdir())
    folder = build(from_mapping("cheap", CHEAP), 0, candidates_dir=tmp_path, cache_dir=cache_dir)
    load_candidate(folder)
    assert not (folder / "half").exists()
    assert [p.parent for p in tmp_path.glob("*/candidate.json")] == [folder]
    assert not [p for p in (tmp_path / "building").iterdir() if p.is_dir()]


def test_a_full_disk_is_told_in_one_line(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".onnx":
            raise OSError(28, os.strerror(28))
        return write(path, data)

    spec = from_mapping("cheap", CHEAP)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InfrastructureError, match="No space left on device") as caught:
        build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "building").iterdir() if p.is_dir()]
    build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)


def test_a_folder_that_is_a_file_is_told_in_one_line(tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "c").write_text("no folder")
    with pytest.raises(UsageError, match="can't write to") as caught:
        build(from_mapping("c", CHEAP), 0, candidates_dir=tmp_path / "c", cache_dir=cache_dir)
    assert "\n" not in str(caught.value)


def test_a_step_that_refuses_is_named(tmp_path: Path, cache_dir: Path) -> None:
    spec = from_mapping("bad", {**CHEAP, "step": [{"use": "linear-quantise", "skip": ["fc9"]}]})
    with pytest.raises(RecipeKeyError, match=r"step\[0\]: .*no layer 'fc9'") as caught:
        build(spec, 0, candidates_dir=tmp_path, cache_dir=cache_dir)
    assert caught.value.key_path == ("step", 0)
    assert not list(tmp_path.glob("*/candidate.json"))


def test_goldens_are_shared_by_the_candidates_of_a_workload(
    tmp_path: Path, cache_dir: Path
) -> None:
    inputs = []
    for seed in (0, 1):
        folder = build(from_mapping("c", CHEAP), seed, candidates_dir=tmp_path, cache_dir=cache_dir)
        made = load_candidate(folder)
        goldens = made.goldens(made.artifacts[0])
        assert goldens is not None
        with np.load(goldens, allow_pickle=False) as stored:
            inputs.append(stored["in:image"])
    assert np.array_equal(*inputs)
