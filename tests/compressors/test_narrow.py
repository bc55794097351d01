"""The narrow baseline: never above the target, trained like the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from flatsat.compressors.base import Network, StepContext
from flatsat.compressors.graph import count
from flatsat.compressors.narrow import Narrow, NarrowParams, width_at_most
from flatsat.datasets.architectures import scaled
from flatsat.datasets.workload import workload
from flatsat.errors import RecipeError

SHAPE = (1, 28, 28)


@pytest.fixture
def quick(tmp_path):
    """Make a context of mnist-mini whose trainings last one epoch."""

    def make(network, seed=0):
        task = workload("mnist-mini")
        brief = tuple((name, replace(how, epochs=1)) for name, how in task.training)
        splits = task.splits(tmp_path)
        return StepContext(
            workload=replace(task, training=brief),
            network=network,
            train=splits.train,
            calibration=splits.calibration,
            validation=splits.validation,
            seed=seed,
            cache_dir=tmp_path,
        )

    return make


def dense():
    return Network(nn.Identity(), SHAPE)


@pytest.mark.parametrize(
    ("network", "params"),
    [
        ("lenet300", {"macs_ratio": 0.1}),
        ("lenet5", {"macs": 50_000}),
        ("mobilenet-small", {"macs_ratio": 0.05}),
    ],
)
def test_macs_are_at_or_below_the_target(quick, network, params):
    ctx = quick(network)
    made = Narrow(NarrowParams(**params)).apply(dense(), ctx)
    (entry,) = made.history
    _, _, macs = count(made.module, SHAPE)
    assert macs == entry["macs"] <= entry["target_macs"]
    assert entry["cost"]["train_steps"] == 3000 // ctx.workload.settings(network).batch
    # The next wider network would be above it.
    wider = entry["width"]
    while ctx.workload.cost(network, wider).macs == macs:
        wider += 1e-3
    assert ctx.workload.cost(network, wider).macs > entry["target_macs"]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(workload("fashion").networks), share=st.floats(0.0, 1.0))
def test_no_width_found_is_above_its_target(name, share):
    task = workload("mnist-mini")
    least, full = task.cost(name, 1e-4).macs, task.cost(name).macs
    target = least + int(share * (full - least))
    width = width_at_most(task, name, target)
    assert least <= task.cost(name, width).macs <= target


def test_it_is_trained_once_and_by_seed(quick):
    step = Narrow(NarrowParams(macs_ratio=0.1))
    first = step.apply(dense(), quick("lenet300")).module.state_dict()
    again = step.apply(dense(), quick("lenet300")).module.state_dict()
    other = step.apply(dense(), quick("lenet300", seed=1)).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


def test_a_training_found_in_the_cache_is_told_with_what_it_cost(quick):
    step = Narrow(NarrowParams(macs_ratio=0.1))
    first = step.apply(dense(), quick("lenet300")).history[0]
    again = step.apply(dense(), quick("lenet300")).history[0]
    assert first["cached_cpu_s"] == 0.0
    assert again["cached_cpu_s"] > 0.0


def test_the_whole_budget_is_the_reference_itself(quick):
    made = Narrow(NarrowParams(macs_ratio=1.0)).apply(dense(), quick("lenet300"))
    assert made.history[0]["width"] == 1.0
    assert made.module.fc1.out_features == scaled(300, 1.0)


def test_an_impossible_target_is_refused(quick):
    with pytest.raises(RecipeError, match=r"lenet5 has \d+ MACs with one channel a layer"):
        Narrow(NarrowParams(macs=10)).apply(dense(), quick("lenet5"))


def test_it_must_come_first(quick):
    later = dense().after(nn.Identity(), {"step": "fine-tune"})
    with pytest.raises(RecipeError, match="make it the first step"):
        Narrow(NarrowParams(macs=10_000)).apply(later, quick("lenet5"))


def test_a_network_of_another_origin_is_refused(quick):
    with pytest.raises(RecipeError, match="needs a reference architecture"):
        Narrow(NarrowParams(macs=10_000)).apply(dense(), replace(quick("lenet5"), network=""))


@pytest.mark.parametrize(
    "params", [{}, {"macs": 5, "macs_ratio": 0.5}, {"macs": 0}, {"macs_ratio": 1.5}]
)
def test_senseless_parameters_are_refused(params):
    with pytest.raises(ValidationError):
        NarrowParams(**params)
