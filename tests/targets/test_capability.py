"""Capability jobs: probe models, what a board finds by them, and documented caches."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from flatsat.canonical import canonical_json
from flatsat.jobspec import VIRTUAL_PLAN, JobKind, JobSpec
from flatsat.outcome import Failed, Measured, Owner
from flatsat.targets import probes
from flatsat.targets.agent import facts
from flatsat.targets.cores import CORES, completed
from flatsat.targets.probes import MANIFEST, SIDE, probe_zip
from flatsat.units import TimeKind

MakeJob = Callable[..., JobSpec]
A72 = {"cpu_model": "0x41 0xd08 3"}


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(probe_zip())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_probes_have_the_same_bytes_in_another_process() -> None:
    code = "import sys; from flatsat.targets.probes import probe_zip\n"
    code += "sys.stdout.buffer.write(probe_zip())"
    env = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)
    assert made.stdout == probe_zip()


def test_each_probe_is_a_valid_product_that_the_runtime_gets_right() -> None:
    files = members()
    manifest = json.loads(files[MANIFEST])
    assert [probe["dtype"] for probe in manifest] == ["float32", "float16", "int8"]
    for probe in manifest:
        model = onnx.load_from_string(files[probe["file"]])
        onnx.checker.check_model(model, full_check=True)
        assert [node.op_type for node in model.graph.node] == [probe["operator"]]
        session = onnxruntime.InferenceSession(files[probe["file"]])
        dtype = {"float32": np.float32, "float16": np.float16, "int8": np.uint8}[probe["dtype"]]
        left = np.linspace(0, 9, 3 * SIDE).reshape(3, SIDE).astype(dtype)
        (got,) = session.run(None, {"left": left})
        (expected,) = ReferenceEvaluator(model).run(None, {"left": left})
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=2e-1)


async def test_a_board_tells_its_rates(bench: Any, make_latency: MakeJob) -> None:
    artifact = bench.files.keep("probes.zip", probe_zip())
    spec = make_latency(artifact, kind=JobKind.CAPABILITY, format="probes")
    outcome = await bench.run(spec)
    assert isinstance(outcome, Measured), outcome
    found: Any = outcome.evidence["capability"]
    canonical_json(found)
    assert found["runtime"]["name"] == "onnxruntime"
    assert "CPUExecutionProvider" in found["runtime"]["providers"]
    assert set(found["native"]) == {"float16", "bfloat16", "int8-dot"}
    assert found["clock"] == "wall"
    peaks = {peak["dtype"]: peak for peak in found["peaks"]}
    assert {"float32", "int8"} <= peaks.keys()
    assert peaks["int8"]["method"] == "onnxruntime MatMulInteger 256, 1 thread"
    assert all(peak["gmac_s"] > 0 for peak in peaks.values())
    # Where there is no arithmetic of halves, casts are not taken for it.
    if not found["native"]["float16"]:
        assert "casts" in found["absent"]["float16"]
    assert peaks.keys() | found["absent"].keys() == {"float32", "float16", "int8"}
    assert found["copy_gb_s"]["value"] > 0
    assert found["copy_gb_s"]["method"].startswith("numpy copy ")


async def test_a_plan_of_a_counting_clock_does_too(bench: Any, make_latency: MakeJob) -> None:
    artifact = bench.files.keep("probes.zip", probe_zip())
    spec = make_latency(artifact, kind=JobKind.CAPABILITY, format="probes", plan={"min_s": 0.0})
    assert VIRTUAL_PLAN.min_s == 0.0
    outcome = await bench.run(spec)
    assert isinstance(outcome, Measured), outcome
    found: Any = outcome.evidence["capability"]
    assert {peak["dtype"] for peak in found["peaks"]} >= {"float32", "int8"}


async def test_without_probes_there_are_no_rates(bench: Any, make_latency: MakeJob) -> None:
    outcome = await bench.run(make_latency(bench.files.fault("none"), kind=JobKind.CAPABILITY))
    assert isinstance(outcome, Measured)
    found: Any = outcome.evidence["capability"]
    assert (found["peaks"], found["numpy"]) == ([], np.__version__)
    assert "copy_gb_s" not in found


def archive(**files: bytes | str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, data in files.items():
            made.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


LISTED = json.dumps([{"file": "a.onnx", "dtype": "int4", "operator": "MatMul", "side": 2}])


@pytest.mark.parametrize(
    "data", [b"no zip", archive(), archive(probes_json="?"), archive(probes_json=LISTED)]
)
async def test_what_is_no_probe_archive_is_the_configurations_fault(
    bench: Any, make_latency: MakeJob, data: bytes
) -> None:
    artifact = bench.files.keep("probes.zip", data)
    spec = make_latency(artifact, kind=JobKind.CAPABILITY, format="probes")
    outcome = await bench.run(spec)
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.code) == (Owner.CONFIG, "probes")


async def test_a_probe_that_a_runtime_refuses_leaves_the_others(
    bench: Any, make_latency: MakeJob
) -> None:
    files = members()
    manifest = json.loads(files[MANIFEST])
    manifest.insert(0, {"file": "a.onnx", "dtype": "int4", "operator": "MatMul", "side": 2})
    data = {name.replace(".", "_"): content for name, content in files.items()}
    data |= {"probes_json": json.dumps(manifest).encode(), "a_onnx": b"no model"}
    artifact = bench.files.keep("probes.zip", archive(**data))
    spec = make_latency(artifact, kind=JobKind.CAPABILITY, format="probes")
    outcome = await bench.run(spec)
    assert isinstance(outcome, Measured)
    found: Any = outcome.evidence["capability"]
    assert found["absent"]["int4"]
    assert {peak["dtype"] for peak in found["peaks"]} >= {"float32", "int8"}


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("32K", 32768), ("1M", 1 << 20), ("1024K", 1 << 20), ("512", 512), ("", None), ("0K", None)],
)
def test_cache_sizes_are_read_as_the_kernel_writes_them(
    text: str, size_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"level": "1", "type": "Data", "size": text, "shared_cpu_list": "0"}

    def read(path: str) -> str | None:
        return tree.get(path.rsplit("/", 1)[1]) if "/index0/" in path else None

    monkeypatch.setattr(facts, "read_text", read)
    told = [] if size_bytes is None else [(1, "Data", size_bytes)]
    assert [(c["level"], c["type"], c["size_bytes"]) for c in facts.caches()] == told


def test_an_emulated_core_has_the_caches_of_the_chip_that_it_stands_for() -> None:
    told: Any = completed({"caches": []}, {**A72, "emulator": {"cpu": "x"}}, TimeKind.VIRTUAL)
    assert (told["clock"], told["caches_source"]) == ("virtual", "documented")
    assert told["caches_of"] == "Cortex-A72 as in BCM2711"
    sizes = {(cache["level"], cache["type"]): cache["size_bytes"] for cache in told["caches"]}
    assert sizes == {(1, "Data"): 32 << 10, (1, "Instruction"): 48 << 10, (2, "Unified"): 1 << 20}


def test_of_another_chip_only_the_cores_own_caches_are_known() -> None:
    told: Any = completed({"caches": []}, {**A72, "soc": "rockchip,rk3399"}, TimeKind.WALL)
    assert {cache["level"] for cache in told["caches"]} == {1}
    assert told["caches_of"] == "Cortex-A72"
    told = completed({"caches": []}, {**A72, "soc": "brcm,bcm2711"}, TimeKind.WALL)
    assert {cache["level"] for cache in told["caches"]} == {1, 2}


def test_what_the_kernel_tells_stands_and_the_unknown_stays_unknown() -> None:
    kernel = {"caches": [{"level": 1, "size_bytes": 5}], "caches_source": "kernel"}
    assert completed(kernel, {**A72, "emulator": {}}, TimeKind.WALL) == {**kernel, "clock": "wall"}
    for cpu_model in ("AMD EPYC", "0x41 0xfff 1", "", None):
        told = completed({"caches": []}, {"cpu_model": cpu_model}, TimeKind.WALL)
        assert told == {"caches": [], "clock": "wall"}
    assert {core.name for core in CORES} == {"Cortex-A53", "Cortex-A72", "Cortex-A76"}
    assert probes.SIDE == 256


async def test_memory_is_told_by_three_methods(bench: Any, make_latency: MakeJob) -> None:
    outcome = await bench.run(make_latency(bench.files.dense()))
    assert isinstance(outcome, Measured)
    told = {(s.quantity, s.kind): s.values[0] for s in outcome.samples if "ss_bytes" in s.quantity}
    assert told.keys() == {
        ("rss_bytes", "VmHWM"),
        ("rss_bytes", "ru_maxrss"),
        ("pss_bytes", "smaps_rollup"),
    }
    # Shared pages count by share, and the peak is no less than what is held now.
    assert 0 < told["pss_bytes", "smaps_rollup"] <= told["rss_bytes", "VmHWM"]
    assert all(state.free_bytes for state in outcome.health)
