"""TFLite files of any origin: read without running, written anew, imported; hostile ones, too."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatsat.artifact import Agreement
from flatsat.compressors.importing import import_model
from flatsat.compressors.tflite_model import inspect, run_host
from flatsat.compressors.tflite_write import normalise
from flatsat.errors import ModelError
from flatsat.tensors import TensorSpec

Make = Callable[..., bytes]


def test_a_file_tells_its_signature_and_counts(dense_tflite: Make) -> None:
    info = inspect(dense_tflite(), "small.tflite")
    assert info.inputs == (TensorSpec("x", "float32", (1, 4)),)
    assert info.outputs == (TensorSpec("y", "float32", (1, 3)),)
    assert (info.nodes, info.params, info.nonzeros, info.macs) == (1, 12, 12, 12)
    assert info.operators == {"FULLY_CONNECTED": 1}
    assert info.floats == ("FULLY_CONNECTED",)
    found = run_host(dense_tflite(), np.ones((2, 4), np.float32))
    assert found.shape == (2, 3)


@pytest.mark.parametrize(("dtype", "zero"), [("int8", 0), ("uint8", 128)])
def test_integers_tell_what_they_stand_for(dense_tflite: Make, dtype: str, zero: int) -> None:
    info = inspect(dense_tflite(dtype), "small.tflite")
    (source,), (target,) = info.inputs, info.outputs
    assert (source.dtype, source.zero_point, target.zero_point) == (dtype, zero, zero)
    assert (source.scale, target.scale) == (pytest.approx(0.02), pytest.approx(0.05))
    assert info.floats == ()


def test_open_axes_and_missing_names_are_named(dense_tflite: Make) -> None:
    info = inspect(dense_tflite(rows=-1, names=("", "w", "y")), "open.tflite")
    assert info.inputs == (TensorSpec("input:0", "float32", ("input:0_axis0", 4)),)
    assert info.outputs[0].shape == ("y_axis0", 3)
    assert info.macs == 12


def test_weights_behind_the_flatbuffer_count(dense_tflite: Make) -> None:
    for dtype in ("float32", "int8"):
        beside = inspect(dense_tflite(dtype, beside=True), "beside.tflite")
        assert beside == inspect(dense_tflite(dtype), "inside.tflite")
        assert beside.params == 12


# Written anew


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_file_written_anew_computes_the_same_and_tells_no_tales(
    dense_tflite: Make, dtype: str, beside: bool
) -> None:
    names = ("serving/x", "package.module.Class_1;", "y")
    told = dense_tflite(dtype, beside=beside, names=names, note="made at home")
    made = normalise(told, ["image"], ["logits"])
    for secret in (b"package", b"home", b"serving/x"):
        assert secret in told
        assert secret not in made
    before, after = inspect(told, "old"), inspect(made, "new")
    assert [spec.name for spec in (*after.inputs, *after.outputs)] == ["image", "logits"]
    assert (after.params, after.macs, after.operators) == (
        before.params,
        before.macs,
        before.operators,
    )
    x = np.arange(8).reshape(2, 4).astype(dtype)
    assert np.array_equal(run_host(made, x), run_host(told, x))
    # Writing again changes nothing, and what was beside lies inside.
    assert normalise(made, ["image"], ["logits"]) == made
    assert made == normalise(dense_tflite(dtype), ["image"], ["logits"])


def test_buffers_are_aligned_as_the_schema_demands(dense_tflite: Make) -> None:
    data = normalise(dense_tflite("int8"), ["image"], ["logits"])
    weights = np.rint(np.linspace(-1, 1, 12) * 100).astype(np.int8).tobytes()
    assert data.count(weights) == 1
    assert data.index(weights) % 16 == 0


# Imported


def test_any_tflite_file_becomes_a_candidate_by_its_content(
    dense_tflite: Make, tmp_path: Path
) -> None:
    path = tmp_path / "model with spaces.bin"
    path.write_bytes(dense_tflite())
    goldens = tmp_path / "goldens.npz"
    x = np.ones((2, 4), np.float32)
    np.savez(goldens, **{"in:x": x, "out:y": run_host(dense_tflite(), x)})
    candidate = import_model(path, goldens, tmp_path / "candidates")
    (artifact,) = candidate.artifacts
    assert (artifact.format, artifact.role, artifact.opset) == ("tflite", "imported", None)
    assert (candidate.folder / artifact.file).read_bytes() == dense_tflite()
    assert candidate.name == "model-with-spaces"
    assert candidate.params == 12
    assert artifact.agreement == Agreement("tol", max_rel=1e-4)


def test_integer_outputs_are_judged_in_their_own_steps(dense_tflite: Make, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(dense_tflite("uint8"))
    goldens = tmp_path / "goldens.npz"
    x = np.full((2, 4), 200, np.uint8)
    np.savez(goldens, **{"in:x": x, "out:y": np.full((2, 3), 128, np.uint8)})
    (artifact,) = import_model(path, goldens, tmp_path / "candidates").artifacts
    assert artifact.agreement is not None
    assert (artifact.agreement.kind, artifact.agreement.quantum) == ("decision", 1.0)
    assert artifact.inputs[0].dtype == "uint8"


def test_a_damaged_import_names_its_file_and_leaves_nothing(
    dense_tflite: Make, tmp_path: Path
) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(dense_tflite()[:100])
    with pytest.raises(ModelError, match=r"cut\.tflite") as caught:
        import_model(path, None, tmp_path / "candidates")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "candidates").exists()


# Hostile


def test_what_litert_refuses_is_one_line_and_stays_in_its_process(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ModelError, match="LiteRT can't run this file") as caught:
        run_host(b"rubbish", np.zeros((1, 4), np.float32))
    assert "\n" not in str(caught.value)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_wrong_values_are_one_line(dense_tflite: Make) -> None:
    with pytest.raises(ModelError, match="LiteRT can't run this file") as caught:
        run_host(dense_tflite(), np.zeros((1, 5), np.float32))
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(cut=st.integers(0, 10_000), beside=st.booleans())
def test_a_cut_file_is_one_clear_error(dense_tflite: Make, cut: int, beside: bool) -> None:
    data = dense_tflite(beside=beside)
    data = data[: cut % len(data)]
    try:
        inspect(data, "cut.tflite")
    except ModelError as error:
        assert "\n" not in error.message
        assert error.message.startswith("cut.tflite")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_never_more(
    dense_tflite: Make, data: st.DataObject
) -> None:
    dtype, beside = data.draw(st.sampled_from(["float32", "int8"])), data.draw(st.booleans())
    damaged = bytearray(dense_tflite(dtype, beside=beside))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(8, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        inspect(bytes(damaged), "bad.tflite")
    except ModelError as error:
        assert "\n" not in error.message


@settings(deadline=None)
@given(noise=st.binary(max_size=400))
def test_noise_behind_the_magic_is_read_or_refused(noise: bytes) -> None:
    try:
        inspect(noise[:4].ljust(4, b"\0") + b"TFL3" + noise[4:], "noise.tflite")
    except ModelError as error:
        assert "\n" not in error.message


def repeated(count: int, tables: int, values: int) -> bytes:
    """Return a file that lists one graph `count` times, of one tensor listed `tables` times, whose
    one shape has `values` axes: small, and endless to whoever believes it.
    """
    builder = flatbuffers.Builder(1024)
    schema.TensorStartShapeVector(builder, values)
    for _ in range(values):
        builder.PrependInt32(1)
    shape = builder.EndVector()
    schema.TensorStart(builder)
    schema.TensorAddShape(builder, shape)
    tensor = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, tables)
    for _ in range(tables):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("count", "tables", "values", "says"),
    [
        (20_000, 20_000, 1, "lists are too long"),
        (1, 90_000, 16, "parts overlap"),
        (1, 1, 100_000, "100000 axes"),
    ],
)
def test_lists_that_share_their_parts_end_soon(
    count: int, tables: int, values: int, says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        inspect(repeated(count, tables, values), "bomb.tflite")


def test_buffers_that_all_lie_on_each_other_are_refused() -> None:
    builder = flatbuffers.Builder(1 << 16)
    held = builder.CreateByteVector(bytes(50_000))
    schema.BufferStart(builder)
    schema.BufferAddData(builder, held)
    buffer = schema.BufferEnd(builder)
    schema.ModelStartBuffersVector(builder, 5000)
    for _ in range(5000):
        builder.PrependUOffsetTRelative(buffer)
    buffers = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    with pytest.raises(ModelError, match="overlap"):
        inspect(bytes(builder.Output()), "bomb.tflite")


def test_a_list_longer_than_the_file_is_refused(dense_tflite: Make) -> None:
    data = bytearray(dense_tflite())
    model = schema.Model.GetRootAs(data, 0)
    table = model._tab
    struct.pack_into("<I", data, table.Vector(table.Offset(8)) - 4, 2**31)
    with pytest.raises(ModelError, match="claims to have 2147483648 entries"):
        inspect(bytes(data), "long.tflite")


def test_weights_that_lie_outside_the_file_are_refused(dense_tflite: Make) -> None:
    with pytest.raises(ModelError, match="lies outside the file"):
        inspect(dense_tflite(beside=True)[:-1], "cut.tflite")


def test_reading_needs_no_torch_and_no_native_library() -> None:
    import subprocess
    import sys

    code = (
        "import flatsat.compressors.tflite_model as m, sys\n"
        "try: m.inspect(b'\\0\\0\\0\\0TFL3' + bytes(64), 'x')\n"
        "except m.ModelError: pass\n"
        "sys.exit(any('torch' in n or 'pywrap' in n for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
