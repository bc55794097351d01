"""TensorFlow Lite files: what they say of themselves, read without running them; and runs here."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatsat.compressors.tflite_count import macs, weights
from flatsat.compressors.tflite_file import IDENTIFIER, Graph, Tensor, parse
from flatsat.errors import ModelError
from flatsat.tensors import DTYPE_BYTES, TensorSpec

_RUNNER = Path(__file__).with_name("tflite_runner.py")
_DEADLINE_S = 600.0
_HINT = "check the file, or export it anew"


@dataclass(frozen=True)
class TfliteInfo:
    """What is known of a TFLite file without running it.

    Attributes:
        inputs: of the first graph, which is the one that is executed; an axis that may be resized
            is called NAME_axisI. A name that is empty or given twice becomes "input:I", as boards
            have it. Integers that stand for real values carry scale and zero point.
        outputs: likewise, "output:I".
        operators: how many there are of each, by the schema's names, in all graphs.
        params: elements of the weights, see `tflite_count.weights`.
        nonzeros: how many of them differ from zero.
        macs: multiply-accumulates in one inference; None where an operator leaves them unknown.
        floats: operators that touch floating-point numbers: none in a full-integer file.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[str, int]
    params: int
    nonzeros: int
    macs: int | None
    floats: tuple[str, ...]

    @property
    def nodes(self) -> int:
        """How many operators there are."""
        return sum(self.operators.values())


def is_tflite(data: bytes) -> bool:
    """Return whether a file's first bytes call it a TFLite model."""
    return data[4:8] == IDENTIFIER


def inspect(data: bytes, where: str) -> TfliteInfo:
    """Read a file's signature and count its weights; nothing native sees it.

    Args:
        data: of the file.
        where: its name, for errors.

    Raises:
        ModelError: it is no TFLite file, a damaged one, or an input or output is no tensor of a
            known element type.
    """
    file = parse(data, where)
    main = file.graphs[0]
    if not main.outputs:
        raise ModelError(f"{where}: the TFLite graph has no output", hint=_HINT)
    params, nonzeros = weights(file)
    used = Counter(operator.name for graph in file.graphs for operator in graph.operators)
    return TfliteInfo(
        inputs=_specs(main, main.inputs, where, "input"),
        outputs=_specs(main, main.outputs, where, "output"),
        operators=dict(sorted(used.items())),
        params=params,
        nonzeros=nonzeros,
        macs=macs(main),
        floats=tuple(sorted({name for graph in file.graphs for name in _floats(graph)})),
    )


def _floats(graph: Graph) -> list[str]:
    def is_float(index: int) -> bool:
        return index >= 0 and "float" in graph.tensors[index].dtype

    return [
        operator.name
        for operator in graph.operators
        if any(is_float(index) for index in (*operator.inputs, *operator.outputs))
    ]


def _specs(graph: Graph, indices: tuple[int, ...], where: str, what: str) -> tuple[TensorSpec, ...]:
    tensors = [graph.tensors[index] for index in indices]
    names = [tensor.name for tensor in tensors]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return tuple(
        _spec(tensor, f"{what}:{place}" if not name or name in twice else name, where, what)
        for place, (tensor, name) in enumerate(zip(tensors, names, strict=True))
    )


def _spec(tensor: Tensor, name: str, where: str, what: str) -> TensorSpec:
    if tensor.dtype not in DTYPE_BYTES:
        raise ModelError(
            f"{where}: {what} {name!r} has elements of type {tensor.dtype}",
            hint="known are " + ", ".join(DTYPE_BYTES),
        )
    shape = tuple(
        length if length >= 0 else f"{name}_axis{axis}"
        for axis, length in enumerate(tensor.signature)
    )
    if tensor.dtype.startswith(("int", "uint")) and len(tensor.scales) == 1 and tensor.scales[0]:
        return TensorSpec(name, tensor.dtype, shape, tensor.scales[0], tensor.zero_points[0])
    return TensorSpec(name, tensor.dtype, shape)


def run_host(data: bytes, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run a file here, by LiteRT with one thread, in a process of its own.

    A file that crashes the native library, and what that prints, stay in there.

    Args:
        data: of a file with one input of batch 1 and one output.
        values: (n, ...) as the file takes them.

    Returns:
        (n, ...) as the file gives them.

    Raises:
        ModelError: LiteRT refuses the file or the values, crashes or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="flatsat-run-") as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(data)
        np.save(folder / "in.npy", values)
        try:
            done = subprocess.run(
                [sys.executable, "-s", "-P", str(_RUNNER), name],
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_DEADLINE_S,
            )
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"LiteRT has run this file for {_DEADLINE_S:.0f} s and was ended"
            ) from None
        if done.returncode < 0:
            raise ModelError(f"LiteRT can't run this file: it crashed by signal {-done.returncode}")
        if done.returncode != 0:
            words = done.stderr.decode("utf-8", "replace").split("\n")
            said = next((line for line in reversed(words) if line.strip()), "no reason given")
            raise ModelError(f"LiteRT can't run this file: {said[:300]}")
        return np.asarray(np.load(folder / "out.npy", allow_pickle=False))


def read(path: Path) -> bytes:
    """Return a model file's bytes.

    Raises:
        ModelError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
