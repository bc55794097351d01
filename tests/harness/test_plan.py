"""Jobs come in rounds: each artifact once a round, in an order that the seed shuffles."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from flatsat.artifact import Artifact
from flatsat.compressors.candidate import Candidate
from flatsat.harness.plan import Settings, Traits, plan_jobs
from flatsat.jobspec import JobKind, reuse_key
from flatsat.units import TimeKind


def candidate(name: str, roles: tuple[str, ...] = ("float",), workload: str = "w/n") -> Candidate:
    artifacts = tuple(
        Artifact(f"{name}-{role}", "onnx", role, 1, f"{role}.onnx", 17, 8, "NCHW", (), ())
        for role in roles
    )
    return Candidate(
        candidate_id=name,
        recipe_id="",
        recipe={},
        name=name,
        workload=workload,
        seed=0,
        parent=None,
        artifacts=artifacts,
        params=1,
        nonzeros=1,
        macs=1,
        size_bytes=1,
        cost={},
        accuracy_host={},
        layers=(),
        role="compressed",
        folder=Path(),
    )


KINDS = (JobKind.LATENCY, JobKind.ACCURACY)


@given(
    names=st.sets(st.sampled_from("abcdefgh"), min_size=1),
    rounds=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    threads=st.sampled_from([(1,), (1, 2)]),
)
def test_every_round_holds_every_artifact_once(
    names: set[str], rounds: int, seed: int, threads: tuple[int, ...]
) -> None:
    settings = Settings(kinds=KINDS, rounds=rounds, seed=seed, threads=threads)
    candidates = [candidate(n) for n in sorted(names)]
    datasets = {a.sha256: "d" * 64 for c in candidates for a in c.artifacts}
    jobs = plan_jobs("r", candidates, ["host"], settings, datasets=datasets)
    latency = [j for j in jobs if j.spec.kind is JobKind.LATENCY]
    seen = Counter((j.round, j.spec.artifact, j.spec.threads) for j in latency)
    assert set(seen.values()) == {1}
    assert len(latency) == rounds * len(names) * len(threads)
    assert [j.round for j in jobs] == sorted(j.round for j in jobs)
    assert len({j.job_id for j in jobs}) == len(jobs)
    accuracy = [j for j in jobs if j.spec.kind is JobKind.ACCURACY]
    assert len(accuracy) == len(names) * len(threads)


def test_the_same_plan_gives_the_same_jobs_and_another_seed_another_order() -> None:
    candidates = [candidate(n) for n in "abcdefgh"]
    first = plan_jobs("r", candidates, ["host"], Settings(seed=1))
    again = plan_jobs("r", candidates, ["host"], Settings(seed=1))
    other = plan_jobs("r", candidates, ["host"], Settings(seed=2))
    assert first == again
    assert [j.spec for j in first] != [j.spec for j in other]
    assert {j.job_id for j in first} == {j.job_id for j in other}


def test_order_differs_between_rounds() -> None:
    jobs = plan_jobs("r", [candidate(n) for n in "abcdefgh"], ["host"], Settings(rounds=2, seed=3))
    orders = [[j.spec.artifact for j in jobs if j.round == r] for r in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_no_accuracy_job_without_a_test_split() -> None:
    jobs = plan_jobs("r", [candidate("a", workload="")], ["host"], Settings(kinds=KINDS))
    assert {j.spec.kind for j in jobs} == {JobKind.LATENCY}


def test_reuse_key_tells_boards_and_plans_apart() -> None:
    (job,) = plan_jobs("r", [candidate("a")], ["host"], Settings(rounds=1))
    (more,) = plan_jobs("r", [candidate("a")], ["host"], Settings(rounds=1, threads=(2,)))
    keys = {reuse_key(job.spec, "b1"), reuse_key(job.spec, "b2"), reuse_key(more.spec, "b1")}
    assert len(keys) == 3


def test_each_clock_has_its_own_plan() -> None:
    settings = Settings(rounds=5, virtual_rounds=2)
    counted = {"emulated": Traits(TimeKind.VIRTUAL)}
    jobs = plan_jobs("r", [candidate("a")], ["host", "emulated"], settings, traits=counted)
    by_board = {name: [j for j in jobs if j.board == name] for name in ("host", "emulated")}
    assert [len(by_board[name]) for name in ("host", "emulated")] == [5, 2]
    assert {j.spec.plan for j in by_board["host"]} == {settings.plan}
    assert {j.spec.plan for j in by_board["emulated"]} == {settings.virtual_plan}


def test_a_file_meets_only_the_runtimes_that_take_its_format() -> None:
    both = candidate("a")
    tflite = replace(both.artifacts[0], sha256="t" * 64, format="tflite")
    both = replace(both, artifacts=(*both.artifacts, tflite))
    ran = {
        named: {(j.spec.format, j.spec.runtime, j.spec.provider) for j in jobs}
        for named in ((), ("onnxruntime",), ("litert", "tflite-runtime"))
        for jobs in [plan_jobs("r", [both], ["host"], Settings(runtimes=named))]
    }
    onnx = ("onnx", "onnxruntime", "CPUExecutionProvider")
    assert ran == {
        (): {onnx, ("tflite", "litert", "xnnpack")},
        ("onnxruntime",): {onnx},
        ("litert", "tflite-runtime"): {
            ("tflite", "litert", "xnnpack"),
            ("tflite", "tflite-runtime", "xnnpack"),
        },
    }


def test_energy_needs_a_meter_and_capability_is_asked_once_a_board() -> None:
    settings = Settings(kinds=(JobKind.LATENCY, JobKind.ENERGY, JobKind.CAPABILITY))
    traits = {"metered": Traits(TimeKind.VIRTUAL, metered=True)}
    boards = ["plain", "metered"]
    candidates = [candidate("a"), candidate("b")]
    jobs = plan_jobs("r", candidates, boards, settings, traits=traits, probes="p" * 64)
    kinds = Counter((j.board, j.spec.kind) for j in jobs)
    assert kinds["metered", JobKind.ENERGY] == 2
    assert kinds["plain", JobKind.ENERGY] == 0
    assert [kinds[name, JobKind.CAPABILITY] for name in boards] == [1, 1]
    assert all(j.spec.artifact == "p" * 64 for j in jobs if j.spec.kind is JobKind.CAPABILITY)
