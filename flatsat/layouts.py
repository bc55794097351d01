"""The one place where images change their layout and real values become a model's integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flatsat.tensors import TensorSpec

NCHW = "NCHW"
NHWC = "NHWC"


def for_model(
    values: np.ndarray[Any, Any], spec: TensorSpec, layout: str
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return inputs as a model file takes them.

    Args:
        values: real values, images as (n, channels, height, width), which is how every data set
            here keeps them.
        spec: of the model's input; its `scale` and `zero_point` quantise, rounding half to even
            and saturating.
        layout: of the model file; "NHWC" moves the channels of images to the end.
    """
    if layout == NHWC and values.ndim == 4:
        values = values.transpose(0, 2, 3, 1)
    if spec.scale is not None:
        bounds = np.iinfo(spec.dtype)
        values = np.rint(values / spec.scale) + (spec.zero_point or 0)
        values = np.clip(values, bounds.min, bounds.max)
    return np.ascontiguousarray(values, dtype=spec.dtype)


def from_model(
    values: np.ndarray[Any, Any], spec: TensorSpec
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a model's output as real values, (n, ...) float32."""
    real = values.astype(np.float32)
    if spec.scale is not None:
        real = (real - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)
    return real
