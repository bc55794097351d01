"""What a candidate's folder keeps for pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flatsat.compressors.base import Network
from flatsat.compressors.layers import layers
from flatsat.compressors.linear_quant import LinearQuantise
from flatsat.compressors.pictures import (
    BINS,
    MOST_LAYERS,
    PICTURES_FILE,
    first_dense,
    first_filters,
    histograms,
    pictures,
    put_pictures,
)
from flatsat.errors import ModelError


def _net(seed=0, hidden=12):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, hidden), nn.Linear(hidden, 4)
    ).eval()


def _network(module, **more):
    return Network(module, (1, 8, 8), **more)


def _kept(network, tmp_path, before=None):
    found = layers(network.module, network.input_shape)
    put_pictures(tmp_path, pictures(network, found, before))
    return {one.layer: one for one in histograms(tmp_path)}


def test_every_weight_is_in_a_bin_or_is_a_zero(tmp_path):
    module = _net()
    with torch.no_grad():
        module[3].weight[:5] = 0.0
    found = _kept(_network(module), tmp_path, _net(1))
    assert list(found) == ["0", "3", "4"]
    dense = found["3"]
    assert dense.zeros == 5 * 108
    assert sum(dense.after) + dense.zeros == 12 * 108
    assert sum(dense.before) == 12 * 108
    assert len(dense.after) == len(dense.before) == BINS
    weights = torch.cat([module[3].weight.flatten(), _net(1)[3].weight.flatten()]).detach()
    assert dense.low == pytest.approx(float(weights.min()))
    assert dense.high == pytest.approx(float(weights.max()))
    assert dense.codebook == ()


def test_a_layer_that_was_not_there_before_or_an_untrained_start_has_no_before(tmp_path):
    found = _kept(_network(_net()), tmp_path, nn.Sequential(nn.Conv2d(1, 3, 3)))
    assert found["0"].before is not None
    assert found["3"].before is None
    assert _kept(_network(_net()), tmp_path)["0"].before is None


def test_layers_of_other_shapes_are_laid_over_each_other(tmp_path):
    found = _kept(_network(_net(hidden=6)), tmp_path, _net(hidden=12))
    assert (sum(found["3"].after), sum(found["3"].before)) == (6 * 108, 12 * 108)


def test_levels_of_a_quantised_layer_are_its_codebook(blobs, tmp_path):
    ctx = blobs((1, 8, 8))
    step = LinearQuantise(LinearQuantise.Params(bits=3, skip=("4",)))
    network = step.apply(_network(_net()), ctx)
    found = _kept(network, tmp_path)
    levels = np.unique(network.module[3].weight.detach().numpy())
    assert found["3"].codebook == pytest.approx(levels.tolist())
    assert len(levels) <= 8
    assert found["4"].codebook == ()


def test_a_codebook_that_a_step_tells_goes_before_the_levels_in_use(tmp_path):
    told = {"parameter": "3.weight", "codebook": [0.5, -0.5, 0.0]}
    network = _network(_net(), history=({"step": "share-weights", "layers": [told]},))
    assert _kept(network, tmp_path)["3"].codebook == (-0.5, 0.0, 0.5)


def test_only_the_largest_layers_are_kept_in_order(tmp_path):
    sizes = [1 + (7 * i) % 20 for i in range(20)]
    module = nn.Sequential(*(nn.Linear(8, 8) for _ in sizes))
    for i, size in enumerate(sizes):
        module[i] = nn.Linear(1 if i == 0 else sizes[i - 1], size)
    network = Network(module.eval(), (1,))
    found = _kept(network, tmp_path)
    assert len(found) == MOST_LAYERS
    assert [int(name) for name in found] == sorted(int(name) for name in found)


@pytest.mark.parametrize("value", [0.0, 0.25, float("nan")])
def test_a_layer_of_equal_zero_or_broken_weights_does_no_harm(tmp_path, value):
    module = _net()
    with torch.no_grad():
        module[3].weight.fill_(value)
    found = _kept(_network(module), tmp_path)
    if value == 0.25:
        assert sum(found["3"].after) == 12 * 108
        assert found["3"].low < 0.25 < found["3"].high
    else:
        assert "3" not in found


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_counts_add_up_whatever_the_scale(seed, scale):
    module = nn.Sequential(nn.Linear(7, 5))
    with torch.no_grad():
        draw = torch.Generator().manual_seed(seed)
        module[0].weight.copy_(scale * torch.randn(5, 7, generator=draw))
    network = Network(module.eval(), (7,))
    arrays = pictures(network, layers(module, (7,)), module)
    assert arrays["after:0"].sum() + arrays["zeros:0"] == 35
    assert np.array_equal(arrays["after:0"], arrays["before:0"])


def test_the_pattern_is_that_of_the_first_dense_layer():
    module = _net()
    with torch.no_grad():
        module[3].weight[2, 7] = 0.0
    found = layers(module, (1, 8, 8))
    ((name, mask),) = first_dense(_network(module), found).items()
    assert name == "3"
    assert mask.shape == (12, 108)
    assert not mask[2, 7]
    assert mask.sum() == 12 * 108 - 1
    conv = nn.Sequential(nn.Conv2d(1, 3, 3)).eval()
    assert first_dense(_network(conv), layers(conv, (1, 8, 8))) == {}


def test_the_first_filters_are_kept_as_they_are_and_were(tmp_path):
    module, before = _net(), _net(1)
    _kept(_network(module), tmp_path, before)
    found = first_filters(tmp_path)
    assert found.layer == "0"
    assert np.array_equal(found.after, module[0].weight.detach().numpy())
    assert np.array_equal(found.before, before[0].weight.detach().numpy())
    _kept(_network(module), tmp_path)
    assert first_filters(tmp_path).before is None


@pytest.mark.parametrize("first", [nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 13, padding=6)])
def test_filters_of_a_size_that_cannot_be_seen_are_not_kept(tmp_path, first):
    module = nn.Sequential(first, nn.Flatten(), nn.Linear(192, 4)).eval()
    _kept(_network(module), tmp_path)
    assert first_filters(tmp_path) is None


def test_a_folder_without_pictures_has_none_and_a_damaged_one_says_so(tmp_path):
    assert histograms(tmp_path) == ()
    assert first_filters(tmp_path) is None
    for damage in (b"", b"PK\x03\x04 broken", b"no archive"):
        (tmp_path / PICTURES_FILE).write_bytes(damage)
        for read in (histograms, first_filters):
            with pytest.raises(ModelError, match="damaged"):
                read(tmp_path)
    np.savez(tmp_path / PICTURES_FILE, layers=np.array(["fc"]))
    with pytest.raises(ModelError, match="damaged"):
        histograms(tmp_path)


def test_the_file_is_small_and_repeats_to_the_byte(tmp_path):
    network = _network(_net())
    _kept(network, tmp_path)
    first = (tmp_path / PICTURES_FILE).read_bytes()
    _kept(network, tmp_path)
    assert (tmp_path / PICTURES_FILE).read_bytes() == first
    assert len(first) < 3 * BINS * 64
