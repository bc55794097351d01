"""Sites on a board: whole or not there, never outside their folder; and room made by age."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatsat.canonical import sha256_bytes
from flatsat.targets.agent import sites
from flatsat.targets.agent.faults import AgentFault
from flatsat.targets.agent.files import Files
from flatsat.targets.agent.frames import Message, Type
from flatsat.targets.agent.store import Store

MakeWheel = Callable[..., Path]
MEMBERS = {
    "engine/__init__.py": b"one = 1\n",
    "engine/big.so": bytes(range(256)) * 4000,
    "numpy/core/tests/test_core.py": b"never imported",
    "engine/__init__.pyi": b"never imported",
    "engine-1.0.data/purelib/extra.py": b"two = 2\n",
    "engine-1.0.data/scripts/engine": b"#!python",
}


@pytest.fixture
def wheel(tmp_path: Path, make_wheel: MakeWheel) -> Path:
    return make_wheel(tmp_path, "engine", members=MEMBERS)


def unpack(wheel: Path, folder: Path) -> None:
    sites.unpack([(wheel.name, str(wheel))], str(folder), {"runtime": "engine"})


def test_what_inferences_import_is_unpacked_and_the_rest_is_not(
    wheel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sites" / "engine-1.0"
    unpack(wheel, folder)
    assert (folder / "engine" / "big.so").read_bytes() == MEMBERS["engine/big.so"]
    assert (folder / "extra.py").exists()
    assert {path.name for path in folder.iterdir()} == {
        *("engine", "extra.py", "engine-1.0.dist-info", sites.MARKER)
    }
    assert not (folder / "engine" / "__init__.pyi").exists()
    assert sites.is_whole(str(folder))
    assert (sites.read_marker(str(folder)) or {})["runtime"] == "engine"


def test_compiled_modules_leave_a_site_whole(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    unpack(wheel, folder)
    (folder / "engine" / "__pycache__").mkdir()
    (folder / "engine" / "__pycache__" / "__init__.pyc").write_bytes(b"compiled")
    assert sites.is_whole(str(folder))


@pytest.mark.parametrize("damage", ["no marker", "marker cut", "file cut", "file lost", "more"])
def test_a_damaged_site_is_seen_and_replaced(wheel: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "site"
    unpack(wheel, folder)
    marker, big = folder / sites.MARKER, folder / "engine" / "big.so"
    if damage == "no marker":
        marker.unlink()
    elif damage == "marker cut":
        marker.write_text(marker.read_text()[:-5])
    elif damage == "file cut":
        os.truncate(big, 100)
    elif damage == "file lost":
        big.unlink()
    else:
        (folder / "engine" / "more.py").touch()
    assert not sites.is_whole(str(folder))
    unpack(wheel, folder)
    assert sites.is_whole(str(folder))
    assert not (folder / "engine" / "more.py").exists()


@pytest.mark.parametrize(
    "member", ["../evil.py", "/evil.py", "engine/../../evil.py", "engine\\..\\evil.py", ".."]
)
def test_a_member_that_leads_out_is_refused(
    tmp_path: Path, make_wheel: MakeWheel, member: str
) -> None:
    wheel = make_wheel(tmp_path, "engine", members={"engine/__init__.py": b"", member: b"evil"})
    (tmp_path / "in").mkdir()
    with pytest.raises(sites.SiteError, match="leads out"):
        unpack(wheel, tmp_path / "in" / "sites" / "engine")
    assert not list(tmp_path.rglob("evil*"))
    assert list((tmp_path / "in" / "sites").iterdir()) == []


@pytest.mark.parametrize("clash", [("engine", "engine/x.py"), ("x" * 300,), ("engine/.",)])
def test_members_that_can_not_be_files_are_the_wheels_fault(
    tmp_path: Path, make_wheel: MakeWheel, clash: tuple[str, ...]
) -> None:
    wheel = make_wheel(tmp_path, "engine", members=dict.fromkeys(clash, b"data"))
    with pytest.raises(sites.SiteError):
        unpack(wheel, tmp_path / "sites" / "engine")
    assert list((tmp_path / "sites").iterdir()) == []


def test_a_link_in_a_wheel_becomes_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("engine/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    unpack(path, tmp_path / "site")
    assert not (tmp_path / "site" / "engine" / "link").is_symlink()


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_wheel_damaged_anywhere_makes_a_right_site_or_none(
    tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("engine/data", b"some text " * 20)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 0x55
    path.write_bytes(data)
    try:
        unpack(path, folder / "sites" / "engine")
    except sites.SiteError:
        assert list((folder / "sites").iterdir()) == []
    else:
        assert sites.is_whole(str(folder / "sites" / "engine"))
        for found in (folder / "sites" / "engine").rglob("data"):
            assert found.read_bytes() == b"some text " * 20


def test_a_disk_that_fills_up_leaves_the_earlier_site_or_nothing(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[object] = []
    real = shutil.copyfileobj

    def full(source: Any, target: Any, length: int = 0) -> None:
        copied.append(target)
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(wheel, tmp_path / "sites" / "engine")
    assert list((tmp_path / "sites").iterdir()) == []


@given(st.one_of(st.text(max_size=140), st.none(), st.just("a/b"), st.just("..")))
def test_only_plain_names_become_folders(name: Any) -> None:
    try:
        assert sites.check_name(name) == name
    except sites.SiteError:
        return
    assert Path("/root", name).parts[2:] == (name,)
    assert not name.startswith(".")


# Room on the disk.


class SmallStore(Store):
    """A store on a disk of a given size, of which nothing else takes any."""

    def __init__(self, root: Path, size: int) -> None:
        super().__init__(str(root))
        self.size = size

    def free_bytes(self) -> int:
        places = (place for place in Path(self.root).rglob("*") if place.is_file())
        return self.size - sum(place.stat().st_size for place in places)


class Host:
    """Offers files to a board's agent as a session does, without a line between them."""

    def __init__(self, store: Store) -> None:
        self.said: list[tuple[int, Any]] = []
        self.used: dict[str, str] = {}
        self.files = Files(store, self, self._hear)  # type: ignore[arg-type]

    def use_site(self, runtime: str, folder: str) -> None:
        self.used[runtime] = folder

    def folders(self) -> list[str]:
        return list(self.used.values())

    def _hear(self, kind: int, payload: bytes) -> None:
        self.said.append((kind, json.loads(payload)))

    def put(self, data: bytes) -> str:
        sha = sha256_bytes(data)
        self.files.have(self._message(Type.HAVE, {"sha256": sha, "size": len(data)}))
        kind, answer = self.said.pop()
        if kind == Type.NEED:
            head = bytes.fromhex(sha) + int(answer["offset"]).to_bytes(8, "little")
            chunk = Message(Type.CHUNK, head + data[answer["offset"] :], 0, 1)
            self.files.chunk(chunk)
            kind, answer = self.said.pop()
        assert (kind, answer) == (Type.STORED, {"sha256": sha})
        return sha

    def install(self, runtime: str, name: str, wheels: list[Path]) -> None:
        listed = [{"file": w.name, "sha256": self.put(w.read_bytes())} for w in wheels]
        order = {"runtime": runtime, "name": name, "wheels": listed}
        self.files.install(self._message(Type.INSTALL, order))
        assert self.said.pop() == (Type.INSTALLED, {"name": name})

    def _message(self, kind: Type, value: object) -> Message:
        return Message(kind, json.dumps(value).encode(), 0, 1)


SPARE = 16 << 20


@pytest.fixture
def store(tmp_path: Path) -> SmallStore:
    return SmallStore(tmp_path / "store", SPARE + 10_000)


def blob(number: int, size: int = 3000) -> bytes:
    return bytes([number]) * size


def test_the_blob_that_was_longest_unused_goes_when_space_is_short(store: SmallStore) -> None:
    host = Host(store)
    shas = []
    for number in range(3):
        shas.append(host.put(blob(number)))
        os.utime(store.path(shas[-1]), (1e9 + number, 1e9 + number))
    # Asking for the first makes the second the oldest.
    host.put(blob(0))
    host.files.ran()
    host.put(blob(3))
    assert [store.has(sha) for sha in shas] == [True, False, True]


def test_unfinished_transfers_go_before_blobs(store: SmallStore) -> None:
    host = Host(store)
    kept = host.put(blob(0))
    store.append(sha256_bytes(b"never finished"), 0, bytes(5000))
    host.files.ran()
    host.put(blob(1))
    assert store.has(kept)
    assert store.offset(sha256_bytes(b"never finished"), 9000) == 0


def test_a_file_that_can_never_fit_is_refused_and_nothing_goes_for_it(store: SmallStore) -> None:
    host = Host(store)
    kept = host.put(blob(0))
    host.files.ran()
    with pytest.raises(AgentFault) as caught:
        host.put(blob(1, 10_001))
    assert (caught.value.owner, caught.value.code) == ("board", "disk-full")
    assert store.has(kept)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4000), st.booleans()), max_size=25))
@settings(max_examples=60, deadline=None)
def test_what_was_offered_since_the_last_job_stays(
    tmp_path_factory: pytest.TempPathFactory, offers: list[tuple[int, int, bool]]
) -> None:
    store = SmallStore(tmp_path_factory.mktemp("store"), SPARE + 10_000)
    host = Host(store)
    offered: set[str] = set()
    for number, size, ran in offers:
        try:
            offered.add(host.put(blob(number, size)))
        except AgentFault as fault:
            assert fault.code == "disk-full"
        assert all(store.has(sha) for sha in offered)
        assert store.free_bytes() >= SPARE
        if ran:
            host.files.ran()
            offered.clear()


@pytest.fixture
def engines(tmp_path: Path, make_wheel: MakeWheel) -> Iterator[list[Path]]:
    yield [
        make_wheel(tmp_path, f"engine{number}", members={"engine.py": bytes([number]) * 2000})
        for number in range(3)
    ]


def test_wheels_go_once_they_are_unpacked(tmp_path: Path, engines: list[Path]) -> None:
    store = Store(str(tmp_path / "store"))
    host = Host(store)
    host.install("engine", "engine-1", [engines[0]])
    assert store.sites.names() == ["engine-1"]
    assert host.used == {"engine": store.sites.path("engine-1")}
    assert not any(Path(store.root, "blobs").iterdir())


def test_sites_go_last_and_only_those_of_other_sessions(
    tmp_path: Path, engines: list[Path]
) -> None:
    # A site counts whole blocks of 4 KiB: three small files are 12 KiB.
    store = SmallStore(tmp_path / "store", SPARE + 22_000)
    for number in (0, 1):
        Host(store).install("engine", f"engine-{number}", [engines[number]])
        marker = Path(store.sites.path(f"engine-{number}"), sites.MARKER)
        os.utime(marker, (1e9 + number, 1e9 + number))
    host = Host(store)
    old = host.put(blob(0, 9000))
    host.files.ran()
    host.install("engine", "engine-0", [])
    with pytest.raises(AgentFault, match="no room"):
        host.put(blob(1, 20_000))
    assert store.has(old)
    assert sorted(store.sites.names()) == ["engine-0", "engine-1"]
    host.put(blob(1, 18_000))
    assert not store.has(old)
    assert store.sites.names() == ["engine-0"]


def test_an_agent_that_was_killed_while_it_unpacked_leaves_nothing_for_long(
    tmp_path: Path, engines: list[Path]
) -> None:
    store = Store(str(tmp_path / "store"))
    Host(store).install("engine", "engine-1", [engines[0]])
    root = Path(store.root, "sites")
    (root / ".engine-2.123.tmp" / "engine").mkdir(parents=True)
    (root / "engine-3").mkdir()
    store.sites.sweep()
    assert [path.name for path in root.iterdir()] == ["engine-1"]
