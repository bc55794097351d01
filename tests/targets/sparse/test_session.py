"""Runtime sparse-c on board `host`: given to the agent, measured, held to goldens, refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flatsat.artifact import Agreement
from flatsat.compressors import sparse_run
from flatsat.compressors.sparse_program import to_bytes
from flatsat.errors import InfrastructureError
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Measured, Owner
from flatsat.targets import native_sites
from flatsat.targets.native_sites import sources
from flatsat.targets.wheels import (
    Interpreter,
    NoWheel,
    Wheels,
    host_interpreter,
    own_sites,
    unpack_site,
)

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def spec(library_path: Any, files: Any, make_latency: MakeJob, programs: Any) -> JobSpec:
    """Return a job on a program of every kind of operation, with goldens of PyTorch's."""
    program = programs.everything()
    images = programs.images(program, 40)
    artifact = files.keep("model.sparse-c", to_bytes(program))
    expected = sparse_run.run(program, images)
    goldens = files.arrays("goldens", {"in:image": images, "out:logits": expected})
    return make_latency(
        artifact,
        format="sparse-c",
        runtime="sparse-c",
        provider="cpu",
        goldens=goldens,
        agreement=Agreement("tol", max_rel=1e-4),
    )


async def test_a_program_is_measured_and_held_to_its_goldens(bench: Any, spec: JobSpec) -> None:
    outcome = await bench.run(spec)
    assert isinstance(outcome, Measured), outcome
    assert outcome.agreement is not None
    assert (outcome.agreement.n, outcome.agreement.ok) == (40, True)
    told: Any = outcome.evidence["runtime"]
    assert told["name"] == "sparse-c"
    assert told["version"].startswith(native_sites.VERSION)
    assert told["kernels"] in ("avx2", "sse2", "neon", "generic")
    assert told["operators"] == 7
    assert told["arena_bytes"] > 0


async def test_its_outputs_over_a_data_set_come_back(
    bench: Any, files: Any, spec: JobSpec, programs: Any, make_latency: MakeJob
) -> None:
    program = programs.everything()
    images = programs.images(program, 70, seed=4)
    dataset = files.arrays("test", {"in:image": images})
    job = make_latency(
        *(spec.artifact,),
        kind=JobKind.ACCURACY,
        format="sparse-c",
        runtime="sparse-c",
        provider="cpu",
        dataset=dataset,
        batch=32,
    )
    outcome = await bench.run(job)
    assert isinstance(outcome, Measured), outcome
    assert outcome.logits is not None
    found = np.frombuffer(outcome.logits.data, "<f4").reshape(outcome.logits.shape)
    expected = sparse_run.run(program, images)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


async def test_its_operations_are_timed_one_by_one(
    bench: Any, spec: JobSpec, make_latency: MakeJob
) -> None:
    settings = {"format": "sparse-c", "runtime": "sparse-c", "provider": "cpu"}
    outcome = await bench.run(make_latency(spec.artifact, kind=JobKind.LAYERS, **settings))
    assert isinstance(outcome, Measured), outcome
    layers: Any = outcome.evidence["layers"]
    kinds = ["conv", "maxpool", "avgpool", "add", "concat", "copy", "fc"]
    assert [layer["op"] for layer in layers] == kinds
    assert [layer["name"] for layer in layers] == [f"{i}_{k}" for i, k in enumerate(kinds)]
    assert all(layer["p50_ns"] >= 0 for layer in layers)


@pytest.mark.parametrize(
    ("changes", "owner", "code"),
    [
        ({"threads": 4}, Owner.CONFIG, "threads"),
        ({"provider": "CPUExecutionProvider"}, Owner.CONFIG, "no-provider"),
    ],
)
async def test_what_it_cannot_do_is_told(
    bench: Any, spec: JobSpec, make_latency: MakeJob, changes: Any, owner: Owner, code: str
) -> None:
    settings = {"format": "sparse-c", "runtime": "sparse-c", "provider": "cpu", **changes}
    outcome = await bench.run(make_latency(spec.artifact, **settings))
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.code) == (owner, code)


async def test_a_damaged_program_is_the_candidates_fault(
    bench: Any, files: Any, spec: JobSpec, make_latency: MakeJob
) -> None:
    data = files.paths[spec.artifact].read_bytes()
    damaged = files.keep("damaged.sparse-c", data[:-4])
    outcome = await bench.run(
        make_latency(damaged, format="sparse-c", runtime="sparse-c", provider="cpu")
    )
    assert isinstance(outcome, Failed)
    assert (outcome.fault.owner, outcome.fault.code) == (Owner.CANDIDATE, "invalid-model")
    assert "length" in outcome.fault.message


async def test_without_a_compiler_its_jobs_fail_and_no_others(
    bench: Any, spec: JobSpec, make_latency: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise InfrastructureError("there is no C compiler", hint="apt-get install gcc")

    monkeypatch.setattr(native_sites, "build_library", missing)
    outcome = await bench.run(spec)
    assert isinstance(outcome, Failed)
    assert outcome.fault.owner is Owner.HARNESS
    assert (outcome.fault.message, outcome.fault.hint) == (
        "there is no C compiler",
        "apt-get install gcc",
    )
    assert isinstance(await bench.run(make_latency(bench.files.dense())), Measured)


def test_a_machine_that_nothing_compiles_for_is_told() -> None:
    with pytest.raises(NoWheel, match="mips64"):
        own_sites().site("sparse-c", Interpreter((3, 11), "mips64", (2, 36)))


def test_the_wheel_is_the_same_each_time(library_path: Any, tmp_path: Any) -> None:
    made = [own_sites().site("sparse-c", host_interpreter()) for _ in range(2)]
    assert made[0] is not None
    assert made[0] == made[1]
    assert made[0].wheels[0].read_bytes().count(b"libsparse.so")
    assert own_sites().site("onnxruntime", host_interpreter()) is None


@pytest.mark.slow
def test_a_board_with_nothing_is_given_numpy_beside_it(library_path: Any, tmp_path: Any) -> None:
    try:
        site = Wheels().site("sparse-c", host_interpreter())
    except InfrastructureError as error:
        pytest.skip(f"no wheels of NumPy here: {error.message}")
    assert site is not None
    assert [wheel.name.split("-")[0] for wheel in site.wheels] == ["flatsat_native", "numpy"]
    unpack_site(site, tmp_path / "site")
    python = getattr(sys, "_base_executable", sys.executable)
    folder = str(tmp_path / "site")
    code = f"import sys; sys.path.append({folder!r}); import flatsat_native, numpy"
    subprocess.run([python, "-I", "-S", "-c", code], check=True)


def test_site_native_holds_every_library(library_path: Any) -> None:
    site = own_sites().site("native", host_interpreter())
    assert site is not None
    names = site.wheels[0].read_bytes()
    assert all(f"flatsat_native/lib{path.stem}.so".encode() in names for path in sources())
