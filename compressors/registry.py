"""Every built-in step by name: the one place to register a technique.

To add one: write a module with a class for one of the Protocols of `base`, and add a line here.
The module is imported when the step is first used.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatsat.errors import RecipeError

if TYPE_CHECKING:
    from flatsat.compressors.base import StepParams


@dataclass(frozen=True)
class StepEntry:
    """One registered step.

    Attributes:
        name: as a recipe's `use` (transforms), `to` (lowerings) or `with` (codecs) gives it.
        kind: "transform", "lower", "pass" or "codec".
        target: "module:Class" inside `flatsat.compressors`.
        summary: one line for lists.
        first: it makes the network itself, so that only the first place suits it.
        last: no transform that changes weights can follow.
        corrects: it changes no weights, but mends what a step that is last did, and follows it.
        role: of the candidate that a recipe with this step makes.
        needs: splits that it can't do without.
    """

    name: str
    kind: str
    target: str
    summary: str
    first: bool = False
    last: bool = False
    corrects: bool = False
    role: str = "compressed"
    needs: tuple[str, ...] = ()


_STEPS = (
    StepEntry(
        "magnitude-prune",
        "transform",
        "magnitude:MagnitudePrune",
        "set small weights to zero, threshold by layer, retrain the rest (Han et al. 2015)",
        needs=("train",),
    ),
    StepEntry(
        "gradual-prune",
        "transform",
        "gradual:GradualPrune",
        "raise the sparsity during training by a cubic schedule (Zhu and Gupta 2017)",
        needs=("train",),
    ),
    StepEntry(
        "l1-filter-prune",
        "transform",
        "filters:L1FilterPrune",
        "remove the filters of least L1 norm with all that is coupled to them (Li et al. 2017)",
    ),
    StepEntry(
        "neuron-prune",
        "transform",
        "neurons:NeuronPrune",
        "remove the least worthy neurons of dense layers, retrain the rest (Han et al. 2015)",
        needs=("train",),
    ),
    StepEntry(
        "agent-prune",
        "transform",
        "agents:AgentPrune",
        "let an agent a layer learn which filters can go within a drop bound (Huang et al. 2018)",
        needs=("train", "validation"),
    ),
    StepEntry(
        "channel-prune",
        "transform",
        "channel_policy:ChannelPrune",
        "keep a share of each group's channels, reconstruct by least squares (He et al. 2018)",
        needs=("calibration",),
    ),
    StepEntry(
        "fine-tune",
        "transform",
        "train:FineTune",
        "train the network further with its masks held",
        needs=("train",),
    ),
    StepEntry(
        "narrow",
        "transform",
        "narrow:Narrow",
        "baseline: a dense narrow network trained from scratch at equal MACs",
        first=True,
        role="equal-macs",
        needs=("train",),
    ),
    StepEntry(
        "linear-quantise",
        "transform",
        "linear_quant:LinearQuantise",
        "put weights (and activations) on 2^b levels between minimum and maximum",
        last=True,
    ),
    StepEntry(
        "quantise-aware-train",
        "transform",
        "qat:QuantiseAwareTrain",
        "train with weights and activations rounded in the forward pass (Jacob et al. 2018)",
        last=True,
        needs=("train",),
    ),
    StepEntry(
        "share-weights",
        "transform",
        "sharing:ShareWeights",
        "let weights share 2^b values by k-means, train the shared values (Han et al. 2016)",
        last=True,
    ),
    StepEntry(
        "rate-quantise",
        "transform",
        "rate_quant:RateQuantise",
        "put weights on the levels of least error + price x bits (Choi et al. 2017)",
        last=True,
        needs=("train",),
    ),
    StepEntry(
        "equalise",
        "transform",
        "equalise:Equalise",
        "give the channels of layers equal ranges, outputs unchanged (Nagel et al. 2019)",
    ),
    StepEntry(
        "bias-correct",
        "transform",
        "bias_correction:BiasCorrect",
        "take the mean error of quantised layers out of their biases (Nagel et al. 2019)",
        corrects=True,
        needs=("calibration",),
    ),
    StepEntry("onnx", "lower", "onnx_lower:OnnxLower", "write ONNX, checked against the network"),
    StepEntry(
        "tflite", "lower", "tflite_lower:TfliteLower", "write TensorFlow Lite, checked likewise"
    ),
    StepEntry(
        "sparse-c",
        "lower",
        "sparse_lower:SparseLower",
        "write a program for runtime sparse-c, whose zero weights cost no time",
    ),
    StepEntry(
        "int8",
        "pass",
        "onnx_int8:OnnxInt8",
        "quantise an ONNX file to int8 with onnxruntime's static QDQ",
        needs=("calibration",),
    ),
    StepEntry(
        "tflite-int8",
        "pass",
        "tflite_lower:TfliteInt8",
        "quantise a TFLite file to int8, inputs and outputs too, with litert-quantizer",
        needs=("calibration",),
    ),
    StepEntry(
        "context",
        "codec",
        "codec:ContextCodec",
        "code weights with adaptive contexts: the smallest files",
    ),
    StepEntry(
        "huffman",
        "codec",
        "codec:HuffmanCodec",
        "code weights with relative indices and Huffman codes (Han et al. 2016)",
    ),
    StepEntry("range", "codec", "codec:RangeCodec", "code weights with a static range coder"),
    StepEntry("ans", "codec", "codec:AnsCodec", "code weights with static ANS (Duda 2013)"),
)

_INT8_PASSES = {"onnx": "int8", "tflite": "tflite-int8"}


def int8_pass(lowering: str) -> str:
    """Return the name of the pass that makes the int8 form of a lowering's files.

    Raises:
        RecipeError: that lowering has none.
    """
    if lowering not in _INT8_PASSES:
        raise RecipeError(f"files of {lowering!r} have no int8 form")
    return _INT8_PASSES[lowering]


def step_names(kind: str | None = None) -> tuple[str, ...]:
    """Return the names of all steps, or of one kind, in the order of the registry."""
    return tuple(step.name for step in _STEPS if kind is None or step.kind == kind)


def entry(name: str, kind: str | None = None) -> StepEntry:
    """Return what is registered under `name`, without importing the step.

    Raises:
        RecipeError: there is no such step (of that kind); the hint is the nearest name.
    """
    for step in _STEPS:
        if step.name == name and kind in (None, step.kind):
            return step
    names = step_names(kind)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there are " + ", ".join(names)
    raise RecipeError(f"there is no {kind or 'step'} named {name!r}", hint=hint)


def step_class(name: str, kind: str | None = None) -> Any:
    """Import and return the class of a step.

    Raises:
        RecipeError: there is no such step.
    """
    module, _, attribute = entry(name, kind).target.partition(":")
    return getattr(importlib.import_module(f"flatsat.compressors.{module}"), attribute)


@dataclass(frozen=True)
class StepDescription:
    """What `flatsat compressors show` tells of a step.

    Attributes:
        entry: as registered.
        text: the class's docstring, with its equations.
        schema: JSON schema of the parameters.
    """

    entry: StepEntry
    text: str
    schema: dict[str, Any]


def describe(name: str) -> StepDescription:
    """Return a step's documentation and its parameters.

    Raises:
        RecipeError: there is no such step.
    """
    cls = step_class(name)
    params: type[StepParams] = cls.Params
    return StepDescription(entry(name), inspect.getdoc(cls) or "", params.model_json_schema())
