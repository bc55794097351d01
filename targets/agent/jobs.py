"""One job on the board: its processes one after the other, and what they came to."""

from __future__ import annotations

import errno
import json
import os
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from . import facts
from .faults import AgentFault
from .frames import Type
from .processes import Child, Exit, Launcher
from .result import read_result
from .verdict import tail_of, verdict

if TYPE_CHECKING:
    from .store import Store

KINDS = ("latency", "accuracy", "layers", "capability", "energy", "faults")
_FOR_TRIALS = ("faults", "energy")
"""Kinds that a model may be tried by that only pretends to be one."""
_SEVERAL_PROCESSES = ("latency", "faults")
_SAMPLE_BYTES = 512 << 10

Arrays = List[Tuple[Dict[str, Any], bytes]]
Watch = Callable[[Child, float], Tuple[Exit, Optional[str]]]


class Answer(NamedTuple):
    """What a job came to, as messages; a transient one is not kept for a second asking."""

    messages: List[Tuple[int, bytes]]
    transient: bool


class Jobs:
    """Runs jobs with what one board has.

    Args:
        store: the board's files.
        launcher: starts workers.
        started: is told job and process before each process, so that both ends fall silent.
        watch: sleeps until a child has ended or its deadline (monotonic seconds) has passed, and
            returns its end and "timeout" or "cancelled" if it was killed for that.
    """

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        started: Callable[[Dict[str, Any]], None],
        watch: Watch,
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._started = started
        self._watch = watch

    def run(self, job_id: str, spec: Mapping[str, Any], meter: str = "") -> Answer:
        """Do a job; whatever goes wrong with it is part of the answer.

        `meter` is what counts events around this board, "" where nothing does.
        """
        messages: List[Tuple[int, bytes]] = []
        fault: Optional[AgentFault] = None
        evidence: Dict[str, Any] = {
            "clock": "perf_counter_ns",
            "clock_resolution_ns": round(time.get_clock_info("perf_counter").resolution * 1e9),
            "python": facts.python_version(),
            "processes": [],
        }
        summary: Dict[str, Any] = {
            "job_id": job_id,
            "health": [dict(facts.health(), phase="before")],
            "evidence": evidence,
        }
        try:
            orders = self._orders(spec, meter)
            several = spec["kind"] in _SEVERAL_PROCESSES
            for process in range(spec["plan"]["processes"] if several else 1):
                self._started({"job_id": job_id, "process": process})
                head, arrays = self._measure(orders, spec)
                for about, raw in arrays:
                    messages.extend(_samples(dict(about, process=process), raw))
                _merge(summary, head)
        except AgentFault as error:
            fault = error
        except OSError as error:
            fault = disk_fault(error)
        summary["health"].append(dict(facts.health(), phase="after"))
        if fault is None:
            messages.append((Type.RESULT, json.dumps(summary).encode()))
            return Answer(messages, transient=False)
        evidence.update(fault.evidence)
        summary["fault"] = fault.to_json()
        return Answer([(Type.FAULT, json.dumps(summary).encode())], fault.transient)

    def _orders(self, spec: Mapping[str, Any], meter: str) -> Dict[str, Any]:
        """Return what every process of the job is told.

        Raises:
            AgentFault: the job can't be done here, and whose fault that is.
        """
        if spec["kind"] not in KINDS:
            raise AgentFault(
                "config",
                "unknown-kind",
                "this agent can't do %r jobs" % spec["kind"],
                "it does " + ", ".join(KINDS),
            )
        if spec["runtime"] == "fault" and spec["kind"] not in _FOR_TRIALS:
            raise AgentFault("config", "unknown-runtime", "runtime 'fault' is for faults jobs only")
        if spec["kind"] == "energy" and meter != "events":
            raise AgentFault(
                "config",
                "no-meter",
                "nothing counts events or energy around this board",
                'use a board with a meter, such as kind "qemu-arm64" with meter = "events"',
            )
        plan = spec["plan"]
        if plan["processes"] < 1 or plan["min_inferences"] < 1 or plan["max_warmup"] < 0:
            raise AgentFault("config", "plan", "a job needs a process and an inference at least")
        _check_power(spec["power_mode"])
        work = self._store.fresh_work()
        orders: Dict[str, Any] = {
            "spec": spec,
            "parent": os.getpid(),
            "counted_clock": self._launcher.seed_hash,
            "result": os.path.join(work, "result"),
            "stderr": os.path.join(work, "stderr"),
            "output": os.path.join(work, "output"),
            "profile": os.path.join(work, "profile"),
        }
        for key in ("artifact", "goldens", "dataset"):
            sha = spec.get(key)
            if sha:
                if not self._store.has(sha):
                    raise AgentFault(
                        "harness", "no-blob", "the %s was not sent" % key, transient=True
                    )
                orders[key] = self._store.path(sha)
        return orders

    def _measure(
        self, orders: Dict[str, Any], spec: Mapping[str, Any]
    ) -> Tuple[Dict[str, Any], Arrays]:
        """Run one process to its end and return what it found.

        Raises:
            AgentFault: it found nothing, and why.
        """
        if os.path.exists(orders["result"]):
            os.unlink(orders["result"])
        begin = time.monotonic_ns()
        child = self._launcher.start(orders)
        try:
            end, cause = self._watch(child, begin / 1e9 + float(spec["plan"]["deadline_s"]))
        except AgentFault:
            self._launcher.forget_templates()
            raise
        head: Optional[Dict[str, Any]] = None
        arrays: Arrays = []
        if os.path.exists(orders["result"]):
            head, arrays = read_result(orders["result"])
        fault = verdict(end.status, cause, head, tail_of(orders["stderr"]))
        if fault is not None:
            fault.evidence["process"] = dict((head or {}).get("process", {}), **end.usage)
            raise fault
        assert head is not None
        head["process"].update(end.usage, wall_ns=time.monotonic_ns() - begin)
        about = {"quantity": "rss_bytes", "kind": "ru_maxrss", "warm": True}
        arrays.append((about, int(end.usage["ru_maxrss_bytes"]).to_bytes(8, "little")))
        if "logits" in head:
            sha, size = self._store.adopt(orders["output"])
            head["logits"].update(sha256=sha, size=size)
        return head, arrays


def _merge(summary: Dict[str, Any], head: Mapping[str, Any]) -> None:
    """Add one process's findings to the job's."""
    evidence = summary["evidence"]
    evidence["processes"].append(head["process"])
    for key in ("runtime", "numpy", "layers", "capability"):
        if key in head:
            evidence[key] = head[key]
    if "logits" in head:
        summary["logits"] = head["logits"]
    new = head.get("agreement")
    old = summary.get("agreement")
    # Of several processes the one that lies further off speaks for the job.
    if new is not None and (old is None or new["max_abs"] >= old["max_abs"]):
        summary["agreement"] = new


def _samples(about: Dict[str, Any], raw: bytes) -> List[Tuple[int, bytes]]:
    """Return SAMPLES messages: u16 length, JSON, int64 values; a long array goes in parts."""
    text = json.dumps(about).encode()
    head = len(text).to_bytes(2, "little") + text
    return [
        (int(Type.SAMPLES), head + raw[start : start + _SAMPLE_BYTES])
        for start in range(0, max(1, len(raw)), _SAMPLE_BYTES)
    ]


def disk_fault(error: OSError) -> AgentFault:
    """Return the fault of a board whose disk is full or fails."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return AgentFault(
        "board",
        "disk-full" if full else "disk",
        "the board's disk: %s" % error,
        "free some room there" if full else "look at the board's kernel log",
        transient=not full,
    )


def _check_power(wanted: Mapping[str, str]) -> None:
    state = facts.health()
    for key, value in wanted.items():
        if key != "governor":
            raise AgentFault("config", "power-mode", "no power setting is called %r" % key)
        if state["governor"] != value:
            raise AgentFault(
                "board",
                "power-mode",
                "the governor is %r, the job wants %r" % (state["governor"], value),
                "set it on the board first",
            )
