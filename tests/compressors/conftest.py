"""What all tests of the compressors share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from flatsat.cache import default_cache_dir
from flatsat.compressors.base import StepContext
from flatsat.compressors.converter_env import ensure_converter
from flatsat.datasets.splits import Split
from flatsat.datasets.workload import workload
from flatsat.errors import InfrastructureError
from flatsat.progress import NoProgress


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks here are so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def blobs(tmp_path):
    """Make a context whose images are points around one centre a class: easy to learn."""

    def make(shape, *, classes=4, n=240, seed=0, network=""):
        rng = np.random.default_rng(11)
        centres = rng.normal(0, 1, (classes, *shape))

        def split(name, count):
            y = rng.integers(0, classes, count)
            x = centres[y] + rng.normal(0, 0.7, (count, *shape))
            return Split(name, x.astype(np.float32), y.astype(np.int64))

        return StepContext(
            workload=replace(workload("mnist-mini"), classes=classes),
            network=network,
            train=split("train", n),
            calibration=split("calibration", 100),
            validation=split("validation", 200),
            seed=seed,
            cache_dir=tmp_path,
        )

    return make


@pytest.fixture(scope="session")
def converter_cache():
    """Return the user's cache with the TFLite converter in it; skip where it can't be had."""
    folder = default_cache_dir()
    try:
        ensure_converter(folder, NoProgress())
    except InfrastructureError as error:
        pytest.skip(f"no TFLite converter: {error}")
    return folder


@pytest.fixture(scope="session")
def dense_tflite():
    """Write y = W x as a TFLite file by the schema's own classes, as other makers might."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    codes = {"float32": 0, "int8": 9, "uint8": 3}

    def make(dtype="float32", *, rows=1, beside=False, names=("x", "w", "y"), note=""):
        """Return the bytes; `beside` puts the weights behind the flatbuffer, as litert does."""
        weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
        stored = weights if dtype == "float32" else np.rint(weights * 100).astype(np.int8)
        stored_code = codes["float32" if dtype == "float32" else "int8"]

        def tensor(name, shape, index, scale, code):
            made = schema.TensorT()
            made.name, made.shape, made.type, made.buffer = name, shape, code, index
            if rows < 0 and index != 2:
                made.shapeSignature = [-1, *shape[1:]]
            if dtype != "float32":
                made.quantization = schema.QuantizationParametersT()
                made.quantization.scale = [scale]
                made.quantization.zeroPoint = [128 if code == codes["uint8"] else 0]
            return made

        def buffer(values=None):
            made = schema.BufferT()
            if values is not None:
                made.data = np.frombuffer(values, np.uint8)
            return made

        count = max(rows, 1)
        graph = schema.SubGraphT()
        graph.tensors = [
            tensor(names[0], [count, 4], 1, 0.02, codes[dtype]),
            tensor(names[1], [3, 4], 2, 0.01, stored_code),
            tensor(names[2], [count, 3], 3, 0.05, codes[dtype]),
        ]
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        graph.operators, graph.inputs, graph.outputs = [operator], [0], [2]
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
        code.version = 1 if dtype == "float32" else 4
        model = schema.ModelT()
        model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
        model.buffers = [buffer(), buffer(), buffer(stored.tobytes()), buffer()]
        if note:
            model.description = note
            entry = schema.MetadataT()
            entry.name, entry.buffer = note, 4
            model.metadata = [entry]
            model.buffers.append(buffer(note.encode()))
        if beside:
            held = model.buffers[2]
            held.data, held.offset, held.size = None, 1 << 30, stored.nbytes

        def packed():
            builder = flatbuffers.Builder(1024)
            builder.Finish(model.Pack(builder), b"TFL3")
            return bytes(builder.Output())

        if not beside:
            return packed()
        # The offset has a fixed width: the length is the same with any value.
        held.offset = -(-len(packed()) // 16) * 16
        return packed().ljust(held.offset, b"\0") + stored.tobytes()

    return make
