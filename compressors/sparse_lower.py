"""Network -> sparse program for runtime `sparse-c`, checked against PyTorch before it counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flatsat.artifact import Artifact
from flatsat.canonical import sha256_bytes
from flatsat.compressors import sparse_run
from flatsat.compressors.agreement import disagreement, policy
from flatsat.compressors.base import Network, StepContext, StepParams
from flatsat.compressors.candidate import put_goldens
from flatsat.compressors.onnx_lower import GOLDENS, export, golden_inputs
from flatsat.compressors.onnx_model import parse
from flatsat.compressors.sparse_graph import program_of
from flatsat.compressors.sparse_program import BLOCK_ROWS, FORMAT, Program, occupied, to_bytes
from flatsat.compressors.sparse_read import from_bytes
from flatsat.datasets.fit import predict
from flatsat.errors import ModelError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

ROLE = "sparse"
_OPSET = 17

COSTS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "conv": MappingProxyType({"dense": 1.0, "csr": 1.6, "block4x1": 1.05}),
        "fc": MappingProxyType({"dense": 1.0, "csr": 7.0, "block4x1": 1.6}),
    }
)
"""What a stored weight costs in time, relative to one of the dense form.

Between what `benchmarks/sparse_break_even.py` measures with AVX2 and with NEON.
"""


class SparseLower:
    """Write the network as a sparse program (`sparse_program`), whose zeros cost nothing.

    The ONNX export is mapped node by node (`sparse_graph`); a node that `sparse-c` can't execute
    is an error that names it. Each layer's weights are stored as "csr" (its non-zero weights),
    "block4x1" (columns of four rows that are not all zero, which are computed together), or
    "dense". "auto" takes for each layer the form that is executed fastest: the one with the least
    product of its stored weights and the measured cost of one (`COSTS`). For convolutions that is
    "csr" up to some 60 % of the weights; a dense layer's lone weights cost so much that "block4x1"
    is faster although it stores zeros, up to some 20 %. The smallest file is that of "csr".

    Before the file counts it is read back and executed by PyTorch against the network on the golden
    inputs, under the agreement policy of `OnnxLower`; boards execute it by code of their own and
    are held to the same goldens.
    """

    name: ClassVar[str] = FORMAT

    class Params(StepParams):
        """How to write the file."""

        format: Literal["auto", "csr", "block4x1", "dense"] = Field(
            "auto", description="how the weights are stored; auto chooses for each layer"
        )
        goldens: int = Field(GOLDENS, ge=1, description="golden inputs and outputs to keep")

    def __init__(self, params: Params) -> None:
        self.params = params

    def lower(self, network: Network, folder: Path, ctx: StepContext) -> Artifact:
        """Write `sparse-<sha>.sparse-c` and its goldens.

        Raises:
            RecipeError: PyTorch can't export the network, or sparse-c can't execute a node of it.
            ModelError: the file disagrees with PyTorch.
        """
        source, target = ctx.workload.input, ctx.workload.output
        model = parse(export(network, source, target, _OPSET), "the network's ONNX form")
        data = to_bytes(program_of(model, self._choose))
        program = from_bytes(data)
        inputs = golden_inputs(ctx, self.params.goldens)
        expected = predict(network.module, inputs)
        agreement = policy(network.quantum)
        if fault := disagreement(sparse_run.run(program, inputs), expected, agreement):
            raise ModelError(f"the sparse program disagrees with PyTorch: {fault}")
        sha256 = sha256_bytes(data)
        file = f"{ROLE}-{sha256[:12]}.{FORMAT}"
        (folder / file).write_bytes(data)
        return Artifact(
            sha256=sha256,
            format=FORMAT,
            role=ROLE,
            size_bytes=len(data),
            file=file,
            opset=None,
            ir=None,
            layout="NCHW" if len(source.shape) == 4 else "",
            inputs=program.inputs,
            outputs=program.outputs,
            goldens=put_goldens(folder, {source.name: inputs}, {target.name: expected}),
            agreement=agreement,
        )

    def _choose(self, kind: str, matrix: Array, groups: int, places: int) -> str:
        if self.params.format != "auto":
            return self.params.format
        return cheapest(kind, matrix, groups, places)


def cheapest(kind: str, matrix: Array, groups: int = 1, places: int = 1) -> str:
    """Return the format that a layer is executed in fastest, by `COSTS`.

    Args:
        kind: "conv" or "fc".
        matrix: the weights, (rows, columns).
        groups: of a convolution.
        places: outputs of a row; a convolution with one is executed like fc.
    """
    costs = COSTS["fc" if kind == "fc" or places == 1 else "conv"]
    entries = {
        "dense": matrix.size,
        "csr": int(np.count_nonzero(matrix)),
        "block4x1": BLOCK_ROWS * occupied(matrix, groups),
    }
    return min(entries, key=lambda format_: entries[format_] * costs[format_])


def formats(program: Program) -> dict[str, int]:
    """Return how many layers a program stores in each format."""
    told = [op.weights.format for op in program.ops if op.weights is not None]
    return {name: told.count(name) for name in dict.fromkeys(told)}
