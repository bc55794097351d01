"""The board's side of the wire: takes files and jobs, runs one worker at a time, gives verdicts.

Between STARTED and the end of the last window nothing is sent, and the supervisor sleeps in one
`poll`. It ends itself when the host is gone: at end of file, or after `SILENCE_S` without a message
while no job runs (a job has its own deadline).
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from . import facts
from .faults import AgentFault
from .frames import MAX_MESSAGE, PACKED, Message, Peer, Type
from .result import read_result
from .store import Store, StoreError, check_sha
from .verdict import tail_of, verdict

if TYPE_CHECKING:
    from .processes import Child, Exit, Launcher

SILENCE_S = 30.0
PROTOCOL = 1
KINDS = ("latency", "accuracy", "layers", "capability", "faults")
_CHUNK = 32 << 10
_SAMPLE_BYTES = 512 << 10
_KEPT_RESULTS = 16


class _End(Exception):  # noqa: N818
    """The session is over; `args[0]` is the exit code."""


class Line:
    """Two file descriptors as a byte stream with deadlines."""

    def __init__(self, fd_in: int, fd_out: int) -> None:
        self.fd_in = fd_in
        self._fd_out = fd_out
        os.set_blocking(fd_out, False)

    def wait(self, timeout_s: Optional[float], other: Optional[int] = None) -> Tuple[bool, bool]:
        """Sleep until the line or `other` can be read; return which."""
        poll = select.poll()
        poll.register(self.fd_in, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
        return self.fd_in in ready, other in ready

    def read(self) -> bytes:
        """Return what has come; b"" is the end of the stream."""
        try:
            return os.read(self.fd_in, 1 << 16)
        except BlockingIOError:
            return b"\0"
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """Write everything, or end the session if the host takes nothing for too long."""
        view = memoryview(data)
        poll = select.poll()
        poll.register(self._fd_out, select.POLLOUT)
        while view:
            if not poll.poll(SILENCE_S * 1000):
                raise _End(4)
            try:
                view = view[os.write(self._fd_out, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _End(0) from None


class Answer(NamedTuple):
    """What a job came to, kept so that asking twice measures once."""

    messages: List[Tuple[int, bytes]]
    transient: bool


class Supervisor:
    """One session with one host.

    Args:
        line: the stream to the host.
        store: the board's folder.
        launcher: starts workers.
        agent: SHA-256 of the agent's archive.
    """

    def __init__(self, line: Line, store: Store, launcher: Launcher, agent: str) -> None:
        self._line = line
        self._store = store
        self._launcher = launcher
        self._agent = agent
        self._peer = Peer()
        self._greeted = False
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._expected: Dict[str, int] = {}
        self._queue: List[Message] = []
        self._child: Optional[Child] = None
        self._parent = os.getppid()
        self._handlers: Dict[int, Callable[[Message], None]] = {
            Type.HELLO: self._hello,
            Type.HAVE: self._have,
            Type.CHUNK: self._chunk,
            Type.NEED: self._need,
            Type.RUN: self._run,
            Type.CANCEL: self._ignore,
            Type.PING: self._ping,
            Type.BYE: self._bye,
        }

    def serve(self) -> int:
        """Answer the host until the session ends; return the exit code."""
        try:
            while True:
                self._receive(SILENCE_S)
                while self._queue:
                    self._handle(self._queue.pop(0))
        except _End as end:
            return int(end.args[0])
        finally:
            if self._child is not None:
                self._child.kill()
            self._launcher.forget_templates()

    def orphaned(self) -> None:
        """End everything at once if the process that started us is really gone."""
        if os.getppid() != self._parent:
            if self._child is not None:
                self._child.kill()
            os._exit(3)

    # Messages in and out.

    def _receive(self, timeout_s: Optional[float], other: Optional[int] = None) -> bool:
        """Queue what the host has sent; return whether `other` can be read."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._queue:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, other_ready = self._line.wait(left, other)
            if readable:
                data = self._line.read()
                if not data:
                    raise _End(0)
                self._queue.extend(self._peer.feed(data))
                if self._peer.lost and self._greeted:
                    self._send_fault(
                        AgentFault("board", "frames-lost", "the line lost frames", transient=True)
                    )
                    raise _End(5)
            if other_ready:
                return True
            if not readable:
                if other is None:
                    raise _End(2)
                return False
        return False

    def _send(self, kind: int, payload: bytes, flags: int = 0) -> None:
        self._line.write(self._peer.pack(kind, payload, flags))

    def _send_json(self, kind: int, value: Mapping[str, Any]) -> None:
        self._send(kind, json.dumps(value).encode())

    def _send_fault(self, fault: AgentFault, **about: Any) -> None:
        self._send_json(Type.FAULT, dict(about, fault=fault.to_json()))

    def _handle(self, message: Message) -> None:
        handler = self._handlers.get(message.type)
        if handler is None:
            return
        if message.type != Type.HELLO:
            if not self._greeted:
                return
            if message.epoch != self._peer.epoch:
                self._send_fault(_stale(message.epoch, self._peer.epoch))
                return
        try:
            handler(message)
        except AgentFault as fault:
            self._send_fault(fault)
        except StoreError as error:
            self._send_fault(AgentFault("harness", error.code, str(error)))
        except OSError as error:
            self._send_fault(_disk(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._send_fault(
                AgentFault("harness", "bad-request", "can't read the request: %r" % error)
            )

    # One method a type of message.

    def _ignore(self, message: Message) -> None:
        del message

    def _hello(self, message: Message) -> None:
        known = self._store.epoch()
        if message.epoch < known:
            self._peer.epoch = message.epoch
            self._send_fault(_stale(message.epoch, known))
            raise _End(3)
        hello = json.loads(message.payload)
        self._peer.epoch = message.epoch
        _take_over(self._store)
        self._store.set_epoch(message.epoch)
        self._launcher.seed_hash = hello.get("time_kind") == "virtual"
        self._greeted = True
        self._peer.lost = 0
        self._send_json(
            Type.WELCOME,
            {
                "protocol": PROTOCOL,
                "agent": self._agent,
                "python": facts.python_version(),
                "boot_id": facts.boot_id(),
                "caps": {"kinds": list(KINDS), "isolation": ["spawn", "fork"]},
                "identity": facts.identity(),
                "health": facts.health(),
            },
        )

    def _have(self, message: Message) -> None:
        offer = json.loads(message.payload)
        sha, size = check_sha(offer["sha256"]), int(offer["size"])
        if self._store.has(sha):
            self._send_json(Type.STORED, {"sha256": sha})
            return
        offset = self._store.offset(sha, size)
        self._expected[sha] = size
        if offset == size:
            self._finish(sha)
        else:
            self._send_json(Type.NEED, {"sha256": sha, "offset": offset})

    def _chunk(self, message: Message) -> None:
        payload = message.payload
        sha = payload[:32].hex()
        if sha not in self._expected:
            return
        offset = int.from_bytes(payload[32:40], "little")
        data = payload[40:]
        if message.flags & PACKED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, MAX_MESSAGE)
        try:
            have = self._store.append(sha, offset, data)
        except (OSError, StoreError):
            del self._expected[sha]
            raise
        if have >= self._expected[sha]:
            self._finish(sha)

    def _finish(self, sha: str) -> None:
        del self._expected[sha]
        if self._store.finish(sha):
            self._send_json(Type.STORED, {"sha256": sha})
        else:
            self._send_fault(
                AgentFault(
                    "board", "blob-corrupt", "the bytes of %s... differ" % sha[:12], transient=True
                ),
                sha256=sha,
            )

    def _need(self, message: Message) -> None:
        """Send a file that a worker left, in chunks from the offset that the host names."""
        wanted = json.loads(message.payload)
        sha = check_sha(wanted["sha256"])
        with open(self._store.path(sha), "rb") as stream:
            offset = stream.seek(int(wanted["offset"]))
            while True:
                data = stream.read(_CHUNK)
                if not data:
                    return
                self._send(Type.CHUNK, bytes.fromhex(sha) + offset.to_bytes(8, "little") + data)
                offset += len(data)

    def _ping(self, message: Message) -> None:
        self._send(Type.PONG, message.payload)

    def _bye(self, message: Message) -> None:
        del message
        self._send(Type.BYE, b"")
        raise _End(0)

    def _run(self, message: Message) -> None:
        request = json.loads(message.payload)
        job_id, spec = str(request["job_id"]), request["spec"]
        if job_id not in self._answers:
            while len(self._answers) >= _KEPT_RESULTS:
                self._answers.popitem(last=False)
            self._answers[job_id] = self._job(job_id, spec)
        answer = self._answers[job_id]
        for kind, payload in answer.messages:
            self._send(kind, payload)
        if answer.transient:
            del self._answers[job_id]

    # One job.

    def _job(self, job_id: str, spec: Mapping[str, Any]) -> Answer:
        messages: List[Tuple[int, bytes]] = []
        fault: Optional[AgentFault] = None
        summary: Dict[str, Any] = {"job_id": job_id}
        evidence: Dict[str, Any] = {"clock": "perf_counter_ns", "processes": []}
        summary["health"] = [dict(facts.health(), phase="before")]
        summary["evidence"] = evidence
        try:
            orders = self._orders(spec)
            processes = spec["plan"]["processes"] if spec["kind"] in ("latency", "faults") else 1
            for process in range(processes):
                self._send_json(Type.STARTED, {"job_id": job_id, "process": process})
                head, arrays = self._measure(orders, spec)
                for about, raw in arrays:
                    messages.extend(_samples(dict(about, process=process), raw))
                self._merge(summary, head)
        except AgentFault as error:
            fault = error
        except OSError as error:
            fault = _disk(error)
        summary["health"].append(dict(facts.health(), phase="after"))
        evidence["python"] = facts.python_version()
        if fault is None:
            messages.append((Type.RESULT, json.dumps(summary).encode()))
            return Answer(messages, transient=False)
        evidence.update(fault.evidence)
        summary["fault"] = fault.to_json()
        return Answer([(Type.FAULT, json.dumps(summary).encode())], fault.transient)

    def _orders(self, spec: Mapping[str, Any]) -> Dict[str, Any]:
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
        if spec["runtime"] == "fault" and spec["kind"] != "faults":
            raise AgentFault("config", "unknown-runtime", "runtime 'fault' is for faults jobs only")
        _check_power(spec["power_mode"])
        work = self._store.fresh_work()
        orders: Dict[str, Any] = {
            "spec": spec,
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
    ) -> Tuple[Dict[str, Any], List[Tuple[Dict[str, Any], bytes]]]:
        """Run one process to its end and return what it found.

        Raises:
            AgentFault: it found nothing, and why.
        """
        try:
            os.unlink(orders["result"])
        except OSError:
            pass
        begin = time.monotonic_ns()
        deadline = time.monotonic() + float(spec["plan"]["deadline_s"])
        self._child = self._launcher.start(orders)
        try:
            end, cause = self._await(self._child, deadline)
        except AgentFault:
            self._launcher.forget_templates()
            raise
        except _End:
            self._child.kill()
            raise
        finally:
            self._child = None
        head: Optional[Dict[str, Any]] = None
        arrays: List[Tuple[Dict[str, Any], bytes]] = []
        if os.path.exists(orders["result"]):
            head, arrays = read_result(orders["result"])
        fault = verdict(end.status, cause, head, tail_of(orders["stderr"]))
        if fault is not None:
            fault.evidence.setdefault("process", dict((head or {}).get("process", {}), **end.usage))
            raise fault
        assert head is not None
        head["process"].update(end.usage, wall_ns=time.monotonic_ns() - begin)
        peak = int(end.usage["ru_maxrss_bytes"])
        about = {"quantity": "rss_bytes", "kind": "ru_maxrss", "warm": True}
        arrays.append((about, peak.to_bytes(8, "little")))
        if "logits" in head:
            sha, size = self._store.adopt(orders["output"])
            head["logits"].update(sha256=sha, size=size)
        return head, arrays

    def _await(self, child: Child, deadline: float) -> Tuple[Exit, Optional[str]]:
        """Sleep until the process has ended; kill it at its deadline or when the host cancels."""
        cause: Optional[str] = None
        later: List[Message] = []
        while True:
            left = None if cause else max(0.0, deadline - time.monotonic())
            ready = self._receive(left, child.fd)
            for message in self._queue:
                if message.type == Type.CANCEL and message.epoch == self._peer.epoch:
                    cause = cause or "cancelled"
                    child.kill()
                else:
                    later.append(message)
            heard = bool(self._queue)
            del self._queue[:]
            if ready:
                end = child.step()
                if end is not None:
                    self._queue.extend(later)
                    return end, cause
            elif not heard and cause is None:
                cause = "timeout"
                child.kill()

    def _merge(self, summary: Dict[str, Any], head: Mapping[str, Any]) -> None:
        evidence = summary["evidence"]
        evidence["processes"].append(head["process"])
        for key in ("runtime", "layers", "capability"):
            if key in head:
                evidence[key] = head[key]
        for key in ("agreement", "logits"):
            if key in head:
                summary[key] = _worse(summary.get(key), head[key])


def _worse(old: Optional[Dict[str, Any]], new: Dict[str, Any]) -> Dict[str, Any]:
    """Return the agreement that lies further off; of two processes' the report shows the worse."""
    if old is None or "max_abs" not in new or new["max_abs"] >= old["max_abs"]:
        return new
    return old


def _samples(about: Dict[str, Any], raw: bytes) -> List[Tuple[int, bytes]]:
    """Return SAMPLES messages: u16 length, JSON, int64 values; a long array goes in parts."""
    text = json.dumps(about).encode()
    head = len(text).to_bytes(2, "little") + text
    return [
        (int(Type.SAMPLES), head + raw[start : start + _SAMPLE_BYTES])
        for start in range(0, max(1, len(raw)), _SAMPLE_BYTES)
    ]


def _stale(given: int, known: int) -> AgentFault:
    return AgentFault(
        "harness",
        "stale-epoch",
        "the lease of epoch %d is over: the board has been lent under epoch %d" % (given, known),
        "acquire the board again",
    )


def _disk(error: OSError) -> AgentFault:
    return AgentFault(
        "board",
        "disk",
        "the board's disk: %s" % error,
        "free some room there, or mend it",
        transient=True,
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


def _take_over(store: Store) -> None:
    """Become the board's only agent; one of an older session that has not noticed yet is ended.

    Raises:
        AgentFault: the other one can't be ended.
    """
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        other = store.try_lock()
        if other is None:
            return
        if b"flatsat-agent" in (facts.read_text("/proc/%d/cmdline" % other) or "").encode():
            try:
                os.kill(other, number)
            except OSError:
                pass
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if store.try_lock() is None:
                return
            time.sleep(0.01)
    raise AgentFault(
        "board", "busy", "another agent holds this board and does not go", transient=True
    )


def run(fd_in: int, fd_out: int, store: Store, launcher: Launcher, agent: str) -> int:
    """Serve one session; returns the exit code."""
    supervisor = Supervisor(Line(fd_in, fd_out), store, launcher, agent)
    _die_with_parent(supervisor)
    return supervisor.serve()


def _die_with_parent(supervisor: Supervisor) -> None:
    """Have the kernel tell us when our parent ends: a line such as a tty shows no end of file.

    The signal also comes when only the thread that started us ends, so the handler looks first.
    """
    import ctypes

    signal.signal(signal.SIGUSR1, lambda _number, _frame: supervisor.orphaned())
    ctypes.CDLL(None).prctl(1, int(signal.SIGUSR1), 0, 0, 0)
    supervisor.orphaned()


def take_stdio() -> Tuple[int, int]:
    """Return private copies of standard input and output, and send stray prints to stderr."""
    fd_in, fd_out = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return fd_in, fd_out
