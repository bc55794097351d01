"""Networks of other makers: any ONNX file, with goldens that fit its signature."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flatsat.artifact import Agreement
from flatsat.canonical import sha256_file
from flatsat.compressors.candidate import load_candidate
from flatsat.compressors.importing import import_model
from flatsat.compressors.onnx_model import run_host
from flatsat.errors import InfrastructureError, ModelError


def saved(path: Path, *, elem: int = TensorProto.FLOAT, batch: object = "batch") -> Path:
    """Write y = x + w, with a name that has a slash and a colon."""
    dtype = helper.tensor_dtype_to_np_dtype(elem)
    graph = helper.make_graph(
        [helper.make_node("Add", ["serving/x:0", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("serving/x:0", elem, [batch, 3])],
        [helper.make_tensor_value_info("y", elem, [batch, 3])],
        [numpy_helper.from_array(np.array([0, 1, 2], dtype), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def goldens(path: Path, **changes: np.ndarray | None) -> Path:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    arrays: dict[str, np.ndarray | None] = {
        "in:serving/x:0": x,
        "out:y": x + np.array([0, 1, 2], np.float32),
    }
    arrays.update(changes)
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def test_a_model_without_goldens(tmp_path: Path) -> None:
    source = saved(tmp_path / "my net (v2).onnx")
    made = import_model(source, None, tmp_path / "candidates")
    assert made == load_candidate(tmp_path / "candidates" / made.candidate_id)
    assert (made.role, made.name, made.workload, made.recipe_id) == (
        "imported",
        "my-net-v2",
        "",
        "",
    )
    (artifact,) = made.artifacts
    assert (artifact.role, artifact.format, artifact.opset, artifact.ir) == (
        "imported",
        "onnx",
        17,
        8,
    )
    assert artifact.sha256 == sha256_file(source) == sha256_file(made.path(artifact))
    assert artifact.inputs[0].name == "serving/x:0"
    assert (artifact.goldens, artifact.agreement) == (None, None)
    assert (made.params, made.nonzeros, made.macs) == (3, 2, 0)


def test_goldens_are_kept_and_judged_by_tolerance(tmp_path: Path) -> None:
    made = import_model(saved(tmp_path / "m.onnx"), goldens(tmp_path / "g.npz"), tmp_path, "net")
    (artifact,) = made.artifacts
    assert artifact.agreement == Agreement("tol", max_rel=1e-4)
    path = made.goldens(artifact)
    assert path is not None
    with np.load(path, allow_pickle=False) as stored:
        outputs = run_host(made.path(artifact), {"serving/x:0": stored["in:serving/x:0"]})
        assert np.array_equal(outputs["y"], stored["out:y"])


@pytest.mark.parametrize(
    ("elem", "agreement"),
    [
        (TensorProto.INT64, Agreement("bit")),
        (TensorProto.FLOAT16, Agreement("tol", max_rel=1e-2)),
    ],
)
def test_other_types_have_other_policies(tmp_path: Path, elem: int, agreement: Agreement) -> None:
    x = np.zeros((1, 3), helper.tensor_dtype_to_np_dtype(elem))
    given = goldens(tmp_path / "g.npz", **{"in:serving/x:0": x, "out:y": x})
    made = import_model(saved(tmp_path / "m.onnx", elem=elem), given, tmp_path)
    assert made.artifacts[0].agreement == agreement


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"out:y": None}, r"lacks out:y \(it has in:serving/x:0\)"),
        ({"in:serving/x:0": None}, r"lacks in:serving/x:0"),
        ({"out:z": np.zeros(3, np.float32)}, r"the model has no out:z"),
        ({"out:y": np.zeros((4, 3))}, r"out:y holds float64, the model's is float32"),
        ({"out:y": np.zeros((4, 2), np.float32)}, r"out:y has shape \(4, 2\), .* \(batch, 3\)"),
        ({"out:y": np.zeros(3, np.float32)}, r"out:y has shape \(3,\)"),
        ({"out:y": np.zeros((5, 3), np.float32)}, r"axis 'batch' is 4 long .* and 5 in out:y"),
    ],
)
def test_goldens_that_do_not_fit(
    tmp_path: Path, changes: dict[str, np.ndarray | None], says: str
) -> None:
    given = goldens(tmp_path / "g.npz", **changes)
    with pytest.raises(ModelError, match=says) as caught:
        import_model(saved(tmp_path / "m.onnx"), given, tmp_path / "candidates")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "candidates").exists()


def test_fixed_first_axis_takes_whole_multiples(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx", batch=2)
    assert import_model(model, goldens(tmp_path / "g.npz"), tmp_path).artifacts[0].goldens
    odd = np.zeros((3, 3), np.float32)
    given = goldens(tmp_path / "odd.npz", **{"in:serving/x:0": odd, "out:y": odd})
    with pytest.raises(ModelError, match="has shape"):
        import_model(model, given, tmp_path)
    uneven = goldens(tmp_path / "uneven.npz", **{"out:y": np.zeros((2, 3), np.float32)})
    with pytest.raises(ModelError, match="different numbers of goldens"):
        import_model(model, uneven, tmp_path)


def test_goldens_file_that_is_none(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"can't read .*No such file"):
        import_model(model, tmp_path / "none.npz", tmp_path)
    bad = tmp_path / "bad.npz"
    for content in (b"", b"text", b"PK\x03\x04broken"):
        bad.write_bytes(content)
        with pytest.raises(ModelError, match=r"no .npz archive"):
            import_model(model, bad, tmp_path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(ModelError, match="single array"):
        import_model(model, tmp_path / "single.npy", tmp_path)
    np.savez(tmp_path / "objects.npz", **{"in:serving/x:0": np.array([{}], dtype=object)})
    with pytest.raises(ModelError, match=r"no .npz archive of plain arrays"):
        import_model(model, tmp_path / "objects.npz", tmp_path)


def test_importing_again_is_the_same_candidate(tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx")
    first = import_model(model, None, tmp_path)
    assert import_model(model, None, tmp_path) == first
    # Goldens that come later are taken up; importing without them then keeps them.
    with_goldens = import_model(model, goldens(tmp_path / "g.npz"), tmp_path)
    assert with_goldens.candidate_id == first.candidate_id
    assert with_goldens.artifacts[0].goldens
    assert import_model(model, None, tmp_path) == with_goldens
    named = import_model(model, None, tmp_path, "better name")
    assert named.name == "better-name"
    assert named.artifacts == with_goldens.artifacts
    assert load_candidate(named.folder) == named
    assert len(list(tmp_path.glob("*/candidate.json"))) == 1


def test_weights_beside_the_model_are_put_inside(tmp_path: Path) -> None:
    whole = onnx.load(saved(tmp_path / "m.onnx"))
    split = tmp_path / "split.onnx"
    onnx.save_model(whole, split, save_as_external_data=True, location="w.bin", size_threshold=0)
    made = import_model(split, None, tmp_path / "candidates")
    (tmp_path / "w.bin").unlink()
    x = np.ones((1, 3), np.float32)
    path = made.path(made.artifacts[0])
    assert run_host(path, {"serving/x:0": x})["y"].tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("content", [b"", b"nothing like it", b"\x08\x08"])
def test_files_that_are_no_model_leave_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        import_model(path, None, tmp_path / "candidates")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "candidates").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "m.onnx")

    def full(_path: Path, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InfrastructureError, match="No space left on device"):
        import_model(model, None, tmp_path / "candidates")
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "candidates").rglob("*") if p.is_file()]
    assert list((tmp_path / "candidates" / "building").iterdir()) == []


def test_importing_needs_no_torch() -> None:
    code = "import flatsat.compressors.importing, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
