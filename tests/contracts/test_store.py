"""What every Store must do. Another store joins by one more entry in `STORES`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from flatsat.artifact import Agreement, Artifact
from flatsat.canonical import canonical_json
from flatsat.errors import DataError
from flatsat.jobspec import JobKind, JobSpec, reuse_key
from flatsat.outcome import (
    AgreementResult,
    Failed,
    Fault,
    Health,
    Inconclusive,
    Logits,
    Measured,
    Outcome,
    Owner,
    Samples,
)
from flatsat.reports.store import (
    AccuracyRow,
    BoardRow,
    CandidateRow,
    JobRow,
    RunCounts,
    RunRow,
    SqlStore,
    Store,
)
from flatsat.tensors import TensorSpec

Opener: TypeAlias = Callable[[Path], Store]

STORES: dict[str, Opener] = {"sqlite": lambda folder: SqlStore(f"sqlite:///{folder}/record.db")}

AT = "2026-03-01T12:00:00.000000+00:00"
LATER = "2026-03-02T12:00:00.000000+00:00"

MEASURED = Measured(
    samples=(
        Samples("latency_ns", "wall", 0, False, (900, 700)),
        Samples("latency_ns", "wall", 0, True, (500, 501, 499, -(2**63), 2**63 - 1)),
        Samples("rss_bytes", "ru_maxrss", 0, True, ()),
    ),
    agreement=AgreementResult("tol", 1e-6, 1e-7, 5e-7, 1.0, 64, True),
    logits=Logits("float32", (2, 3), bytes(range(24))),
    health=(Health("before", 2_000_000, 41.5, 0, "performance", 0.5, 1 << 33), Health("after")),
    evidence={"cpu": "x", "processes": [{"pid": 7, "steady": True}]},
)
FAILED = Failed(
    Fault(Owner.CANDIDATE, False, "crash", "the runtime ended with signal 11", "look at the log"),
    health=(Health("before", load1=3.0),),
    evidence={"signal": 11},
)
INCONCLUSIVE = Inconclusive(
    "frequency changed", (Samples("latency_ns", "wall", 0, True, (1, 2)),), evidence={"khz": 1}
)


@pytest.fixture(params=sorted(STORES))
def opener(request: pytest.FixtureRequest) -> Opener:
    return STORES[request.param]


@pytest.fixture
def store(opener: Opener, tmp_path: Path) -> Iterator[Store]:
    opened = opener(tmp_path)
    opened.begin_run(a_run())
    opened.put_board("board-1", "host", "host", {"cpu": "x"})
    yield opened
    opened.close()


def a_run(run_id: str = "run-1", **changes: object) -> RunRow:
    row = RunRow(run_id, "run", '{"a":1}', "c" * 64, "0.1.0", AT, "fp", 7)
    return replace(row, **changes)


def a_spec(artifact: str = "a" * 64, **changes: object) -> JobSpec:
    return replace(JobSpec(JobKind.LATENCY, artifact, "onnx", "host"), **changes)


def a_job(job_id: str, spec: JobSpec | None = None, **changes: object) -> JobRow:
    spec = spec or a_spec()
    row = JobRow(
        job_id, spec.artifact, spec.board, spec.kind, canonical_json(spec.to_json()), 0, 0, None
    )
    return replace(row, **changes)


def an_artifact(sha256: str = "a" * 64) -> Artifact:
    image = TensorSpec("image", "float32", ("batch", 1, 28, 28))
    logits = TensorSpec("logits", "float32", ("batch", 10))
    return Artifact(
        sha256,
        "onnx",
        "float",
        1234,
        "model.onnx",
        17,
        8,
        "NCHW",
        (image,),
        (logits,),
        goldens="b" * 64,
        agreement=Agreement("tol", max_rel=1e-4),
    )


def a_candidate(candidate_id: str = "cand-1", **changes: object) -> CandidateRow:
    row = CandidateRow(
        candidate_id,
        "recipe-1",
        "deep",
        "compressed",
        "mnist-mini/lenet5",
        3,
        None,
        431_080,
        40_000,
        2_293_000,
        {"train_steps": 100, "cpu_s": 1.5},
        {"validation": 0.97},
        ({"name": "conv1", "nonzeros": 5},),
        "s" * 64,
        {"step": [{"use": "magnitude-prune"}]},
    )
    return replace(row, **changes)


def put(store: Store, job_id: str, outcome: Outcome = MEASURED, at: str = AT) -> bool:
    return store.put_outcome(job_id, "board-1", outcome, at, 2.5)


@pytest.mark.parametrize(
    "outcome", [MEASURED, FAILED, INCONCLUSIVE], ids=lambda o: type(o).__name__
)
def test_an_outcome_comes_back_as_it_was_put(store: Store, outcome: Outcome) -> None:
    store.add_jobs("run-1", [a_job("j")])
    assert store.put_outcome("j", "board-1", outcome, AT, 2.5)
    (row,) = store.outcomes("run-1")
    assert row.outcome == outcome
    assert (row.board_id, row.started_utc, row.wall_s, row.accuracy) == ("board-1", AT, 2.5, None)
    assert row.job.spec == a_spec()


def test_an_outcome_survives_reopening(opener: Opener, store: Store, tmp_path: Path) -> None:
    store.add_jobs("run-1", [a_job("j")])
    put(store, "j")
    again = opener(tmp_path)
    assert again.outcomes("run-1") == store.outcomes("run-1")
    again.close()


def test_samples_and_logits_stay_out_where_not_asked_for(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    put(store, "j")
    (row,) = store.outcomes("run-1", with_samples=False)
    assert row.outcome == replace(MEASURED, samples=(), logits=None)


def test_accuracy_is_kept_with_its_right_answers(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    found = AccuracyRow("s" * 64, "accuracy", 9, 8 / 9, (True,) * 8 + (False,))
    store.put_outcome("j", "board-1", MEASURED, AT, 1.0, found)
    assert store.outcomes("run-1")[0].accuracy == found


def test_accuracy_whose_answers_do_not_fit_its_n_is_refused_whole(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    with pytest.raises(ValueError, match="n is 9"):
        store.put_outcome(
            "j", "board-1", MEASURED, AT, 1.0, AccuracyRow("s", "accuracy", 9, 1.0, (True,))
        )
    assert store.outcomes("run-1") == []
    assert store.jobs("run-1")[0].state == "planned"


def test_nan_from_a_network_is_kept_as_nan(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    nan = math.nan
    outcome = Measured((), AgreementResult("tol", nan, math.inf, nan, 0.1, 4, False))
    store.put_outcome("j", "board-1", outcome, AT, 1.0, AccuracyRow("s", "accuracy", 4, nan))
    (row,) = store.outcomes("run-1")
    assert isinstance(row.outcome, Measured)
    assert row.outcome.agreement is not None
    assert math.isnan(row.outcome.agreement.max_abs)
    assert row.outcome.agreement.max_rel == math.inf
    assert row.accuracy is not None
    assert math.isnan(row.accuracy.value)


def test_what_a_crashed_runtime_said_is_kept_whatever_its_bytes(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    said = b"core \xff dumped\0".decode("utf-8", "surrogateescape")
    outcome = Failed(
        Fault(Owner.CANDIDATE, False, "crash", said), evidence={"stderr": said, "temp": math.nan}
    )
    put(store, "j", outcome)
    (row,) = store.outcomes("run-1")
    assert isinstance(row.outcome, Failed)
    assert "dumped" in row.outcome.fault.message
    assert row.outcome.evidence == {"stderr": said, "temp": "nan"}


def test_the_first_outcome_of_a_job_stands(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    assert put(store, "j")
    before = store.outcomes("run-1")
    assert not put(store, "j", FAILED, LATER)
    assert store.outcomes("run-1") == before


def test_of_many_writers_of_one_job_one_wins(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda _: put(store, "j"), range(16)))
    assert sorted(won) == [False] * 15 + [True]
    assert [row.outcome for row in store.outcomes("run-1")] == [MEASURED]


def test_an_outcome_on_an_unknown_board_leaves_nothing(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    with pytest.raises(DataError, match="board"):
        store.put_outcome("j", "nowhere", MEASURED, AT, 1.0)
    assert store.outcomes("run-1") == []
    assert store.counts("run-1") == {"run-1": RunCounts(jobs=1)}
    assert put(store, "j")


def test_unknown_names_are_refused_by_name(store: Store) -> None:
    with pytest.raises(DataError, match="no job 'x'"):
        put(store, "x")
    with pytest.raises(DataError, match="no run 'x'"):
        store.add_jobs("x", [a_job("j")])
    with pytest.raises(DataError, match="no run 'x'"):
        store.run("x")
    with pytest.raises(DataError, match="no candidate 'x'"):
        store.put_artifact(an_artifact(), "x")
    with pytest.raises(DataError, match="no candidate 'x'"):
        store.candidate("x")
    with pytest.raises(DataError, match="no run 'x'"):
        store.put_note("x", "key", 1)
    with pytest.raises(DataError, match="no run 'x'"):
        store.finish_run("x", "done")


def test_planning_again_leaves_jobs_as_they_are(store: Store) -> None:
    plan = [a_job(f"j{i}", round=i % 2, position=i) for i in range(6)]
    store.add_jobs("run-1", plan)
    store.start_job("j0", "board-1", 4)
    put(store, "j1")
    before = store.jobs("run-1")
    store.add_jobs("run-1", [*plan, a_job("j6", round=9), a_job("j6", round=9)])
    after = store.jobs("run-1")
    assert [job.job_id for job in after] == ["j0", "j2", "j4", "j1", "j3", "j5", "j6"]
    assert after[:6] == before


def test_a_job_of_another_run_is_refused(store: Store) -> None:
    store.begin_run(a_run("run-2"))
    store.add_jobs("run-1", [a_job("j")])
    with pytest.raises(DataError, match="belongs to run run-1"):
        store.add_jobs("run-2", [a_job("k"), a_job("j")])
    assert store.jobs("run-2") == []


def test_states_attempts_and_epochs(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j"), a_job("k")])
    assert store.start_job("j", "board-1", 4) == 1
    assert store.start_job("j", "board-1", 5) == 2
    (running,) = store.jobs("run-1", "running")
    assert (running.attempt, running.epoch, running.board_id) == (2, 5, "board-1")
    put(store, "j")
    assert [job.job_id for job in store.jobs("run-1", "done")] == ["j"]
    assert [job.job_id for job in store.jobs("run-1", "planned")] == ["k"]
    with pytest.raises(DataError, match="j is done"):
        store.start_job("j", "board-1", 6)


def test_a_board_that_was_never_reached_has_no_id(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    down = Failed(Fault(Owner.BOARD, True, "link-down", "no answer", "check the cable"))
    store.put_outcome("j", None, down, AT, 30.0)
    (row,) = store.outcomes("run-1")
    assert (row.board_id, row.outcome) == (None, down)
    assert store.boards("run-1") == []


def test_only_a_measured_outcome_of_the_same_job_on_the_same_board_is_reused(store: Store) -> None:
    key = reuse_key(a_spec(), "board-1")
    assert store.reusable(key) is None
    store.add_jobs("run-1", [a_job("bad"), a_job("old"), a_job("new"), a_job("two")])
    put(store, "bad", FAILED, LATER)
    assert store.reusable(key) is None
    put(store, "old", at=AT)
    put(store, "new", at=LATER)
    assert store.reusable(key) == "new"
    assert store.reusable(key, LATER) == "new"
    assert store.reusable(key, "2026-03-03T00:00:00.000000+00:00") is None
    assert store.reusable(reuse_key(a_spec(threads=2), "board-1")) is None
    assert store.reusable(reuse_key(a_spec(), "board-2")) is None


def test_a_reused_outcome_shows_in_its_run_but_is_measured_once(store: Store) -> None:
    store.add_jobs("run-1", [a_job("j")])
    put(store, "j")
    store.begin_run(a_run("run-2"))
    store.add_jobs("run-2", [a_job("k"), a_job("l")])
    store.reuse_outcome("k", "j")
    (row,) = store.outcomes("run-2")
    assert (row.job.job_id, row.job.reused_from, row.outcome) == ("k", "j", MEASURED)
    assert row.board_id == "board-1"
    assert store.counts("run-2") == {"run-2": RunCounts(jobs=2, done=1, reused=1, measured=1)}
    assert store.reusable(reuse_key(a_spec(), "board-1")) == "j"
    assert not put(store, "k")
    with pytest.raises(DataError, match="no outcome of its own"):
        store.reuse_outcome("l", "k")
    with pytest.raises(DataError, match="k is done"):
        store.reuse_outcome("k", "j")


def test_rounds_never_reuse_one_measurement_twice(store: Store) -> None:
    key = reuse_key(a_spec(), "board-1")
    first = [a_job(f"r{i}", round=i, comparison="run") for i in range(2)]
    store.add_jobs("run-1", first)
    assert store.reusable(key, for_job="r0") is None
    put(store, "r0")
    assert store.reusable(key, for_job="r1") is None  # else round 1 would be round 0 again
    assert store.reusable(key) == "r0"
    put(store, "r1", at=LATER)

    store.begin_run(a_run("run-2"))
    rounds = [a_job(f"s{i}", round=i, comparison="run") for i in range(3)]
    again = a_job("again", round=0, comparison="run")
    store.add_jobs("run-2", [*rounds, again, a_job("other", round=1, comparison="other")])
    for job_id, source in (("s0", "r1"), ("s1", "r0")):
        assert store.reusable(key, for_job=job_id) == source
        store.reuse_outcome(job_id, source)
    assert store.reusable(key, for_job="s2") is None
    assert store.reusable(key, for_job="again") == "r1"  # the same round may say it again
    assert store.reusable(key, for_job="other") == "r1"


def test_outcomes_fit_every_filter(store: Store) -> None:
    store.put_board("board-2", "pi", "raspberry-pi")
    store.put_candidate(a_candidate())
    store.put_artifact(an_artifact("a" * 64), "cand-1")
    store.put_artifact(an_artifact("8" * 64), "cand-1")
    specs = {
        "f": a_spec(),
        "i": a_spec("8" * 64),
        "x": a_spec("e" * 64),
        "acc": a_spec(kind=JobKind.ACCURACY),
        "pi": a_spec(board="pi"),
    }
    store.add_jobs("run-1", [a_job(i, s, position=n) for n, (i, s) in enumerate(specs.items())])
    for job_id in specs:
        store.put_outcome(job_id, "board-2" if job_id == "pi" else "board-1", MEASURED, AT, 1.0)

    def ids(**filters: str) -> list[str]:
        return [row.job.job_id for row in store.outcomes(**filters)]

    assert ids() == list(specs)
    assert ids(candidate_id="cand-1") == ["f", "i", "acc", "pi"]
    assert ids(artifact="8" * 64) == ["i"]
    assert ids(board="pi") == ids(board="board-2") == ["pi"]
    assert ids(kind="accuracy") == ["acc"]
    assert ids(candidate_id="cand-1", board="host", kind="latency") == ["f", "i"]
    assert ids(run_id="run-0") == []


def test_a_run_is_resumed_but_never_with_another_configuration(store: Store) -> None:
    store.finish_run("run-1", "interrupted", LATER)
    assert store.run("run-1") == a_run(state="interrupted", finished_utc=LATER)
    store.begin_run(a_run())
    assert store.run("run-1") == a_run()
    with pytest.raises(DataError, match="another configuration"):
        store.begin_run(a_run(config_sha="d" * 64))


def test_runs_come_oldest_first_with_counts(store: Store) -> None:
    store.begin_run(a_run("run-0", started_utc=LATER))
    store.add_jobs("run-1", [a_job(name) for name in ("m", "f", "i", "r", "p")])
    put(store, "m")
    put(store, "f", FAILED)
    put(store, "i", INCONCLUSIVE)
    store.start_job("r", "board-1", 1)
    assert [run.run_id for run in store.runs()] == ["run-1", "run-0"]
    assert store.counts() == {
        "run-0": RunCounts(),
        "run-1": RunCounts(5, 3, running=1, measured=1, failed=1, inconclusive=1),
    }


def test_candidates_boards_and_artifacts_come_back(store: Store) -> None:
    store.put_candidate(a_candidate())
    store.put_candidate(a_candidate("cand-2", name="imported", recipe_id=None, seed=None))
    store.put_candidate(a_candidate("cand-3", name="unmeasured"), "run-1")
    store.put_candidate(a_candidate("cand-3", name="unmeasured", macs=5), "run-1")
    first, second = an_artifact("f" * 64), an_artifact("a" * 64)
    store.put_artifact(first, "cand-1")
    store.put_artifact(second, "cand-1")
    store.put_artifact(replace(first, role="int8"), "cand-1")
    store.put_artifact(second, "cand-2")
    assert store.artifacts("cand-1") == [replace(first, role="int8"), second]
    assert store.artifacts("cand-2") == [second]
    assert store.candidate("cand-1") == a_candidate()
    assert [row.name for row in store.candidates()] == ["deep", "imported", "unmeasured"]
    assert [row.macs for row in store.candidates("run-1")] == [5]
    store.add_jobs("run-1", [a_job("j", a_spec("f" * 64))])
    assert [row.name for row in store.candidates("run-1")] == ["deep", "unmeasured"]
    assert store.boards() == [BoardRow("board-1", "host", "host", {"cpu": "x"})]
    put(store, "j")
    store.put_board("board-1", "bench", "host", {"cpu": "y"})
    assert store.boards("run-1") == [BoardRow("board-1", "bench", "host", {"cpu": "y"})]


def test_notes_keep_json_and_bytes(store: Store) -> None:
    store.put_note("run-1", "search", {"reward": [0.1, -1.0]})
    store.put_note("run-1", "mask", b"\0\1\2")
    store.put_note("run-1", "search", {"reward": [0.2, math.nan]})
    assert store.notes("run-1") == {"search": {"reward": [0.2, "nan"]}, "mask": b"\0\1\2"}


def test_candidates_of_a_run_come_at_once_or_not_at_all(store: Store) -> None:
    rows = [a_candidate(f"many-{i}", name=f"many-{i}") for i in range(3)]
    store.put_candidates("run-1", [(row, [an_artifact()]) for row in rows])
    assert {c.candidate_id for c in store.candidates("run-1")} >= {r.candidate_id for r in rows}
    assert [a.sha256 for a in store.artifacts("many-1")] == [an_artifact().sha256]
    with pytest.raises(DataError):
        store.put_candidates("no-such-run", [(a_candidate("lost"), [])])
    assert "lost" not in {c.candidate_id for c in store.candidates()}
