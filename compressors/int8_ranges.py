"""What a quantised ONNX file's integers can come to: the edge of the int32 accumulator.

A full-integer operator sums products of 8-bit codes in 32 bits and wraps around beyond them, in
onnxruntime as in TFLite (Jacob et al. 2018, section 2.2, takes the width for enough). It is, up to
some 66,000 inputs of a sum; beyond, weights and zero points decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from flatsat.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
INT32_MAX = 2**31 - 1
_SUMMING = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Accumulator:
    """The furthest that a layer's sums can go, whatever its input.

    Attributes:
        layer: name of its node.
        least, most: over all outputs, with the bias.
    """

    layer: str
    least: int
    most: int

    @property
    def fits(self) -> bool:
        """Whether no input makes the sum wrap around."""
        return self.least >= -INT32_MAX - 1 and self.most <= INT32_MAX


def accumulators(model: Any) -> tuple[Accumulator, ...]:
    """Return the accumulators of a QDQ file's layers with constant 8-bit weights.

    Args:
        model: a `ModelProto`.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in _SUMMING:
            continue
        of: list[Any] = [makers.get(name) for name in node.input]
        if len(of) < 2 or any(m is None or m.op_type != "DequantizeLinear" for m in of[:2]):
            continue
        weights = _constant(constants, of[1].input[0])
        zero = _constant(constants, of[0].input[2]) if len(of[0].input) > 2 else None
        if weights is None or zero is None or weights.dtype.itemsize != 1:
            continue
        weights_zero = _constant(constants, of[1].input[2]) if len(of[1].input) > 2 else None
        rows = _rows(node, weights.astype(np.int64) - _scalar(weights_zero))
        limits = np.iinfo(zero.dtype)
        low, high = int(limits.min) - int(zero), int(limits.max) - int(zero)
        up, down = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
        bias = _constant(constants, of[2].input[0]) if len(of) > 2 and of[2] is not None else None
        extra = np.zeros(len(rows), np.int64) if bias is None else bias.astype(np.int64)
        found.append(
            Accumulator(
                node.name or node.output[0],
                int((up * low + down * high + extra).min()),
                int((up * high + down * low + extra).max()),
            )
        )
    return tuple(found)


def require_room(model: Any) -> None:
    """Refuse a file with a layer whose sums can leave int32.

    Raises:
        RecipeError: names the layer and how far its sums go.
    """
    for sums in accumulators(model):
        if not sums.fits:
            furthest = max(sums.most, -sums.least)
            raise RecipeError(
                f"int8: the sums of layer {sums.layer!r} can come to {furthest:,}, beyond int32's"
                f" {INT32_MAX:,}, where they wrap around",
                hint="give the layer fewer inputs, or lower this network to float",
            )


def require_finite(images: Array) -> None:
    """Refuse calibration images from which no range can be found.

    Raises:
        DataError: names the first image that holds NaN or infinity.
    """
    rows = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
    if not rows.all():
        at = int(np.argmin(rows))
        what = "NaN" if np.isnan(images[at]).any() else "infinity"
        raise DataError(
            f"int8: image {at} of the calibration split holds {what}",
            hint="mend the image, or leave it out of the data",
        )


def _rows(node: Any, weights: Array) -> Array:
    """Return the weights as (outputs, inputs of a sum)."""
    if node.op_type == "Conv":
        return weights.reshape(len(weights), -1)
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return weights if transposed else np.moveaxis(weights, -2, -1).reshape(-1, weights.shape[-2])


def _constant(constants: Mapping[str, Any], name: str) -> Array | None:
    tensor = constants.get(name)
    return None if tensor is None else onnx.numpy_helper.to_array(tensor)


def _scalar(zero: Array | None) -> int:
    return 0 if zero is None else int(zero.reshape(-1)[0])
