"""Lowering: files that agree with PyTorch, tell nothing of their maker, and repeat exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from flatsat.artifact import Agreement
from flatsat.canonical import sha256_file
from flatsat.compressors.agreement import disagreement
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.candidate import goldens_path
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.compressors.onnx_model import inspect, run_host
from flatsat.datasets.nets import build
from flatsat.datasets.workload import Split, workload
from flatsat.errors import ModelError, RecipeError


def context(tmp_path: Path, n: int = 80) -> StepContext:
    def split(name: str, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        return Split(name, rng.random((n, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, n))

    return StepContext(
        workload=workload("mnist-mini"),
        network="",
        train=split("train", 0),
        calibration=split("calibration", 1),
        validation=split("validation", 2),
        seed=0,
        cache_dir=tmp_path,
    )


def network(name: str = "resnet20", width: float = 0.25) -> Network:
    generator = torch.Generator().manual_seed(5)
    module = build(name, classes=10, input_shape=(1, 28, 28), width=width, generator=generator)
    return Network(module, (1, 28, 28))


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20", "mobilenet-small"])
def test_every_reference_network_agrees_and_runs_at_any_batch(tmp_path: Path, name: str) -> None:
    net, ctx = network(name, 0.3), context(tmp_path)
    artifact = OnnxLower(OnnxLower.Params(goldens=100)).lower(net, tmp_path, ctx)
    path = tmp_path / artifact.file
    assert sha256_file(path) == artifact.sha256
    info = inspect(path)
    assert (info.opset, info.ir, info.valid) == (17, 8, True)
    assert info.inputs == artifact.inputs == (ctx.workload.input,)
    assert info.outputs == artifact.outputs == (ctx.workload.output,)
    assert artifact.agreement == Agreement("tol", max_rel=1e-4)
    assert artifact.goldens is not None
    with np.load(goldens_path(tmp_path, artifact.goldens), allow_pickle=False) as goldens:
        x, expected = goldens["in:image"], goldens["out:logits"]
    # Validation first, then calibration.
    assert np.array_equal(x, np.concatenate([ctx.validation.x, ctx.calibration.x[:20]]))
    with torch.no_grad():
        assert np.allclose(net.module(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    one = run_host(path, {"image": x[:1]})["logits"]
    assert not disagreement(one, expected[:1], artifact.agreement)


def test_file_holds_no_path_and_no_comment(tmp_path: Path) -> None:
    artifact = OnnxLower(OnnxLower.Params()).lower(network(), tmp_path, context(tmp_path))
    data = (tmp_path / artifact.file).read_bytes()
    assert b".py" not in data
    assert str(Path(__file__).parents[2]).encode() not in data
    made = onnx.load_model_from_string(data)
    assert not made.metadata_props
    assert not any(node.doc_string for node in made.graph.node)


def test_lowering_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ctx = context(tmp_path)
    artifact = OnnxLower(OnnxLower.Params()).lower(network(), tmp_path, ctx)
    for calibrator in ("minmax", "entropy", "percentile"):
        params = OnnxInt8.Params(n=40, calibrator=calibrator)
        OnnxInt8(params).apply(artifact, tmp_path, ctx)
    assert capfd.readouterr() == ("", "")


_IN_A_PROCESS = """
import sys, pathlib, numpy as np, torch
torch.set_num_threads(1)
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.onnx_int8 import OnnxInt8
from flatsat.compressors.onnx_lower import OnnxLower
from flatsat.datasets.nets import build
from flatsat.datasets.workload import Split, workload
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
rng = np.random.default_rng(0)
split = Split("s", rng.random((60, 1, 28, 28), dtype=np.float32), rng.integers(0, 10, 60))
ctx = StepContext(workload("mnist-mini"), "", split, split, split, 0, folder)
net = build("resnet20", classes=10, input_shape=(1, 28, 28), width=0.25,
            generator=torch.Generator().manual_seed(5))
made = OnnxLower(OnnxLower.Params(goldens=60)).lower(Network(net, (1, 28, 28)), folder, ctx)
print(made.sha256, made.goldens)
for calibrator in ("minmax", "entropy", "percentile"):
    q = OnnxInt8(OnnxInt8.Params(n=50, calibrator=calibrator)).apply(made, folder, ctx)
    print(q.sha256, q.goldens)
"""


@pytest.mark.slow
def test_bytes_are_equal_in_two_processes(tmp_path: Path) -> None:
    told = [
        subprocess.run(
            [sys.executable, "-c", _IN_A_PROCESS, str(tmp_path / hash_seed)],
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert len(told[0].split()) == 8


def test_other_opset_has_its_own_ir(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    artifact = OnnxLower(OnnxLower.Params(opset=13)).lower(network("lenet5"), tmp_path, ctx)
    assert (artifact.opset, artifact.ir) == (13, 7)
    assert inspect(tmp_path / artifact.file).opset == 13


class Moody(nn.Module):
    """Behaves otherwise while it is traced: what a wrong lowering would look like."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x.flatten(1))
        return out * 1.001 if torch.jit.is_tracing() else out


def test_file_that_disagrees_does_not_count(tmp_path: Path) -> None:
    net = Network(Moody().eval(), (1, 28, 28))
    with pytest.raises(ModelError, match="disagrees with PyTorch: max"):
        OnnxLower(OnnxLower.Params()).lower(net, tmp_path, context(tmp_path))
    assert not list(tmp_path.glob("*.onnx"))


class Unwritable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x.flatten(1))


def test_network_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    net = Network(Unwritable(), (1, 28, 28))
    with pytest.raises(RecipeError, match="can't write this network as ONNX") as caught:
        OnnxLower(OnnxLower.Params()).lower(net, tmp_path, context(tmp_path))
    assert "\n" not in str(caught.value)


def test_lowering_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    net = network()
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    OnnxLower(OnnxLower.Params()).lower(net, tmp_path, context(tmp_path))
    assert not net.module.training
    after = net.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([[1.0, 2.0]], ""),
        ([[1.0, 2.00015]], ""),
        ([[1.0, 2.1]], "max"),
        ([[1.0, np.nan]], "not finite"),
        ([[1.0, 2.0, 3.0]], "shape"),
    ],
)
def test_tolerance_policy(found: list[list[float]], says: str) -> None:
    told = disagreement(np.array(found), np.array([[1.0, 2.0]]), Agreement("tol", max_rel=1e-4))
    assert says in told
    assert bool(told) == bool(says)


def test_decision_policy() -> None:
    policy = Agreement("decision", quantum=0.1, p99_quanta=2.0, top1=0.99)
    expected = np.tile([0.0, 1.0], (200, 1))
    assert not disagreement(expected + 0.19, expected, policy)
    assert "p99" in disagreement(expected + 0.21, expected, policy)
    close = np.tile([0.95, 1.0], (200, 1))
    swapped = close.copy()
    swapped[:3] = [1.0, 0.95]
    assert "same class" in disagreement(swapped, close, policy)
    assert not disagreement(np.concatenate([swapped[:2], close[2:]]), close, policy)
