"""Kind `linux` on a real ARM Linux with a real SSH server and console: the emulated board's."""

from __future__ import annotations

import os
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.canonical import sha256_bytes, sha256_file
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Failed, Measured
from flatsat.targets.boards import make_board
from flatsat.targets.probes import probe_zip
from flatsat.targets.wheels import Site, Wheels

if TYPE_CHECKING:
    from pathlib import Path

    from flatsat.targets.wheels import Interpreter

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


def settings(booted: Any, image: Any, **more: object) -> dict[str, object]:
    """Return what a lab would say of the emulated board if it were a real one."""
    ssh = {
        "via": "ssh",
        "host": "127.0.0.1",
        "port": booted.kept.ssh_port,
        "user": "root",
        "key": str(image.user_key),
        "known_hosts": image.host_key,
    }
    return {"links": [ssh], "store": "/root/a store of $(id)", **more}


async def test_identity_health_and_capability(
    booted_board: Any, board_image: Any, tmp_path: Path
) -> None:
    chosen = settings(
        booted_board, board_image, python=board_image.python, sites=dict(board_image.sites)
    )
    board = make_board("em1", "linux", chosen)
    probes = tmp_path / "probes.zip"
    probes.write_bytes(probe_zip())
    sha256 = sha256_bytes(probes.read_bytes())
    spec = JobSpec(JobKind.CAPABILITY, sha256, "probes", "em1", plan=VIRTUAL_PLAN)
    with booted_board.lease() as lease:
        session = await board.open(lease)
        await session.put(sha256, probes)
        outcome = await session.run("capability", spec)
        await session.close()
    facts = session.identity.facts
    assert (facts["arch"], facts["cpu_model"]) == ("aarch64", "0x41 0xd08 3")
    assert facts["soc"] == facts["model"] == "linux,dummy-virt"
    assert "asimd" in facts["cpu_flags"]
    assert isinstance(outcome, Measured), outcome
    assert all(state.free_bytes for state in outcome.health)
    found: Any = outcome.evidence["capability"]
    peaks = {peak["dtype"]: peak["gmac_s"] for peak in found["peaks"]}
    # A Cortex-A72 has neither arithmetic of halves nor dot products.
    assert peaks.keys() == {"float32", "int8"}
    assert found["native"] == {"float16": [], "bfloat16": [], "int8-dot": []}
    assert (found["caches_source"], found["caches_of"]) == ("documented", "Cortex-A72")
    assert {cache["level"] for cache in found["caches"]} == {1}


async def test_runtimes_go_over_ssh_beside_an_agent_on_the_console(
    booted_board: Any, board_image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A runtime that no serial line would carry in the time that a transfer is waited for.
    wheel = tmp_path / "ai_edge_litert-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("numpy/__init__.py", "raise ImportError('carried, not built')")
        archive.writestr("numpy/weight", os.urandom(4 << 20))
    asked: list[Interpreter] = []

    def site(_: Wheels, runtime: str, interpreter: Interpreter) -> Site:
        asked.append(interpreter)
        size = 1 << 40
        return Site(runtime, "litert-1.0-0123456789ab", (wheel,), size, (sha256_file(wheel),))

    monkeypatch.setattr(Wheels, "site", site)
    serial = {"via": "serial", "port": booted_board.kept.console, "user": "root"}
    monkeypatch.setenv("CONSOLE_PASSWORD", board_image.console_password)
    chosen = settings(booted_board, board_image)
    links = [{**serial, "password_env": "CONSOLE_PASSWORD"}, *chosen["links"]]  # type: ignore[misc]
    probes = tmp_path / "probes.zip"
    probes.write_bytes(probe_zip())
    sha256 = sha256_bytes(probes.read_bytes())
    spec = JobSpec(JobKind.CAPABILITY, sha256, "probes", "em1", runtime="litert", plan=VIRTUAL_PLAN)
    board = make_board("em1", "linux", {**chosen, "links": links, "provision_via": "ssh"})
    with booted_board.lease() as lease:
        session = await board.open(lease)
        await session.put(sha256, probes)
        outcome = await session.run("capability", spec)
        await session.close()
    assert isinstance(outcome, Failed)
    assert "carried, not built" in outcome.fault.message
    assert (asked[0].arch, asked[0].version) == ("aarch64", (3, 11))
