"""One fresh process: loads a model, measures it, compares its outputs, and writes what it saw.

It does no I/O inside the counted window and leaves by `os._exit`, since tearing the runtime down
costs as much as a short measurement. It is started in two ways: `main` by a new interpreter, with
its orders on standard input; `serve` as a template that has the runtime imported and copies itself
for each order.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional

from .faults import AgentFault, one_line, out_of_memory, wants_memory
from .result import LENGTH, Result, usage_json
from .runtimes import Runtime, make_runtime
from .unshare import own_pages

MEMORY_SHARE = 0.8
"""Of the memory that is free on the board, a process may take so much unless told otherwise."""

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def work(orders: Mapping[str, Any], runtime: Callable[[], Runtime]) -> None:
    """Do one job's measurement in this process and write its result file, fault or not.

    The garbage collector stays off from here to the end: the process is short-lived, and a
    collection in the counted window would count.
    """
    gc.disable()
    result = Result()
    try:
        spec = orders["spec"]
        if spec["affinity"]:
            _pin(spec["affinity"])
        begin = time.perf_counter_ns()
        ready = runtime()
        result.process["runtime_import_ns"] = time.perf_counter_ns() - begin
        _check_version(ready, spec)
        result.head["runtime"] = {"name": ready.name, "version": ready.version}
        result.head["numpy"] = str(sys.modules["numpy"].__version__)
        # Before the limit: what the agent itself needs is not the candidate's to pay.
        from .kinds import KINDS

        _limit_memory(spec["plan"].get("memory_limit_bytes"))
        KINDS[spec["kind"]](ready, orders, result)
    except AgentFault as fault:
        result.head["fault"] = fault.to_json()
        result.head["fault_evidence"] = fault.evidence
    except Exception as error:
        _unlimit_memory()
        if wants_memory(error):
            said = out_of_memory("a process ran into its memory limit")
        else:
            said = AgentFault(
                "harness",
                "agent-error",
                "the agent's worker failed: %s: %s" % (type(error).__name__, error),
                "please report it with the job's evidence",
            )
        result.head["fault"] = said.to_json()
        result.head["fault_evidence"] = {"traceback": _traceback()}
    _unlimit_memory()
    result.write(orders["result"])


def _traceback() -> List[str]:
    import traceback

    return [one_line(line) for line in traceback.format_exc().splitlines()[-12:]]


def _pin(cpus: List[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise AgentFault(
            "config",
            "affinity",
            "can't pin to CPUs %s: %s" % (cpus, error),
            "this board has %d" % (os.cpu_count() or 0),
        ) from error


def _check_version(runtime: Runtime, spec: Mapping[str, Any]) -> None:
    wanted = spec.get("runtime_version")
    if wanted is not None and wanted != runtime.version:
        raise AgentFault(
            "board",
            "runtime-version",
            "the job wants %s %s, the board has %s" % (runtime.name, wanted, runtime.version),
        )


def _limit_memory(limit_bytes: Optional[int]) -> None:
    """Bound the address space: a greedy candidate then gets MemoryError instead of the board's end.

    Without an explicit limit the process keeps what it has and may take a share of what is free.
    """
    from .facts import free_bytes, status_bytes

    if limit_bytes is None:
        free, have = free_bytes(), status_bytes("VmSize")
        if free is None or have is None:
            return
        limit_bytes = have + int(free * MEMORY_SHARE)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


def _unlimit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _settle_in(parent: int) -> None:
    """Die with the parent, and be the first that the kernel kills when memory runs out.

    Args:
        parent: its process id, told by itself: it may have died before we could ask the kernel.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")
    except OSError:
        pass


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


def _read_order(fd: int) -> Dict[str, Any]:
    (size,) = LENGTH.unpack(_read_exactly(fd, LENGTH.size))
    order: Dict[str, Any] = json.loads(_read_exactly(fd, size))
    return order


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """Do the one order that stands on standard input, in this fresh interpreter."""
    gc.disable()
    orders = _read_order(0)
    _settle_in(orders["parent"])
    work(orders, lambda: make_runtime(orders["spec"]["runtime"]))
    _leave()


def serve(runtime_name: str, report_fd: int, parent: int) -> None:
    """Import a runtime, then copy this process for every order on standard input.

    Lines of JSON go to `report_fd`: `{"ready": true}` or `{"fault": ...}` once, then for each order
    `{"pid": n}` and, when that process has ended, `{"status": wait status, ...}`.
    """
    _settle_in(parent)
    template = os.getpid()
    try:
        ready = make_runtime(runtime_name)
        from . import kinds  # noqa: F401  (imported once, here, for every copy)
    except AgentFault as fault:
        _report(report_fd, {"fault": fault.to_json()})
        os._exit(0)
    gc.collect()
    gc.freeze()
    _report(report_fd, {"ready": True})
    while True:
        orders = _read_order(0)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            os.close(report_fd)
            _settle_in(template)
            _divert(orders["stderr"])
            if orders.get("counted_clock"):
                own_pages()
            work(orders, lambda: ready)
            _leave()
        _report(report_fd, {"pid": pid})
        _, status, usage = os.wait4(pid, 0)
        _report(report_fd, dict(usage_json(usage), status=status))


def _divert(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _report(fd: int, value: Mapping[str, Any]) -> None:
    os.write(fd, json.dumps(value).encode() + b"\n")
