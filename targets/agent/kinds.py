"""What a worker does for each kind of job."""

from __future__ import annotations

import json
import os
import resource
import time
from array import array
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from . import facts
from .capability import capability
from .energy import Windows, count_events
from .faults import AgentFault, out_of_memory
from .goldens import check_goldens, read_arrays, run_rows
from .inputs import generate
from .runtimes import Model, Runtime, run_fault
from .tick import tick_waiter
from .window import WarmUp, count, warm_up

if TYPE_CHECKING:
    from .result import Result

_PROFILED_INFERENCES = 1000
"""More inferences than this make a profile of a deep network too long to read on a small board."""


def latency(runtime: Runtime, orders: Mapping[str, Any], result: Result) -> None:
    """Time single inferences, read the peak memory, then compare the goldens."""
    spec = orders["spec"]
    plan = spec["plan"]
    model = _load(runtime, orders, result)
    call, args = _bind(model, spec)
    clock = time.perf_counter_ns
    wait = tick_waiter(clock) if orders.get("counted_clock") else None
    try:
        before = resource.getrusage(resource.RUSAGE_SELF)
        warm = warm_up(call, args, clock, plan["warmup"], plan["max_warmup"], wait)
        begin = time.perf_counter_ns()
        values = count(call, args, clock, plan["min_inferences"], int(plan["min_s"] * 1e9), wait)
        window_ns = time.perf_counter_ns() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
    except MemoryError:
        raise
    except Exception as error:
        raise run_fault(error) from error
    _keep(result, warm, values, window_ns)
    result.process["involuntary_switches"] = after.ru_nivcsw - before.ru_nivcsw
    peak = facts.status_bytes("VmHWM")
    if peak is not None:
        result.add("rss_bytes", "VmHWM", True, array("q", [peak]))
    share = facts.pss_bytes()
    if share is not None:
        result.add("pss_bytes", "smaps_rollup", True, array("q", [share]))
    if spec.get("goldens"):
        result.head["agreement"] = check_goldens(model, orders["goldens"], spec)


def energy(runtime: Runtime, orders: Mapping[str, Any], result: Result) -> None:
    """Run inferences that the emulator's event meter counts, then compare the goldens."""
    spec = orders["spec"]
    windows = Windows()
    model = _load(runtime, orders, result)
    call, args = _bind(model, spec)
    try:
        count_events(windows, call, args, spec["plan"], result)
    except MemoryError:
        raise
    except Exception as error:
        raise run_fault(error) from error
    if spec.get("goldens"):
        result.head["agreement"] = check_goldens(model, orders["goldens"], spec)


def _keep(result: Result, warm: WarmUp, values: array[int], window_ns: int) -> None:
    result.add("latency_ns", "clock", False, warm.values)
    result.add("latency_ns", "clock", True, values)
    result.process.update(
        warmup_n=len(warm.values),
        steady=warm.steady,
        steady_reason=warm.reason,
        counted_n=len(values),
        window_ns=window_ns,
    )


def _load(
    runtime: Runtime, orders: Mapping[str, Any], result: Result, profile: Optional[str] = None
) -> Model:
    begin = time.perf_counter_ns()
    model = runtime.load(orders["artifact"], orders["spec"], profile)
    load_ns = time.perf_counter_ns() - begin
    result.head["runtime"].update(model.facts())
    result.process["load_ns"] = load_ns
    result.add("load_ns", "clock", True, array("q", [load_ns]))
    return model


def _bind(
    model: Model, spec: Mapping[str, Any]
) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
    try:
        feed = generate(model.inputs, spec["batch"], spec["axes"])
    except (MemoryError, ValueError) as error:
        # NumPy says ValueError for a shape beyond any memory.
        raise out_of_memory("no memory for the inputs: %s" % error) from error
    return model.bind(feed)


def accuracy(runtime: Runtime, orders: Mapping[str, Any], result: Result) -> None:
    """Run a data set and keep the first output, raw, in a file beside the result."""
    spec = orders["spec"]
    model = _load(runtime, orders, result)
    if "dataset" not in orders:
        raise AgentFault("config", "data-set", "an accuracy job needs a data set")
    arrays = read_arrays(orders["dataset"], "data-set")
    names = {info.name: "in:" + info.name for info in model.inputs}
    missing = sorted(key for key in names.values() if key not in arrays)
    if missing:
        raise AgentFault("config", "data-set", "the data set lacks %s" % ", ".join(missing))
    feeds = {
        info.name: arrays[names[info.name]].astype(info.dtype, copy=False) for info in model.inputs
    }
    begin = time.perf_counter_ns()
    first = np.ascontiguousarray(run_rows(model, feeds, spec)[0])
    result.process["run_ns"] = time.perf_counter_ns() - begin
    with open(orders["output"], "wb") as stream:
        stream.write(first.astype(first.dtype.newbyteorder("<")).tobytes())
    result.head["logits"] = {"dtype": first.dtype.name, "shape": list(first.shape)}


def layers(runtime: Runtime, orders: Mapping[str, Any], result: Result) -> None:
    """Time every node by the runtime's own profiler, whose clock ticks in microseconds.

    Nodes are those of the graph as the runtime optimised it: several of the file may be one.
    Profiling costs time in each node, so that the sum exceeds a latency measured without it.
    """
    spec = orders["spec"]
    plan = spec["plan"]
    model = _load(runtime, orders, result, profile=orders["profile"])
    call, args = _bind(model, spec)
    try:
        warm = warm_up(call, args, time.perf_counter_ns, plan["warmup"], plan["max_warmup"])
        inferences = min(plan["min_inferences"], _PROFILED_INFERENCES)
        for _ in range(inferences):
            call(*args)
    except MemoryError:
        raise
    except Exception as error:
        raise run_fault(error) from error
    path = model.end_profile()
    if path is None:
        raise AgentFault("config", "no-profiler", "%s can't profile layers" % runtime.name)
    with open(path, encoding="utf-8") as stream:
        events = json.load(stream)
    os.unlink(path)
    result.process.update(warmup_n=len(warm.values), steady=warm.steady, steady_reason=warm.reason)
    result.head["layers"] = _add_nodes(events, len(warm.values), inferences, result)


def _add_nodes(
    events: List[Dict[str, Any]], skip: int, inferences: int, result: Result
) -> List[Dict[str, Any]]:
    """Add each node's durations behind the warm-up; return nodes in the order of execution."""
    durations: Dict[str, array[int]] = {}
    operators: Dict[str, str] = {}
    suffix = "_kernel_time"
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith(suffix):
            node = event["name"][: -len(suffix)]
            durations.setdefault(node, array("q")).append(int(event["dur"]) * 1000)
            operators[node] = str(event.get("args", {}).get("op_name", ""))
    table = []
    for node, values in durations.items():
        # A node inside a loop body runs several times an inference.
        repeats = max(1, len(values) // (skip + inferences))
        counted = values[skip * repeats :]
        result.add("layer_ns:" + node, "clock", True, counted)
        ordered = sorted(counted)
        table.append({"name": node, "op": operators[node], "p50_ns": ordered[len(ordered) // 2]})
    return table


def _capability(runtime: Runtime, orders: Mapping[str, Any], result: Result) -> None:
    result.head["capability"] = capability(runtime, orders)


KINDS: Dict[str, Callable[[Runtime, Mapping[str, Any], Result], None]] = {
    "latency": latency,
    "accuracy": accuracy,
    "layers": layers,
    "capability": _capability,
    "energy": energy,
    "faults": latency,
}
