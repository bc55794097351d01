"""Runtimes on the emulated ARM board: those of its image, and one that is brought over SSH."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flatsat.artifact import Agreement
from flatsat.errors import InfrastructureError
from flatsat.outcome import Measured
from flatsat.targets.linux import LinuxBoard, SshWay
from flatsat.targets.wheels import interpreter_of, site_for

if TYPE_CHECKING:
    from flatsat.jobspec import JobSpec
    from flatsat.targets.board import Lease
    from flatsat.targets.session import AgentSession

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
WEIGHTS = np.arange(18, dtype=np.float32).reshape(3, 6) / 7 - 1


@pytest.fixture
def spec(files: Any, make_latency: Any, tflite_graph: Any) -> JobSpec:
    """Return a job on `logits = image @ WEIGHTS.T` for one image, with goldens of five."""
    graph = tflite_graph()
    image, logits = (graph.tensor(*about) for about in _SIGNATURE)
    weights = graph.tensor("weights", "float32", [3, 6], WEIGHTS)
    graph.node("FULLY_CONNECTED", [image, weights, -1], [logits])
    artifact = files.keep("dense.tflite", graph.file([image], [logits]))
    images = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)
    goldens = files.arrays("goldens", {"in:image": images, "out:logits": images @ WEIGHTS.T})
    made: JobSpec = make_latency(artifact, format="tflite", provider="xnnpack", goldens=goldens)
    return replace(made, agreement=Agreement("tol", max_rel=1e-5))


_SIGNATURE = (("image", "float32", [1, 6]), ("logits", "float32", [1, 3]))


async def measure(session: Any, files: Any, spec: JobSpec, runtime: str) -> dict[str, Any]:
    for sha256 in spec.blobs:
        await session.put(sha256, files.paths[sha256])
    outcome = await session.run(f"job-{runtime}", replace(spec, runtime=runtime))
    assert isinstance(outcome, Measured), outcome
    assert outcome.agreement is not None
    assert outcome.agreement.n == 5
    told: Any = outcome.evidence["runtime"]
    return dict(told)


async def test_both_packagings_of_its_image_run_the_file(
    booted_board: Any, files: Any, spec: JobSpec
) -> None:
    with booted_board.lease() as lease:
        session = await booted_board.board.open(lease)
        try:
            for runtime in ("litert", "tflite-runtime"):
                told = await measure(session, files, spec, runtime)
                assert (told["name"], told["delegated"]) == (runtime, 1)
        finally:
            await session.close()


async def test_a_board_without_internet_is_given_a_runtime_once(
    booted_board: Any, board_image: Any, files: Any, spec: JobSpec, lease: Lease
) -> None:
    kept = booted_board.kept
    way = SshWay("127.0.0.1", "root", kept.ssh_port, board_image.host_key, (board_image.user_key,))
    board = LinuxBoard("pi", (way,), store="/root/a new board")
    with booted_board.lease():
        session: AgentSession = await board.open(lease)
        try:
            interpreter = interpreter_of(session.welcome)
            assert interpreter.arch == "aarch64"
            try:
                site = site_for("tflite-runtime", interpreter)
            except InfrastructureError as error:
                pytest.skip(f"no wheels here: {error.message}")
            assert session.welcome["sites"] == []
            told = await measure(session, files, spec, "tflite-runtime")
            assert (told["version"], told["delegated"]) == ("2.14.0", 1)
        finally:
            await session.close()
        session = await board.open(replace(lease, epoch=lease.epoch + 1))
        try:
            assert session.welcome["sites"] == [site.name]
        finally:
            await session.close()
            await _remove(board_image, kept.ssh_port, lease)


async def _remove(image: Any, port: int, lease: Lease) -> None:
    """Leave the board as it was."""
    from flatsat.targets.provision import write_agent
    from flatsat.targets.ssh import SshLink

    link = SshLink(
        *("127.0.0.1", port),
        user="root",
        known_hosts=image.host_key,
        keys=(image.user_key,),
        agent=write_agent(lease.directory),
        store="/root/a new board",
    )
    await link.run_command("rm -rf '/root/a new board'", 60.0)
