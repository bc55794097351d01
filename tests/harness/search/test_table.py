"""Latency tables: probes that runtimes take, grids that never fall, calibration by whole nets."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flatsat.errors import InfrastructureError
from flatsat.harness.search.calibration import calibrate, prediction_error
from flatsat.harness.search.costs import BoardModel, total_of
from flatsat.harness.search.probes import Probe, model_bytes
from flatsat.harness.search.table import BoardTable, Grid, TablePlan, monotone

TABLES = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(0, 1e6)
)


@given(TABLES)
def test_smoothed_tables_never_fall_and_rising_ones_stay_as_they_are(values) -> None:
    smooth = monotone(values)
    assert (np.diff(smooth, axis=0) >= 0).all()
    assert (np.diff(smooth, axis=1) >= 0).all()
    assert np.array_equal(monotone(smooth), smooth)
    assert values.min() <= smooth.min()
    assert smooth.max() <= values.max()


@given(TABLES, st.data())
@settings(max_examples=60)
def test_interpolation_never_falls_and_meets_the_measured_points(values, data) -> None:
    rows = np.cumsum(data.draw(hnp.arrays(np.int64, values.shape[0], elements=st.integers(1, 9))))
    columns = np.cumsum(
        data.draw(hnp.arrays(np.int64, values.shape[1], elements=st.integers(1, 9)))
    )
    grid = Grid(rows.astype(float), columns.astype(float), monotone(values))
    at = grid.at(*np.meshgrid(grid.inputs, grid.outputs, indexing="ij"))
    assert np.allclose(at, grid.values, rtol=1e-12)
    steps = np.linspace(0, rows[-1] + 2, 17)
    across = np.full_like(steps, data.draw(st.floats(0, float(columns[-1]))))
    rise = np.diff(grid.at(steps, across))
    assert (rise >= -1e-9 * (1 + values.max())).all()


def test_interpolation_is_exact_where_latency_goes_with_the_product() -> None:
    axis = np.array([2.0, 5.0, 9.0])
    grid = Grid(axis, axis, np.outer(axis, axis))
    inputs, outputs = np.array([3.0, 8.5, 2.0]), np.array([7.0, 4.25, 9.0])
    assert grid.at(inputs, outputs) == pytest.approx(inputs * outputs)


PROBES = [
    Probe("empty", 3, 3, in_size=(28, 28)),
    Probe("conv", 3, 5, (3, 3), (1, 1), (8, 8), (8, 8)),
    Probe("conv", 3, 5, (5, 5), (1, 1), (12, 12), (8, 8)),
    Probe("conv", 4, 6, (3, 3), (2, 2), (9, 9), (5, 5)),
    Probe("conv", 4, 6, (3, 3), (2, 2), (8, 8), (3, 3)),
    Probe("conv", 4, 6, (1, 1), (2, 2), (8, 8), (4, 4)),
    Probe("conv", 4, 6, (3, 3), (1, 1), (8, 8), (8, 8), groups=2),
    Probe("conv", 4, 6, (3,), (1,), (8,), (8,)),
    Probe("depthwise", 6, 6, (3, 3), (2, 2), (8, 8), (4, 4)),
    Probe("deconv", 4, 3, (2, 2), (2, 2), (4, 4), (8, 8)),
    Probe("deconv", 4, 3, (3, 3), (2, 2), (4, 4), (8, 8)),
    Probe("dense", 40, 7),
]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_a_probe_is_a_model_of_the_real_size_that_the_runtime_takes(probe: Probe) -> None:
    data = model_bytes(probe)
    assert data == model_bytes(probe)
    session = onnxruntime.InferenceSession(data)
    x = np.ones((1, probe.inputs, *probe.in_size), dtype=np.float32)
    (y,) = session.run(None, {"x": x})
    size = probe.out_size or (probe.in_size if probe.kind == "empty" else ())
    assert y.shape == (1, probe.outputs, *size)
    assert np.isfinite(y).all()


def test_a_plan_measures_each_layer_from_its_least_to_the_whole(planted) -> None:
    plan = TablePlan(planted, 3)
    probes = plan.probes()
    assert probes[0] == plan.empty
    assert len(set(probes)) == len(probes)
    for layer, (inputs, outputs) in zip(planted.layers, plan.axes, strict=True):
        assert inputs[-1] == layer.in_features
        assert outputs[-1] == layer.out_features
        assert inputs[0] == (3 if layer.name == "conv0" else 8)
    # The middle layers are alike: measured once.
    assert len(probes) == 1 + 3 + 9 + 3


def test_the_empty_model_is_subtracted_and_lost_layers_are_told(planted) -> None:
    plan = TablePlan(planted, 3)
    measured = {p: 900.0 + p.inputs * p.outputs for p in plan.probes()}
    measured[plan.empty] = 900.0
    lost = [p for p in measured if p.kind == "dense"]
    for probe in lost:
        del measured[probe]
    table = plan.table(measured, dict.fromkeys(lost, "unsupported"), "layers-1")
    assert table.failed == {"fc": "unsupported"}
    model = BoardModel(planted, table)
    per_layer = model.per_layer(planted.full)
    assert per_layer[:2] == pytest.approx([3 * 32, 32 * 32])
    assert per_layer[-1] == 0.0
    again = BoardTable.from_json(table.to_json())
    assert again.run_id == "layers-1"
    assert np.array_equal(BoardModel(planted, again).per_layer(planted.full), per_layer)


def test_a_board_that_runs_no_layer_is_an_error_that_says_why(planted) -> None:
    plan = TablePlan(planted, 3)
    with pytest.raises(InfrastructureError, match="unsupported"):
        plan.table({}, dict.fromkeys(plan.probes(), "unsupported"))
    with pytest.raises(InfrastructureError, match="board doctor"):
        plan.table({plan.empty: 1.0}, {})


@given(
    st.floats(0.1, 10),
    st.floats(0, 1e5),
    st.lists(st.floats(1e3, 1e6), min_size=2, max_size=8, unique=True),
)
def test_calibration_finds_scale_and_offset(scale: float, offset: float, sums: list[float]) -> None:
    sums = [min(sums), 1.2 * max(sums), *sums]
    found = calibrate(sums, [scale * total + offset for total in sums])
    predicted = [found.scale * total + found.offset for total in sums]
    assert predicted == pytest.approx([scale * total + offset for total in sums], rel=1e-4)
    assert found.residual < 1e-4


@given(
    st.lists(st.tuples(st.floats(1.0, 1e6), st.floats(1.0, 1e6)), min_size=1, max_size=6),
)
def test_a_calibration_never_makes_a_channel_free_or_negative(pairs) -> None:
    found = calibrate([total for total, _ in pairs], [measured for _, measured in pairs])
    assert found.scale > 0
    assert found.offset >= 0


def test_one_network_gives_the_scale_alone() -> None:
    found = calibrate([100.0], [250.0])
    assert (found.scale, found.offset, found.points) == (pytest.approx(2.5), 0.0, 1)


def test_prediction_error_is_of_the_median_pair() -> None:
    assert prediction_error([], []) is None
    error = prediction_error([110.0, 100.0, 300.0], [100.0, 100.0, 100.0])
    assert error == pytest.approx(0.1)


def test_a_corrected_model_stays_additive(planted) -> None:
    plan = TablePlan(planted, 3)
    table = plan.table({p: 10.0 + p.inputs * p.outputs for p in plan.probes()}, {})
    plain = BoardModel(planted, table)
    model = BoardModel(planted, table, scale=2.0, offset=7.0)
    assert total_of(model, planted.full) == pytest.approx(2 * total_of(plain, planted.full) + 7)
    assert math.isnan(model.relative_error)
