"""How the supervisor starts worker processes, watches them and learns how they ended."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence

from .faults import AgentFault, one_line
from .result import LENGTH, usage_json
from .verdict import tail_of

# Without the garbage collector NumPy's import is a tenth shorter; a worker never turns it on.
_BOOT = (
    "import gc,sys;gc.disable();p=sys.argv[1].split('\\n');sys.path[:1]=p[:1];sys.path+=p[1:];"
    "from flatsat_agent.worker import %s;%s"
)
_TEMPLATE_S = 120.0
_BORROWERS = ("fault", "sparse-c")
"""Runtimes that may come without NumPy, which lies in the folders of most others."""
_KEPT = ("LD_LIBRARY_PATH", "LD_PRELOAD", "TMPDIR")
"""What a worker on a clock that counts instructions is told of its environment."""


class Exit(NamedTuple):
    """How a process ended: its wait status, and what the kernel counted for it."""

    status: int
    usage: Dict[str, Any]


class Child(Protocol):
    """A running worker; `fd` becomes readable when there is something to learn by `step`."""

    fd: int

    def step(self) -> Optional[Exit]:
        """Read what `fd` has to say; return how the process ended, once it has."""

    def kill(self) -> None:
        """End it, and whatever it started, at once."""


def _spawn(python: str, argv: Sequence[str], order_fd: int, stderr: str, seed_hash: bool) -> int:
    """Start an interpreter without site packages' start-up hooks and return its process id."""
    if seed_hash:
        # Its length moves the stack: a link must not show in the counted instructions.
        environment = {k: os.environ[k] for k in _KEPT if k in os.environ}
    else:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    # NumPy's own thread pool is of no use to a worker and would only take memory.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    if seed_hash:
        environment["PYTHONHASHSEED"] = "0"
    log = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        return os.posix_spawn(
            python,
            [python, "-S", "-s", "-c", *argv],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, order_fd, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setpgroup=0,
        )
    finally:
        os.close(log)


def _write_order(fd: int, order: Mapping[str, Any]) -> None:
    data = json.dumps(order).encode()
    data = LENGTH.pack(len(data)) + data
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        # It has ended already; its exit tells why.
        pass


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


class _Spawned:
    """A worker in an interpreter of its own; the end of a pipe that only it holds is its end."""

    def __init__(self, launcher: Launcher, order: Mapping[str, Any]) -> None:
        order_read, order_write = os.pipe()
        self.fd, alive = os.pipe()
        os.set_inheritable(alive, True)
        argv = [_BOOT % ("main", "main()"), launcher.path_of(order["spec"]["runtime"])]
        try:
            self._pid = _spawn(
                launcher.python, argv, order_read, order["stderr"], launcher.seed_hash
            )
        finally:
            os.close(order_read)
            os.close(alive)
        _write_order(order_write, order)
        os.close(order_write)

    def step(self) -> Optional[Exit]:
        if os.read(self.fd, 4096):
            return None
        os.close(self.fd)
        # A process that closed the pipe and still lives has left our control: it is killed with
        # whatever else is in its group, a moment after a sane one is gone.
        return self._reap(5.0)

    def _reap(self, patience_s: float) -> Exit:
        deadline = time.monotonic() + patience_s
        while True:
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                _kill_group(self._pid)
                _, status, usage = os.wait4(self._pid, 0)
                break
            time.sleep(0.0005)
        return Exit(status, usage_json(usage))

    def kill(self) -> None:
        _kill_group(self._pid)


class _Template:
    """A process with one runtime imported that copies itself for every order."""

    def __init__(self, launcher: Launcher, runtime: str, stderr: str) -> None:
        order_read, self._orders = os.pipe()
        self.fd, report = os.pipe()
        os.set_inheritable(report, True)
        argv = [
            _BOOT % ("serve", "serve(sys.argv[2],*map(int,sys.argv[3:]))"),
            launcher.path_of(runtime),
            runtime,
            str(report),
            str(os.getpid()),
        ]
        try:
            self._pid = _spawn(launcher.python, argv, order_read, stderr, launcher.seed_hash)
        finally:
            os.close(order_read)
            os.close(report)
        self._buffer = b""
        first = self._first_line(time.monotonic() + _TEMPLATE_S)
        if "ready" not in first:
            self.close()
            fault = first.get("fault")
            if fault is not None:
                raise AgentFault(fault["owner"], fault["code"], fault["message"], fault["hint"])
            raise AgentFault(
                "board",
                "no-template",
                "the process to fork from did not come up: " + one_line(tail_of(stderr)),
                'use isolation = "spawn"',
            )

    def _first_line(self, deadline: float) -> Dict[str, Any]:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                return {}
            lines = self.read()
            if lines is None:
                return {}
            if lines:
                return lines[0]

    def read(self) -> Optional[List[Dict[str, Any]]]:
        """Return the complete lines that have come, or None once the template has ended."""
        data = os.read(self.fd, 65536)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def order(self, order: Mapping[str, Any]) -> None:
        _write_order(self._orders, order)

    def close(self) -> None:
        _kill_group(self._pid)
        os.close(self._orders)
        os.close(self.fd)
        os.waitpid(self._pid, 0)


class _Forked:
    """A copy of a template; the template waits for it and reports."""

    def __init__(self, template: _Template, order: Mapping[str, Any]) -> None:
        self.fd = template.fd
        self._template = template
        self._pid: Optional[int] = None
        self._kill_wanted = False
        template.order(order)

    def step(self) -> Optional[Exit]:
        lines = self._template.read()
        if lines is None:
            raise AgentFault(
                "board", "template-died", "the process to fork from is gone", transient=True
            )
        for line in lines:
            if "pid" in line:
                self._pid = int(line["pid"])
                if self._kill_wanted:
                    _kill_group(self._pid)
            else:
                status = int(line.pop("status"))
                return Exit(status, line)
        return None

    def kill(self) -> None:
        self._kill_wanted = True
        if self._pid is not None:
            _kill_group(self._pid)


class Launcher:
    """Starts workers as a plan's isolation asks.

    Args:
        code: the folder that holds the package `flatsat_agent`.
        sites: per runtime, a folder that its modules lie in; it goes before the interpreter's own.
        seed_hash: fix Python's hash seed, for boards whose clock counts instructions.
    """

    def __init__(self, code: str, sites: Mapping[str, str], seed_hash: bool = False) -> None:
        self.python = sys.executable
        self.seed_hash = seed_hash
        self._code = code
        self._sites = dict(sites)
        self._templates: Dict[str, _Template] = {}

    def path_of(self, runtime: str) -> str:
        """Return the worker's module path beyond the standard library, a line each."""
        site = self._sites.get(runtime)
        own = [] if site is None else [site]
        standard = os.path.dirname(os.__file__)
        beyond = [
            entry
            for entry in sys.path
            if os.path.isdir(entry)
            and (not entry.startswith(standard) or entry.endswith("-packages"))
            and entry != self._code
        ]
        return "\n".join([self._code, *own, *beyond, *self._borrowed(runtime)])

    def _borrowed(self, runtime: str) -> List[str]:
        """Return the folder that a runtime without NumPy of its own finds it in, if need be."""
        if runtime not in _BORROWERS:
            return []
        folders = [self._sites[name] for name in self._sites if name != runtime]
        return [each for each in folders if os.path.isdir(os.path.join(each, "numpy"))][:1]

    def start(self, order: Mapping[str, Any]) -> Child:
        """Start a worker on one order.

        Raises:
            AgentFault: it can't be started.
        """
        isolation = order["spec"]["plan"].get("isolation", "spawn")
        try:
            if isolation == "spawn":
                return _Spawned(self, order)
            if isolation == "fork":
                return _Forked(self._template(order), order)
        except OSError as error:
            raise AgentFault(
                "board", "no-process", "can't start a worker: %s" % error, transient=True
            ) from error
        raise AgentFault(
            "config",
            "isolation",
            "no isolation is called %r" % isolation,
            'known: "spawn", "fork"',
        )

    def _template(self, order: Mapping[str, Any]) -> _Template:
        runtime = order["spec"]["runtime"]
        if runtime not in self._templates:
            self._templates[runtime] = _Template(self, runtime, order["stderr"] + ".template")
        return self._templates[runtime]

    def use_site(self, runtime: str, folder: str) -> None:
        """Let a runtime's modules be found in `folder` from now on."""
        if self._sites.get(runtime) != folder:
            self._sites[runtime] = folder
            template = self._templates.pop(runtime, None)
            if template is not None:
                template.close()

    def folders(self) -> List[str]:
        """Return the folders that runtimes' modules lie in."""
        return list(self._sites.values())

    def forget_templates(self) -> None:
        """End the templates; the next fork starts a new one."""
        for template in self._templates.values():
            template.close()
        self._templates.clear()
