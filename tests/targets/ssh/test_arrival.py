"""How the agent gets to a board: once, by its hash, resumed, from a home of any name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flatsat.targets.board import LinkDown
from flatsat.targets.ssh_shell import posix

MakeSshd = Callable[..., Any]
LONG_S = 60.0
ODD = "a b'c\"d $(id) `id` \\e;é"
MEGABYTE = 1 << 20


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=4))
@example([ODD, "$(id)", "'", "", "-n", "\n"])
def test_any_text_passes_through_a_shell_unchanged(words: list[str]) -> None:
    line = posix('for word; do printf "%s|" "$word"; done', *words)
    shown = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True)
    assert shown.stdout.decode() == "".join(f"{word}|" for word in words)


@pytest.mark.parametrize("sftp", ["internal-sftp", "none", "broken"])
async def test_the_agent_is_brought_once_and_runs_from_a_home_of_any_name(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path, sftp: str
) -> None:
    subsystem = {"internal-sftp": "internal-sftp", "none": "", "broken": "/bin/false"}[sftp]
    line = f"Subsystem sftp {subsystem}" if subsystem else "Subsystem other /bin/false"
    sshd = make_sshd(line, "MaxSessions 1", home=tmp_path / ODD)
    async with ssh.relayed(sshd) as (relay, settings):
        first = await ssh.greet(ssh.link(sshd, **settings))
        cost = relay.up_bytes
        assert cost > ssh.agent.stat().st_size
        second = await ssh.greet(ssh.link(sshd, **settings), 2)
        assert relay.up_bytes - cost < ssh.agent.stat().st_size
    assert first == second
    store = tmp_path / ODD / ".cache" / "flatsat"
    assert (store / ssh.agent.name).read_bytes() == ssh.agent.read_bytes()
    assert not list(store.glob("*.part"))


async def test_an_sftp_server_that_hangs_is_done_without(
    make_sshd: MakeSshd, ssh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatsat.targets.ssh_carrier._SFTP_S", 0.5)
    sshd = make_sshd("Subsystem sftp /bin/sleep 5", "MaxSessions 1")
    assert await ssh.greet(ssh.link(sshd))


@pytest.mark.parametrize("store", ["~/x $(id)/'q'", "/{tmp}/ab s'o\"lute"])
async def test_a_store_of_any_name(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path, store: str
) -> None:
    sshd = make_sshd()
    store = store.replace("/{tmp}", str(tmp_path))
    await ssh.greet(ssh.link(sshd, store=store))
    assert (Path(store.replace("~", str(sshd.home))) / ssh.agent.name).exists()


async def test_an_interpreter_is_found_where_none_is_named(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    # One that is too old stands first.
    old = folder / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    (folder / "python3.11").symlink_to(sys.executable)
    sshd = make_sshd(path=folder)
    assert await ssh.greet(ssh.link(sshd, python=None))


async def test_an_archive_that_rotted_there_is_replaced(make_sshd: MakeSshd, ssh: Any) -> None:
    sshd = make_sshd()
    store = sshd.home / ".cache" / "flatsat"
    store.mkdir(parents=True)
    (store / ssh.agent.name).write_bytes(b"rotten")
    (store / f"{ssh.agent.name}.part").write_bytes(b"rotten, too")
    await ssh.greet(ssh.link(sshd))
    assert (store / ssh.agent.name).read_bytes() == ssh.agent.read_bytes()


@pytest.mark.parametrize("sftp", [True, False])
async def test_an_upload_goes_on_where_it_was_cut(
    make_sshd: MakeSshd, ssh: Any, tmp_path: Path, sftp: bool
) -> None:
    big = tmp_path / ssh.agent.name
    shutil.copy(ssh.agent, big)
    with zipfile.ZipFile(big, "a") as archive:
        archive.writestr("padding", os.urandom(12 * MEGABYTE))
    sshd = make_sshd()
    async with ssh.relayed(sshd) as (relay, settings):
        relay.limit_bytes = 8 * MEGABYTE
        with pytest.raises(LinkDown):
            await ssh.link(sshd, agent=big, sftp=sftp, **settings).open(LONG_S)
        relay.limit_bytes, relay.up_bytes = None, 0
        partial = sshd.home / ".cache" / "flatsat" / f"{big.name}.part"
        assert partial.stat().st_size > 4 * MEGABYTE
        await ssh.greet(ssh.link(sshd, agent=big, sftp=sftp, **settings))
        assert relay.up_bytes < 9 * MEGABYTE
    assert partial.with_suffix("").read_bytes() == big.read_bytes()
