"""What the emulated board's image is put together from: packages, ELF files, trees, disks."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.canonical import sha256_file
from flatsat.errors import InfrastructureError
from flatsat.progress import NoProgress
from flatsat.targets.qemu_build import image_key
from flatsat.targets.qemu_elf import missing_libraries, needed
from flatsat.targets.qemu_packages import Apt, Package, drop_others
from flatsat.targets.qemu_rootfs import even_out, furnish, make_disk, precompile, unpack
from flatsat.targets.qemu_tools import missing_tools, run
from flatsat.targets.wheels import Site

ODD_NAMES = ("a b", 'quo"te', '"', "$(id)", "-dash", "back\\slash", "ünï", "tab\there", "#hash")


@pytest.fixture
def private_umask() -> Any:
    """Let the builder be one whose new files only he can read."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def needs_tools() -> None:
    if missing := missing_tools():
        pytest.skip(f"no {missing[0][0]} on this machine ({missing[0][1]})")


# Packages


APT = """\
#!/bin/sh
echo "$@" >> {folder}/calls
case "$*" in *--print-uris*) cat {folder}/uris; exit 0;; esac
[ -e {folder}/broken ] && echo "E: Failed to fetch it" && exit 100
cp {folder}/offer/*.deb .
"""


class Shop:
    """An `apt-get` that offers what lies in a folder, and keeps how it was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.offer = folder / "offer"
        self.offer.mkdir(parents=True)
        script = folder / "bin" / "apt-get"
        script.parent.mkdir()
        script.write_text(APT.format(folder=folder))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)

    def put(self, file: str, data: bytes) -> None:
        (self.offer / file).write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        with (self.folder / "uris").open("a") as stream:
            stream.write(f"'http://host/pool/{file}' {file} {len(data)} SHA256:{sha256}\n")

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path / "shop", monkeypatch)
    shop.put("libc6_2.36-9+deb12u14_arm64.deb", b"the C library")
    shop.put("busybox-static_1%3a1.35.0-4+b1_arm64.deb", b"many commands")
    return shop


NAMES = ("libc6", "busybox-static")


def test_packages_come_whole_and_once(shop: Shop, tmp_path: Path) -> None:
    apt, folder = Apt(tmp_path / "apt"), tmp_path / "debs"
    found = apt.resolve(NAMES)
    assert [(one.name, one.version) for one in found] == [
        ("busybox-static", "1:1.35.0-4+b1"),
        ("libc6", "2.36-9+deb12u14"),
    ]
    apt.fetch(found, folder, NoProgress())
    assert sorted(path.name for path in folder.iterdir()) == sorted(one.file for one in found)
    asked = len(shop.calls)
    assert shop.calls[-1].endswith("busybox-static=1:1.35.0-4+b1 libc6=2.36-9+deb12u14")
    apt.fetch(found, folder, NoProgress())
    assert len(shop.calls) == asked


def test_a_package_that_the_disk_spoilt_is_fetched_again(shop: Shop, tmp_path: Path) -> None:
    apt, folder = Apt(tmp_path / "apt"), tmp_path / "debs"
    found = apt.resolve(NAMES)
    apt.fetch(found, folder, NoProgress())
    spoilt = folder / found[1].file
    spoilt.write_bytes(b"thE C library")
    apt.fetch(found, folder, NoProgress())
    assert spoilt.read_bytes() == b"the C library"
    assert shop.calls[-1].endswith(" libc6=2.36-9+deb12u14")
    assert "busybox" not in shop.calls[-1]


def test_a_package_that_is_not_what_the_lists_promise_is_not_kept(
    shop: Shop, tmp_path: Path
) -> None:
    apt, folder = Apt(tmp_path / "apt"), tmp_path / "debs"
    found = apt.resolve(NAMES)
    (shop.offer / found[1].file).write_bytes(b"thE C library")
    with pytest.raises(InfrastructureError, match=r"libc6.*isn't what the signed lists promise"):
        apt.fetch(found, folder, NoProgress())
    assert not (folder / found[1].file).exists()
    assert not list(folder.glob(".part-*"))


def test_what_apt_says_last_is_told(shop: Shop, tmp_path: Path) -> None:
    apt = Apt(tmp_path / "apt")
    found = apt.resolve(NAMES)
    (shop.folder / "broken").touch()
    with pytest.raises(InfrastructureError, match="E: Failed to fetch it") as caught:
        apt.fetch(found, tmp_path / "debs", NoProgress())
    assert "network" in str(caught.value.hint)


def test_a_package_that_apt_does_not_offer_is_named(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="no arm64 package libssl3"):
        Apt(tmp_path / "apt").resolve((*NAMES, "libssl3"))


def test_older_versions_and_parts_of_killed_fetches_are_dropped(shop: Shop, tmp_path: Path) -> None:
    apt, folder = Apt(tmp_path / "apt"), tmp_path / "debs"
    found = apt.resolve(NAMES)
    apt.fetch(found, folder, NoProgress())
    (folder / "libc6_2.36-1_arm64.deb").touch()
    (folder / ".part-killed").mkdir()
    (folder / ".part-killed" / "half.deb").touch()
    drop_others(found, folder)
    assert {path.name for path in folder.iterdir()} == {one.file for one in found}


def deb(folder: Path, name: str, files: dict[str, str]) -> Path:
    """Build a real package with these files."""
    tree = folder / f"{name}-tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: arm64\nMaintainer: a <a@a>\nDescription: a\n"
    )
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    path = folder / f"{name}.deb"
    run("dpkg-deb", "--root-owner-group", "-b", str(tree), str(path))
    return path


def test_packages_with_either_layout_land_in_one(tmp_path: Path) -> None:
    needs_tools()
    old = deb(tmp_path, "old", {"lib/libold.so": "old", "bin/old": "old", "sbin/old": "old"})
    new = deb(
        tmp_path,
        "new",
        {"usr/lib/libnew.so": "new", "usr/share/doc/new/copyright": "c", "etc/new": "new"},
    )
    root = tmp_path / "root"
    unpack([old, new], root)
    for name in ("bin", "sbin", "lib"):
        assert (root / name).readlink() == Path("usr", name)
    assert (root / "usr/lib/libold.so").read_text() == "old"
    assert (root / "usr/lib/libnew.so").read_text() == "new"
    assert (root / "etc/new").read_text() == "new"
    assert not (root / "usr/share/doc").exists()


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    needs_tools()
    path = deb(tmp_path, "cut", {"usr/lib/big": "x" * 100_000})
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InfrastructureError, match=r"can't unpack cut\.deb"):
        unpack([path], tmp_path / "root")


# Files of the board


def test_own_files_have_their_permissions_whatever_the_builder_prefers(
    tmp_path: Path, private_umask: None
) -> None:
    root = tmp_path / "root"
    for folder in ("bin", "sbin"):
        (root / "usr" / folder).mkdir(parents=True)
    (root / "usr/bin/tar").write_text("a package's own")
    furnish(root, [("etc/shadow", 0o600, "root:x"), ("etc/ssh/key.pub", 0o644, "public")])
    modes = {
        name: stat.S_IMODE((root / name).stat().st_mode)
        for name in ("etc/rc", "etc/passwd", "etc/shadow", "etc/ssh/key.pub", "tmp", "root/.ssh")
    }
    assert modes == {
        "etc/rc": 0o755,
        "etc/passwd": 0o644,
        "etc/shadow": 0o600,
        "etc/ssh/key.pub": 0o644,
        "tmp": 0o1777,
        "root/.ssh": 0o700,
    }
    assert (root / "usr/bin/tar").read_text() == "a package's own"
    assert (root / "usr/bin/python3").readlink() == Path("python3.11")
    assert (root / "usr/sbin/init").readlink() == Path("../bin/busybox")
    assert not (root / "etc/machine-id").exists()


def test_equal_files_are_kept_once_and_all_may_be_read(tmp_path: Path, private_umask: None) -> None:
    sites = tmp_path / "sites"
    big, small = b"numpy" * 10_000, b"# small"
    for name in ("one", "two"):
        (sites / name).mkdir(parents=True)
        (sites / name / "lib.so").write_bytes(big)
        (sites / name / "init.py").write_bytes(small)
        (sites / name / "tool").write_bytes(big)
        (sites / name / "tool").chmod(0o700)
    even_out(tmp_path, ["sites"])
    inodes = {path: path.stat().st_ino for path in sites.rglob("*") if path.is_file()}
    assert inodes[sites / "one/lib.so"] == inodes[sites / "two/lib.so"]
    assert inodes[sites / "one/tool"] == inodes[sites / "two/tool"]
    assert inodes[sites / "one/lib.so"] != inodes[sites / "one/tool"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sites.rglob("*")}
    assert modes == {"one": 0o755, "two": 0o755, "lib.so": 0o644, "init.py": 0o644, "tool": 0o755}


def test_compiled_files_hold_without_a_look_at_their_source(tmp_path: Path) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("this Python is not the board's: no 3.11")
    package = tmp_path / "site" / "package"
    package.mkdir(parents=True)
    (package / "good.py").write_text("print('good')\n")
    (package / "bad.py").write_text("def (\n")
    assert precompile(tmp_path, ["site"])
    data = (package / "__pycache__" / "good.cpython-311.pyc").read_bytes()
    # PEP 552: bit 0 says that a hash stands there, bit 1 that it is checked.
    assert int.from_bytes(data[4:8], "little") == 0b01
    assert b"/site/package/good.py" in data
    assert str(tmp_path).encode() not in data


def test_everything_on_a_disk_is_roots_whoever_made_it(tmp_path: Path) -> None:
    needs_tools()
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    for name in ODD_NAMES:
        (root / "dir" / name).write_text(name)
    (root / "dir" / "twin").hardlink_to(root / "dir" / "#hash")
    (root / "link").symlink_to("/dir/nowhere")
    secret = root / "dir" / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, 1234, 5678, follow_symlinks=False)
    disk, again = tmp_path / "disk.qcow2", tmp_path / "again.qcow2"
    make_disk(root, disk, "key")
    assert stat.S_IMODE(disk.stat().st_mode) == 0o444
    raw = tmp_path / "raw.ext4"
    run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
    inodes = {path.lstat().st_ino for path in root.rglob("*")}
    listed = run("debugfs", "-R", "ls -p /dir", str(raw)) + run(
        "debugfs", "-R", "ls -p /", str(raw)
    )
    # /inode/mode/uid/gid/name/size/
    rows = [line.split("/") for line in listed.splitlines() if line.startswith("/")]
    owners = {row[5]: (row[3], row[4]) for row in rows}
    assert set(owners) >= {*ODD_NAMES, "dir", "link", "twin", "secret"}
    assert set(owners.values()) == {("0", "0")}
    assert len({row[1] for row in rows if row[5] in ("twin", "#hash")}) == 1
    assert next(row[2] for row in rows if row[5] == "secret") == "100600"
    assert len(inodes) == len(ODD_NAMES) + 3
    # The file system's own names come from the key: the same tree gives the same disk.
    make_disk(root, again, "key")
    assert sha256_file(again) == sha256_file(disk)


def test_a_name_that_debugfs_takes_for_two_lines_is_refused(tmp_path: Path) -> None:
    needs_tools()
    root = tmp_path / "root"
    root.mkdir()
    (root / "one\ntwo").touch()
    with pytest.raises(InfrastructureError, match="debugfs"):
        make_disk(root, tmp_path / "disk.qcow2", "key")


# ELF files


def program() -> bytes:
    return Path(sys.executable).resolve().read_bytes()


def test_needed_libraries_are_those_that_readelf_names() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on this machine (apt-get install binutils)")
    path = Path(sys.executable).resolve()
    said = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
    expected = [
        line.partition("[")[2].rstrip("]")
        for line in said.stdout.splitlines()
        if "(NEEDED)" in line
    ]
    assert expected
    assert list(needed(path.read_bytes())) == expected


@given(st.data())
def test_damaged_elf_files_are_refused_or_read_but_never_worse(data: st.DataObject) -> None:
    head = bytearray(program()[: 1 << 12])
    for _ in range(data.draw(st.integers(0, 8))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(head)))
    try:
        names = needed(bytes(head[:cut]))
    except ValueError:
        return
    assert all(isinstance(name, str) for name in names)


def test_a_library_that_is_nowhere_is_found_out(tmp_path: Path) -> None:
    data = program()
    wanted = needed(data)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python").write_bytes(data)
    (tmp_path / "usr/bin/script").write_text("#!/bin/sh\n")
    (tmp_path / "usr/bin/link").symlink_to("/nowhere")
    assert missing_libraries(tmp_path) == {"usr/bin/python": wanted}
    (tmp_path / "lib").mkdir()
    for name in wanted:
        (tmp_path / "lib" / name).touch()
    assert missing_libraries(tmp_path) == {}


# The image's name


def package(name: str, version: str = "1", sha256: str = "0" * 64) -> Package:
    return Package(name, version, sha256, 7, f"{name}_{version}_arm64.deb")


def site(runtime: str, folder: str, *sha256: str) -> Site:
    wheels = tuple(Path(folder, f"{one}.whl") for one in sha256)
    return Site(runtime, f"{runtime}-1", wheels, 7, sha256)


@given(st.permutations([package(name) for name in ("libc6", "zlib1g", "libssl3")]))
def test_a_key_is_of_what_goes_in_not_of_order_or_place(packages: list[Package]) -> None:
    here = {"onnxruntime": site("onnxruntime", "/here", "a", "b")}
    there = {"onnxruntime": site("onnxruntime", "/there", "b", "a")}
    plain = [package(name) for name in ("libc6", "libssl3", "zlib1g")]
    assert image_key(packages, here) == image_key(plain, there)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"sha256": "1" * 64},
        {"name": "libc7"},
    ],
)
def test_a_key_changes_with_each_package(change: dict[str, str]) -> None:
    sites = {"onnxruntime": site("onnxruntime", "/here", "a")}
    other = package(**{"name": "libc6", **change})
    assert image_key([other], sites) != image_key([package("libc6")], sites)


def test_a_key_changes_with_each_wheel() -> None:
    packages = [package("libc6")]
    keys = {
        image_key(packages, {"litert": site("litert", "/here", *wheels)})
        for wheels in (("a",), ("b",), ("a", "b"))
    }
    assert len(keys) == 3
