"""Networks as sparse programs: the same outputs, each layer in its cheapest form, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatsat.compressors import sparse_run
from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.importing import import_model
from flatsat.compressors.onnx_lower import export
from flatsat.compressors.onnx_model import parse
from flatsat.compressors.sparse_graph import program_of
from flatsat.compressors.sparse_lower import SparseLower, cheapest, formats
from flatsat.compressors.sparse_program import FORMATS, Program
from flatsat.compressors.sparse_read import from_bytes
from flatsat.datasets.fit import predict
from flatsat.datasets.nets import build
from flatsat.errors import ModelError, RecipeError
from flatsat.tensors import TensorSpec


def dense(*_: Any) -> str:
    return "dense"


def mapped(
    module: nn.Module, shape: tuple[int, ...], choose: Callable[..., str] = dense
) -> tuple[Program, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a module's program and what both make of some inputs."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            part.weight.data.normal_()
            part.bias.data.normal_()
    images = np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)
    expected = predict(module.eval(), images)
    source = TensorSpec("image", "float32", ("batch", *shape))
    target = TensorSpec("logits", "float32", ("batch", *expected.shape[1:]))
    model = parse(export(Network(module.eval(), shape), source, target, 17), "a test")
    program = program_of(model, choose)
    return program, sparse_run.run(program, images), expected


def prune(module: nn.Module, density: float, seed: int = 5) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter *= torch.rand(parameter.shape, generator=rng) < density
    return module


class Branches(nn.Module):
    """Concatenation, a skipped path, pools with padding, a module used twice, unfolded norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.flat = nn.Conv2d(8, 4, 1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.mean = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
        self.late = nn.BatchNorm2d(20)
        self.head = nn.Linear(20 * 9, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = F.relu6(self.norm(self.stem(x)))
        twice = self.deep(torch.relu(self.deep(x)))
        joined = torch.cat([x + twice, self.flat(x), self.pool(x)], 1)
        late = torch.relu(self.late(joined))
        return self.head(torch.flatten(self.mean(late), 1)) * 0.5 - 1.0


@pytest.mark.parametrize("net", ["lenet300", "lenet5", "resnet20", "mobilenet-small"])
@pytest.mark.parametrize("format_", FORMATS)
def test_reference_networks_are_reproduced(net: str, format_: str) -> None:
    rng = torch.Generator().manual_seed(1)
    module = build(net, classes=4, input_shape=(1, 28, 28), width=0.25, generator=rng)
    program, found, expected = mapped(prune(module, 0.3), (1, 28, 28), lambda *_: format_)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    kinds = {op.kind for op in program.ops}
    # Norms and activations are part of the layers before them, flattening is nothing.
    assert kinds <= {"conv", "fc", "maxpool", "avgpool", "add"}
    assert formats(program).keys() == {format_}


def test_branches_skips_and_late_norms_are_reproduced() -> None:
    program, found, expected = mapped(Branches(), (3, 7, 9))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    deep = [op for op in program.ops if op.kind == "conv" and op.groups == 2]
    assert len(deep) == 2
    assert deep[0].weights is deep[1].weights
    # The norm behind the concatenation has no layer of its own to go into.
    late = next(op for op in program.ops if op.groups == 20)
    assert (late.kernel, late.low) == ((1, 1), 0.0)


class SmallUNet(nn.Module):
    """Down, up by a transposed convolution or by repeating, joined with what was there."""

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 6, 3, padding=1)
        self.up = up
        self.last = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        first = torch.relu(self.first(x))
        deep = torch.relu(self.deep(F.max_pool2d(first, 2)))
        return self.last(torch.cat([first, self.up(deep)], 1))


@pytest.mark.parametrize(
    "up",
    [
        nn.ConvTranspose2d(6, 6, 2, 2),
        nn.ConvTranspose2d(6, 6, 3, 2, 1, output_padding=1, groups=3),
        nn.ConvTranspose2d(6, 6, 4, 2, 1, bias=False),
        nn.Upsample(scale_factor=2, mode="nearest"),
    ],
)
def test_images_are_made_larger_again(up: nn.Module) -> None:
    program, found, expected = mapped(SmallUNet(up), (2, 8, 12))
    assert found.shape == (3, 3, 8, 12)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert "stretch" in {op.kind for op in program.ops}


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.Sigmoid(), "Sigmoid"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "Resize"),
        (nn.Softmax(1), "Softmax"),
        (nn.MaxPool2d(2, dilation=2), "MaxPool"),
    ],
)
def test_a_node_that_it_cant_execute_is_named(layer: nn.Module, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        mapped(nn.Sequential(nn.Conv2d(2, 2, 3), layer, nn.ReLU()), (2, 8, 8))
    assert "\n" not in str(caught.value)
    assert "'" in str(caught.value)


def test_an_activation_that_two_read_stays_apart() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = self.conv(x)
            return torch.flatten(torch.relu(made) + made, 1)

    program, found, expected = mapped(Twice(), (1, 5, 5))
    assert np.abs(found - expected).max() <= 1e-5
    assert program.ops[0].low == -np.inf


@pytest.fixture
def ctx(blobs: Any) -> StepContext:
    made: StepContext = blobs((1, 12, 12))
    return made


def network(density: float) -> Network:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, 4)
    )
    return Network(prune(module, density).eval(), (1, 12, 12))


def test_the_file_has_goldens_and_forms_by_density(ctx: StepContext, tmp_path: Path) -> None:
    made = {}
    for density in (0.05, 1.0):
        artifact = SparseLower(SparseLower.Params(goldens=16)).lower(
            network(density), tmp_path, ctx
        )
        assert (artifact.format, artifact.role) == ("sparse-c", "sparse")
        data = (tmp_path / artifact.file).read_bytes()
        assert len(data) == artifact.size_bytes
        made[density] = from_bytes(data)
    assert set(formats(made[1.0])) == {"dense"}
    assert "dense" not in formats(made[0.05])
    assert made[0.05].executed_macs < made[1.0].executed_macs / 4


def test_cheapest_follows_the_structure_of_the_zeros() -> None:
    rng = np.random.default_rng(0)
    scattered = rng.standard_normal((64, 256)) * (rng.random((64, 256)) < 0.05)
    blocks = rng.standard_normal((64, 256)) * np.repeat(rng.random((16, 256)) < 0.05, 4, axis=0)
    for kind, places in (("fc", 1), ("conv", 100)):
        assert cheapest(kind, np.ones((64, 256)), 1, places) == "dense"
        assert cheapest(kind, blocks, 1, places) == "block4x1"
    assert cheapest("conv", scattered, 1, 100) == "csr"


def test_such_a_file_is_imported_by_its_content(ctx: StepContext, tmp_path: Path) -> None:
    artifact = SparseLower(SparseLower.Params(goldens=8)).lower(network(0.2), tmp_path, ctx)
    path = tmp_path / "model.onnx"
    (tmp_path / artifact.file).rename(path)
    candidate = import_model(path, None, tmp_path / "candidates")
    (imported,) = candidate.artifacts
    assert (imported.format, imported.sha256) == ("sparse-c", artifact.sha256)
    assert (imported.inputs, imported.outputs) == (artifact.inputs, artifact.outputs)
    assert candidate.macs == 100 * 8 * 9 + 800
    assert 0 < candidate.nonzeros < candidate.params == 72 + 8 + 800 + 4
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"damaged\.bin"):
        import_model(damaged, None, tmp_path / "candidates")
