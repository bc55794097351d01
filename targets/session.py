"""The host's side of the wire protocol, over any link."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import zlib
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flatsat.canonical import sha256_bytes, sha256_file
from flatsat.errors import DataError
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import (
    AgreementResult,
    Failed,
    Fault,
    Health,
    Inconclusive,
    Logits,
    Measured,
    Outcome,
    Owner,
    Samples,
)
from flatsat.targets.agent.frames import PACKED, Message, Peer, Type
from flatsat.targets.board import BoardIdentity, BoardRefused, Lease, LinkDown
from flatsat.targets.cores import completed
from flatsat.targets.health import degraded, health_from_json
from flatsat.targets.links import Link, LinkTimeout
from flatsat.targets.provisioning import Provisioning
from flatsat.targets.wheels import NATIVE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from flatsat.targets.wheels import Site, SiteProvider
    from flatsat.units import TimeKind

PROTOCOL = 1
_OPEN_S = 60.0
_ANSWER_S = 30.0
_GRACE_S = 30.0
_UNPACK_S = 900.0
_DECODE_S = 300.0
_PING_S = 10.0
_SLOWEST_BYTES_PER_S = 8_000
_CHUNK = 60 << 10
_PACK_ZEROS = 16
_MULTI_PROCESS = (JobKind.LATENCY, JobKind.FAULTS)


class AgentSession:
    """A board in use, through the agent at the other end of a link. Made by `open_session`."""

    def __init__(
        self,
        link: Link,
        lease: Lease,
        time_kind: TimeKind,
        grace_s: float,
        sites: SiteProvider | None = None,
    ) -> None:
        self._link = link
        self._grace_s = grace_s
        self._provisioning = Provisioning(sites)
        self._decoded: dict[str, Mapping[str, object]] = {}
        self._peer = Peer(lease.epoch)
        self._time_kind = time_kind
        self._inbox: list[Message] = []
        self._lock = asyncio.Lock()
        self._down: LinkDown | None = None
        self._pinger: asyncio.Task[None] | None = None
        self.identity = BoardIdentity("", lease.board, "")
        self.health = Health("open")
        self.welcome: Mapping[str, Any] = {}

    @property
    def link(self) -> Link:
        """What carries its bytes."""
        return self._link

    # Opening and closing.

    async def greet(
        self, name: str, kind: str, facts: Mapping[str, object], set_calendar: bool
    ) -> None:
        """Exchange HELLO and WELCOME, and start to keep the agent alive."""
        await self._link.open(_OPEN_S)
        hello = {"protocol": PROTOCOL, "time_kind": self._time_kind.value}
        calendar = {"calendar_s": time.time()} if set_calendar else {}
        await self._send(Type.HELLO, {**hello, **calendar})
        self.welcome = _json(await self._expect(Type.WELCOME, _OPEN_S))
        if self.welcome.get("protocol") != PROTOCOL:
            raise self._broken("the agent speaks another version of the protocol")
        told = {**self.welcome["identity"], **facts}
        self.identity = BoardIdentity.from_facts(name, kind, told)
        self.health = health_from_json(self.welcome["health"], "open")
        self._pinger = asyncio.create_task(self._keep_alive())

    async def _keep_alive(self) -> None:
        """Send a sign of life while the line is idle; never while a job runs."""
        while self._down is None:
            await asyncio.sleep(_PING_S)
            if self._lock.locked():
                continue
            async with self._turn():
                with contextlib.suppress(LinkDown):
                    await self._send(Type.PING, {})
                    await self._expect(Type.PONG, _ANSWER_S)

    async def close(self) -> None:
        """Say goodbye and end the link; never raises for one that is already gone."""
        if self._pinger is not None:
            self._pinger.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pinger
        if self._down is None:
            with contextlib.suppress(LinkDown):
                await self._send(Type.BYE, {})
        self._down = self._down or LinkDown("the session is closed")
        await self._link.close()

    # Files.

    async def put(self, sha256: str, source: Path, coded: tuple[str, Path] | None = None) -> None:
        """Have a file on the board, going on where an earlier transfer broke off.

        If there is a coded form, that is sent and decoded there; a board that can't do that gets
        the file itself.
        """
        if coded is not None and await self._decoded_there(sha256, *coded):
            return
        async with self._turn():
            size = _size_of(source)
            for attempt in (1, 2):
                await self._send(Type.HAVE, {"sha256": sha256, "size": size})
                try:
                    await self._transfer(sha256, source, size)
                except BoardRefused as error:
                    if error.fault.code != "blob-corrupt":
                        raise
                    if sha256_file(source) != sha256:
                        raise DataError(
                            f"{source} is not the file it was: its hash is not {sha256[:12]}..."
                        ) from error
                    if attempt == 2:
                        raise
                else:
                    return

    async def _decoded_there(self, sha256: str, coded_sha256: str, coded: Path) -> bool:
        # The compiled coder; without it the agent's Python decodes what is small.
        await self._provisioning.provide(NATIVE, self)
        try:
            try:
                told = await self._ask_to_decode(sha256, coded_sha256)
            except BoardRefused as error:
                if error.fault.code != "no-blob":
                    raise
                await self.put(coded_sha256, coded)
                told = await self._ask_to_decode(sha256, coded_sha256)
        except BoardRefused as error:
            if error.fault.code != "no-decoder":
                raise
            return False
        if "by" in told:
            self._decoded[sha256] = {
                "size_bytes": _size_of(coded),
                "decode_ns": int(told["decode_ns"]),
                "by": str(told["by"]),
            }
        return True

    async def _ask_to_decode(self, sha256: str, coded_sha256: str) -> dict[str, Any]:
        async with self._turn():
            await self._send(Type.DECODE, {"sha256": sha256, "coded": coded_sha256})
            return _json(await self._expect(Type.DECODED, _DECODE_S))

    async def _transfer(self, sha256: str, source: Path, size: int) -> None:
        answer = await self._expect_one_of((Type.STORED, Type.NEED), _ANSWER_S)
        if answer.type == Type.STORED:
            return
        offset = int(_json(answer)["offset"])
        with source.open("rb") as stream:
            stream.seek(offset)
            while data := stream.read(_CHUNK):
                head = bytes.fromhex(sha256) + offset.to_bytes(8, "little")
                # Zero bytes cost the framing most, and say that the data can be packed: float
                # images and pruned weights are full of them, trained weights are not.
                if data.count(0) > len(data) // _PACK_ZEROS:
                    await self._send_bytes(Type.CHUNK, head + zlib.compress(data, 1), PACKED)
                else:
                    await self._send_bytes(Type.CHUNK, head + data)
                offset += len(data)
        await self._expect(Type.STORED, _ANSWER_S + size / _SLOWEST_BYTES_PER_S)

    async def _fetch(self, sha256: str, size: int) -> bytes:
        """Return a file that a worker left on the board; its bytes must give its name."""
        await self._send(Type.NEED, {"sha256": sha256, "offset": 0})
        data = bytearray()
        while len(data) < size:
            chunk = await self._expect(Type.CHUNK, _ANSWER_S)
            if int.from_bytes(chunk.payload[32:40], "little") != len(data):
                raise self._broken("the agent sent chunks out of order")
            data += chunk.payload[40:]
        if sha256_bytes(bytes(data)) != sha256:
            raise self._broken("the bytes that came are not those that the agent announced")
        return bytes(data)

    # Runtimes.

    async def install(self, site: Site) -> None:
        """Have a runtime on the board and let jobs use it; its wheels go over if it is not there.

        Raises:
            LinkDown: the link or the agent is gone; asking again goes on where this broke off.
            BoardRefused: the board can't take it, for example because its disk is full.
            DataError: a wheel is not what it was.
        """
        wheels = dict(zip(site.sha256, site.wheels, strict=True))
        try:
            await self._ask_to_install(site.runtime, site.name, wheels)
        except BoardRefused as error:
            if error.fault.code != "no-blob":
                raise
            for sha256, path in wheels.items():
                await self.put(sha256, path)
            await self._ask_to_install(site.runtime, site.name, wheels)

    async def use_installed(self, runtime: str, name: str) -> None:
        """Let jobs use a site that is on the board. Raises LinkDown or BoardRefused."""
        await self._ask_to_install(runtime, name, {})

    async def _ask_to_install(self, runtime: str, name: str, wheels: Mapping[str, Path]) -> None:
        files = [{"sha256": sha256, "file": path.name} for sha256, path in wheels.items()]
        async with self._turn():
            await self._send(Type.INSTALL, {"runtime": runtime, "name": name, "wheels": files})
            await self._expect(Type.INSTALLED, _UNPACK_S)

    # Jobs.

    async def run(self, job_id: str, spec: JobSpec, *, meter: str = "") -> Outcome:
        """Do a job, after its runtime was provided; return what became of it.

        `meter` names what counts events around this board; without one, energy jobs are refused.
        """
        unprovided = await self._provisioning.provide(spec.runtime, self)
        if unprovided is not None:
            return Failed(unprovided)
        processes = spec.plan.processes if spec.kind in _MULTI_PROCESS else 1
        deadline = time.monotonic() + processes * (spec.plan.deadline_s + self._grace_s)
        async with self._turn():
            request = {"job_id": job_id, "spec": spec.to_json(), "meter": meter}
            await self._send(Type.RUN, request)
            parts: dict[tuple[int, str, str, bool], array[int]] = {}
            cancelled = False
            while True:
                try:
                    message = await self._next(deadline - time.monotonic())
                except LinkTimeout as error:
                    if cancelled:
                        self._down = error
                        raise
                    # Its own clock may be slow or stopped: ask it, then give it one more grace.
                    cancelled = True
                    await self._send(Type.CANCEL, {"job_id": job_id})
                    deadline = time.monotonic() + self._grace_s
                    continue
                if message.type == Type.SAMPLES:
                    self._collect(parts, message.payload)
                elif message.type in (Type.RESULT, Type.FAULT):
                    outcome = await self._outcome(_json(message), parts, cancelled)
                    if spec.artifact in self._decoded:
                        told = {**outcome.evidence, "coded": self._decoded[spec.artifact]}
                        return replace(outcome, evidence=told)
                    return outcome

    def _collect(self, parts: dict[tuple[int, str, str, bool], array[int]], payload: bytes) -> None:
        head = int.from_bytes(payload[:2], "little")
        about = json.loads(payload[2 : 2 + head])
        kind = self._time_kind.value if about["kind"] == "clock" else about["kind"]
        key = (int(about["process"]), str(about["quantity"]), str(kind), bool(about["warm"]))
        parts.setdefault(key, array("q")).frombytes(payload[2 + head :])

    async def _outcome(
        self,
        summary: Mapping[str, Any],
        parts: Mapping[tuple[int, str, str, bool], array[int]],
        cancelled: bool,
    ) -> Outcome:
        states = tuple(health_from_json(state) for state in summary.get("health", ()))
        evidence = self._evidence(summary)
        if "fault" in summary:
            fault = _fault(summary["fault"])
            if cancelled and fault.code == "cancelled":
                fault = Fault(
                    Owner.CANDIDATE,
                    False,
                    "timeout",
                    "it did not finish within its deadline on the host's clock and was killed",
                    "raise plan.deadline_s if it is only slow",
                )
            return Failed(fault, states, evidence)
        samples = tuple(
            Samples(quantity, kind, process, warm, tuple(values))
            for (process, quantity, kind, warm), values in parts.items()
        )
        why = degraded(states[0], states[-1]) if states else None
        if why is not None:
            return Inconclusive(why, samples, states, evidence)
        agreement = summary.get("agreement")
        return Measured(
            samples,
            None if agreement is None else AgreementResult(**agreement),
            await self._logits(summary.get("logits")),
            states,
            evidence,
        )

    async def _logits(self, about: Mapping[str, Any] | None) -> Logits | None:
        if about is None:
            return None
        data = await self._fetch(about["sha256"], int(about["size"]))
        return Logits(str(about["dtype"]), tuple(about["shape"]), data)

    def _evidence(self, summary: Mapping[str, Any]) -> dict[str, object]:
        facts = self.identity.facts
        states = {state["phase"]: state for state in summary.get("health", ())}
        kept = ("cpu_model", "arch", "cores", "memory_bytes", "os", "kernel")
        evidence: dict[str, object] = dict(summary.get("evidence", {}))
        evidence["environment"] = {
            **{key: facts.get(key) for key in kept},
            "python": evidence.pop("python", None),
            "numpy": evidence.pop("numpy", None),
            "runtime": evidence.get("runtime"),
            "before": states.get("before"),
            "after": states.get("after"),
        }
        evidence["agent"] = self.welcome["agent"]
        if isinstance(found := evidence.get("capability"), dict):
            evidence["capability"] = completed(found, facts, self._time_kind)
        return evidence

    # Messages.

    def _broken(self, message: str) -> LinkDown:
        self._down = self._down or LinkDown(message, hint="open the board again")
        return self._down

    async def _send(self, kind: Type, value: Mapping[str, object]) -> None:
        await self._send_bytes(kind, json.dumps(value).encode())

    async def _send_bytes(self, kind: Type, payload: bytes, flags: int = 0) -> None:
        if self._down is not None:
            raise self._down
        try:
            await self._link.write(self._peer.pack(kind, payload, flags), _ANSWER_S)
        except LinkDown as error:
            self._down = error
            raise

    async def _next(self, deadline_s: float) -> Message:
        """Return the next message.

        Raises:
            LinkTimeout: nothing came in time; the link may still be good.
            LinkDown: the link is gone.
        """
        if self._down is not None:
            raise self._down
        deadline = time.monotonic() + deadline_s
        while not self._inbox:
            try:
                data = await self._link.read(max(0.0, deadline - time.monotonic()))
            except LinkTimeout:
                raise
            except LinkDown as error:
                self._down = error
                raise
            self._inbox.extend(self._peer.feed(data))
            if self._peer.lost:
                raise self._broken("the line lost frames")
        return self._inbox.pop(0)

    async def _expect(self, kind: Type, deadline_s: float) -> Message:
        return await self._expect_one_of((kind,), deadline_s)

    async def _expect_one_of(self, kinds: tuple[Type, ...], deadline_s: float) -> Message:
        """Return the next message of these types; others that may come late are passed over.

        Raises:
            BoardRefused: the agent answered with a fault.
            LinkDown: the link is gone, or nothing came in time.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                message = await self._next(max(0.0, deadline - time.monotonic()))
            except LinkTimeout as error:
                self._down = error
                raise
            if message.type in kinds:
                return message
            if message.type == Type.FAULT:
                raise BoardRefused(_fault(_json(message)["fault"]))

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold the line for one call; a call that is cancelled leaves it in no state to go on."""
        async with self._lock:
            try:
                yield
            except asyncio.CancelledError:
                self._broken("a call on this session was cancelled")
                raise


def _json(message: Message) -> dict[str, Any]:
    try:
        value = json.loads(message.payload)
    except ValueError as error:
        raise LinkDown(f"the agent sent a message {message.type} that is no JSON") from error
    if not isinstance(value, dict):
        raise LinkDown(f"the agent sent a message {message.type} that is no JSON object")
    return value


def _fault(value: Mapping[str, Any]) -> Fault:
    return Fault(
        Owner(value["owner"]),
        bool(value["transient"]),
        str(value["code"]),
        str(value["message"]),
        str(value.get("hint", "")),
    )


def _size_of(source: Path) -> int:
    try:
        return source.stat().st_size
    except OSError as error:
        raise DataError(f"can't read {source}: {error.strerror}") from error


async def open_session(
    link: Link,
    lease: Lease,
    *,
    kind: str,
    time_kind: TimeKind,
    grace_s: float = _GRACE_S,
    facts: Mapping[str, object] | None = None,
    sites: SiteProvider | None = None,
    set_calendar: bool = False,
) -> AgentSession:
    """Start the agent behind `link`, greet it under the lease, and return the session.

    Args:
        link: not yet open.
        lease: names the board and its epoch.
        kind: of the board.
        time_kind: what the board's durations mean.
        grace_s: how long each process of a job may take beyond its own deadline, on the host's
            clock. Then the agent is told to cancel the job, and given up after as long again.
        facts: what this side knows of the board and its agent can't, such as the emulator's
            version; part of the board's identity where `IDENTITY_FIELDS` lists it.
        sites: gives the board the runtimes that jobs need; None leaves that to its own Python.
        set_calendar: set the board's calendar clock by this machine's, for a board that has lost
            track of the date; its other clocks are left alone.

    Raises:
        LinkDown: the agent does not start or does not answer.
        BoardRefused: the lease is over, or another agent holds the board.
    """
    session = AgentSession(link, lease, time_kind, grace_s, sites)
    try:
        await session.greet(lease.board, kind, facts or {}, set_calendar)
    except BaseException:
        await link.close()
        raise
    return session
