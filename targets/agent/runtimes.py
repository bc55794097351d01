"""What executes a model file on the board, under a name that a JobSpec uses."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from .faults import AgentFault, one_line, out_of_memory

# Imported for good, and NumPy with it: a runtime's own import is timed without NumPy's.
from .inputs import TensorInfo  # noqa: TC001

Feed = Mapping[str, Any]


class Model(Protocol):
    """A model file, loaded and ready."""

    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]

    def bind(self, feed: Feed) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
        """Return a call and its two arguments that together are one inference on `feed`."""

    def run(self, feed: Feed) -> List[Any]:
        """Return the outputs for `feed` as arrays, in the order of `outputs`."""

    def facts(self) -> Dict[str, Any]:
        """Return JSON-able facts of how the runtime executes this model."""

    def end_profile(self) -> Optional[str]:
        """Stop profiling and return the path of the profile, or None if there was none."""


class Runtime(Protocol):
    """A runtime that this board has, already imported."""

    name: str
    version: str

    def load(self, path: str, spec: Mapping[str, Any], profile: Optional[str]) -> Model:
        """Load a model file as `spec` says (threads, provider); `profile` prefixes a profile.

        Raises:
            AgentFault: the file or the settings can't be used, by whose fault it is.
        """

    def facts(self) -> Dict[str, Any]:
        """Return JSON-able facts for a capability job."""


_SHORT_OF_MEMORY = re.compile(
    r"(?i)bad_alloc|failed to allocate|AllocateRawInternal|malloc to copy tensor failed"
)


def short_of_memory(error: BaseException) -> bool:
    """Return whether an error that a runtime raised means that memory ran out."""
    return isinstance(error, MemoryError) or _SHORT_OF_MEMORY.search(str(error)) is not None


def run_fault(error: BaseException) -> AgentFault:
    """Return the fault of a model that loads but fails when it runs."""
    text = one_line(str(error))
    if short_of_memory(error):
        return out_of_memory("no memory to run the model: " + text)
    return AgentFault(
        "candidate",
        "runtime-error",
        "an inference failed: %s: %s" % (type(error).__name__, text),
        "check input shapes and values",
    )


def _onnxruntime() -> Runtime:
    from .runtime_onnx import OnnxRuntime

    return OnnxRuntime()


def _litert() -> Runtime:
    from .runtime_tflite import TfliteRuntime

    return TfliteRuntime("litert", "ai_edge_litert")


def _tflite_runtime() -> Runtime:
    from .runtime_tflite import TfliteRuntime

    return TfliteRuntime("tflite-runtime", "tflite_runtime")


def _sparse() -> Runtime:
    from .runtime_sparse import SparseRuntime

    return SparseRuntime()


def _faulty() -> Runtime:
    from .faulty import FaultyRuntime

    return FaultyRuntime()


RUNTIMES: Dict[str, Callable[[], Runtime]] = {
    "onnxruntime": _onnxruntime,
    "litert": _litert,
    "tflite-runtime": _tflite_runtime,
    "sparse-c": _sparse,
    "fault": _faulty,
}
"""The one place that lists runtimes; each is imported when a job asks for it."""


def make_runtime(name: str) -> Runtime:
    """Import the runtime called `name`.

    Raises:
        AgentFault: nobody knows it (config), or this board doesn't have it (board).
    """
    if name not in RUNTIMES:
        raise AgentFault(
            "config",
            "unknown-runtime",
            "no runtime is called %r" % name,
            "known: " + ", ".join(sorted(RUNTIMES)),
        )
    try:
        return RUNTIMES[name]()
    except MemoryError:
        raise
    except Exception as error:
        # Not only ImportError: a library without a symbol, or with another NumPy, has its own.
        raise AgentFault(
            "board",
            "no-runtime",
            "this board's Python can't import %s: %s" % (name, error),
            "install it there, or name its folder in the board's settings",
        ) from error
