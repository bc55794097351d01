"""The SQL store against what happens to databases: kills, full disks, odd files, other versions."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import given
from hypothesis import strategies as st

from flatsat.canonical import canonical_json
from flatsat.errors import ConfigError, DataError, InfrastructureError
from flatsat.jobspec import JobKind, JobSpec
from flatsat.outcome import Measured, Samples
from flatsat.reports import record, samples
from flatsat.reports.store import JobRow, RunRow, SqlStore

AT = "2026-03-01T12:00:00.000000+00:00"
INT64 = st.integers(-(2**63), 2**63 - 1)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/record.db"


def prepared(folder: Path, jobs: int) -> SqlStore:
    store = SqlStore(url_of(folder))
    store.begin_run(RunRow("run-1", "run", "{}", "c" * 64, "0.1.0", AT, "fp", 7))
    store.put_board("board-1", "host", "host")
    spec = canonical_json(JobSpec(JobKind.LATENCY, "a" * 64, "onnx", "host").to_json())
    store.add_jobs(
        "run-1",
        [JobRow(f"j{i:03}", "a" * 64, "host", "latency", spec, 0, i) for i in range(jobs)],
    )
    return store


def noise(seed: int, parts: int, n: int) -> Measured:
    """An outcome of `parts` x `n` values that don't compress: 8 bytes each."""
    rng = np.random.default_rng(seed)
    return Measured(
        tuple(
            Samples("latency_ns", "wall", part, True, tuple(rng.integers(0, 2**62, n).tolist()))
            for part in range(parts)
        )
    )


# Raw samples


@given(st.lists(INT64, max_size=200))
def test_any_samples_come_back_exactly(values: list[int]) -> None:
    assert samples.decode(samples.encode(values), len(values)) == tuple(values)


@given(st.lists(INT64, min_size=1, max_size=50), st.data())
def test_a_damaged_blob_never_passes_for_samples(values: list[int], data: st.DataObject) -> None:
    blob = bytearray(samples.encode(values))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    try:
        read = samples.decode(bytes(blob), len(values))
    except DataError:
        return
    assert read == tuple(values)  # a bit of the frame's header that changes nothing


def test_a_blob_of_another_length_or_encoding_is_refused() -> None:
    blob = samples.encode([1, 2, 3])
    with pytest.raises(DataError, match="24 bytes where 4 values"):
        samples.decode(blob, 4)
    with pytest.raises(DataError, match="can't read"):
        samples.decode(blob, 3, "raw-i128")


def test_a_value_beyond_int64_is_refused() -> None:
    with pytest.raises(OverflowError):
        samples.encode([2**63])


def test_typical_latencies_take_less_than_half_of_their_bytes() -> None:
    rng = np.random.default_rng(0)
    values = (700_000 + rng.normal(0, 2_000, 5_000)).astype(np.int64).tolist()
    assert len(samples.encode(values)) < 5_000 * 8 / 2


# Kill -9

PARTS, VALUES, JOBS = 12, 2_000, 60

WRITER = f"""
import sys
import numpy as np
from flatsat.outcome import Measured, Samples
from flatsat.reports.store import SqlStore

store = SqlStore(sys.argv[1])
for job in store.jobs("run-1"):
    if job.state != "done":
        store.start_job(job.job_id, "board-1", 1)
        rng = np.random.default_rng(int(job.job_id[1:]))
        outcome = Measured(tuple(
            Samples("latency_ns", "wall", part, True,
                    tuple(rng.integers(0, 2**62, {VALUES}).tolist()))
            for part in range({PARTS})
        ))
        print("ready", flush=True)
        store.put_outcome(job.job_id, "board-1", outcome, "{AT}", 1.0)
        print(job.job_id, flush=True)
"""


def test_kill_nine_loses_nothing_and_leaves_nothing_half(tmp_path: Path) -> None:
    prepared(tmp_path, JOBS).close()
    promised: set[str] = set()
    for lines in (1, 2, 3, 6, 9):  # odd: killed inside put_outcome; even: just after it
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, url_of(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline().strip() for _ in range(lines)]
            writer.send_signal(signal.SIGKILL)
            said += writer.stdout.read().split()
        assert writer.returncode == -signal.SIGKILL
        promised |= {line for line in said if line.startswith("j")}

        with SqlStore(url_of(tmp_path)) as store:
            done = {job.job_id for job in store.jobs("run-1", "done")}
            outcomes = store.outcomes("run-1")
        assert promised <= done
        assert {row.job.job_id for row in outcomes} == done
        for row in outcomes:
            assert row.outcome == noise(int(row.job.job_id[1:]), PARTS, VALUES)
        engine = sa.create_engine(url_of(tmp_path))
        with engine.connect() as connection:
            count = sa.select(sa.func.count()).select_from(record.sample)
            assert connection.execute(count).scalar() == PARTS * len(done)
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        engine.dispose()
    assert len(promised) >= 8


# Disks


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to grow any file of this process beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refused_write_keeps_what_was_recorded_and_nothing_half(tmp_path: Path) -> None:
    with prepared(tmp_path, 3) as store:
        store.put_outcome("j000", "board-1", noise(0, 2, 100), AT, 1.0)
        largest = max(path.stat().st_size for path in tmp_path.iterdir())
        with (
            files_limited_to(largest + 200_000),
            pytest.raises(InfrastructureError, match="disk failed or is full"),
        ):
            store.put_outcome("j001", "board-1", noise(1, 20, 5_000), AT, 1.0)
        assert [row.job.job_id for row in store.outcomes("run-1")] == ["j000"]
        # With room again the same store goes on.
        assert store.put_outcome("j001", "board-1", noise(1, 20, 5_000), AT, 1.0)
        assert len(store.outcomes("run-1")) == 2


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    prepared(tmp_path, 2).close()

    def at_most_100_pages(connection: object, _: object) -> None:
        connection.execute("PRAGMA max_page_count=100")  # type: ignore[attr-defined]

    sa.event.listen(sa.Engine, "connect", at_most_100_pages)
    try:
        with SqlStore(url_of(tmp_path)) as store:
            with pytest.raises(InfrastructureError, match="the disk is full") as caught:
                store.put_outcome("j000", "board-1", noise(0, 20, 5_000), AT, 1.0)
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code == 3
            assert store.outcomes("run-1") == []
            assert store.put_outcome("j001", "board-1", noise(0, 1, 10), AT, 1.0)
    finally:
        sa.event.remove(sa.Engine, "connect", at_most_100_pages)


def test_a_read_only_record_can_be_read(tmp_path: Path) -> None:
    url = f"sqlite:///file:{tmp_path}/record.db?mode=ro&uri=true"
    with prepared(tmp_path, 1), SqlStore(url) as store:
        assert [run.run_id for run in store.runs()] == ["run-1"]
        with pytest.raises(InfrastructureError, match="read-only"):
            store.put_outcome("j000", "board-1", noise(0, 1, 1), AT, 1.0)
        assert store.outcomes("run-1") == []


def test_two_processes_write_side_by_side(tmp_path: Path) -> None:
    prepared(tmp_path, JOBS).close()
    half = WRITER.replace('store.jobs("run-1")', 'store.jobs("run-1")[int(sys.argv[2])::2]')
    command = [sys.executable, "-c", half, url_of(tmp_path)]
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda i: subprocess.run([*command, i], check=False), ("0", "1")))
    assert [end.returncode for end in ends] == [0, 0]
    with SqlStore(url_of(tmp_path)) as store:
        assert store.counts("run-1")["run-1"].measured == JOBS


def test_no_question_walks_through_all_outcomes(tmp_path: Path) -> None:
    asked: list[tuple[str, Sequence[object]]] = []

    def note(_c: object, _u: object, sql: str, given: Sequence[object], *_: object) -> None:
        if sql.startswith("SELECT"):
            asked.append((sql, given))

    with prepared(tmp_path, 3) as store:
        store.put_outcome("j000", "board-1", noise(0, 1, 1), AT, 1.0)
        sa.event.listen(sa.Engine, "before_cursor_execute", note)
        try:
            store.outcomes("run-1")
            store.outcomes(artifact="a" * 64)
            store.outcomes(candidate_id="cand-1", kind="latency")
            store.outcomes("run-1", board="board-1")
            store.jobs("run-1", "planned")
            store.counts("run-1")
            store.candidates("run-1")
            store.boards("run-1")
            store.reusable("k", AT)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert len(asked) > 25
    engine = sa.create_engine(url_of(tmp_path))
    with engine.connect() as connection:
        for sql, given in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", tuple(given))
            walks = [row.detail for row in plan if row.detail.startswith("SCAN")]
            large = ("job", "outcome", "sample", "accuracy", "agreement", "health", "logits")
            assert not [walk for walk in walks if walk.split()[1] in large], sql
    engine.dispose()


# Odd files and URLs


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "record.db"
    file.write_text("# lab notes\n" * 200)
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"record\.db is not a database") as caught:
        SqlStore(url_of(tmp_path))
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    engine = sa.create_engine(url_of(tmp_path))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE places (title TEXT)")
    engine.dispose()
    before = (tmp_path / "record.db").read_bytes()
    with pytest.raises(DataError, match="not a FlatSat record"):
        SqlStore(url_of(tmp_path))
    assert (tmp_path / "record.db").read_bytes() == before


def test_a_damaged_record_is_said_to_be_damaged(tmp_path: Path) -> None:
    with prepared(tmp_path, 40) as store:
        for i in range(40):
            store.put_outcome(f"j{i:03}", "board-1", noise(i, 2, 500), AT, 1.0)
    file = tmp_path / "record.db"
    data = bytearray(file.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    file.write_bytes(bytes(data))
    with (
        pytest.raises(InfrastructureError, match="is damaged"),
        SqlStore(url_of(tmp_path)) as store,
    ):
        store.outcomes("run-1")


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be opened"):
        SqlStore(url_of(tmp_path / "nowhere"))


@pytest.mark.parametrize("url", ["record.db", "nosuchdb:///x", "postgresql+nodriver://u:pw@h/d"])
def test_a_url_that_can_not_be_used_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="URL") as caught:
        SqlStore(url)
    assert "pw" not in str(caught.value)


def test_importing_the_store_stays_light() -> None:
    code = (
        "import sys, flatsat.reports.store; "
        "print([m for m in ('torch', 'pandas', 'plotly', 'scipy', 'alembic') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# Schema versions

VERSION_1 = """
accuracy: job_id split_sha metric n value correct_bits
agreement: job_id class max_abs max_rel p99_abs top1_agree n ok
artifact: sha256 candidate_id position format role bytes file opset ir layout io_json
board: board_id kind name json
candidate: candidate_id recipe_id name role workload seed parent params nonzeros macs cost_json \
accuracy_host_json layers_json split_sha recipe_json
health: job_id ordinal phase freq_khz temp_c throttle_bits governor load1 free_bytes
job: job_id run_id board_id board_name artifact kind spec_json round position comparison state \
attempt epoch reuse_key reused_from
logits: job_id dtype shape_json blob
note: run_id key json blob
outcome: job_id status owner transient code message hint started_utc wall_s evidence_json
run: run_id kind config_json config_sha code_version started_utc host_fp seed state finished_utc
run_candidate: run_id candidate_id position
sample: job_id ordinal process quantity class warm n enc blob
schema_version: version
"""


def described(folder: Path) -> str:
    engine = sa.create_engine(url_of(folder))
    inspector = sa.inspect(engine)
    lines = [
        f"{table}: {' '.join(str(column['name']) for column in inspector.get_columns(table))}"
        for table in sorted(inspector.get_table_names())
    ]
    engine.dispose()
    return "\n" + "\n".join(lines) + "\n"


def version_of(folder: Path) -> int:
    engine = sa.create_engine(url_of(folder))
    with engine.connect() as connection:
        version = connection.execute(sa.select(record.schema_version.c.version)).scalar_one()
    engine.dispose()
    return version


def add_place(connection: sa.Connection) -> None:
    operations = Operations(MigrationContext.configure(connection))
    operations.add_column("run", sa.Column("place", sa.String(40), server_default="bench"))


def fail_half_way(connection: sa.Connection) -> None:
    add_place(connection)
    raise RuntimeError("half-way")


def test_the_tables_change_only_with_a_migration(tmp_path: Path) -> None:
    prepared(tmp_path, 1).close()
    assert len(record.MIGRATIONS) == 1
    assert described(tmp_path) == VERSION_1


def test_an_old_empty_database_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "record.db").touch()
    SqlStore(url_of(tmp_path), migrations=(*record.MIGRATIONS, add_place)).close()
    assert version_of(tmp_path) == 2
    assert " place" in described(tmp_path)


def test_an_older_record_is_migrated_and_keeps_what_it_holds(tmp_path: Path) -> None:
    with prepared(tmp_path, 1) as store:
        store.put_outcome("j000", "board-1", noise(0, 2, 10), AT, 1.0)
    with pytest.raises(RuntimeError, match="half-way"):
        SqlStore(url_of(tmp_path), migrations=(*record.MIGRATIONS, fail_half_way))
    assert version_of(tmp_path) == 1
    assert described(tmp_path) == VERSION_1
    newer = (*record.MIGRATIONS, add_place)
    for _ in range(2):
        with SqlStore(url_of(tmp_path), migrations=newer) as store:
            assert store.outcomes()[0].outcome == noise(0, 2, 10)
    engine = sa.create_engine(url_of(tmp_path))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT place FROM run").scalar() == "bench"
    engine.dispose()


def test_a_newer_record_is_refused_in_one_line(tmp_path: Path) -> None:
    SqlStore(url_of(tmp_path), migrations=(*record.MIGRATIONS, add_place)).close()
    with pytest.raises(
        DataError, match="schema version 2, but this FlatSat knows up to 1"
    ) as caught:
        SqlStore(url_of(tmp_path))
    assert "\n" not in str(caught.value)
    assert version_of(tmp_path) == 2


OPENER = """
import sys
from flatsat.reports.store import RunRow, SqlStore
sys.stdin.read(1)
with SqlStore(sys.argv[1]) as store:
    store.begin_run(RunRow(sys.argv[2], "run", "{}", "c" * 64, "0.1.0", "2026", "fp", 7))
"""


def test_processes_that_make_the_record_at_once_share_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, url_of(tmp_path), f"run-{i}"], stdin=subprocess.PIPE
        )
        for i in range(4)
    ]
    for process in processes:
        process.communicate(b"x")
    assert [process.returncode for process in processes] == [0] * 4
    with SqlStore(url_of(tmp_path)) as store:
        assert [run.run_id for run in store.runs()] == [f"run-{i}" for i in range(4)]
