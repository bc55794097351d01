"""A hand-made report with every part filled, for tests of the pages.

`python tests/reports/pages/conftest.py FILE.html` renders it: a look at the page without measuring.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flatsat.canonical import sha256_bytes
from flatsat.reports.comparison import Comparison, Verdict
from flatsat.reports.context import Context
from flatsat.reports.figures_sensitivity import SensitivityCurve, SensitivityScan
from flatsat.reports.interval import Interval
from flatsat.reports.model import (
    DRAWN_QUANTILES,
    AccuracyReport,
    AgreementReport,
    BoardSection,
    CandidateReport,
    Estimate,
    FailureReport,
    Headline,
    JobCounts,
    LayerReport,
    MaskPicture,
    MeasurementReport,
    MemoryReport,
    ProcessTrace,
    ProxyReport,
    RatioReport,
    RunReport,
    TrustReport,
)
from flatsat.reports.model_search import SearchedReport, SearchReport, StrategyReport
from flatsat.reports.model_survey import (
    FiltersPicture,
    ImageAtBits,
    Kept,
    StepReport,
    Survey,
    WeightsPicture,
)
from flatsat.units import TimeKind

HOSTILE = "<script>alert(1)</script>"

# label, role, precision, p50 us, accuracy, loss points, file bytes, parameters, non-zeros, MACs
ROWS = (
    ("reference", "reference", "float", 118.0, 0.969, None, 1_730_412, 431_080, 431_080, 2_293_000),
    ("narrow-50", "equal-macs", "float", 61.0, 0.958, 0.011, 452_100, 112_000, 112_000, 1_120_000),
    ("narrow-25", "equal-macs", "float", 33.5, 0.941, 0.028, 130_900, 32_000, 32_000, 430_000),
    ("filters-50", "compressed", "float", 60.2, 0.966, 0.003, 450_210, 111_700, 111_700, 1_116_000),
    (
        "filters-50 int8",
        "compressed",
        "int8",
        31.8,
        0.965,
        0.004,
        121_004,
        111_700,
        111_700,
        1_116_000,
    ),
    (
        "magnitude",
        "compressed",
        "float",
        117.4,
        0.970,
        -0.001,
        1_730_390,
        431_080,
        36_400,
        2_293_000,
    ),
    ("int8", "compressed", "int8", 58.3, 0.969, 0.0, 450_811, 431_080, 431_080, 2_293_000),
    (
        "minmax 4 bit",
        "compressed",
        "float",
        118.9,
        0.962,
        0.007,
        1_730_395,
        431_080,
        402_000,
        2_293_000,
    ),
    (HOSTILE, "compressed", "float", 74.0, 0.951, 0.018, 690_300, 171_400, 171_400, 1_400_000),
    (
        "a model of somebody else with a very long name indeed",
        "imported",
        "float",
        240.0,
        0.974,
        -0.005,
        3_460_000,
        862_000,
        862_000,
        4_600_000,
    ),
)
LAYERS = ("conv1", "conv2", "fc1", "fc2")
WEIGHTS = (500, 25_000, 400_000, 5_000)


def _traces(rng: np.random.Generator, us: float, processes: int) -> tuple[ProcessTrace, ...]:
    traces = []
    for index in range(processes):
        session = us * 1e3 * float(np.exp(rng.normal(0, 0.012)))
        values = session * (0.985 + rng.gamma(1.3, 0.012, 300))
        values[rng.random(300) < 0.02] *= rng.uniform(1.2, 2.5)
        quantiles = tuple(float(f"{v:.6g}") for v in np.quantile(values, DRAWN_QUANTILES))
        label = f"round {index // 2 + 1}, process {index % 2}"
        traces.append(ProcessTrace(label, 300, quantiles, steady=rng.random() > 0.03))
    return tuple(traces)


def _estimate(value: float, spread: float, n: int, needs: int = 0) -> Estimate:
    if n < needs:
        return Estimate(None, n=n, needs=needs)
    return Estimate(value, value * (1 - spread), value * (1 + spread), n)


def _measurement(
    rng: np.random.Generator, row: tuple[object, ...], processes: int, slow: float
) -> MeasurementReport:
    label, role, precision, us, accuracy, loss, size, params, nonzeros, macs = row
    p50 = us * 1e3 * slow
    few = slow > 1
    n = 40 if few else 300 * processes
    reference, equal = 118e3 * slow, 61e3 * slow
    paired = role != "reference"
    gain, over = reference / p50, equal / p50
    return MeasurementReport(
        candidate_id=f"c-{label}",
        label=str(label),
        role=str(role),
        artifact=sha256_bytes(str(label).encode()),
        format="onnx",
        precision=str(precision),
        size_bytes=size,
        runtime="onnxruntime",
        threads=1,
        batch=1,
        rounds=processes // 2,
        processes=processes,
        n=n,
        min_ns=0.97 * p50,
        p10_ns=_estimate(0.985 * p50, 0.004, n),
        p50_ns=_estimate(p50, 0.011, n),
        p90_ns=_estimate(1.06 * p50, 0.02, n, 64),
        p99_ns=_estimate(1.31 * p50, 0.05, n, 662),
        load_ns=4.1e6,
        steady=processes if precision == "float" else processes - 1,
        traces=_traces(rng, us * slow, processes),
        params=params,
        nonzeros=nonzeros,
        macs=macs,
        accuracy=AccuracyReport(
            "accuracy",
            accuracy,
            accuracy - 0.0115,
            accuracy + 0.0095,
            1000,
            "5" * 64,
            None if loss is None else Estimate(loss, loss - 0.006, loss + 0.006, 1000),
        ),
        memory=MemoryReport("ru_maxrss", 61e6 + size, 60_800_000, 63_000_000, processes),
        agreement=AgreementReport("tol", 2.1e-7, 1.0, 32, ok=True),
        versus_reference=RatioReport(
            "reference",
            gain,
            0.98 * gain,
            1.02 * gain,
            "faster" if gain > 1.02 else "slower" if gain < 0.98 else "equal",
        )
        if paired
        else None,
        versus_equal_macs=RatioReport(
            "narrow-50",
            over,
            0.98 * over,
            1.02 * over,
            "faster" if over > 1.02 else "slower" if over < 0.98 else "inconclusive",
        )
        if role == "compressed" and macs < 2e6
        else None,
        pareto=label in ("filters-50 int8", "filters-50", "int8", "magnitude"),
    )


def _proxies(measured: tuple[MeasurementReport, ...]) -> tuple[ProxyReport, ...]:
    def points(name: str) -> tuple[tuple[str, float, float], ...]:
        return tuple((m.label, float(getattr(m, name)), m.p50_ns.value) for m in measured)

    n = len(measured)
    return (
        ProxyReport(
            "MACs",
            Estimate(0.81, 0.35, 0.96, n),
            points("macs"),
            ("filters-50", "int8", 2.05, 1.03),
        ),
        ProxyReport(
            "parameters",
            Estimate(0.77, 0.28, 0.94, n),
            points("params"),
            ("filters-50", "int8", 3.9, 1.03),
        ),
        ProxyReport("file size", Estimate(0.93, 0.71, 0.99, n), points("size_bytes"), None),
        ProxyReport(
            "non-zeros",
            Estimate(0.31, -0.42, 0.79, n),
            points("nonzeros"),
            ("magnitude", "int8", 11.8, 2.01),
        ),
    )


def _section(rng: np.random.Generator, board: str, clock: TimeKind) -> BoardSection:
    wall = clock is TimeKind.WALL
    rows = ROWS if wall else (ROWS[0], ROWS[3], ROWS[4])
    measured = sorted(
        (_measurement(rng, row, 12 if wall else 2, 1 if wall else 40) for row in rows),
        key=lambda m: m.p50_ns.value,
    )
    best = next(m for m in measured if m.label == "filters-50 int8")
    return BoardSection(
        workload="mnist-mini/lenet5",
        board=board,
        board_id="b" * 64,
        kind="host" if wall else "qemu-arm64",
        clock=clock,
        facts=(
            ("CPU", "AMD EPYC 7B13, 2 cores" if wall else "cortex-a72 (emulated)"),
            ("kernel", "Linux 6.1.0-28-amd64"),
            ("onnxruntime", "1.32.0"),
            ("Python", "3.11.7"),
        ),
        measurements=tuple(measured),
        proxies=_proxies(tuple(measured)),
        trust=TrustReport(117, 120, 0.7, 2, ("performance",))
        if wall
        else TrustReport(0, 0, None, None),
        headline=Headline(
            "the lowest median latency among compressed candidates whose loss of accuracy is shown "
            "to be under 1.0 point (95 %, the same 1,000 test images)",
            best.label,
            shown=True,
            smaller=1_730_412 / best.size_bytes,
            faster=best.versus_reference,
        ),
        margin=0.01,
    )


def _candidate(row: tuple[object, ...]) -> CandidateReport:
    label, role, precision, _, accuracy, _, size, params, nonzeros, macs = row
    share = params / 431_080
    kept = (0.66, 0.12, 0.08, 0.19) if label == "magnitude" else (share**0.5, share, share, share)
    layers = tuple(
        LayerReport(
            name,
            "conv" if name.startswith("conv") else "dense",
            round(weights * min(1, share)),
            round(weights * min(1, part)),
            macs // 4,
            min(1.0, part),
        )
        for name, weights, part in zip(LAYERS, WEIGHTS, kept, strict=True)
    )
    return CandidateReport(
        f"c-{label}",
        f"r-{label}",
        str(label),
        str(role),
        "mnist-mini/lenet5",
        0,
        None,
        params,
        nonzeros,
        macs,
        {"train_steps": 700.0, "cpu_s": 14.2, "forward_passes": 84000.0},
        {"validation": accuracy},
        layers,
        f'use = "{label}"',
        ((sha256_bytes(str(label).encode()), "onnx", str(precision), size),),
    )


def _search(rng: np.random.Generator) -> SearchReport:
    def strategy(name: str, label: str, role: str, seed: int, gain: float) -> StrategyReport:
        steps = np.arange(300)
        learnt = gain * (1 - np.exp(-np.maximum(0, steps - 100) / 60))
        rewards = np.clip(0.45 + learnt + rng.normal(0, 0.12 - 0.25 * learnt * 0.4, 300), 0, 0.97)
        best = int(rewards.argmax())
        return StrategyReport(
            name,
            label,
            role,
            seed,
            "finished",
            100 if role == "search" else 0,
            tuple(round(float(r), 4) for r in rewards),
            tuple([60000.0] * 300),
            best,
            float(rewards[best]),
            60000.0,
            tuple(rng.uniform(0.2, 1.0, 4).round(2)),
            41.0 + seed,
        )

    strategies = [strategy("amc", "AMC (DDPG)", "search", s, 0.42) for s in (0, 1, 2)]
    strategies += [strategy("random", "random", "baseline", s, 0.0) for s in (0, 1, 2)]
    strategies.append(
        StrategyReport(
            "uniform",
            "uniform",
            "baseline",
            0,
            "finished",
            0,
            (0.71,),
            (60500.0,),
            0,
            0.71,
            60500.0,
            (0.5, 0.5, 0.5, 1.0),
            0.4,
        )
    )
    measured = tuple(
        SearchedReport(
            f"s{i}",
            f"{name} s0 e{i * 30}",
            name,
            0,
            i * 30,
            0.8,
            0.94 + 0.003 * i,
            50000.0 + 2000 * i,
            Estimate(51000.0 + 2100 * i, 50500.0 + 2100 * i, 51600.0 + 2100 * i, 900),
            pareto=i > 3,
        )
        for i, name in enumerate(["amc", "random", "amc", "amc", "uniform", "amc"])
    )
    return SearchReport(
        "amc",
        "mnist-mini/lenet5",
        "channels",
        "accuracy without fine-tuning on the calibration split",
        "latency",
        "ns",
        61000.0,
        122000.0,
        "host",
        TimeKind.WALL,
        (
            ("conv1", "conv", 288_000, 520),
            ("conv2", "conv", 1_600_000, 25_050),
            ("fc1", "dense", 400_000, 400_500),
            ("fc2", "dense", 5000, 5010),
        ),
        tuple(strategies),
        measured,
        "s5",
    )


def _mask(rng: np.random.Generator) -> MaskPicture:
    y, x = np.mgrid[0:28, 0:28]
    centre = np.exp(-((x - 13.5) ** 2 + (y - 13.5) ** 2) / 75).reshape(-1)
    bits = rng.random((300, 784)) < 0.2 * centre
    return MaskPicture("fc1", 300, 784, np.packbits(bits).tobytes(), (28, 28))


def _comparison() -> Comparison:
    where = Context(
        "b" * 64,
        "host",
        "wall",
        "onnxruntime",
        "1.32.0",
        "CPUExecutionProvider",
        1,
        (),
        1,
        (),
        (),
        "spawn",
        "steady",
        "flatsat.latency 1",
    )
    ratio = Interval(3.71, 3.62, 3.80, 0.95, 6, 6)
    return Comparison(
        "latency",
        "p50",
        "reference",
        "filters-50 int8",
        where,
        ratio,
        None,
        Verdict.FASTER,
        paired=True,
        rounds=6,
    )


def make_report() -> RunReport:
    """Return a finished run on a real and an emulated board."""
    rng = np.random.default_rng(7)
    return RunReport(
        run_id="run-20261124T231000-ab12cd",
        kind="run",
        name="demo",
        state="done",
        started_utc="2026-11-24T23:10:00.000000+00:00",
        finished_utc="2026-11-24T23:14:31.000000+00:00",
        generated_utc="2026-11-24T23:14:32.000000+00:00",
        seed=0,
        code_version="0.1.0",
        config='[run]\nname = "demo"\nseed = 0\n\n[matrix]\nrecipes = ["filters-50", "magnitude"]\n'
        'boards = ["host"]\n# </script><script>alert(2)</script>',
        config_sha="c" * 64,
        host_fp="linux-x86_64-2core",
        jobs=JobCounts(planned=86, measured=83, failed=2, inconclusive=1, reused=4),
        candidates=tuple(_candidate(row) for row in ROWS),
        sections=(_section(rng, "host", TimeKind.WALL), _section(rng, "qemu1", TimeKind.VIRTUAL)),
        failures=(
            FailureReport(
                "resnet-huge",
                "host",
                "latency",
                "failed",
                "candidate",
                "out-of-memory",
                "the worker was killed while it loaded the model",
                "give plan.wall.memory_limit_bytes more room, or measure it elsewhere",
                False,
                1,
            ),
            FailureReport(
                "minmax 4 bit",
                "host",
                "latency",
                "inconclusive",
                "",
                "",
                "3 processes wanted to run on 2 cores",
                "",
                False,
                1,
                times=2,
            ),
        ),
        comparisons=(_comparison(),),
        search=(_search(rng),),
        masks={
            "c-magnitude": _mask(rng),
            "c-filters-50": MaskPicture(
                "fc1", 40, 800, np.packbits(rng.random(32_000) < 0.1).tobytes()
            ),
        },
        versions=(("FlatSat", "0.1.0"), ("torch", "2.13.0"), ("onnxruntime", "1.32.0")),
        commands=("flatsat run config.toml --seed 0", "flatsat report run-20261124T231000-ab12cd"),
    )


_STEPS = {
    "narrow-50": (StepReport("narrow"),),
    "narrow-25": (StepReport("narrow"),),
    "filters-50": (StepReport("l1-filter-prune"), StepReport("fine-tune")),
    "filters-50 int8": (StepReport("l1-filter-prune"), StepReport("fine-tune")),
    "magnitude": (StepReport("magnitude-prune"), StepReport("share-weights", {"bits": 4})),
    "minmax 4 bit": (StepReport("linear-quantise", {"bits": 4}),),
    HOSTILE: (StepReport("agent-prune", {"b": 1.0}),),
}


def _filters(rng: np.random.Generator) -> FiltersPicture:
    sheets = [rng.integers(0, 256, (11, 59), np.uint8) for _ in range(2)]
    before, after = (ImageAtBits(None, 11, 59, 1, sheet.tobytes()) for sheet in sheets)
    return FiltersPicture("conv1", after, before, (20, 20), 64)


def make_surveyed() -> RunReport:
    """Return that run with what candidates' folders tell: every picture of methods has data."""
    report, rng = make_report(), np.random.default_rng(5)
    candidates = [replace(c, steps=_STEPS.get(c.label, ())) for c in report.candidates]
    base = next(c for c in candidates if c.label == "minmax 4 bit")
    candidates += [
        replace(
            base,
            candidate_id=f"c-{bits}",
            label=f"minmax {bits} bit",
            steps=(StepReport("linear-quantise", {"bits": bits}),),
            accuracy_host={"validation": accuracy},
            artifacts=((sha256_bytes(bytes([bits])), "onnx", "float", 1_730_000),),
        )
        for bits, accuracy in ((8, 0.968), (2, 0.71), (1, 0.12))
    ]
    kept: dict[str, Kept] = {
        c.candidate_id: Kept(
            bytes_by_coding={"dense_fp32": 1_724_320, "linear": c.steps[0].params["bits"] * 54_000}
        )
        for c in candidates
        if c.steps and c.steps[0].use == "linear-quantise"
    }
    histograms = []
    for layer, weights in zip(LAYERS, WEIGHTS, strict=True):
        values = rng.normal(0, 0.1, min(weights, 20_000))
        levels = np.linspace(-0.3, 0.3, 16)
        left = values[np.abs(values) > 0.12]
        shared = levels[np.abs(left[:, None] - levels).argmin(axis=1)]
        before, after = (np.histogram(v, 64, (-0.5, 0.5))[0] for v in (values, shared))
        histograms.append(
            WeightsPicture(
                layer,
                -0.5,
                0.5,
                tuple(after.tolist()),
                weights - len(left),
                tuple(before.tolist()),
                tuple(levels.tolist()),
            )
        )
    kept["c-magnitude"] = Kept(
        bytes_by_coding={"dense_fp32": 1_724_320, "linear": 72_000},
        coded={sha256_bytes(b"magnitude"): ("huffman", 41_200)},
        weights=tuple(histograms),
        filters=_filters(rng),
    )
    layers = [{"name": f"conv{i}", "kept": 4 * i, "total": 25} for i in (1, 2)]
    kept[f"c-{HOSTILE}"] = Kept(history=({"step": "agent-prune", "layers": layers},))
    y, x = np.mgrid[0:28, 0:28]
    picture = np.clip(2 - np.abs(np.hypot(y - 14, x - 14) - 8) / 2, 0, 1)
    images = tuple(
        ImageAtBits(
            bits, 28, 28, 1,
            (picture if bits is None else np.rint(picture * (2**bits - 1)) / (2**bits - 1))
            .__mul__(255).astype(np.uint8).tobytes(),
        )
        for bits in (None, 8, 7, 6, 5, 4, 3, 2, 1)
    )  # fmt: skip
    survey = Survey(kept, {"mnist-mini/lenet5": images})
    return replace(report, candidates=tuple(candidates), survey=survey)


@pytest.fixture(scope="session")
def surveyed() -> RunReport:
    return make_surveyed()


@pytest.fixture(scope="session")
def report() -> RunReport:
    return make_report()


@pytest.fixture
def scan() -> SensitivityScan:
    """A scan of three layers, one of them oddly named."""
    curves = (
        SensitivityCurve("conv1", 500, ((0.0, 0.97), (0.5, 0.966), (0.9, 0.6))),
        SensitivityCurve("fc1", 400_000, ((0.0, 0.97), (0.5, 0.97), (0.9, 0.968))),
        SensitivityCurve(HOSTILE, 10, ((0.5, 0.9),)),
    )
    left = (("gate", "it has no weights"),)
    return SensitivityScan("mnist-mini/lenet5", "magnitude", "validation", 500, 0.97, curves, left)


if __name__ == "__main__":
    from flatsat.reports.pages import render_run

    render_run(make_surveyed(), Path(sys.argv[1]))
