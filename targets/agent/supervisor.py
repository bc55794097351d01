"""The board's side of the wire: takes files and jobs, runs one worker at a time, gives verdicts.

Between STARTED and the end of the last window nothing is sent, and the supervisor sleeps in one
`poll`. It ends itself when the host is gone: at end of file, or after a time without any message
while no job runs (a job has its own deadline).
"""

from __future__ import annotations

import json
import os
import signal
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

from . import facts
from .faults import AgentFault
from .files import Files
from .frames import Message, Peer, Type
from .jobs import KINDS, Answer, Jobs, disk_fault
from .line import Line, SessionEnd
from .sites import SiteError
from .store import Store, StoreError

if TYPE_CHECKING:
    from .processes import Child, Exit, Launcher

PROTOCOL = 1
_KEPT_ANSWERS = 16
_KILLED_S = 3600.0
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """One session with one host.

    Args:
        line: the stream to the host.
        store: the board's folder.
        launcher: starts workers.
        agent: SHA-256 of the agent's archive.
        silence_s: how long the host may say nothing while no job runs.
    """

    def __init__(
        self, line: Line, store: Store, launcher: Launcher, agent: str, silence_s: float
    ) -> None:
        self._line = line
        self._store = store
        self._launcher = launcher
        self._agent = agent
        self._silence_s = silence_s
        self._jobs = Jobs(store, launcher, self._started, self._watch)
        self._files = Files(store, launcher, self._send)
        self._peer = Peer()
        self._greeted = False
        self._answers: Dict[str, Answer] = {}
        self._queue: List[Message] = []
        self._child: Optional[Child] = None
        self._parent = os.getppid()
        self._handlers: Dict[int, Callable[[Message], None]] = {
            Type.HELLO: self._hello,
            Type.HAVE: self._files.have,
            Type.CHUNK: self._files.chunk,
            Type.NEED: self._files.need,
            Type.INSTALL: self._files.install,
            Type.DECODE: self._files.decode,
            Type.RUN: self._run,
            Type.PING: self._ping,
            Type.BYE: self._bye,
        }

    def serve(self) -> int:
        """Answer the host until the session ends; return the exit code."""
        try:
            while True:
                self._receive(self._silence_s)
                if not self._queue:
                    raise SessionEnd(2)
                while self._queue:
                    self._handle(self._queue.pop(0))
        except SessionEnd as end:
            return end.code
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

    def _receive(self, timeout_s: float, other: Optional[int] = None) -> bool:
        """Sleep until a message is queued, `other` can be read (True), or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not self._queue:
            readable, ready = self._line.wait(max(0.0, deadline - time.monotonic()), other)
            if readable:
                self._queue.extend(self._peer.feed(self._line.read()))
                greeting = any(message.type == Type.HELLO for message in self._queue)
                if self._peer.lost and self._greeted and not greeting:
                    self._send_fault(
                        AgentFault("board", "frames-lost", "the line lost frames", transient=True)
                    )
                    raise SessionEnd(5)
            if ready:
                return True
            if not readable and time.monotonic() >= deadline:
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
        if handler is None or not (self._greeted or message.type == Type.HELLO):
            return
        if message.type != Type.HELLO and message.epoch != self._peer.epoch:
            self._send_fault(_stale(message.epoch, self._peer.epoch))
            return
        try:
            handler(message)
        except AgentFault as fault:
            self._send_fault(fault)
        except (StoreError, SiteError) as error:
            self._send_fault(AgentFault("harness", error.code, str(error)))
        except OSError as error:
            self._send_fault(disk_fault(error))
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            self._send_fault(
                AgentFault("harness", "bad-request", "can't read the request: %r" % error)
            )

    # One method a type of message.

    def _hello(self, message: Message) -> None:
        known = max(self._store.epoch(), self._peer.epoch)
        if message.epoch < known:
            self._peer.epoch = message.epoch
            self._send_fault(_stale(message.epoch, known))
            raise SessionEnd(3)
        hello = json.loads(message.payload)
        self._peer.epoch = message.epoch
        # Before anything is dated: files are dropped by age.
        facts.set_calendar(hello.get("calendar_s"))
        _take_over(self._store)
        self._store.set_epoch(message.epoch)
        self._store.prune()
        self._store.sites.sweep()
        self._launcher.seed_hash = hello.get("time_kind") == "virtual"
        self._greeted = True
        self._peer.lost = 0
        self._send_json(
            Type.WELCOME,
            {
                "protocol": PROTOCOL,
                "agent": self._agent,
                "pid": os.getpid(),
                "python": facts.python_version(),
                "arch": facts.python_arch(),
                "glibc": facts.glibc(),
                "sites": self._store.sites.names(),
                "boot_id": facts.boot_id(),
                "calendar_s": time.time(),
                "disk_free_bytes": self._store.free_bytes(),
                "caps": {"kinds": list(KINDS), "isolation": ["spawn", "fork"]},
                "identity": facts.identity(),
                "health": facts.health(),
            },
        )

    def _ping(self, message: Message) -> None:
        self._send(Type.PONG, message.payload)

    def _bye(self, message: Message) -> None:
        self._send(Type.BYE, message.payload)
        raise SessionEnd(0)

    def _run(self, message: Message) -> None:
        request = json.loads(message.payload)
        job_id = str(request["job_id"])
        answer = self._answers.get(job_id)
        if answer is None:
            answer = self._jobs.run(job_id, request["spec"], str(request.get("meter", "")))
            self._files.ran()
        if not answer.transient:
            self._answers[job_id] = answer
            while len(self._answers) > _KEPT_ANSWERS:
                del self._answers[next(iter(self._answers))]
        for kind, payload in answer.messages:
            self._send(kind, payload)

    def _started(self, about: Mapping[str, Any]) -> None:
        self._send_json(Type.STARTED, about)
        # On a line that repeats what got lost, nothing may be left to repeat in the window.
        self._line.settle()

    def _watch(self, child: Child, deadline: float) -> Tuple[Exit, Optional[str]]:
        """Sleep until the process has ended; kill it at its deadline or when the host cancels."""
        self._child = child
        cause: Optional[str] = None
        later: List[Message] = []
        try:
            while True:
                left = _KILLED_S if cause else max(0.0, deadline - time.monotonic())
                ready = self._receive(left, child.fd)
                heard, self._queue[:] = list(self._queue), []
                for message in heard:
                    if message.type == Type.CANCEL and message.epoch == self._peer.epoch:
                        cause = cause or "cancelled"
                        child.kill()
                    else:
                        later.append(message)
                if ready:
                    end = child.step()
                    if end is not None:
                        self._child = None
                        return end, cause
                elif not heard and cause is None:
                    cause = "timeout"
                    child.kill()
        finally:
            self._queue[:0] = later


def _stale(given: int, known: int) -> AgentFault:
    return AgentFault(
        "harness",
        "stale-epoch",
        "the lease of epoch %d is over: the board has been lent under epoch %d" % (given, known),
        "acquire the board again",
    )


def _take_over(store: Store) -> None:
    """Become the board's only agent; one of an older session that has not noticed yet is ended.

    Raises:
        AgentFault: the other one can't be ended.
    """
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience_s
        other = store.try_lock()
        if other and "flatsat-agent" in (facts.read_text("/proc/%d/cmdline" % other) or ""):
            os.kill(other, number)
        while other is not None and time.monotonic() < deadline:
            time.sleep(0.01)
            other = store.try_lock()
        if other is None:
            return
    raise AgentFault(
        "board", "busy", "another agent holds this board and does not go", transient=True
    )


def serve(supervisor: Supervisor) -> int:
    """Serve one session and return the exit code; end with the parent process.

    A line such as a tty shows no end of file, so the kernel is asked to tell of the parent's end.
    It also tells when only the thread that started us ends: the handler looks first.
    """
    import ctypes

    signal.signal(signal.SIGUSR1, lambda _number, _frame: supervisor.orphaned())
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1), 0, 0, 0)
    supervisor.orphaned()
    return supervisor.serve()
