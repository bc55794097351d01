"""sparse-c: FlatSat's own executor of sparse programs, a library that the host compiled.

The library checks a program in full before it runs any of it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import struct
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from .faults import AgentFault
from .inputs import TensorInfo
from .runtimes import Feed, Model, run_fault

MAGIC = b"FlatSprs"
LIBRARY = "libsparse.so"
_PACKAGE = "flatsat_native"
_HEAD = struct.Struct("<8s8I24x")
_VALUE_BYTES = 16
_OP_BYTES = 128
_ALIGNED = 64
_ABI = 1
_KINDS = ("", "conv", "fc", "maxpool", "avgpool", "add", "concat", "copy", "stretch")


class _Info(ctypes.Structure):
    _fields_ = [
        ("arena_bytes", ctypes.c_uint64),
        ("work", ctypes.c_uint64),
        ("in_elements", ctypes.c_uint64),
        ("out_elements", ctypes.c_uint64),
        ("op", ctypes.c_uint32),
        ("stored", ctypes.c_uint32),
    ]


class SparseLibrary:
    """The library's functions.

    Args:
        path: of the shared library.

    Raises:
        OSError: it is for another machine, or of another version.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer, size = ctypes.c_void_p, ctypes.c_uint64
        self.check = library.sparse_check
        self.check.argtypes = [pointer, size, ctypes.POINTER(_Info)]
        self.prepare = library.sparse_prepare
        self.prepare.argtypes = [pointer, size, pointer, size]
        self.run = library.sparse_run
        self.run.argtypes = [pointer, pointer, pointer, size]
        self.run.restype = None
        self.run_op = library.sparse_run_op
        self.run_op.argtypes = [pointer, ctypes.c_uint32]
        self.run_op.restype = None
        library.sparse_message.restype = ctypes.c_char_p
        self._message = library.sparse_message
        library.sparse_kernels.restype = ctypes.c_char_p
        self.kernels = str(library.sparse_kernels().decode())
        if library.sparse_version() != _ABI:
            raise OSError("%s speaks version %d" % (LIBRARY, library.sparse_version()))

    def message(self, code: int) -> str:
        """Return what a number from `check` or `prepare` means."""
        return str(self._message(code).decode())


def _aligned(size_bytes: int) -> np.ndarray[Any, Any]:
    """Return zeros that begin where wide loads like it."""
    raw = np.zeros(size_bytes + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size_bytes]


class Program:
    """A checked program, ready to run.

    Args:
        library: that runs it.
        data: the file.

    Raises:
        ValueError: the file is no program; the message says why.
        MemoryError: its activations don't fit.
    """

    def __init__(self, library: SparseLibrary, data: bytes) -> None:
        self._library = library
        # A copy of our own: what was checked must not change.
        self._data = _aligned(len(data))
        self._data[:] = np.frombuffer(data, np.uint8)
        info = _Info()
        place = self._data.ctypes.data
        code = library.check(place, len(data), ctypes.byref(info))
        if code:
            raise ValueError("operation %d: %s" % (info.op, library.message(code)))
        self._arena = _aligned(int(info.arena_bytes))
        self.arena = self._arena.ctypes.data
        code = library.prepare(place, len(data), self.arena, len(self._arena))
        if code:
            raise ValueError(library.message(code))
        self.arena_bytes = int(info.arena_bytes)
        self.work = int(info.work)
        self.source, self.target, self.kinds = _signature(data)
        self.shape = tuple(int(axis) for axis in self.target.shape[1:])

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the outputs for float32 inputs; the first axis counts images.

        Raises:
            ValueError: the inputs have another shape.
        """
        images = np.ascontiguousarray(images, np.float32)
        if images.shape[1:] != self.source.shape[1:]:
            raise ValueError("inputs of shape %r, not %r" % (images.shape, self.source.shape))
        given = np.empty((len(images), *self.shape), np.float32)
        self._library.run(self.arena, images.ctypes.data, given.ctypes.data, len(images))
        return given

    def run_op(self, op: int) -> None:
        """Run one operation on what the arena holds, to time it."""
        self._library.run_op(self.arena, op)


def _signature(data: bytes) -> Tuple[TensorInfo, TensorInfo, List[int]]:
    """Return input, output and the operations' kinds of a file that was checked."""
    head = _HEAD.unpack_from(data)
    values, ops, ends, lengths = head[3], head[4], head[5:7], head[7:9]
    place = _HEAD.size + _VALUE_BYTES * values
    kinds = [struct.unpack_from("<I", data, place + _OP_BYTES * i)[0] for i in range(ops)]
    place += _OP_BYTES * ops
    infos = []
    for value, length in zip(ends, lengths):
        rank, *axes = struct.unpack_from("<4I", data, _HEAD.size + _VALUE_BYTES * value)
        name = data[place : place + length].decode("utf-8", "replace")
        infos.append(TensorInfo(name, "float32", ("batch", *axes[:rank])))
        place += length
    return infos[0], infos[1], kinds


class SparseRuntime:
    """The library of the package that the host gave this board."""

    name = "sparse-c"

    def __init__(self) -> None:
        package = importlib.import_module(_PACKAGE)
        folder = os.path.dirname(os.path.abspath(str(package.__file__)))
        self.version = str(package.__version__)
        self._library = SparseLibrary(os.path.join(folder, LIBRARY))

    def load(self, path: str, spec: Mapping[str, Any], profile: Optional[str]) -> Model:
        """Check a program and make it ready."""
        if spec["provider"] != "cpu":
            raise AgentFault(
                "config", "no-provider", "sparse-c has no %r" % spec["provider"], "it has cpu"
            )
        if int(spec["threads"]) != 1:
            raise AgentFault(
                "config",
                "threads",
                "sparse-c runs on one thread, not %s" % spec["threads"],
                "ask for threads = 1",
            )
        with open(path, "rb") as stream:
            data = stream.read()
        try:
            program = Program(self._library, data)
        except ValueError as error:
            raise AgentFault(
                "candidate",
                "invalid-model",
                "the runtime can't load this file: %s" % error,
                'lower the network anew, to = "sparse-c"',
            ) from error
        if profile is not None:
            return _Profiled(program, self._library, profile)
        return _SparseModel(program, self._library)

    def facts(self) -> Dict[str, Any]:
        """Return the version and the vector instructions that are used."""
        return {"version": self.version, "providers": ["cpu"], "kernels": self._library.kernels}


class _SparseModel:
    def __init__(self, program: Program, library: SparseLibrary) -> None:
        self._program = program
        self._library = library
        self.inputs: Sequence[TensorInfo] = [program.source]
        self.outputs: Sequence[TensorInfo] = [program.target]

    def bind(self, feed: Feed) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
        """Return one inference and its arguments: the call, and a copy of the outputs."""
        program = self._program
        images = np.ascontiguousarray(feed[program.source.name], np.float32)
        if images.shape[1:] != program.source.shape[1:]:
            raise run_fault(ValueError("inputs of shape %r" % (images.shape,)))
        given = np.empty((len(images), *program.shape), np.float32)
        run, arena, count = self._library.run, program.arena, len(images)
        source, target = images.ctypes.data, given.ctypes.data

        def infer(_images: Any, outputs: Any) -> Any:
            run(arena, source, target, count)
            return [outputs.copy()]

        return infer, (images, given)

    def run(self, feed: Feed) -> List[Any]:
        try:
            return [self._program.run(feed[self._program.source.name])]
        except ValueError as error:
            raise run_fault(error) from error

    def facts(self) -> Dict[str, Any]:
        """Return what one inference does."""
        return {
            "provider": "cpu",
            "kernels": self._library.kernels,
            "operators": len(self._program.kinds),
            "work": self._program.work,
            "arena_bytes": self._program.arena_bytes,
        }

    def end_profile(self) -> Optional[str]:
        return None


class _Profiled(_SparseModel):
    """Times each operation on its own, behind a whole inference.

    The file that it leaves is laid out like onnxruntime's.
    """

    def __init__(self, program: Program, library: SparseLibrary, prefix: str) -> None:
        super().__init__(program, library)
        self._prefix = prefix
        self._taken: List[Tuple[int, int]] = []

    def bind(self, feed: Feed) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
        whole, args = super().bind(feed)
        program, taken, clock = self._program, self._taken, time.perf_counter_ns

        def infer(images: Any, outputs: Any) -> Any:
            found = whole(images, outputs)
            for op in range(len(program.kinds)):
                begin = clock()
                program.run_op(op)
                taken.append((op, clock() - begin))
            return found

        return infer, args

    def end_profile(self) -> Optional[str]:
        names = [_KINDS[kind] for kind in self._program.kinds]
        events = [
            {
                "cat": "Node",
                "name": "%d_%s_kernel_time" % (op, names[op]),
                "dur": round(taken_ns / 1000),
                "args": {"op_name": names[op]},
            }
            for op, taken_ns in self._taken
        ]
        path = self._prefix + ".json"
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(events, stream)
        return path
