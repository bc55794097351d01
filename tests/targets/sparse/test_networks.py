"""Whole networks with random zeros: the library against onnxruntime on the same ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.onnx_lower import export
from flatsat.compressors.onnx_model import parse, run_host
from flatsat.compressors.sparse_graph import program_of
from flatsat.compressors.sparse_lower import cheapest
from flatsat.compressors.sparse_program import FORMATS, to_bytes
from flatsat.datasets.nets import build
from flatsat.targets.agent.runtime_sparse import Program, SparseLibrary
from flatsat.tensors import TensorSpec


class Inception(nn.Module):
    """Four branches, joined, as in GoogLeNet; then a skipped path and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(6, 5, 1)
        self.three = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Conv2d(3, 6, 3, padding=1))
        self.five = nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(6, 3, 1))
        self.norm = nn.BatchNorm2d(18)
        self.group = nn.Conv2d(18, 12, 3, 2, 1, groups=3)
        self.mean = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> Any:
        parts = [branch(x) for branch in (self.one, self.three, self.five, self.pool)]
        joined = torch.relu(self.norm(torch.cat(parts, 1)))
        deep = torch.clamp(self.group(joined), -0.5, 2.0)
        return self.head(self.mean(deep).mean((2, 3)))


def make(net: str) -> tuple[nn.Module, tuple[int, ...]]:
    if net == "inception":
        torch.manual_seed(2)
        return Inception(), (6, 11, 13)
    rng = torch.Generator().manual_seed(2)
    made = build(net, classes=4, input_shape=(1, 20, 20), width=0.3, generator=rng)
    return made, (1, 20, 20)


def onnx_of(module: nn.Module, shape: tuple[int, ...], density: float, seed: int) -> bytes:
    """Return the ONNX file of a module with random zeros and settled norms."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.2, 0.2, generator=rng)  # type: ignore[union-attr]
                part.running_var.uniform_(0.5, 2, generator=rng)  # type: ignore[union-attr]
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter *= torch.rand(parameter.shape, generator=rng) < density
    source = TensorSpec("image", "float32", ("batch", *shape))
    target = TensorSpec("logits", "float32", ("batch", 4))
    return export(Network(module.eval(), shape), source, target, 17)


@pytest.mark.parametrize("net", ["lenet300", "lenet5", "resnet20", "mobilenet-small", "inception"])
def test_networks_agree_with_onnxruntime(library: SparseLibrary, net: str) -> None:
    for density in (0.05, 0.4, 1.0):
        module, shape = make(net)
        data = onnx_of(module, shape, density, seed=int(100 * density))
        images = np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
        expected = run_host(data, {"image": images})["logits"]
        for format_ in (*FORMATS, "auto"):
            choose = cheapest if format_ == "auto" else lambda *_, f=format_: f
            program = program_of(parse(data, net), choose)
            found = Program(library, to_bytes(program)).run(images)
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), format_


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["lenet5", "inception"]), st.floats(0, 1), st.integers(0, 99))
def test_so_do_they_for_any_mask(
    library: SparseLibrary, net: str, density: float, seed: int
) -> None:
    module, shape = make(net)
    data = onnx_of(module, shape, density, seed)
    images = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    expected = run_host(data, {"image": images})["logits"]
    program = program_of(parse(data, net), cheapest)
    found = Program(library, to_bytes(program)).run(images)
    assert np.abs(found - expected).max() <= 1e-4 * max(0.1, float(np.abs(expected).max()))
