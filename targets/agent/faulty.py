"""A runtime that misbehaves on purpose, for `faults` jobs: it proves how a board takes it.

The model file is JSON: `{"fault": NAME, "at": "load" | "run", "after": N}`. NAME is one of
`segfault`, `abort`, `hang`, `eat-memory`, `exit`, `kill`, `raise` or `none`; with "run" it happens
at inference N (from 0). Before that, and for `none`, an inference spins for `busy_ns`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from .faults import AgentFault

if TYPE_CHECKING:
    from .inputs import TensorInfo


class FaultyRuntime:
    """Known to JobSpecs as "fault"."""

    name = "fault"
    version = "1"

    def load(self, path: str, spec: Mapping[str, Any], profile: Optional[str]) -> FaultyModel:
        """Read which fault is wanted, and commit it at once if it is to happen at load."""
        del spec, profile
        try:
            with open(path, encoding="utf-8") as stream:
                wanted = json.load(stream)
            name = wanted["fault"]
            at, after = wanted.get("at", "run"), int(wanted.get("after", 0))
            busy_ns = int(wanted.get("busy_ns", 0))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = "not a description of a fault: %s" % error
            raise AgentFault("candidate", "invalid-model", message) from error
        if name not in FAULTS:
            raise AgentFault("config", "unknown-fault", "no fault is called %r" % name)
        if at == "load":
            FAULTS[name]()
        return FaultyModel(name, after, busy_ns)

    def facts(self) -> Dict[str, Any]:
        """Return the names of the faults."""
        return {"version": self.version, "faults": sorted(FAULTS)}


class FaultyModel:
    """Takes nothing, gives nothing, and fails when its time has come."""

    def __init__(self, name: str, after: int, busy_ns: int) -> None:
        self.inputs: Sequence[TensorInfo] = ()
        self.outputs: Sequence[TensorInfo] = ()
        self._name = name
        self._left = after
        self._busy_ns = busy_ns

    def facts(self) -> Dict[str, Any]:
        """Return nothing."""
        return {}

    def bind(self, feed: Mapping[str, Any]) -> Tuple[Callable[[Any, Any], Any], Tuple[Any, Any]]:
        """Return `run` as the call."""
        return lambda _, given: self.run(given), (None, feed)

    def run(self, feed: Mapping[str, Any]) -> List[Any]:
        """Spin, or commit the fault."""
        del feed
        if self._left == 0:
            FAULTS[self._name]()
        self._left -= 1
        end = time.perf_counter_ns() + self._busy_ns
        while time.perf_counter_ns() < end:
            pass
        return []

    def end_profile(self) -> Optional[str]:
        """Return None: there is no profile."""
        return None


def _segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang() -> None:
    # Deaf to everything but SIGKILL, as a driver stuck in a system call is.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


def _eat_memory() -> None:
    hoard = []
    while True:
        hoard.append(b"\xff" * (64 << 20))


def _exit() -> None:
    os._exit(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise RuntimeError("raised on purpose")


def _none() -> None:
    pass


FAULTS: Dict[str, Callable[[], None]] = {
    "segfault": _segfault,
    "abort": os.abort,
    "hang": _hang,
    "eat-memory": _eat_memory,
    "exit": _exit,
    "kill": _kill,
    "raise": _raise,
    "none": _none,
}
