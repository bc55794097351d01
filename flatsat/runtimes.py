"""Which runtime executes which kind of model file."""

from __future__ import annotations

from types import MappingProxyType

FORMATS = MappingProxyType(
    {
        "onnxruntime": "onnx",
        "litert": "tflite",
        "tflite-runtime": "tflite",
        "sparse-c": "sparse-c",
        "fault": "fault",
    }
)
"""Runtime -> format of the files that it executes; the first of a format is its default."""

_PROVIDERS = MappingProxyType({"onnxruntime": "CPUExecutionProvider", "sparse-c": "cpu"})


def takes(runtime: str, format_: str) -> bool:
    """Return whether `runtime` executes files of this format; an unknown one is left to fail."""
    return FORMATS.get(runtime, format_) == format_


def default_runtime(format_: str) -> str:
    """Return the runtime that a file of this format is measured with unless another is named."""
    return next((name for name, taken in FORMATS.items() if taken == format_), "onnxruntime")


def default_provider(runtime: str) -> str:
    """Return how a runtime executes unless told otherwise: its CPU kernels."""
    return _PROVIDERS.get(runtime, "xnnpack")
