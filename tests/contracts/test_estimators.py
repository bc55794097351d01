"""What every estimator must hold to; a new one is added to `_estimators`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.graph import layers
from flatsat.compressors.reconstruct import ChannelPruner
from flatsat.datasets.splits import Split
from flatsat.errors import UsageError
from flatsat.harness.search.costs import BoardModel, MacsModel, total_of
from flatsat.harness.search.domain import Graph
from flatsat.harness.search.estimate import estimator_of
from flatsat.harness.search.seams import Estimator, Fidelity
from flatsat.harness.search.spaces import ChannelSpace
from flatsat.harness.search.table import TablePlan

SHAPE = (1, 8, 8)


def _parts():
    weights = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 3),
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=weights) * 0.3)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        y = module(torch.from_numpy(x)).argmax(1).numpy()
    split = Split("validation", x, y.astype(np.int64))
    pruner = ChannelPruner(Network(module, SHAPE), x)
    domain = ChannelSpace("x").domain(Graph(layers(module, SHAPE), pruner.groups, SHAPE))
    return domain, pruner, split


def _estimators() -> dict[str, tuple[object, Estimator, object]]:
    domain, pruner, split = _parts()
    macs = MacsModel(domain)
    plan = TablePlan(domain, 3)
    table = plan.table({p: 5.0 + p.inputs * p.outputs for p in plan.probes()}, {})
    latency = BoardModel(domain, table, relative_error=0.02)
    return {
        "no-finetune, MACs": (domain, estimator_of(pruner, split, macs), macs),
        "no-finetune, latency": (domain, estimator_of(pruner, split, latency), latency),
    }


ESTIMATORS = _estimators()


@pytest.fixture(params=ESTIMATORS)
def parts(request: pytest.FixtureRequest):
    return ESTIMATORS[request.param]


def test_an_estimate_carries_value_error_fidelity_and_cost(parts) -> None:
    domain, estimator, cost = parts
    for fidelity in estimator.fidelities:
        for counts in (domain.full, domain.least):
            proposal = domain.proposal(counts.tolist())
            found = estimator.estimate(proposal, fidelity)
            assert 0.0 <= found.value <= 1.0
            assert found.error == pytest.approx(math.sqrt(found.value * (1 - found.value) / 120))
            assert found.fidelity is fidelity
            assert found.cost == total_of(cost, counts)
            assert found.cost_error == cost.relative_error


def test_the_whole_network_is_as_good_as_it_is(parts) -> None:
    domain, estimator, _ = parts
    found = estimator.estimate(domain.proposal(domain.full.tolist()), estimator.fidelities[0])
    assert found.value == 1.0


def test_the_same_proposal_gives_the_same_estimate_and_no_more_work(parts) -> None:
    domain, estimator, _ = parts
    counts = [max(choice.options[0], choice.channels // 2) for choice in domain.choices]
    proposal = domain.proposal(counts)
    first = estimator.estimate(proposal, estimator.fidelities[0])
    work = estimator.evaluations
    assert estimator.estimate(domain.proposal(counts, "again"), estimator.fidelities[0]) == first
    assert estimator.evaluations == work


def test_a_fidelity_that_is_not_offered_is_refused(parts) -> None:
    domain, estimator, _ = parts
    proposal = domain.proposal(domain.full.tolist())
    for fidelity in set(Fidelity) - set(estimator.fidelities):
        with pytest.raises(UsageError, match=fidelity.value):
            estimator.estimate(proposal, fidelity)
