"""A model file and what is known of it: measurements belong to an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from flatsat.tensors import TensorSpec


@dataclass(frozen=True)
class Agreement:
    """How near a board's outputs must come to the goldens (agreement policy, decision 8).

    Attributes:
        kind: "tol": max|d| <= max_rel * max|ref|. "decision": p99 of |d| <= p99_quanta * quantum
            and the same argmax for a share of at least `top1` of the goldens. "bit": equal bytes.
        max_rel: for "tol".
        quantum: for "decision": the step of the output's quantiser, in output units.
        p99_quanta: for "decision".
        top1: for "decision", in [0, 1].
    """

    kind: str
    max_rel: float | None = None
    quantum: float | None = None
    p99_quanta: float | None = None
    top1: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able mapping without the fields that this kind doesn't use."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Agreement:
        """Read what `to_json` wrote."""
        return cls(**cast("dict[str, float]", dict(value)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Coded:
    """A model file in coded form, as it would be sent up.

    Attributes:
        coder: what its weights are coded with: "context", "huffman", "range", "ans".
        file: its name inside the candidate's folder.
        sha256: of its bytes.
        size_bytes: of it.
    """

    coder: str
    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Artifact:
    """One model file.

    Attributes:
        sha256: of the file's bytes; its identity.
        format: "onnx" (later "tflite", ...).
        role: "float", "int8", ... or "imported" for a file that FlatSat did not make.
        size_bytes: of the file.
        file: its name inside the candidate's folder.
        opset, ir: ONNX versions, None for other formats.
        layout: "NCHW", "NHWC" or "" where it has no meaning.
        inputs, outputs: in the order of the file.
        lowered_from: sha256 of the artifact that a pass made this from, or None.
        goldens: sha256 of the `.npz` of golden inputs and outputs, or None; the arrays are named
            "in:NAME" and "out:NAME", the first axis of each counts the goldens where the model has
            a batch axis.
        agreement: what the goldens are compared by, or None without goldens.
        coded: the same file in coded form, or None without.
    """

    sha256: str
    format: str
    role: str
    size_bytes: int
    file: str
    opset: int | None
    ir: int | None
    layout: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lowered_from: str | None = None
    goldens: str | None = None
    agreement: Agreement | None = None
    coded: Coded | None = None

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able mapping that `from_json` reads back."""
        return {
            **asdict(self),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "agreement": None if self.agreement is None else self.agreement.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Artifact:
        """Read what `to_json` wrote."""
        fields = dict(value)
        for key in ("inputs", "outputs"):
            specs = cast("list[Mapping[str, object]]", fields[key])
            fields[key] = tuple(TensorSpec.from_json(spec) for spec in specs)
        agreement = cast("Mapping[str, object] | None", fields.get("agreement"))
        fields["agreement"] = None if agreement is None else Agreement.from_json(agreement)
        coded = cast("Mapping[str, object] | None", fields.get("coded"))
        fields["coded"] = None if coded is None else Coded(**coded)  # type: ignore[arg-type]
        return cls(**fields)  # type: ignore[arg-type]
