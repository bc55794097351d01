"""Comparisons: verdicts on planted differences, pairing against drift, refusals with reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.artifact import Artifact
from flatsat.canonical import canonical_json
from flatsat.jobspec import JobKind, JobSpec, MeasurePlan
from flatsat.outcome import Failed, Fault, Inconclusive, Measured, Outcome, Owner, Samples
from flatsat.reports.compare import (
    ComparisonReport,
    Subject,
    Verdict,
    compare,
    compare_accuracy,
    compare_all,
    subjects,
)
from flatsat.reports.rows import AccuracyRow, CandidateRow, JobRow, OutcomeRow, RunRow
from flatsat.reports.store import SqlStore

AT = "2026-03-01T12:00:00.000000+00:00"
NS = 1_000_000
CRASH = Failed(Fault(Owner.CANDIDATE, False, "crash", "signal 11"))


def outcome_row(
    index: int,
    outcome: Outcome,
    *,
    run_id: str = "run-1",
    board: tuple[str, str] = ("board-1", "host"),
    accuracy: AccuracyRow | None = None,
    reused_from: str | None = None,
    **spec: object,
) -> OutcomeRow:
    job_spec = replace(JobSpec(JobKind.LATENCY, "a" * 64, "onnx", board[1]), **spec)
    job = JobRow(
        f"{run_id}-{index}-{job_spec.artifact[:4]}-{job_spec.threads}-{job_spec.kind}",
        job_spec.artifact,
        board[1],
        job_spec.kind.value,
        canonical_json(job_spec.to_json()),
        index,
        index,
        "run",
        run_id=run_id,
        reused_from=reused_from,
    )
    return OutcomeRow(job, outcome, board[0], f"{AT}{index}", 1.0, accuracy)


def timed(
    medians_ns: Sequence[float],
    *,
    seed: int = 0,
    noise: float = 0.001,
    clock: str = "wall",
    processes: int = 2,
    version: str = "1.20",
    **where: object,
) -> list[OutcomeRow]:
    """One job a round, whose processes' latencies lie around the round's median."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, median in enumerate(medians_ns):
        taken = [Samples("latency_ns", clock, 0, False, (10**12,))]
        for process in range(processes):
            values = median * np.exp(rng.normal(0, noise)) * np.exp(rng.normal(0, noise, 60))
            taken.append(Samples("latency_ns", clock, process, True, tuple(map(int, values))))
        evidence = {"runtime": {"name": "onnxruntime", "version": version}}
        rows.append(outcome_row(index, Measured(tuple(taken), evidence=evidence), **where))
    return rows


FLAT = [NS] * 8


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.1, "slower"), (0.9, "faster"), (1.0, "equal"), (1.005, "equal")]
)
def test_planted_differences_are_told(factor: float, verdict: str) -> None:
    found = compare(timed(FLAT), timed([factor * v for v in FLAT], seed=1))
    assert found.verdict.value == verdict
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1 / factor, rel=0.003)
    assert (found.paired, found.rounds) == (True, 8)
    assert found.verdict.is_regression == (verdict == "slower")


def test_drift_that_both_share_cancels_in_pairs_only() -> None:
    drift = [NS * (1 + 0.15 * i) for i in range(8)]
    base, candidate = timed(drift), timed([1.05 * v for v in drift], seed=1)
    paired = compare(base, candidate)
    assert paired.verdict is Verdict.SLOWER
    apart = compare(base, [replace(r, job=replace(r.job, comparison="x")) for r in candidate])
    assert not apart.paired
    assert apart.verdict is Verdict.INCONCLUSIVE
    assert "drift" in apart.why
    assert "processes would bring it" in apart.why


def test_noise_is_inconclusive_and_says_how_many_rounds_would_tell() -> None:
    rng = np.random.default_rng(4)
    base = timed(NS * np.exp(rng.normal(0, 0.1, 6)))
    found = compare(base, timed(NS * np.exp(rng.normal(0, 0.1, 6)), seed=1))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "rounds would bring it to +-2 %" in found.why


def test_warm_up_never_counts_and_p10_is_its_own_statistic() -> None:
    slow_tail = []
    for index, row in enumerate(timed(FLAT)):
        taken = Samples("latency_ns", "wall", 0, True, (NS,) * 30 + (3 * NS,) * (31 + index % 2))
        slow_tail.append(replace(row, outcome=replace(row.outcome, samples=(taken,))))
    base = timed(FLAT, noise=0)
    assert compare(base, slow_tail).verdict is Verdict.SLOWER
    assert compare(base, slow_tail, statistic="p10").verdict is Verdict.EQUAL
    assert compare(base, slow_tail, statistic="mean").verdict is Verdict.SLOWER


def test_virtual_time_without_spread_is_decided() -> None:
    base = timed([1000] * 3, noise=0, clock="virtual")
    same = compare(base, timed([1000] * 3, noise=0, clock="virtual"))
    assert same.verdict is Verdict.EQUAL
    assert same.ratio is not None
    assert (same.ratio.low, same.ratio.high) == pytest.approx((1, 1))
    other = compare(base, timed([1100] * 3, noise=0, clock="virtual"))
    assert other.verdict is Verdict.SLOWER


def test_one_process_a_side_gives_no_verdict() -> None:
    found = compare(timed([NS], processes=1), timed([NS], processes=1, seed=1))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "more rounds" in found.why


def test_a_latency_of_zero_is_refused() -> None:
    found = compare(timed(FLAT), timed([0] * 8, noise=0))
    assert (found.verdict, found.ratio) == (Verdict.REFUSED, None)
    assert "0" in found.why


@given(st.floats(0.5, 2), st.integers(0, 5))
def test_swapping_the_sides_turns_the_verdict(factor: float, seed: int) -> None:
    base, other = timed(FLAT[:4], noise=0.02), timed([factor * NS] * 4, noise=0.02, seed=seed)
    there, back = compare(base, other), compare(other, base)
    opposite = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    assert back.verdict is opposite.get(there.verdict, there.verdict)
    assert there.ratio is not None
    assert back.ratio is not None
    assert back.ratio.value == pytest.approx(1 / there.ratio.value)


def test_equal_candidates_are_rarely_called_different() -> None:
    rng = np.random.default_rng(9)
    wrong = 0
    for seed in range(200):
        drift = NS * np.exp(np.cumsum(rng.normal(0, 0.05, 6)))
        found = compare(
            timed(drift, seed=2 * seed, noise=0.05), timed(drift, seed=2 * seed + 1, noise=0.05)
        )
        wrong += found.verdict in (Verdict.FASTER, Verdict.SLOWER)
    assert wrong / 200 <= 0.09


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"board": ("board-2", "pi")}, "board host and pi"),
        ({"board": ("board-2", "host")}, "no longer the same board"),
        ({"clock": "virtual"}, "clock or method wall and virtual"),
        ({"threads": 4}, "threads 1 and 4"),
        ({"version": "1.22"}, "runtime version 1.20 and 1.22"),
        ({"runtime": "litert"}, "runtime onnxruntime and litert"),
        ({"provider": "CUDA"}, "provider CPUExecutionProvider and CUDA"),
        ({"affinity": (0,)}, "affinity none and 0"),
        ({"batch": 8}, "batch 1 and 8"),
        ({"power_mode": {"governor": "powersave"}}, "power mode none and governor=powersave"),
        ({"plan": MeasurePlan(isolation="fork")}, "isolation spawn and fork"),
        ({"method_version": 2}, "method flatsat.latency 1 and flatsat.latency 2"),
    ],
)
def test_unlike_measurements_are_refused_with_the_reason(
    changes: Mapping[str, object], why: str
) -> None:
    found = compare(timed(FLAT), timed(FLAT, seed=1, **changes))
    assert (found.verdict, found.ratio) == (Verdict.REFUSED, None)
    assert why in found.why


def energies(kind: str, value_nj: int) -> list[OutcomeRow]:
    taken = [Measured((Samples("energy_nj", kind, 0, True, (value_nj + i,)),)) for i in range(4)]
    return [outcome_row(i, outcome, kind=JobKind.ENERGY) for i, outcome in enumerate(taken)]


def test_energies_of_two_classes_never_meet() -> None:
    found = compare(energies("metered", 10**6), energies("modelled", 10**6), quantity="energy")
    assert found.verdict is Verdict.REFUSED
    assert "metered and modelled" in found.why
    found = compare(energies("metered", 10**6), energies("metered", 2 * 10**6), quantity="energy")
    assert found.verdict is Verdict.MORE
    assert found.verdict.is_regression


def test_memory_is_compared_by_the_method_that_every_board_has() -> None:
    def rows(peak: int) -> list[OutcomeRow]:
        return [
            outcome_row(
                i,
                Measured(
                    (
                        Samples("rss_bytes", "VmHWM", 0, True, (peak + i,)),
                        Samples("rss_bytes", "ru_maxrss", 0, True, (peak + i,)),
                    )
                ),
            )
            for i in range(4)
        ]

    found = compare(rows(10**8), rows(5 * 10**7), quantity="memory")
    assert found.verdict is Verdict.LESS
    assert found.context is not None
    assert found.context.class_ == "ru_maxrss"


def test_what_was_not_measured_is_refused_with_how_it_ended() -> None:
    failed = [outcome_row(0, CRASH), outcome_row(1, CRASH)]
    found = compare(timed(FLAT), failed, labels=("dense", "deep"))
    assert found.verdict is Verdict.REFUSED
    assert found.why == "deep: no latency was measured (2 x failed: crash, signal 11)"
    doubt = Inconclusive("the clock changed", (Samples("latency_ns", "wall", 0, True, (1,)),))
    assert "the clock changed" in compare([outcome_row(0, doubt)], timed(FLAT)).why
    assert "A: no latency was measured" in compare([], timed(FLAT)).why


def test_several_settings_are_compared_each_and_strays_are_noted() -> None:
    base = Subject("dense", (*timed(FLAT), *timed(FLAT, threads=4), *timed(FLAT, threads=2)))
    other = Subject("deep", (*timed(FLAT, seed=1), *timed([1.2 * NS] * 8, seed=1, threads=4)))
    report = compare_all(base, [other])
    verdicts = {row.context.threads: row.verdict for row in report.rows if row.context}
    assert verdicts == {1: Verdict.EQUAL, 4: Verdict.SLOWER}
    assert report.notes == ("dense alone was measured on host, onnxruntime, 2 threads: left out",)
    assert compare(base.rows, timed(FLAT, seed=1)).verdict is Verdict.EQUAL
    found = compare(base.rows, other.rows)
    assert found.verdict is Verdict.REFUSED
    assert "several settings" in found.why


def test_a_reused_outcome_counts_once_and_never_as_a_pair() -> None:
    base = timed(FLAT, run_id="run-2")
    source = timed([NS])[0]
    reused = [replace(source, job=replace(row.job, reused_from=source.job.job_id)) for row in base]
    found = compare(base, reused)
    assert not found.paired
    assert found.rounds == 16 + 2  # processes of the eight jobs, and of the one that ran


# Accuracy


def right(n: int, wrong: Sequence[int], split: str = "s" * 64) -> AccuracyRow:
    correct = np.ones(n, bool)
    correct[list(wrong)] = False
    return AccuracyRow(split, "accuracy", n, float(correct.mean()), tuple(correct.tolist()))


@pytest.mark.parametrize(
    ("n", "lost", "gained", "verdict"),
    [
        (10_000, range(30), range(30, 60), "non-inferior"),
        (10_000, range(300), (), "worse"),
        (10_000, (), range(300), "better"),
        (1_000, range(12), range(12, 22), "inconclusive"),
    ],
)
def test_accuracy_is_judged_by_its_interval(
    n: int, lost: Sequence[int], gained: Sequence[int], verdict: str
) -> None:
    difference, found, why = compare_accuracy(right(n, gained), right(n, lost))
    assert found.value == verdict
    assert difference is not None
    assert difference.value == pytest.approx((len(gained) - len(lost)) / n)
    assert ("would tell" in why) == (verdict == "inconclusive")


def test_accuracies_that_can_not_be_paired_are_refused() -> None:
    here = right(100, [1])
    for other, why in (
        (right(100, [1], "t" * 64), "different images"),
        (replace(here, metric="iou"), "accuracy and iou"),
        (replace(here, correct=None), "not recorded"),
    ):
        difference, verdict, said = compare_accuracy(here, other)
        assert (difference, verdict) == (None, Verdict.REFUSED)
        assert why in said


def judged(row: AccuracyRow, **where: object) -> OutcomeRow:
    return outcome_row(90, Measured(()), accuracy=row, kind=JobKind.ACCURACY, **where)


def test_accuracy_stands_beside_latency_whatever_the_threads() -> None:
    base = Subject("dense", (*timed(FLAT), judged(right(10_000, range(5)))))
    other = Subject("deep", (*timed(FLAT, seed=1), judged(right(10_000, range(400)), threads=2)))
    rows = {row.quantity: row for row in compare_all(base, [other]).rows}
    assert rows["latency"].verdict is Verdict.EQUAL
    assert rows["accuracy"].verdict is Verdict.WORSE
    assert rows["accuracy"].difference is not None
    assert rows["accuracy"].ratio is None
    elsewhere = Subject("far", (judged(right(10_000, ()), board=("board-2", "pi")),))
    (row,) = compare_all(base, [elsewhere], quantities=("accuracy",)).rows
    assert (row.verdict, row.why) == (
        Verdict.REFUSED,
        "measured under different conditions: board host and pi",
    )
    crashed = Subject("bad", (outcome_row(0, CRASH, kind=JobKind.ACCURACY),))
    (row,) = compare_all(base, [crashed], quantities=("accuracy",)).rows
    assert row.why == "bad: no accuracy was measured (1 x failed: crash, signal 11)"


# Reports


def report_of(*factors: float, extra: Sequence[Subject] = ()) -> ComparisonReport:
    others = [
        Subject(f"c{i}", tuple(timed([f * NS] * 8, seed=i + 1))) for i, f in enumerate(factors)
    ]
    return compare_all(Subject("dense", tuple(timed(FLAT))), [*others, *extra])


def test_the_exit_code_follows_the_worst_row() -> None:
    crashed = Subject("bad", (outcome_row(0, CRASH),))
    noisy = Subject("noisy", tuple(timed([NS, 2 * NS, NS / 2, NS], seed=7)))
    assert report_of(1.0, 0.8).exit_code == 0
    assert report_of(1.0, 1.2, extra=[crashed, noisy]).exit_code == 1
    assert report_of(1.0, extra=[noisy]).exit_code == 4
    assert report_of(1.0, extra=[crashed]).exit_code == 4
    assert report_of(extra=[crashed]).exit_code == 2
    assert [report_of(f).regression for f in (0.8, 1.0, 1.2)] == [False, False, True]


def test_the_threshold_sets_what_equal_means() -> None:
    base, other = timed(FLAT), timed([1.05 * NS] * 8, seed=1)
    assert compare(base, other, 0.1).verdict is Verdict.EQUAL
    assert compare(base, other, 0.01).verdict is Verdict.SLOWER
    with pytest.raises(ValueError, match="threshold"):
        compare(base, other, 0)


def test_machines_read_the_same() -> None:
    value = report_of(1.2).to_json()
    assert json.loads(json.dumps(value)) == value
    (row,) = value["rows"]  # type: ignore[misc]
    assert value["regression"] is True
    wanted = ("c0", "latency", "slower", "host", "wall", True, 8, "ratio")
    names = ["candidate", "quantity", "verdict", "board", "class", "paired", "rounds", "is"]
    assert tuple(row[name] for name in names) == wanted
    assert row["low"] < row["value"] < row["high"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with SqlStore(f"sqlite:///{tmp_path}/record.db") as opened:
        opened.begin_run(RunRow("run-1", "run", "{}", "c" * 64, "0.1", AT, "fp", 0))
        opened.put_board("board-1", "host", "host")
        yield opened


def test_a_runs_candidates_become_subjects_with_telling_labels(store: SqlStore) -> None:
    files = {
        ("cand-0", "deep", 0): [("a" * 64, "float"), ("b" * 64, "int8")],
        ("cand-1", "deep", 1): [("c" * 64, "float")],
        ("cand-2", "dense", 0): [("d" * 64, "float")],
        ("cand-3", "unmeasured", 0): [("e" * 64, "float")],
    }
    for (candidate_id, name, seed), artifacts in files.items():
        store.put_candidate(CandidateRow(candidate_id, None, name, "compressed", "w", seed))
        for sha, role in artifacts:
            store.put_artifact(
                Artifact(sha, "onnx", role, 1, "m.onnx", 17, 8, "", (), ()), candidate_id
            )
    for sha in "abcd":
        for row in timed(FLAT[:3], artifact=sha * 64):
            store.add_jobs("run-1", [row.job])
            store.put_outcome(row.job.job_id, "board-1", row.outcome, AT, 1.0)
    found = subjects(store, "run-1")
    assert list(found) == ["deep seed 0 float", "deep seed 0 int8", "deep seed 1", "dense"]
    assert all(len(subject.rows) == 3 for subject in found.values())
    report = compare_all(found["dense"], [found["deep seed 1"]])
    assert [row.paired for row in report.rows] == [True]
