"""What a network takes and gives: names, element types and shapes of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flatsat.errors import ModelError

DTYPE_BYTES = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "bool": 1,
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: as in the model file; may hold slashes or colons.
        dtype: a NumPy name, a key of `DTYPE_BYTES`.
        shape: one entry an axis; a string names an axis whose length is open. () is a scalar.
        scale, zero_point: of an integer tensor that stands for real values,
            r = scale (q - zero_point); None for plain numbers.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    scale: float | None = None
    zero_point: int | None = None

    def to_json(self) -> dict[str, object]:
        """Return a JSON-able mapping that `from_json` reads back."""
        value: dict[str, object] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }
        if self.scale is not None:
            value.update(scale=self.scale, zero_point=self.zero_point)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> TensorSpec:
        """Read what `to_json` wrote."""
        shape = value["shape"]
        assert isinstance(shape, list)
        scale, zero_point = value.get("scale"), value.get("zero_point")
        assert scale is None or isinstance(scale, int | float)
        assert zero_point is None or isinstance(zero_point, int)
        return cls(str(value["name"]), str(value["dtype"]), tuple(shape), scale, zero_point)

    def resolve(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with every open axis set from `axes`.

        Raises:
            ModelError: an open axis has no length in `axes`; the message names the axis.
        """
        lengths: list[int] = []
        for position, length in enumerate(self.shape):
            if isinstance(length, int):
                lengths.append(length)
            elif length in axes:
                lengths.append(axes[length])
            else:
                raise ModelError(
                    f"input {self.name!r}: axis {position} ({length!r}) has no fixed length",
                    hint=f"give it with --axis {length}=1",
                )
        return tuple(lengths)
