"""onnxruntime, through the Python call that its users make."""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .faults import AgentFault, one_line, out_of_memory
from .inputs import TensorInfo
from .runtimes import Feed, Model, run_fault, short_of_memory

_NUMPY_OF_ONNX = {"float": "float32", "double": "float64"}


class OnnxRuntime:
    """onnxruntime, already imported."""

    name = "onnxruntime"

    def __init__(self) -> None:
        import onnxruntime

        self._ort = onnxruntime
        self.version = str(onnxruntime.__version__)
        onnxruntime.set_default_logger_severity(4)

    def load(self, path: str, spec: Mapping[str, Any], profile: Optional[str]) -> Model:
        """Make a session: sequential, `threads` intra-op threads, fatal messages only."""
        provider = spec["provider"]
        if provider not in self._ort.get_available_providers():
            raise AgentFault(
                "config",
                "no-provider",
                "this board's onnxruntime has no %r" % provider,
                "it has " + ", ".join(self._ort.get_available_providers()),
            )
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = int(spec["threads"])
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        try:
            session = self._ort.InferenceSession(path, options, providers=[provider])
        except Exception as error:
            raise _load_fault(error, path) from error
        return _OnnxModel(session)

    def facts(self) -> Dict[str, Any]:
        """Return the version, the providers and how the library was built."""
        return {
            "version": self.version,
            "providers": list(self._ort.get_available_providers()),
            "build": one_line(self._ort.get_build_info()),
        }


class _OnnxModel:
    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: Sequence[TensorInfo] = [_info(arg) for arg in session.get_inputs()]
        self.outputs: Sequence[TensorInfo] = [_info(arg) for arg in session.get_outputs()]

    def bind(self, feed: Feed) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
        return self._session.run, (None, dict(feed))

    def run(self, feed: Feed) -> List[Any]:
        try:
            return list(self._session.run(None, dict(feed)))
        except MemoryError:
            raise
        except Exception as error:
            raise run_fault(error) from error

    def facts(self) -> Dict[str, Any]:
        return {}

    def end_profile(self) -> Optional[str]:
        path = self._session.end_profiling()
        return path if path and os.path.exists(path) else None


def _info(arg: Any) -> TensorInfo:
    kind = str(arg.type)
    inner = kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind
    shape = tuple(axis if isinstance(axis, int) else str(axis or "") for axis in arg.shape)
    return TensorInfo(str(arg.name), _NUMPY_OF_ONNX.get(inner, inner), shape)


_REFUSED = re.compile(
    r"(?is)opset.*support|support.*opset|unsupported model IR|IR.version"
    r"|not a registered function|no op registered"
)
"""What onnxruntime says of a file that is well-formed, but newer or richer than it knows."""


def _load_fault(error: BaseException, path: str) -> AgentFault:
    # Where the file lies on the board tells nobody anything, and is long.
    name, text = type(error).__name__, str(error).replace(path, "it")
    if short_of_memory(error):
        return out_of_memory("no memory to load the model: " + text)
    if name in ("NotImplemented", "EPFail") or _REFUSED.search(text):
        return AgentFault(
            "candidate",
            "unsupported",
            "the runtime refuses this model: " + text,
            "export it with opset 17 and IR 8, or use a newer runtime",
        )
    return AgentFault(
        "candidate",
        "invalid-model",
        "the runtime can't load this file: " + text,
        "check the file with onnx.checker",
    )
