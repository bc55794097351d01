"""Coded files: sent in place of the model file, decoded on the board, checked before use."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from flatsat.canonical import sha256_bytes
from flatsat.compressors.codec import ContextCodec, HuffmanCodec, RangeCodec
from flatsat.compressors.tensor_ranges import tensor_ranges
from flatsat.outcome import Measured, Owner
from flatsat.targets.agent.decoding import MOST_BY_PYTHON
from flatsat.targets.board import BoardRefused, Lease
from flatsat.targets.host import HostBoard

if TYPE_CHECKING:
    from flatsat.targets.session import AgentSession

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
MakeJob = Callable[..., Any]


def pruned(files: Any, rows: int = 40, columns: int = 30) -> str:
    """Keep a dense layer of few values."""
    rng = np.random.default_rng(4)
    values = np.array([0, 0, 0, 0, 0, 0, 0.5, -0.25], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"])],
        f"pruned-{rows}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(rng.choice(values, (rows, columns)), "w")],
    )
    sha: str = files.graph(graph, f"pruned-{rows}")
    return sha


def coded_form(files: Any, sha: str, codec: Any = None) -> tuple[str, Path]:
    data = files.paths[sha].read_bytes()
    coded = (codec or ContextCodec()).encode(data, tensor_ranges(data, "onnx"), "onnx")
    coded_sha = files.keep(f"{sha[:8]}-{len(files.paths)}.fscw", coded)
    return coded_sha, files.paths[coded_sha]


@pytest.fixture
async def python_only(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AgentSession]:
    """A session with a board that can't have the compiled coder."""
    session = await HostBoard().open(lease)
    monkeypatch.setattr(session._provisioning, "sites", None)
    yield session
    await session.close()


@needs_compiler
@pytest.mark.parametrize("codec", [ContextCodec, HuffmanCodec])
async def test_the_coded_file_is_what_is_sent(
    bench: Any, files: Any, make_latency: MakeJob, codec: Any, tmp_path: Path
) -> None:
    sha = pruned(files)
    coded = coded_form(files, sha, codec())
    # There is nothing else that could be sent.
    await bench.session.put(sha, tmp_path / "none.onnx", coded)
    outcome = await bench.session.run("coded", make_latency(sha))
    assert isinstance(outcome, Measured), outcome
    told: Any = outcome.evidence["coded"]
    assert told["by"] == "c"
    assert told["size_bytes"] == coded[1].stat().st_size < files.paths[sha].stat().st_size
    assert told["decode_ns"] > 0
    # It is there now: nothing is needed to have it again.
    await bench.session.put(sha, tmp_path / "none.onnx", ("0" * 64, tmp_path / "none.fscw"))


async def test_without_the_compiled_coder_python_decodes(
    python_only: AgentSession, files: Any, make_latency: MakeJob, tmp_path: Path
) -> None:
    sha = pruned(files)
    await python_only.put(sha, tmp_path / "none.onnx", coded_form(files, sha))
    outcome = await python_only.run("coded", make_latency(sha))
    assert isinstance(outcome, Measured), outcome
    told: Any = outcome.evidence["coded"]
    assert told["by"] == "python"


async def test_what_is_too_much_for_python_is_sent_as_it_is(
    python_only: AgentSession, files: Any, make_latency: MakeJob
) -> None:
    sha = pruned(files, rows=MOST_BY_PYTHON // 30 + 1)
    await python_only.put(sha, files.paths[sha], coded_form(files, sha))
    outcome = await python_only.run("plain", make_latency(sha))
    assert isinstance(outcome, Measured), outcome
    assert "coded" not in outcome.evidence


@needs_compiler
async def test_static_coders_are_decoded_where_constriction_is(
    bench: Any, files: Any, make_latency: MakeJob
) -> None:
    sha = pruned(files)
    await bench.session.put(sha, files.paths[sha], coded_form(files, sha, RangeCodec()))
    assert isinstance(await bench.session.run("range", make_latency(sha)), Measured)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-3], "ends too early"),
        (lambda data: data[:-9] + bytes([data[-9] ^ 16]) + data[-8:], "damaged"),
        (lambda data: b"no coded file" + data, "no file of coded weights"),
        (lambda data: data[:5] + bytes(32) + data[37:], "another model file"),
    ],
    ids=["cut", "flipped", "foreign", "other"],
)
async def test_a_bad_coded_file_is_the_candidates_fault_and_ends_nothing(
    bench: Any, files: Any, make_latency: MakeJob, damage: Callable[[bytes], bytes], says: str
) -> None:
    sha = pruned(files)
    data = damage(coded_form(files, sha)[1].read_bytes())
    files.keep("bad.fscw", data)
    with pytest.raises(BoardRefused) as caught:
        await bench.session.put(
            sha, files.paths[sha], (sha256_bytes(data), files.folder / "bad.fscw")
        )
    fault = caught.value.fault
    assert (fault.owner, fault.code, fault.transient) == (Owner.CANDIDATE, "bad-coded", False)
    assert says in fault.message
    # Nothing half-made stands for the file.
    await bench.session.put(sha, files.paths[sha])
    assert isinstance(await bench.session.run("after", make_latency(sha)), Measured)


@pytest.mark.qemu
@pytest.mark.slow
async def test_the_emulated_board_decodes_by_its_own_code(
    booted_board: Any, files: Any, make_latency: MakeJob, tmp_path: Path
) -> None:
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("there is no compiler for aarch64")
    sha = pruned(files)
    with booted_board.lease() as lease:
        session = await booted_board.board.open(lease)
        try:
            await session.put(sha, tmp_path / "none.onnx", coded_form(files, sha))
            outcome = await session.run("coded-arm", make_latency(sha, board="qemu-arm64"))
        finally:
            await session.close()
    assert isinstance(outcome, Measured), outcome
    told: Any = outcome.evidence["coded"]
    assert told["by"] == "c"
