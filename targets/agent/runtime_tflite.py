"""TensorFlow Lite in its two packagings, through the Python calls that their users make.

The native library checks little of a file before it uses it: a damaged one may end the process by
a signal, and what the library has to say it prints to standard error. The supervisor makes a
verdict of both.
"""

from __future__ import annotations

import importlib
import re
import resource
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from . import facts
from .faults import AgentFault, one_line, out_of_memory
from .inputs import TensorInfo
from .runtimes import Feed, Model, run_fault, short_of_memory

_IDENTIFIER = b"TFL3"
_RESOLVERS = {"xnnpack": "AUTO", "cpu": "BUILTIN_WITHOUT_DEFAULT_DELEGATES"}
"""Provider -> what the interpreter calls it: its kernels with the XNNPACK delegate, or without."""
_REFUSED = re.compile(
    r"(?i)unresolved custom op|Select TensorFlow op|Didn't find op for|older version of this"
    r"|out of range: \d+\. Are you using|schema version"
)
"""What the library says of a file that is well-formed, but needs operators that it lacks."""

_LACKING = re.compile(r"Node number (\d+) \((\w+)\) failed to prepare")


class TfliteRuntime:
    """An interpreter of TensorFlow Lite files, already imported.

    Args:
        name: as jobs call it.
        package: that holds the module `interpreter`.
    """

    def __init__(self, name: str, package: str) -> None:
        self.name = name
        self.version = str(importlib.import_module(package).__version__)
        self._module = importlib.import_module(package + ".interpreter")

    def load(self, path: str, spec: Mapping[str, Any], profile: Optional[str]) -> Model:
        """Make an interpreter with `threads` threads, and room for inputs of the file's shapes."""
        provider = spec["provider"]
        if provider not in _RESOLVERS:
            raise AgentFault(
                "config",
                "no-provider",
                "%s has no %r" % (self.name, provider),
                "it has " + ", ".join(_RESOLVERS),
            )
        if profile is not None:
            raise AgentFault(
                "config",
                "no-profiler",
                "%s can't profile layers from Python" % self.name,
                "ask for layers of the model's ONNX form in onnxruntime",
            )
        with open(path, "rb") as stream:
            if stream.read(8)[4:] != _IDENTIFIER:
                raise _invalid("it is no TensorFlow Lite file")
        try:
            interpreter = self._module.Interpreter(
                model_path=path,
                num_threads=int(spec["threads"]),
                experimental_op_resolver_type=getattr(
                    self._module.OpResolverType, _RESOLVERS[provider]
                ),
            )
        except Exception as error:
            raise _load_fault(error, path) from error
        try:
            interpreter.allocate_tensors()
        except Exception as error:
            if _is_beyond_memory(interpreter):
                raise out_of_memory("no memory for the model's tensors") from error
            raise _load_fault(error, path) from error
        return _TfliteModel(interpreter, provider)

    def facts(self) -> Dict[str, Any]:
        """Return the version and the providers."""
        return {"version": self.version, "providers": list(_RESOLVERS)}


class _TfliteModel:
    def __init__(self, interpreter: Any, provider: str) -> None:
        self._interpreter = interpreter
        self._provider = provider
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self.inputs: Sequence[TensorInfo] = _infos(inputs, "input")
        self.outputs: Sequence[TensorInfo] = _infos(outputs, "output")
        self._input_indices = [int(about["index"]) for about in inputs]
        self._output_indices = tuple(int(about["index"]) for about in outputs)
        self._shapes = [tuple(map(int, about["shape"])) for about in inputs]

    def bind(self, feed: Feed) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
        """Return one inference as users write it, and its arguments.

        The call sets every input tensor (a copy), invokes, and gets every output tensor (a copy):
        nothing else is in the window. The arrays have the file's own types, so that a quantised
        model's scaling is not in it, just as it is not in the file.
        """
        values = [np.ascontiguousarray(feed[info.name]) for info in self.inputs]
        self._fit(values)
        set_tensor, invoke = self._interpreter.set_tensor, self._interpreter.invoke
        get_tensor = self._interpreter.get_tensor

        def infer(inputs: Any, outputs: Any) -> Any:
            for index, value in inputs:
                set_tensor(index, value)
            invoke()
            return [get_tensor(index) for index in outputs]

        return infer, (tuple(zip(self._input_indices, values)), self._output_indices)

    def _fit(self, values: List[Any]) -> None:
        """Give the inputs these shapes; only open axes can change."""
        shapes = [value.shape for value in values]
        if shapes == self._shapes:
            return
        try:
            for index, shape in zip(self._input_indices, shapes):
                self._interpreter.resize_tensor_input(index, list(shape), strict=True)
            self._interpreter.allocate_tensors()
        except MemoryError:
            raise
        except Exception as error:
            if _is_beyond_memory(self._interpreter):
                raise out_of_memory("no memory for the model's tensors") from error
            raise run_fault(error) from error
        self._shapes = shapes

    def run(self, feed: Feed) -> List[Any]:
        call, args = self.bind(feed)
        try:
            return list(call(*args))
        except MemoryError:
            raise
        except Exception as error:
            raise run_fault(error) from error

    def facts(self) -> Dict[str, Any]:
        """Return provider, operators and how many parts of the graph its delegate has taken over.

        A delegate that took nothing leaves `delegated` at 0: the model runs in built-in kernels.
        """
        told: Dict[str, Any] = {"provider": self._provider}
        try:
            names = [str(node["op_name"]) for node in self._interpreter._get_ops_details()]
        except (AttributeError, KeyError, ValueError):
            # Not part of the public interface: a version without it leaves this unsaid.
            return told
        parts = sum(name == "DELEGATE" for name in names)
        return dict(told, operators=len(names) - parts, delegated=parts)

    def end_profile(self) -> Optional[str]:
        return None


def _infos(details: Sequence[Mapping[str, Any]], kind: str) -> List[TensorInfo]:
    """Return names, types and shapes; a tensor without a name of its own is named by its place."""
    names = [str(about["name"]) for about in details]
    infos = []
    for position, (about, name) in enumerate(zip(details, names)):
        if not name or names.count(name) > 1:
            name = "%s:%d" % (kind, position)
        # An open axis is -1 in the signature; the shape then holds the length that it begins with.
        shape = [int(axis) for axis in about["shape"]]
        signature = [int(axis) for axis in about.get("shape_signature", ())]
        if len(signature) == len(shape):
            shape = signature
        axes = tuple(axis if axis >= 0 else "" for axis in shape)
        infos.append(TensorInfo(name, np.dtype(about["dtype"]).name, axes))
    return infos


def _is_beyond_memory(interpreter: Any) -> bool:
    """Return whether a tensor alone is larger than what this process may still take.

    The library doesn't say that an allocation failed for want of memory.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    have = facts.status_bytes("VmSize")
    if limit == resource.RLIM_INFINITY or have is None:
        return False
    largest = 0
    for about in interpreter.get_tensor_details():
        size = np.dtype(about["dtype"]).itemsize
        for axis in about["shape"]:
            size *= int(axis)
        largest = max(largest, size)
    return have + largest > limit


def _invalid(text: str) -> AgentFault:
    return AgentFault(
        "candidate",
        "invalid-model",
        "the runtime can't load this file: " + text,
        "convert the model anew",
    )


def _load_fault(error: BaseException, path: str) -> AgentFault:
    # Where the file lies on the board tells nobody anything, and is long.
    text = one_line(str(error).replace(path, "it"))
    if short_of_memory(error):
        return out_of_memory("no memory to load the model: " + text)
    if _REFUSED.search(text):
        # It says everything twice, and for Android.
        text = re.split(r"\. (?:See|Make|An older|Are you)\b", text)[0]
        lacking = _LACKING.search(str(error))
        if lacking:
            text += " (node %s: %s)" % lacking.groups()
        return AgentFault(
            "candidate",
            "unsupported",
            "the runtime refuses this model: " + text,
            "convert it to built-in operators only, or use a newer runtime",
        )
    return _invalid(text)
