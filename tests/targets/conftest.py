"""Small model files, jobs on them, and sessions with board `host` in real processes."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flatsat.artifact import Agreement
from flatsat.canonical import sha256_file
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.targets.board import Lease
from flatsat.targets.host import HostBoard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from flatsat.outcome import Outcome
    from flatsat.targets.session import AgentSession

QUICK = MeasurePlan(processes=1, min_inferences=20, min_s=0.01, max_warmup=40, deadline_s=60.0)
TOLERANT = Agreement("tol", max_rel=1e-4)


class Family:
    """Processes that carry a mark in their environment, as /proc shows them."""

    def __init__(self) -> None:
        self._mark = f"FLATSAT_TEST_MARK={uuid.uuid4().hex}"

    @property
    def environment(self) -> dict[str, str]:
        """For the first of them; its descendants inherit it."""
        name, _, value = self._mark.partition("=")
        return {**os.environ, name: value}

    def alive(self) -> list[int]:
        """Return those that have not ended."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                if self._mark.encode() in environment and state != "Z":
                    found.append(int(entry.name))
        return found

    def all_gone(self, deadline_s: float = 30.0) -> bool:
        """Wait for their end; return whether it came in time."""
        deadline = time.monotonic() + deadline_s
        while self.alive():
            if time.monotonic() > deadline:
                return False
            threading.Event().wait(0.005)
        return True


class Files:
    """Makes the files that jobs need and knows them by their hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: dict[str, Path] = {}

    def keep(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.write_bytes(data)
        return self.add(path)

    def add(self, path: Path) -> str:
        sha256 = sha256_file(path)
        self.paths[sha256] = path
        return sha256

    def dense(self, *, batch: int | str = "batch", opset: int = 17, name: str = "dense") -> str:
        """Keep `logits = image @ w + b` for 6 inputs and 3 classes."""
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["image", "w"], ["product"], name="/fc/MatMul"),
                helper.make_node("Add", ["product", "b"], ["logits"], name="/fc/Add"),
            ],
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 6])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
            [
                numpy_helper.from_array(self.w, "w"),
                numpy_helper.from_array(self.b, "b"),
            ],
        )
        return self.graph(graph, name, opset)

    w = np.arange(18, dtype=np.float32).reshape(6, 3) / 7 - 1
    b = np.array([0.5, -0.25, 0.125], np.float32)

    def graph(self, graph: onnx.GraphProto, name: str, opset: int = 17, ir: int = 8) -> str:
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        return self.keep(f"{name}.onnx", model.SerializeToString())

    def arrays(self, name: str, arrays: dict[str, np.ndarray]) -> str:
        path = self.folder / f"{name}.npz"
        np.savez(path, **arrays)
        return self.add(path)

    def fault(self, name: str, **more: object) -> str:
        text = json.dumps({"fault": name, **more})
        return self.keep(f"{name}-{len(self.paths)}.json", text.encode())


class TfliteGraph:
    """A TensorFlow Lite file in the making, through the schema's object interface.

    Tensors are referred to by the index that `tensor` returns.
    """

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._model.subgraphs = [self._graph]

    def tensor(
        self,
        name: str,
        dtype: str,
        shape: list[int],
        data: np.ndarray | None = None,
        scale: float | None = None,
        zero_point: int = 0,
    ) -> int:
        """Add a tensor; an axis of -1 is open, `data` makes it a constant."""
        tensor = self._schema.TensorT()
        tensor.name = name
        tensor.type = getattr(self._schema.TensorType, dtype.upper())
        tensor.shape = [max(1, axis) for axis in shape]
        if -1 in shape:
            tensor.shapeSignature = shape
        tensor.buffer = 0
        if data is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, dtype).tobytes(), np.uint8)
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
        if scale is not None:
            tensor.quantization = self._schema.QuantizationParametersT()
            tensor.quantization.scale = [scale]
            tensor.quantization.zeroPoint = [zero_point]
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def node(
        self, operator: str, inputs: list[int], outputs: list[int], custom: str | None = None
    ) -> None:
        """Add a node of a built-in operator, or of a custom one by its name."""
        code = self._schema.OperatorCodeT()
        code.builtinCode = getattr(self._schema.BuiltinOperator, operator)
        code.deprecatedBuiltinCode = code.builtinCode
        code.customCode = custom
        self._model.operatorCodes.append(code)
        node = self._schema.OperatorT()
        node.opcodeIndex = len(self._model.operatorCodes) - 1
        node.inputs, node.outputs = inputs, outputs
        kind = "".join(word.capitalize() for word in operator.split("_")) + "Options"
        if hasattr(self._schema, f"{kind}T"):
            node.builtinOptions = getattr(self._schema, f"{kind}T")()
            node.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
        self._graph.operators.append(node)

    def file(self, inputs: list[int], outputs: list[int]) -> bytes:
        """Return the file's bytes."""
        import flatbuffers

        self._graph.inputs, self._graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    members: dict[str, bytes] | None = None,
) -> Path:
    """Write a wheel with these members, good enough for pip to choose and fetch it."""
    about = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in (members or {f"{name}/__init__.py": b""}).items():
            archive.writestr(member, data)
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def latency(artifact: str, **changes: Any) -> JobSpec:
    """Return a quick latency job; `plan` may be a dict of changes to the quick plan."""
    plan = changes.pop("plan", {})
    spec = JobSpec(JobKind.LATENCY, artifact, "onnx", "host", plan=replace(QUICK, **plan))
    return replace(spec, **changes)


def faulty(artifact: str, **changes: Any) -> JobSpec:
    """Return a job that runs a fault file."""
    return latency(artifact, kind=JobKind.FAULTS, runtime="fault", format="fault", **changes)


class Bench:
    """A session with board `host` that puts a job's files before it runs the job."""

    def __init__(self, session: AgentSession, files: Files) -> None:
        self.session = session
        self.files = files
        self._jobs = 0

    async def run(self, spec: JobSpec, job_id: str | None = None) -> Outcome:
        self._jobs += 1
        for sha256 in spec.blobs:
            await self.session.put(sha256, self.files.paths[sha256])
        return await self.session.run(job_id or f"job-{self._jobs}", spec)


@pytest.fixture
def family() -> Family:
    return Family()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "files"
    folder.mkdir()
    return Files(folder)


@pytest.fixture
def make_wheel() -> Callable[..., Path]:
    return wheel


@pytest.fixture
def tflite_graph() -> type[TfliteGraph]:
    return TfliteGraph


@pytest.fixture
def lease(tmp_path: Path) -> Lease:
    return Lease("host", 1, tmp_path / "board")


@pytest.fixture
async def bench(lease: Lease, files: Files) -> AsyncIterator[Bench]:
    session = await HostBoard().open(lease)
    try:
        yield Bench(session, files)
    finally:
        await session.close()


@pytest.fixture
def make_latency() -> Callable[..., JobSpec]:
    return latency


@pytest.fixture
def make_faulty() -> Callable[..., JobSpec]:
    return faulty
