"""A board that disagrees: the layer where it parts from this machine is in what the record says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flatsat.artifact import Agreement
from flatsat.canonical import sha256_file
from flatsat.compressors.layer_errors import LayerError
from flatsat.compressors.onnx_model import run_host
from flatsat.harness.culprit import is_disagreement, name_layer, said
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Failed, Fault, Measured, Outcome, Owner
from flatsat.targets.board import BoardIdentity, Lease, LinkDown
from flatsat.targets.host import HostBoard

QUICK = MeasurePlan(processes=1, min_inferences=4, min_s=0.0, max_warmup=8, deadline_s=60.0)
OTHER = "/second/MatMul"


def network(folder: Path, *, damaged: str = "") -> Path:
    """Three dense layers; `damaged` has its weights in another order."""
    rng = np.random.default_rng(0)
    names = ("/first/MatMul", OTHER, "/third/MatMul")
    nodes, weights, before = [], [], "image"
    for number, name in enumerate(names):
        matrix = rng.normal(size=(8, 8)).astype(np.float32)
        if name == damaged:
            matrix = -matrix[::-1].copy()
        after = "logits" if number == 2 else f"between{number}"
        nodes.append(helper.make_node("MatMul", [before, f"w{number}"], [after], name=name))
        weights.append(numpy_helper.from_array(matrix, f"w{number}"))
        before = after
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8])],
        weights,
    )
    path = folder / f"{damaged.strip('/').replace('/', '-') or 'sound'}.onnx"
    opsets = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return path


@dataclass
class Swapping:
    """A session with a board whose runtime gets one layer wrong, whatever file it is given."""

    session: Any
    damaged: str
    folder: Path
    broken: bool = False
    swapped: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> BoardIdentity:
        identity: BoardIdentity = self.session.identity
        return identity

    async def put(self, sha256: str, source: Path) -> None:
        await self.session.put(sha256, source)
        if source.suffix == ".onnx" and self.damaged:
            model = onnx.load_model(source)
            wrong = onnx.load_model(network(self.folder, damaged=self.damaged))
            weights = {tensor.name: tensor for tensor in wrong.graph.initializer}
            for tensor in model.graph.initializer:
                tensor.CopyFrom(weights[tensor.name])
            path = self.folder / f"wrong-{sha256}.onnx"
            path.write_bytes(model.SerializeToString())
            self.swapped[sha256] = sha256_file(path)
            await self.session.put(sha256_file(path), path)

    async def run(self, job_id: str, spec: JobSpec) -> Outcome:
        if self.broken and spec.kind is JobKind.ACCURACY:
            raise LinkDown("gone")
        artifact = self.swapped.get(spec.artifact, spec.artifact)
        outcome: Outcome = await self.session.run(job_id, replace(spec, artifact=artifact))
        return outcome


def disagree(
    folder: Path, damaged: str, *, broken: bool = False, wrong_goldens: bool = False
) -> tuple[JobSpec, Outcome]:
    path = network(folder)
    x = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
    expected = run_host(path, {"image": x})["logits"]
    goldens = folder / "goldens.npz"
    np.savez(
        goldens, **{"in:image": x, "out:logits": expected[::-1] if wrong_goldens else expected}
    )  # type: ignore[arg-type]
    files = {sha256_file(file): file for file in (path, goldens)}
    spec = JobSpec(
        JobKind.LATENCY,
        sha256_file(path),
        "onnx",
        "host",
        plan=QUICK,
        goldens=sha256_file(goldens),
        agreement=Agreement("tol", max_rel=1e-4),
    )

    async def measured() -> Outcome:
        session = await HostBoard().open(Lease("host", 1, folder / "board"))
        board = Swapping(session, damaged, folder, broken)
        try:
            for sha256, file in files.items():
                await board.put(sha256, file)
            outcome = await board.run("job", spec)
            if isinstance(outcome, Failed) and is_disagreement(outcome, spec):
                return await name_layer(board, "job", spec, files, outcome)  # type: ignore[arg-type]
            return outcome
        finally:
            await session.close()

    return spec, asyncio.run(measured())


@pytest.mark.parametrize("layer", ["/first/MatMul", OTHER, "/third/MatMul"])
def test_the_layer_that_a_board_gets_wrong_is_named(tmp_path: Path, layer: str) -> None:
    _, outcome = disagree(tmp_path, layer)
    assert isinstance(outcome, Failed), outcome
    assert outcome.fault.code == "disagrees"
    assert f"the first layer to differ is {layer} (SQNR" in outcome.fault.message
    assert "outputs differ from the goldens" in outcome.fault.message
    assert outcome.evidence["culprit"] == layer
    told = outcome.evidence["layers"]
    assert isinstance(told, list)
    assert [entry["layer"] for entry in told] == ["/first/MatMul", OTHER, "/third/MatMul"]
    assert "agreement" in outcome.evidence


def test_a_board_that_is_right_has_nothing_to_explain(tmp_path: Path) -> None:
    spec, outcome = disagree(tmp_path, "")
    assert isinstance(outcome, Measured), outcome
    assert not is_disagreement(outcome, spec)


def test_goldens_of_another_file_are_told_apart_from_a_wrong_layer(tmp_path: Path) -> None:
    _, outcome = disagree(tmp_path, "", wrong_goldens=True)
    assert isinstance(outcome, Failed), outcome
    assert "the goldens are another file's" in outcome.fault.message
    assert outcome.evidence["culprit"] is None


def test_a_board_that_is_lost_meanwhile_leaves_the_failure_as_it_was(tmp_path: Path) -> None:
    _, outcome = disagree(tmp_path, OTHER, broken=True)
    assert isinstance(outcome, Failed), outcome
    assert outcome.fault.message.startswith("outputs differ from the goldens")
    assert "layer" not in outcome.fault.message
    assert outcome.evidence["layers_unknown"] == "gone"


def test_only_onnx_files_with_goldens_are_looked_into() -> None:
    spec = JobSpec(JobKind.LATENCY, "a" * 64, "onnx", "host", goldens="b" * 64)
    wrong = Failed(Fault(Owner.CANDIDATE, False, "disagrees", "no"))
    assert is_disagreement(wrong, spec)
    assert not is_disagreement(wrong, replace(spec, format="tflite"))
    assert not is_disagreement(wrong, replace(spec, goldens=None))
    assert not is_disagreement(replace(wrong, fault=replace(wrong.fault, code="crash")), spec)


def test_noise_that_grows_slowly_has_no_culprit() -> None:
    errors = (LayerError("a", 40.0, 5.0), LayerError("b", 31.0, 9.0), LayerError("c", 30.0, 1.0))
    assert said(errors) == "no layer differs at once, the most b (SQNR 31.0 dB)"
