"""What a board can do: the CPU's narrow types, its caches, and the rates it reaches."""

from __future__ import annotations

import json
import os
import time
import zipfile
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np

from . import facts
from .faults import AgentFault
from .inputs import generate
from .runtimes import Model, Runtime, run_fault

_NATIVE = {
    "float16": ("fphp", "asimdhp", "avx512_fp16"),
    "bfloat16": ("bf16", "avx512_bf16", "amx_bf16"),
    "int8-dot": ("asimddp", "i8mm", "avx512_vnni", "avx_vnni", "amx_int8"),
}
_MANIFEST = "probes.json"
_LONGEST_NS = 200_000_000
_FEWEST = 5
_COPY_BYTES = 8 << 20
_MOST_COPY_BYTES = 64 << 20


def capability(runtime: Runtime, orders: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the evidence of a capability job.

    "native" names the CPU flags by which narrow types are computed at full speed. "peaks" has a
    rate for each dtype of the probe models (see `flatsat.targets.probes`), the best of several
    calls of one thread; "absent" says why a dtype has none. "copy_gb_s" counts the bytes copied,
    half of those that move, between buffers four times as large as the largest cache that the
    kernel tells. A job without probe models gets neither.

    On a clock that counts instructions (a plan with `min_s` 0) one call after a first, uncounted
    one says all.

    Raises:
        AgentFault: the probe models are none.
    """
    spec = orders["spec"]
    flags = set(facts.identity()["cpu_flags"])
    caches = facts.caches()
    found: Dict[str, Any] = {
        "runtime": dict(runtime.facts(), name=runtime.name),
        "numpy": str(np.__version__),
        "native": {name: sorted(flags.intersection(names)) for name, names in _NATIVE.items()},
        "caches": caches,
        "caches_source": "kernel",
        "peaks": [],
        "absent": {},
    }
    if spec["format"] != "probes":
        return found
    enough_ns = min(int(spec["plan"]["min_s"] * 1e9), _LONGEST_NS)
    for probe, path in _unpack(orders["artifact"], os.path.dirname(orders["result"])):
        dtype = str(probe["dtype"])
        try:
            why = _unfit(runtime, spec, path, orders["profile"])
            if why is not None:
                found["absent"][dtype] = why
                continue
            macs_ns = _rate(runtime.load(path, spec, None), int(probe["side"]), enough_ns)
        except AgentFault as fault:
            found["absent"][dtype] = str(fault)
            continue
        finally:
            os.unlink(path)
        threads = "1 thread" if spec["threads"] == 1 else "%d threads" % spec["threads"]
        method = "%s %s %d, %s" % (runtime.name, probe["operator"], probe["side"], threads)
        found["peaks"].append({"dtype": dtype, "gmac_s": macs_ns, "method": method})
    found["copy_gb_s"] = _copy(caches, enough_ns)
    return found


def _unpack(archive: str, folder: str) -> Any:
    """Yield each probe's description and the path of its model, written into `folder`."""
    try:
        with zipfile.ZipFile(archive) as members:
            for probe in json.loads(members.read(_MANIFEST)):
                path = os.path.join(folder, "probe.model")
                with open(path, "wb") as stream:
                    stream.write(members.read(probe["file"]))
                yield probe, path
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise AgentFault("config", "probes", "these are no probe models: %s" % error) from error


def _unfit(runtime: Runtime, spec: Mapping[str, Any], path: str, profile: str) -> Optional[str]:
    """Return why a rate would not be that of the probe's dtype: the runtime computes in another."""
    model = runtime.load(path, spec, profile)
    model.run(generate(model.inputs, 1, {"rows": 1}))
    written = model.end_profile()
    if written is None:
        return None
    with open(written, encoding="utf-8") as stream:
        events = json.load(stream)
    os.unlink(written)
    operators = {str(event.get("args", {}).get("op_name", "")) for event in events}
    return "%s casts it to another type" % runtime.name if "Cast" in operators else None


def _rate(model: Model, side: int, enough_ns: int) -> float:
    """Return the multiply-accumulates a nanosecond of a product of square matrices."""
    call, args = model.bind(generate(model.inputs, side, {"rows": side}))
    try:
        return side**3 / _best_ns(lambda: call(*args), enough_ns)
    except MemoryError:
        raise
    except Exception as error:
        raise run_fault(error) from error


def _copy(caches: List[Dict[str, Any]], enough_ns: int) -> Dict[str, Any]:
    largest = max([int(cache["size_bytes"]) for cache in caches] or [0])
    size = min(max(4 * largest, _COPY_BYTES), _MOST_COPY_BYTES)
    free = facts.free_bytes()
    if free is not None:
        size = max(1 << 20, min(size, free // 8))
    source = np.ones(size, np.uint8)
    target = np.empty_like(source)
    best_ns = _best_ns(lambda: np.copyto(target, source), enough_ns)
    return {"value": size / best_ns, "method": "numpy copy %.0f MiB, 1 thread" % (size / 2**20)}


def _best_ns(call: Callable[[], Any], enough_ns: int) -> int:
    """Return the shortest of some calls: five at least and for `enough_ns`, or one if that is 0."""
    call()
    values: List[int] = []
    while len(values) < (_FEWEST if enough_ns else 1) or sum(values) < enough_ns:
        begin = time.perf_counter_ns()
        call()
        values.append(time.perf_counter_ns() - begin)
    return max(1, min(values))
