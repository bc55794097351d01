"""How jobs end when boards, links and candidates fail; with boards that fail on order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flatsat.artifact import Artifact
from flatsat.errors import DataError, InfrastructureError
from flatsat.harness.execute import Labels, Supplies, Tally, earliest_reuse_utc, execute, job_row
from flatsat.harness.lab import Lab
from flatsat.harness.plan import PlannedJob
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Failed, Fault, Logits, Measured, Outcome, Owner, Samples
from flatsat.reports.rows import CandidateRow, RunRow
from flatsat.targets.board import BoardIdentity, BoardRefused, Lease, LinkDown
from flatsat.units import TimeKind

GOOD = Measured((Samples("latency_ns", "wall", 0, True, (1, 2, 3)),))
CRASH = Failed(Fault(Owner.CANDIDATE, False, "crash", "signal 11"))
FLAKY = Failed(Fault(Owner.BOARD, True, "busy", "board was busy"))
Answer = Outcome | Exception


@dataclass
class ScriptedSession:
    board: ScriptedBoard
    identity: BoardIdentity = field(
        default_factory=lambda: BoardIdentity("id", "fake", "scripted", {})
    )

    async def put(self, sha256: str, source: Path) -> None:
        if sha256 in self.board.refuses:
            raise self.board.refuses[sha256]

    async def run(self, job_id: str, spec: JobSpec) -> Outcome:
        self.board.ran.append(spec.artifact)
        answers = self.board.answers.get(spec.artifact, [])
        answer = answers.pop(0) if answers else GOOD
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        return


@dataclass
class ScriptedBoard:
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    refuses: dict[str, Exception] = field(default_factory=dict)
    opens: list[Exception | None] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    opened: int = 0
    name: str = "fake"
    kind: str = "scripted"
    time_kind: TimeKind = TimeKind.WALL
    meter: str = "none"
    runs_here: bool = False

    async def open(self, lease: Lease) -> ScriptedSession:
        self.opened += 1
        error = self.opens.pop(0) if self.opens else None
        if error is not None:
            raise error
        return ScriptedSession(self)


@dataclass
class SwitchedBoard(ScriptedBoard):
    """Comes up only after its power was cut."""

    cycles: int = 0

    async def open(self, lease: Lease) -> ScriptedSession:
        if not self.cycles:
            self.opened += 1
            raise LinkDown("it hangs")
        return await super().open(lease)

    async def power_cycle(self, lease: Lease) -> None:
        self.cycles += 1


@dataclass
class SharingBoard(ScriptedBoard):
    """Notes which boards are open while it is."""

    open_now: set[str] = field(default_factory=set)
    met: set[frozenset[str]] = field(default_factory=set)
    opened: dict[str, asyncio.Event] = field(default_factory=dict)
    waits_for: str = ""

    async def open(self, lease: Lease) -> ScriptedSession:
        self.open_now.add(self.name)
        self.opened.setdefault(self.name, asyncio.Event()).set()
        board = self

        class Session(ScriptedSession):
            async def run(self, job_id: str, spec: JobSpec) -> Outcome:
                if board.waits_for:
                    other = board.opened.setdefault(board.waits_for, asyncio.Event())
                    await asyncio.wait_for(other.wait(), 60.0)
                for _ in range(20):
                    board.met.add(frozenset(board.open_now - {"far"}))
                    await asyncio.sleep(0)
                return GOOD

            async def close(self) -> None:
                board.open_now.discard(board.name)

        return Session(self, BoardIdentity(self.name, self.name, "scripted", {}))


@dataclass(frozen=True)
class ScriptedLab(Lab):
    board_: ScriptedBoard = field(default_factory=ScriptedBoard)

    def board(self, name: str) -> ScriptedBoard:  # type: ignore[override]
        return self.board_


Run = Callable[..., tuple[Tally, dict[str, list[Outcome]]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def go(
        board: ScriptedBoard,
        artifacts: str = "ab",
        *,
        rounds: int = 1,
        run_id: str = "r",
        labels: Mapping[str, Labels] | None = None,
        kind: JobKind = JobKind.LATENCY,
        reuse: str = "never",
    ) -> tuple[Tally, dict[str, list[Outcome]]]:
        lab = ScriptedLab(tmp_path / "lab", board_=board)
        lab.prepare()
        store = lab.store()
        store.begin_run(RunRow(run_id, "run", "{}", "0", "0", "2026-01-01T00:00:00", "h", 0))
        jobs = []
        for index in range(rounds):
            for name in artifacts:
                store.put_candidate(CandidateRow(name, None, name, "imported", ""), run_id)
                store.put_artifact(
                    Artifact(name, "onnx", "float", 1, "f.onnx", 17, 8, "", (), ()), name
                )
                data = "data" if kind is JobKind.ACCURACY else None
                spec = JobSpec(kind, name, "onnx", "fake", dataset=data)
                jobs.append(
                    PlannedJob(f"{run_id}{name}{index}", spec, name, "fake", index, len(jobs), "c")
                )
        store.add_jobs(run_id, [job_row(run_id, job) for job in jobs])
        files = {name: tmp_path / name for name in [*artifacts, "data"]}
        tally = execute(lab, store, run_id, jobs, Supplies(files, labels or {}), reuse=reuse)
        found: dict[str, list[Outcome]] = {name: [] for name in artifacts}
        for row in store.outcomes(run_id=run_id):
            found[row.job.artifact].append(row.outcome)
        return tally, found

    return go


def test_a_candidates_fault_spares_its_later_rounds_and_no_other(run: Run) -> None:
    board = ScriptedBoard(answers={"a": [CRASH]})
    tally, found = run(board, rounds=3)
    assert (tally.measured, tally.failed) == (3, 3)
    assert board.ran.count("a") == 1
    first, *later = found["a"]
    assert isinstance(first, Failed)
    assert first.fault.code == "crash"
    assert "repeats_fault_of" not in first.evidence
    assert all(isinstance(o, Failed) and "repeats_fault_of" in o.evidence for o in later)


def test_a_transient_fault_is_tried_again(run: Run) -> None:
    board = ScriptedBoard(answers={"a": [FLAKY, GOOD]})
    tally, _ = run(board)
    assert tally == Tally(measured=2)


def test_a_link_that_drops_is_opened_anew(run: Run) -> None:
    board = ScriptedBoard(answers={"a": [LinkDown("cable"), GOOD]})
    tally, _ = run(board)
    assert tally == Tally(measured=2)
    assert board.opened == 2


def test_a_job_that_downs_the_board_each_time_ends_failed_after_the_others(run: Run) -> None:
    board = ScriptedBoard(answers={"a": [LinkDown("cable")] * 99})
    tally, found = run(board, "abc")
    assert (tally.measured, tally.failed) == (2, 1)
    assert board.ran[-1] == "a"
    (outcome,) = found["a"]
    assert isinstance(outcome, Failed)
    assert outcome.fault.owner is Owner.BOARD
    assert not tally.quarantined


def test_a_dead_board_leaves_jobs_open_and_a_second_execution_finishes_them(run: Run) -> None:
    answers: dict[str, list[Answer]] = {name: [LinkDown("cable")] * 99 for name in "bcd"}
    tally, found = run(ScriptedBoard(answers=answers), "abcd")
    assert tally.measured == 1
    assert tally.failed == 0
    assert "cable" in tally.quarantined["fake"]
    assert [len(found[name]) for name in "abcd"] == [1, 0, 0, 0]
    healed = ScriptedBoard()
    tally, _ = run(healed, "abcd")
    assert tally == Tally(measured=4)
    assert healed.ran == ["b", "c", "d"]


def test_a_board_that_never_opens_is_quarantined(run: Run) -> None:
    tally, _ = run(ScriptedBoard(opens=[LinkDown("no route")] * 99))
    assert tally.measured == tally.failed == 0
    assert "no route" in tally.quarantined["fake"]


def test_a_refusal_keeps_its_own_fault(run: Run) -> None:
    fault = Fault(Owner.BOARD, False, "disk-full", "no room")
    board = ScriptedBoard(refuses={"a": BoardRefused(fault)})
    _, found = run(board)
    (outcome,) = found["a"]
    assert isinstance(outcome, Failed)
    assert outcome.fault == fault
    assert board.opened == 1


def test_a_damaged_file_fails_its_jobs_only(run: Run) -> None:
    board = ScriptedBoard(refuses={"a": DataError("a.onnx was changed")})
    tally, found = run(board, rounds=2)
    assert (tally.measured, tally.failed) == (2, 2)
    assert isinstance(found["a"][0], Failed)
    assert found["a"][0].fault.owner is Owner.HARNESS


def test_a_fault_of_the_record_comes_out_as_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatsat.reports.store import SqlStore

    def full(*_: object, **__: object) -> None:
        raise InfrastructureError("the disk is full")

    monkeypatch.setattr(SqlStore, "put_outcome", full)
    with pytest.raises(InfrastructureError, match="the disk is full"):
        run(ScriptedBoard())


def test_reuse_takes_another_runs_outcome_round_by_round(run: Run) -> None:
    run(ScriptedBoard(), rounds=2)
    again = ScriptedBoard()
    tally, _ = run(again, rounds=2, run_id="s", reuse="always")
    assert tally.reused == tally.measured == 4
    assert again.ran == []
    never = ScriptedBoard()
    run(never, rounds=2, run_id="t", reuse="never")
    assert len(never.ran) == 4


def test_accuracy_is_judged_from_raw_outputs(run: Run) -> None:
    np = pytest.importorskip("numpy")
    logits = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
    answer = Measured((), logits=Logits("float32", (4, 2), logits.tobytes()))
    short = Measured((), logits=Logits("float32", (3, 2), logits[:3].tobytes()))
    labels = {"data": Labels("split", "accuracy", np.array([0, 1, 1, 1]))}
    board = ScriptedBoard(answers={"a": [answer], "b": [short]})
    tally, found = run(board, labels=labels, kind=JobKind.ACCURACY)
    assert (tally.measured, tally.failed) == (1, 1)
    assert isinstance(found["b"][0], Failed)
    assert found["b"][0].fault.code == "wrong-output-shape"


@pytest.mark.parametrize(
    ("policy", "earliest"),
    [
        ("never", None),
        ("always", ""),
        ("within 7d", "2026-01-01T00:00:00.000000+00:00"),
        ("within 24h", "2026-01-07T00:00:00.000000+00:00"),
    ],
)
def test_reuse_policies(policy: str, earliest: str | None) -> None:
    assert earliest_reuse_utc(policy, "2026-01-08T00:00:00+00:00") == earliest


def test_a_board_that_hangs_is_power_cycled_once_and_the_run_goes_on(run: Run) -> None:
    board = SwitchedBoard()
    tally, _ = run(board)
    assert (tally.measured, board.cycles, board.opened) == (2, 1, 3)
    assert not tally.quarantined


def test_a_board_that_was_up_is_given_time_to_boot(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatsat.harness.boards_in_use._PAUSE_S", 0.001)
    gone = [LinkDown("nothing listens")] * 20
    board = ScriptedBoard(answers={"a": [LinkDown("power cut"), GOOD]}, opens=[None, *gone, None])
    tally, _ = run(board)
    assert tally == Tally(measured=2)
    assert board.opened == 22


def test_a_board_that_is_lent_to_somebody_else_keeps_its_power(run: Run) -> None:
    stale = BoardRefused(Fault(Owner.HARNESS, False, "stale-epoch", "the lease is over"))

    @dataclass
    class LentBoard(SwitchedBoard):
        async def open(self, lease: Lease) -> ScriptedSession:
            self.opened += 1
            raise stale

    board = LentBoard()
    tally, _ = run(board)
    assert (board.opened, board.cycles, board.ran) == (1, 0, [])
    assert "the lease is over" in tally.quarantined["fake"]


def test_a_real_clock_has_this_machine_to_itself_and_counted_instructions_share_it(
    tmp_path: Path,
) -> None:
    open_now: set[str] = set()
    met: set[frozenset[str]] = set()
    opened: dict[str, asyncio.Event] = {}
    traits = {
        "wall-1": (TimeKind.WALL, True),
        "wall-2": (TimeKind.WALL, True),
        "counted-1": (TimeKind.VIRTUAL, True),
        "counted-2": (TimeKind.VIRTUAL, True),
        "far": (TimeKind.WALL, False),
    }
    boards = {
        name: SharingBoard(
            name=name,
            time_kind=clock,
            runs_here=here,
            open_now=open_now,
            met=met,
            opened=opened,
            waits_for={"counted-1": "counted-2", "counted-2": "counted-1"}.get(name, ""),
        )
        for name, (clock, here) in traits.items()
    }

    class ManyLab(Lab):
        def board(self, name: str) -> SharingBoard:  # type: ignore[override]
            return boards[name]

    lab = ManyLab(tmp_path / "lab")
    lab.prepare()
    store = lab.store()
    store.begin_run(RunRow("r", "run", "{}", "0", "0", "2026-01-01T00:00:00", "h", 0))
    store.put_candidate(CandidateRow("a", None, "a", "imported", ""), "r")
    store.put_artifact(Artifact("a", "onnx", "float", 1, "f.onnx", 17, 8, "", (), ()), "a")
    jobs = [
        PlannedJob(f"{name}", JobSpec(JobKind.LATENCY, "a", "onnx", name), "a", name, 0, 0, "c")
        for name in traits
    ]
    store.add_jobs("r", [job_row("r", job) for job in jobs])
    tally = execute(lab, store, "r", jobs, Supplies({"a": tmp_path / "a"}))
    assert tally.measured == len(traits)
    here = met - {frozenset()}
    alone = {group for group in here if group & {"wall-1", "wall-2"}}
    assert alone == {frozenset({"wall-1"}), frozenset({"wall-2"})}
    assert frozenset({"counted-1", "counted-2"}) in here
