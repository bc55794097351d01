"""What the end of a worker process says about the candidate."""

from __future__ import annotations

import os
import signal
from typing import Any, Mapping, Optional

from .faults import AgentFault, one_line, out_of_memory

_TAIL_BYTES = 4096


def tail_of(path: str) -> str:
    """Return the last bytes that a process wrote to its standard error, as text."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def verdict(
    status: int, cause: Optional[str], head: Optional[Mapping[str, Any]], tail: str
) -> Optional[AgentFault]:
    """Return the fault that a process ended with, or None if it did its work.

    Args:
        status: as from `os.wait4`.
        cause: "timeout" or "cancelled" if the supervisor killed it, else None.
        head: what it wrote as its result, if it came so far.
        tail: the end of its standard error.
    """
    if cause == "timeout":
        return AgentFault(
            "candidate",
            "timeout",
            "it did not finish within its deadline and was killed",
            "raise plan.deadline_s if it is only slow",
        )
    if cause == "cancelled":
        return AgentFault("harness", "cancelled", "the job was cancelled", transient=True)
    if head is not None:
        fault = head.get("fault")
        return None if fault is None else _read(fault, head)
    last = one_line(tail.strip().splitlines()[-1]) if tail.strip() else ""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL:
            return out_of_memory("the kernel killed it (SIGKILL), most likely for want of memory")
        if "bad_alloc" in tail or "MemoryError" in tail:
            return out_of_memory("it ran out of memory: " + last)
        return AgentFault(
            "candidate",
            "crash",
            "it crashed with %s%s" % (_name(number), ": " + last if last else ""),
            "run the model by hand on this board to see where",
        )
    if "MemoryError" in tail:
        return out_of_memory("it ran out of memory: " + last)
    code = os.WEXITSTATUS(status)
    return AgentFault(
        "candidate",
        "crash",
        "it ended by itself with code %d and no result%s" % (code, ": " + last if last else ""),
        "run the model by hand on this board to see where",
    )


def _read(fault: Mapping[str, Any], head: Mapping[str, Any]) -> AgentFault:
    read = AgentFault(
        fault["owner"], fault["code"], fault["message"], fault["hint"], fault["transient"]
    )
    read.evidence.update(head.get("fault_evidence", {}))
    return read


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal %d" % number
