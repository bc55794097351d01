"""The candidate's folder: what is written is what is read, and changed bytes are noticed."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flatsat.artifact import Agreement, Artifact
from flatsat.canonical import canonical_json, sha256_bytes
from flatsat.compressors.candidate import (
    BUILDING,
    Candidate,
    candidate_id,
    is_safe_name,
    load,
    load_candidate,
    npz_bytes,
    publish,
    put_goldens,
    put_masks,
    save,
)
from flatsat.errors import ModelError
from flatsat.tensors import TensorSpec


def made(root: Path, *, text: bytes = b"model", name: str = "deep") -> Candidate:
    folder = root / BUILDING / f"{name}-{len(text)}"
    folder.mkdir(parents=True)
    (folder / "float.onnx").write_bytes(text)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    artifact = Artifact(
        sha256=sha256_bytes(text),
        format="onnx",
        role="float",
        size_bytes=len(text),
        file="float.onnx",
        opset=17,
        ir=8,
        layout="",
        inputs=(TensorSpec("in/a:0", "float32", ("batch", 3)),),
        outputs=(TensorSpec("y", "float32", ("batch", 3)),),
        goldens=put_goldens(folder, {"in/a:0": x}, {"y": 2 * x}),
        agreement=Agreement("tol", max_rel=1e-4),
    )
    candidate = Candidate(
        candidate_id=candidate_id((artifact,)),
        recipe_id="ab" * 32,
        recipe={"workload": "mnist-mini/lenet5", "steps": []},
        name=name,
        workload="mnist-mini/lenet5",
        seed=3,
        parent=None,
        artifacts=(artifact,),
        params=10,
        nonzeros=8,
        macs=None,
        size_bytes=len(text),
        cost={"train_steps": 1, "cpu_s": 0.5},
        accuracy_host={"validation": 0.9},
        layers=({"name": "fc", "out_shape": [3]},),
        role="compressed",
        folder=folder,
        history=({"step": "x"},),
    )
    put_masks(folder, {"fc": np.array([[True, False, True]])})
    save(candidate)
    return candidate


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    candidate = made(tmp_path)
    assert load(candidate.folder) == candidate
    assert load_candidate(candidate.folder / "candidate.json") == candidate
    text = (candidate.folder / "candidate.json").read_text()
    assert text == canonical_json(json.loads(text)) + "\n"
    assert str(tmp_path) not in text
    assert candidate.masks()["fc"].tolist() == [[True, False, True]]
    goldens = candidate.goldens(candidate.artifacts[0])
    assert goldens is not None
    with np.load(goldens, allow_pickle=False) as stored:
        assert sorted(stored.files) == ["in:in/a:0", "out:y"]
        assert stored["out:y"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert candidate.artifact("float") == candidate.artifacts[0]
    with pytest.raises(ModelError, match=r"no 'int8' artifact \(has float\)"):
        candidate.artifact("int8")


@pytest.mark.parametrize("victim", ["float.onnx", "goldens"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_changed_files_are_noticed(tmp_path: Path, victim: str, damage: str) -> None:
    candidate = made(tmp_path)
    path = candidate.folder / victim
    path = next(path.iterdir()) if path.is_dir() else path
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif damage == "cut":
        path.write_bytes(bytes(data[:-1]))
    else:
        path.unlink()
    with pytest.raises(ModelError, match="can't read" if damage == "gone" else "was changed") as e:
        load(candidate.folder)
    assert path.name in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 99}, "no candidate of schema"),
        ({"candidate_id": "0" * 64}, "its id isn't that of its artifacts"),
        ({"surprise": 1}, "lacks or misspells a field"),
        ({"artifacts": None}, "lacks or misspells a field"),
        ({"artifacts": [{"sha256": "a"}]}, "lacks or misspells a field"),
    ],
)
def test_a_wrong_candidate_file(tmp_path: Path, change: dict[str, object], says: str) -> None:
    candidate = made(tmp_path)
    path = candidate.folder / "candidate.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=says) as caught:
        load(candidate.folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_no_candidate_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelError, match="is no candidate"):
        load(tmp_path)
    (tmp_path / "candidate.json").write_text(text)
    with pytest.raises(ModelError, match="is no"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["../float.onnx", "/etc/passwd", "a/b.onnx", ".hidden", "a b", ""])
def test_artifact_names_may_not_lead_out_of_the_folder(tmp_path: Path, file: str) -> None:
    candidate = made(tmp_path)
    hostile = replace(candidate, artifacts=(replace(candidate.artifacts[0], file=file),))
    save(hostile)
    with pytest.raises(ModelError, match="unsafe artifact name"):
        load(candidate.folder)


def test_goldens_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    candidate = made(tmp_path)
    hostile = replace(candidate.artifacts[0], goldens="../../secret")
    save(replace(candidate, artifacts=(hostile,)))
    with pytest.raises(ModelError, match="are no hash"):
        load(candidate.folder)


def test_publish_moves_the_folder_to_its_id(tmp_path: Path) -> None:
    candidate = made(tmp_path)
    placed = publish(candidate, tmp_path)
    assert placed.folder == tmp_path / candidate.candidate_id
    assert not candidate.folder.exists()
    assert load(placed.folder) == placed


def test_the_first_sound_candidate_of_an_id_stays(tmp_path: Path) -> None:
    first = publish(made(tmp_path), tmp_path)
    again = made(tmp_path, name="late")
    assert publish(again, tmp_path).name == first.name == "deep"
    assert not again.folder.exists()


def test_a_broken_candidate_is_replaced(tmp_path: Path) -> None:
    first = publish(made(tmp_path), tmp_path)
    first.path(first.artifacts[0]).write_bytes(b"other")
    assert publish(made(tmp_path, name="late"), tmp_path).name == "late"


def test_identity_is_the_set_of_artifacts(tmp_path: Path) -> None:
    left = made(tmp_path).artifacts[0]
    right = made(tmp_path, text=b"other model").artifacts[0]
    assert candidate_id((left, right)) == candidate_id((right, left))
    assert len({candidate_id((left,)), candidate_id((right,)), candidate_id((left, right))}) == 3


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"], include_characters=":/_"), min_size=1),
        hnp.arrays(
            st.sampled_from([np.float32, np.int64, np.bool_, np.float16]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0),
        ),
        max_size=3,
    )
)
def test_archives_keep_arrays_and_have_no_clock(arrays: dict[str, np.ndarray]) -> None:
    data = npz_bytes(arrays)
    assert data == npz_bytes(dict(reversed(list(arrays.items()))))
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        assert set(stored.files) == set(arrays)
        for name, array in arrays.items():
            assert stored[name].dtype == array.dtype
            assert stored[name].shape == array.shape
            assert stored[name].tobytes() == array.tobytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {item.date_time for item in archive.infolist()} <= {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize(
    ("name", "safe"),
    [("float-0a1b.onnx", True), ("a", True), ("..", False), ("a/../b", False), ("a\n", False)],
)
def test_safe_names(name: str, safe: bool) -> None:
    assert is_safe_name(name) == safe
