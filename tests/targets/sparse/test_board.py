"""Runtime sparse-c on the emulated ARM board: cross-compiled, brought over its link, NEON."""

from __future__ import annotations

from typing import Any

import pytest

from flatsat.artifact import Agreement
from flatsat.compressors import sparse_run
from flatsat.compressors.sparse_program import FORMATS, to_bytes
from flatsat.errors import InfrastructureError
from flatsat.outcome import Measured
from flatsat.targets.native_sites import native_wheel, sparse_source

pytestmark = [pytest.mark.qemu, pytest.mark.slow]


async def test_the_board_executes_programs_of_every_form(
    booted_board: Any, files: Any, make_latency: Any, programs: Any
) -> None:
    try:
        native_wheel("aarch64", [sparse_source()])
    except InfrastructureError as error:
        pytest.skip(f"no code for aarch64: {error.message}")
    with booted_board.lease() as lease:
        session = await booted_board.board.open(lease)
        try:
            for format_ in FORMATS:
                program = programs.everything(format_)
                images = programs.images(program, 12)
                expected = sparse_run.run(program, images)
                spec = make_latency(
                    files.keep(f"{format_}.sparse-c", to_bytes(program)),
                    format="sparse-c",
                    runtime="sparse-c",
                    provider="cpu",
                    board="qemu-arm64",
                    goldens=files.arrays(format_, {"in:image": images, "out:logits": expected}),
                    agreement=Agreement("tol", max_rel=1e-4),
                )
                for sha256 in spec.blobs:
                    await session.put(sha256, files.paths[sha256])
                outcome = await session.run(f"sparse-{format_}", spec)
                assert isinstance(outcome, Measured), outcome
                assert outcome.agreement is not None
                assert outcome.agreement.ok
                told: Any = outcome.evidence["runtime"]
                assert told["kernels"] == "neon"
        finally:
            await session.close()
