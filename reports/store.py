"""The record in a database: SQLite for one lab, any SQLAlchemy URL for a larger one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy import Connection, Table, func, insert, select, update

from flatsat.errors import DataError
from flatsat.jobspec import JobSpec, reuse_key
from flatsat.reports import queries, record, rows_sql
from flatsat.reports.database import Database
from flatsat.reports.rows import (
    DONE,
    PLANNED,
    RUNNING,
    AccuracyRow,
    BoardRow,
    CandidateRow,
    JobRow,
    OutcomeRow,
    RunCounts,
    RunRow,
    Store,
)

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement

    from flatsat.artifact import Artifact
    from flatsat.outcome import Outcome

__all__ = [
    "DONE",
    "PLANNED",
    "RUNNING",
    "AccuracyRow",
    "BoardRow",
    "CandidateRow",
    "JobRow",
    "OutcomeRow",
    "RunCounts",
    "RunRow",
    "SqlStore",
    "Store",
]

_CHUNK = 500  # values in one IN (...): far below every database's limit


class SqlStore:
    """A `Store` behind a SQLAlchemy URL; safe to use from several threads and processes.

    Args:
        url: such as "sqlite:////home/me/lab/record.db". An older record is migrated at once.
        migrations: the steps that make up the schema.

    Raises:
        ConfigError: the URL can't be read, or its driver isn't installed.
        DataError: not a database, not a FlatSat record, or written by a newer FlatSat.
        InfrastructureError: the database can't be reached.
    """

    def __init__(
        self, url: str, *, migrations: Sequence[record.Migration] = record.MIGRATIONS
    ) -> None:
        self._database = Database(url, migrations)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    # Runs

    def begin_run(self, run: RunRow) -> None:
        """See `Store`."""
        table = record.run
        with self._database.write() as connection:
            known = connection.execute(
                select(table.c.config_sha).where(table.c.run_id == run.run_id)
            ).scalar()
            if known is None:
                connection.execute(insert(table).values(rows_sql.run_values(run)))
            elif known == run.config_sha:
                connection.execute(
                    update(table)
                    .where(table.c.run_id == run.run_id)
                    .values(state=RUNNING, finished_utc=None)
                )
            else:
                raise DataError(
                    f"run {run.run_id} is recorded with another configuration",
                    hint="resume it with the configuration it was started with",
                )

    def finish_run(self, run_id: str, state: str, finished_utc: str | None = None) -> None:
        """See `Store`."""
        table = record.run
        with self._database.write() as connection:
            self._need_run(connection, run_id)
            connection.execute(
                update(table)
                .where(table.c.run_id == run_id)
                .values(state=state, finished_utc=finished_utc)
            )

    def runs(self) -> list[RunRow]:
        """See `Store`."""
        table = record.run
        with self._database.read() as connection:
            found = connection.execute(select(table).order_by(table.c.started_utc, table.c.run_id))
            return [rows_sql.run_row(row) for row in found.mappings()]

    def run(self, run_id: str) -> RunRow:
        """See `Store`."""
        table = record.run
        with self._database.read() as connection:
            self._need_run(connection, run_id)
            found = connection.execute(select(table).where(table.c.run_id == run_id))
            return rows_sql.run_row(found.mappings().one())

    def counts(self, run_id: str | None = None) -> dict[str, RunCounts]:
        """See `Store`."""
        with self._database.read() as connection:
            return queries.counts(connection, run_id)

    def put_note(self, run_id: str, key: str, value: object) -> None:
        """See `Store`."""
        raw = bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None
        text = None if raw is not None else rows_sql.lenient_json(value)
        with self._database.write() as connection:
            self._need_run(connection, run_id)
            _put(connection, record.note, {"run_id": run_id, "key": key}, json=text, blob=raw)

    def notes(self, run_id: str) -> dict[str, object]:
        """See `Store`."""
        table = record.note
        with self._database.read() as connection:
            found = connection.execute(
                select(table).where(table.c.run_id == run_id).order_by(table.c.key)
            )
            return {
                row.key: bytes(row.blob) if row.json is None else json.loads(row.json)
                for row in found
            }

    # What is measured, and on what

    def put_board(
        self, board_id: str, name: str, kind: str, facts: Mapping[str, object] | None = None
    ) -> None:
        """See `Store`."""
        text = rows_sql.lenient_json(dict(facts or {}))
        with self._database.write() as connection:
            _put(connection, record.board, {"board_id": board_id}, name=name, kind=kind, json=text)

    def put_candidate(self, candidate: CandidateRow, run_id: str | None = None) -> None:
        """See `Store`."""
        with self._database.write() as connection:
            self._put_candidate(connection, candidate, run_id)

    def put_artifact(self, artifact: Artifact, candidate_id: str) -> None:
        """See `Store`."""
        with self._database.write() as connection:
            self._need(connection, record.candidate.c.candidate_id, candidate_id, "candidate")
            self._put_artifact(connection, artifact, candidate_id)

    def put_candidates(
        self, run_id: str, candidates: Sequence[tuple[CandidateRow, Sequence[Artifact]]]
    ) -> None:
        """See `Store`."""
        with self._database.write() as connection:
            for candidate, artifacts in candidates:
                self._put_candidate(connection, candidate, run_id)
                for artifact in artifacts:
                    self._put_artifact(connection, artifact, candidate.candidate_id)

    def _put_candidate(
        self, connection: Connection, candidate: CandidateRow, run_id: str | None
    ) -> None:
        values = rows_sql.candidate_values(candidate)
        key = {"candidate_id": values.pop("candidate_id")}
        _put(connection, record.candidate, key, **values)
        if run_id is None:
            return
        self._need_run(connection, run_id)
        link = record.run_candidate
        key["run_id"] = run_id
        if not _exists(connection, link, key):
            position = connection.execute(
                select(func.count()).select_from(link).where(link.c.run_id == run_id)
            ).scalar_one()
            connection.execute(insert(link).values(**key, position=position))

    def _put_artifact(self, connection: Connection, artifact: Artifact, candidate_id: str) -> None:
        table = record.artifact
        key = {"sha256": artifact.sha256, "candidate_id": candidate_id}
        position = connection.execute(
            select(table.c.position).filter_by(**key)
        ).scalar_one_or_none()
        if position is None:
            position = connection.execute(
                select(func.count()).select_from(table).where(table.c.candidate_id == candidate_id)
            ).scalar_one()
        _put(connection, table, key, position=position, **rows_sql.artifact_values(artifact))

    def candidates(self, run_id: str | None = None) -> list[CandidateRow]:
        """See `Store`."""
        with self._database.read() as connection:
            return queries.candidates(connection, run_id)

    def candidate(self, candidate_id: str) -> CandidateRow:
        """See `Store`."""
        table = record.candidate
        with self._database.read() as connection:
            self._need(connection, table.c.candidate_id, candidate_id, "candidate")
            found = connection.execute(select(table).where(table.c.candidate_id == candidate_id))
            return rows_sql.candidate_row(found.mappings().one())

    def artifacts(self, candidate_id: str) -> list[Artifact]:
        """See `Store`."""
        table = record.artifact
        query = select(table).where(table.c.candidate_id == candidate_id)
        with self._database.read() as connection:
            found = connection.execute(query.order_by(table.c.position))
            return [rows_sql.artifact(row) for row in found.mappings()]

    def boards(self, run_id: str | None = None) -> list[BoardRow]:
        """See `Store`."""
        table = record.board
        query = select(table).order_by(table.c.name, table.c.board_id)
        if run_id is not None:
            used = select(record.job.c.board_id).where(
                record.job.c.run_id == run_id, record.job.c.board_id.is_not(None)
            )
            query = query.where(table.c.board_id.in_(used))
        with self._database.read() as connection:
            return [
                BoardRow(row.board_id, row.name, row.kind, json.loads(row.json))
                for row in connection.execute(query)
            ]

    # Jobs and outcomes

    def add_jobs(self, run_id: str, jobs: Sequence[JobRow]) -> None:
        """See `Store`."""
        table = record.job
        with self._database.write() as connection:
            self._need_run(connection, run_id)
            owner: dict[str, str] = {}
            for ids in _chunks([job.job_id for job in jobs]):
                found = connection.execute(
                    select(table.c.job_id, table.c.run_id).where(table.c.job_id.in_(ids))
                )
                owner.update({row.job_id: row.run_id for row in found})
            for job_id, other in owner.items():
                if other != run_id:
                    raise DataError(f"job {job_id} of run {run_id} already belongs to run {other}")
            new = {job.job_id: job for job in jobs if job.job_id not in owner}
            if new:
                values = [rows_sql.job_values(job, run_id) for job in new.values()]
                connection.execute(insert(table), values)

    def jobs(self, run_id: str, state: str | None = None) -> list[JobRow]:
        """See `Store`."""
        table = record.job
        query = select(table).where(table.c.run_id == run_id)
        if state is not None:
            query = query.where(table.c.state == state)
        query = query.order_by(table.c.round, table.c.position, table.c.job_id)
        with self._database.read() as connection:
            return [rows_sql.job_row(row) for row in connection.execute(query).mappings()]

    def start_job(self, job_id: str, board_id: str | None, epoch: int | None = None) -> int:
        """See `Store`."""
        table = record.job
        # Losing the count of an attempt to a power cut costs nothing; waiting for the disk does.
        with self._database.write(durable=False) as connection:
            job = self._job(connection, job_id)
            if job.state == DONE:
                raise DataError(f"job {job_id} is done", hint="plan a new job to measure again")
            attempt = job.attempt + 1
            connection.execute(
                update(table)
                .where(table.c.job_id == job_id)
                .values(state=RUNNING, attempt=attempt, epoch=epoch, **_on_board(job, board_id))
            )
            return attempt

    def put_outcome(
        self,
        job_id: str,
        board_id: str | None,
        outcome: Outcome,
        started_utc: str,
        wall_s: float,
        accuracy: AccuracyRow | None = None,
    ) -> bool:
        """See `Store`."""
        inserts = rows_sql.outcome_inserts(job_id, outcome, started_utc, wall_s, accuracy)
        table = record.job
        with self._database.write() as connection:
            job = self._job(connection, job_id)
            if job.state == DONE:
                return False
            for target, values in inserts:
                if values:
                    connection.execute(insert(target), values)
            connection.execute(
                update(table)
                .where(table.c.job_id == job_id)
                .values(state=DONE, **_on_board(job, board_id))
            )
            return True

    def reusable(
        self, reuse_key: str, not_before_utc: str | None = None, for_job: str | None = None
    ) -> str | None:
        """See `Store`."""
        with self._database.read() as connection:
            asking = None if for_job is None else self._job(connection, for_job)
            return queries.reusable(connection, reuse_key, not_before_utc, asking)

    def reuse_outcome(self, job_id: str, from_job_id: str, board_id: str | None = None) -> None:
        """See `Store`."""
        table = record.job
        with self._database.write() as connection:
            job = self._job(connection, job_id)
            source = self._job(connection, from_job_id)
            if job.state == DONE:
                raise DataError(f"job {job_id} is done", hint="its own outcome stands")
            if source.state != DONE or source.reused_from is not None:
                raise DataError(f"job {from_job_id} has no outcome of its own to reuse")
            board = board_id or source.board_id
            connection.execute(
                update(table)
                .where(table.c.job_id == job_id)
                .values(state=DONE, reused_from=from_job_id, **_on_board(job, board))
            )

    def outcomes(
        self,
        run_id: str | None = None,
        candidate_id: str | None = None,
        artifact: str | None = None,
        board: str | None = None,
        kind: str | None = None,
        with_samples: bool = True,
    ) -> list[OutcomeRow]:
        """See `Store`."""
        where = queries.outcome_filters(run_id, candidate_id, artifact, board, kind)
        with self._database.read() as connection:
            return queries.outcomes(connection, where, with_samples)

    def _job(self, connection: Connection, job_id: str) -> JobRow:
        table = record.job
        found = connection.execute(select(table).where(table.c.job_id == job_id)).mappings().first()
        if found is None:
            raise DataError(
                f"{self._database.name} has no job {job_id!r}", hint="see `flatsat runs`"
            )
        return rows_sql.job_row(found)

    def _need_run(self, connection: Connection, run_id: str) -> None:
        self._need(connection, record.run.c.run_id, run_id, "run")

    def _need(
        self, connection: Connection, column: ColumnElement[str], value: str, noun: str
    ) -> None:
        if connection.execute(select(column).where(column == value)).first() is None:
            raise DataError(
                f"{self._database.name} has no {noun} {value!r}", hint=f"see `flatsat {noun}s`"
            )


def _on_board(job: JobRow, board_id: str | None) -> dict[str, str]:
    """Return the columns that follow from the board that a job runs on."""
    if board_id is None:
        return {}
    spec = JobSpec.from_json(json.loads(job.spec_json))
    return {"board_id": board_id, "reuse_key": reuse_key(spec, board_id)}


def _exists(connection: Connection, table: Table, key: Mapping[str, object]) -> bool:
    query = select(next(iter(table.primary_key))).filter_by(**key)
    return connection.execute(query).first() is not None


def _put(connection: Connection, table: Table, key: Mapping[str, object], **values: object) -> None:
    """Insert a row, or update the one with this key."""
    if not _exists(connection, table, key):
        connection.execute(insert(table).values(**key, **values))
        return
    connection.execute(update(table).filter_by(**key).values(**values))


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
