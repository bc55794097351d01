"""What the host sends and fetches: blobs by their hash, and runtimes unpacked from them.

When space is short, what was longest unused goes first: transfers that nobody goes on with, then
blobs, then runtimes; never what the host has offered since its last job, or uses.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Set, Tuple

from . import sites
from .faults import AgentFault
from .frames import MAX_MESSAGE, PACKED, Message, Type
from .store import StoreError, check_sha

if TYPE_CHECKING:
    from .processes import Launcher
    from .store import Store

_CHUNK = 32 << 10
_SPARE_BYTES = 16 << 20


class Files:
    """The files of one session.

    Args:
        store: the board's folder.
        launcher: is told which site a runtime has.
        send: sends a message of a type with a payload.
    """

    def __init__(
        self, store: Store, launcher: Launcher, send: Callable[[int, bytes], None]
    ) -> None:
        self._store = store
        self._launcher = launcher
        self._send = send
        self._expected: Dict[str, int] = {}
        self._offered: Set[str] = set()

    def ran(self) -> None:
        """Take note that a job has ended: what was offered for it may go when space is short."""
        self._offered.clear()

    def _send_json(self, kind: int, value: Dict[str, Any]) -> None:
        self._send(kind, json.dumps(value).encode())

    def have(self, message: Message) -> None:
        """Answer an offer with STORED, or with NEED and the offset to go on from."""
        offer = json.loads(message.payload)
        sha, size = check_sha(offer["sha256"]), int(offer["size"])
        self._offered.add(sha)
        if self._store.has(sha):
            self._send_json(Type.STORED, {"sha256": sha})
            return
        offset = self._store.offset(sha, size)
        self._make_room(size - offset, "a file of %d bytes" % size)
        self._expected[sha] = size
        if offset == size:
            self._finish(sha)
        else:
            self._send_json(Type.NEED, {"sha256": sha, "offset": offset})

    def _make_room(self, size: int, what: str) -> None:
        """Drop what was longest unused until `size` bytes fit.

        Raises:
            AgentFault: (board, "disk-full") they don't, whatever goes.
        """
        store, needed = self._store, size + _SPARE_BYTES
        used = store.sites.names_of(self._launcher.folders())
        free = store.free_bytes()
        if free >= needed:
            return
        free += store.droppable_bytes(self._offered)
        free += store.sites.droppable_bytes(used)
        # What can't help stays.
        if free >= needed:
            store.drop_oldest(needed, self._offered)
            store.sites.drop_oldest(needed, used, store.free_bytes)
        if store.free_bytes() < needed:
            raise AgentFault(
                "board",
                "disk-full",
                "no room for %s in %s" % (what, store.root),
                "free some room there",
            )

    def chunk(self, message: Message) -> None:
        """Add a piece to a transfer that was asked for; others are passed over."""
        sha = message.payload[:32].hex()
        if sha not in self._expected:
            return
        offset = int.from_bytes(message.payload[32:40], "little")
        data = message.payload[40:]
        try:
            if message.flags & PACKED:
                data = zlib.decompressobj().decompress(data, MAX_MESSAGE)
            have = self._store.append(sha, offset, data)
        except (OSError, StoreError, zlib.error):
            # The rest of this transfer is on its way: it is passed over, the host told once.
            del self._expected[sha]
            raise
        if have >= self._expected[sha]:
            self._finish(sha)

    def _finish(self, sha: str) -> None:
        del self._expected[sha]
        if not self._store.finish(sha):
            raise AgentFault(
                "board", "blob-corrupt", "the bytes of %s... differ" % sha[:12], transient=True
            )
        self._send_json(Type.STORED, {"sha256": sha})

    def need(self, message: Message) -> None:
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

    def install(self, message: Message) -> None:
        """Have a runtime's site, unpacked from wheels unless it is here, and use it from now on.

        The wheels' blobs go once they are unpacked.
        """
        order = json.loads(message.payload)
        runtime, name = str(order["runtime"]), sites.check_name(order["name"])
        wheels = [(str(wheel["file"]), check_sha(wheel["sha256"])) for wheel in order["wheels"]]
        shelf = self._store.sites
        if not shelf.has(name):
            self._unpack(name, runtime, wheels)
        shelf.touch(name)
        self._launcher.use_site(runtime, shelf.path(name))
        self._send_json(Type.INSTALLED, {"name": name})

    def decode(self, message: Message) -> None:
        """Have a file that was sent in coded form, decoded unless it is here.

        Raises:
            AgentFault: "no-blob": the coded file was not sent; (board, "no-decoder"): this board
                can't decode it; (candidate, "bad-coded"): what it gives is not that file.
        """
        order = json.loads(message.payload)
        sha, coded = check_sha(order["sha256"]), check_sha(order["coded"])
        told: Dict[str, Any] = {"sha256": sha}
        self._offered.update((sha, coded))
        if not self._store.has(sha):
            if not self._store.has(coded):
                raise AgentFault("harness", "no-blob", "the coded file is not here", transient=True)
            told.update(self._decoded(sha, self._store.path(coded)))
        self._send_json(Type.DECODED, told)

    def _decoded(self, sha: str, path: str) -> Dict[str, Any]:
        """Decode into the store; return what it took."""
        from . import decoding

        begin = time.perf_counter_ns()
        by = decoding.decode(
            path,
            self._store.scratch(sha),
            sha,
            self._launcher.folders(),
            lambda size: self._make_room(size, "a decoded file of %d bytes" % size),
        )
        if not self._store.finish(sha):
            raise decoding.damaged("what it gives has another SHA-256")
        return {"decode_ns": time.perf_counter_ns() - begin, "by": by}

    def _unpack(self, name: str, runtime: str, wheels: List[Tuple[str, str]]) -> None:
        if not wheels:
            raise AgentFault("harness", "no-blob", "%s is not here" % name, transient=True)
        for file, sha in wheels:
            if not self._store.has(sha):
                raise AgentFault("harness", "no-blob", "%s was not sent" % file, transient=True)
        named = [(file, self._store.path(sha)) for file, sha in wheels]
        self._offered.update(sha for _, sha in wheels)
        self._make_room(sites.size_bytes(named), "runtime %s" % name)
        sites.unpack(named, self._store.sites.path(name), {"runtime": runtime, "name": name})
        for _, sha in wheels:
            self._store.drop(sha)
            self._offered.discard(sha)
