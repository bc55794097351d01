"""What is read from ONNX files, sound and broken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from flatsat.compressors.onnx_model import embedded, inspect, normalise, parse, run_host
from flatsat.errors import ModelError
from flatsat.tensors import DTYPE_BYTES, TensorSpec


def value(name: str, shape: list[int | str | None] | None, elem: int = TensorProto.FLOAT) -> object:
    return helper.make_tensor_value_info(name, elem, shape)


def model(
    nodes: list[object],
    inputs: list[object],
    outputs: list[object],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convnet() -> onnx.ModelProto:
    return model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], group=2),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "v", "b"], ["y"], transB=1),
        ],
        [value("x", ["batch", 4, 6, 6])],
        [value("y", ["batch", 3])],
        {
            "w": np.ones((8, 2, 3, 3), np.float32),
            "v": np.zeros((3, 8 * 36), np.float32),
            "b": np.ones(3, np.float32),
        },
    )


def saved(tmp_path: Path, made: onnx.ModelProto, name: str = "m.onnx") -> Path:
    path = tmp_path / name
    path.write_bytes(made.SerializeToString())
    return path


def test_signature_versions_and_counts(tmp_path: Path) -> None:
    info = inspect(saved(tmp_path, convnet()))
    assert info.inputs == (TensorSpec("x", "float32", ("batch", 4, 6, 6)),)
    assert info.outputs == (TensorSpec("y", "float32", ("batch", 3)),)
    assert (info.opset, info.ir, info.nodes, info.valid) == (17, 8, 3, True)
    weights = 8 * 2 * 9 + 3 * 288 + 3
    assert (info.params, info.nonzeros) == (weights, 144 + 3)
    assert info.macs == 8 * 36 * 2 * 9 + 3 * 288


def test_matmul_and_transposed_convolution_are_counted(tmp_path: Path) -> None:
    made = model(
        [
            helper.make_node("ConvTranspose", ["x", "w"], ["c"], strides=[2, 2]),
            helper.make_node("MatMul", ["c", "v"], ["y"]),
        ],
        [value("x", [1, 2, 3, 3])],
        [value("y", [1, 4, 6, 5])],
        {"w": np.ones((2, 4, 2, 2), np.float32), "v": np.ones((6, 5), np.float32)},
    )
    assert inspect(saved(tmp_path, made)).macs == 2 * 9 * 4 * 4 + 4 * 6 * 5 * 6


def test_macs_are_unknown_where_a_shape_is(tmp_path: Path) -> None:
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["batch", "time", 4])],
        [value("y", ["batch", "time", 2])],
        {"w": np.ones((4, 2), np.float32)},
    )
    info = inspect(saved(tmp_path, made))
    assert info.macs is None
    assert info.params == 8


def test_axes_without_names_and_initializers_among_the_inputs(tmp_path: Path) -> None:
    made = model(
        [helper.make_node("Add", ["a/in:0", "w"], ["out"])],
        [value("a/in:0", [None, "n", 3]), value("w", [3])],
        [value("out", None)],
        {"w": np.ones(3, np.float32)},
    )
    info = inspect(saved(tmp_path, made))
    assert info.inputs == (TensorSpec("a/in:0", "float32", ("a/in:0_axis0", "n", 3)),)
    assert info.outputs[0].shape[1:] == ("n", 3)


def test_scalar_and_every_known_type(tmp_path: Path) -> None:
    for dtype in DTYPE_BYTES:
        elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        made = model(
            [helper.make_node("Identity", ["x"], ["y"])],
            [value("x", [], elem)],
            [value("y", [], elem)],
        )
        info = inspect(saved(tmp_path, made))
        assert info.inputs == (TensorSpec("x", dtype, ()),)


def test_scales_of_quantisers_are_no_weights(tmp_path: Path) -> None:
    made = model(
        [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0),
            helper.make_node("MatMul", ["x", "d"], ["y"]),
        ],
        [value("x", [1, 4])],
        [value("y", [1, 2])],
        {
            "w": np.ones((4, 2), np.int8),
            "s": np.ones(4, np.float32),
            "z": np.zeros(4, np.int8),
        },
    )
    info = inspect(saved(tmp_path, made))
    assert (info.params, info.nonzeros, info.macs) == (8, 8, 8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"this is no protobuf at all", "corrupt, or no ONNX file"),
        (b"\x08\x08", "it has no graph"),
        (b"\x3a\xff\xff\xff\xff\x7f" + b"A" * 64, "corrupt, or no ONNX file"),
        (b"PK\x03\x04" + bytes(200), "no ONNX file"),
        (b"\x7fELF" + os.urandom(500), "no ONNX file"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        inspect(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        inspect(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        inspect(tmp_path)


def test_file_beyond_what_protobuf_holds(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as stream:
        stream.truncate(2**31)  # Sparse: it takes no room.
    with pytest.raises(ModelError, match="2147483648 bytes are more than one ONNX file can hold"):
        inspect(path)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_models_give_a_model_error_or_are_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(convnet().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(1, len(raw))) :]
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(bytes(raw))
    try:
        inspect(path)
    except ModelError as error:
        assert "\n" not in str(error)


def test_inputs_that_cannot_be_measured(tmp_path: Path) -> None:
    text = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", [1], TensorProto.STRING)],
        [value("y", [1], TensorProto.STRING)],
    )
    with pytest.raises(ModelError, match="input 'x' has elements of type string"):
        inspect(saved(tmp_path, text))
    sequence = model(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [value("x", [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(ModelError, match="output 'y' is sequence_type, only tensors"):
        inspect(saved(tmp_path, sequence))
    shapeless = model(
        [helper.make_node("Identity", ["x"], ["y"])], [value("x", None)], [value("y", [1])]
    )
    with pytest.raises(ModelError, match="input 'x' states no shape"):
        inspect(saved(tmp_path, shapeless))


def test_unknown_operator_is_read_but_not_valid(tmp_path: Path) -> None:
    made = model([helper.make_node("NoSuchOp", ["x"], ["y"])], [value("x", [1])], [value("y", [1])])
    info = inspect(saved(tmp_path, made))
    assert not info.valid
    assert "NoSuchOp" in info.problem


def external(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save_model(
        convnet(),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="m.weights",
        size_threshold=0,
    )
    return path


def test_external_weights_are_read_and_can_be_put_inside(tmp_path: Path) -> None:
    path = external(tmp_path)
    info = inspect(path)
    assert info.external == ("m.weights",)
    assert info.nonzeros == 147
    x = np.ones((2, 4, 6, 6), np.float32)
    whole = run_host(embedded(path), {"x": x})["y"]
    assert np.array_equal(whole, run_host(path, {"x": x})["y"])


def test_missing_or_cut_external_weights(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = tmp_path / "m.weights"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError) as caught:
        inspect(path)
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match=r"'m.weights' beside it, which is missing"):
        inspect(path)


def test_external_weights_may_not_lie_elsewhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(4000))
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external(inner)
    made = parse(path.read_bytes(), "m")
    for tensor in made.graph.initializer:
        tensor.external_data[0].value = "../secret"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match=r"are said to be in '\.\./secret'"):
        inspect(path)


def test_normalise_removes_what_tells_of_the_maker() -> None:
    made = convnet()
    made.doc_string = "/home/someone/net.py"
    made.graph.node[0].doc_string = "/home/someone/net.py:12"
    prop = made.metadata_props.add()
    prop.key, prop.value = "trace", "/home/someone"
    made.opset_import.append(helper.make_opsetid("com.unused", 1))
    data = normalise(made)
    assert b"someone" not in data
    assert b"com.unused" not in data
    onnx.checker.check_model(onnx.load_model_from_string(data))
    assert data == normalise(parse(data, "m"))


def test_host_run_refuses_in_one_line() -> None:
    data = convnet().SerializeToString()
    with pytest.raises(ModelError, match="onnxruntime can't run the model") as caught:
        run_host(data, {"x": np.ones((1, 4, 5), np.float32)})
    assert "\n" not in str(caught.value)
