"""Kind `linux` on a real ARM Linux with a real SSH server and console: the emulated board's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flatsat.canonical import sha256_bytes
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Measured
from flatsat.targets.boards import make_board
from flatsat.targets.probes import probe_zip

if TYPE_CHECKING:
    from pathlib import Path

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
