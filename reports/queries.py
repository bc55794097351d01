"""The longer questions to the record, on an open connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Select, Table, case, func, select

from flatsat.reports import record, rows_sql
from flatsat.reports.rows import DONE, RUNNING, CandidateRow, JobRow, OutcomeRow, RunCounts

if TYPE_CHECKING:
    from sqlalchemy.sql import ColumnElement


def counts(connection: Connection, run_id: str | None) -> dict[str, RunCounts]:
    """Return how far each run is."""
    job, outcome = record.job, record.outcome

    def number(condition: ColumnElement[bool], name: str) -> ColumnElement[int]:
        return func.sum(case((condition, 1), else_=0)).label(name)

    query = (
        select(
            record.run.c.run_id,
            func.count(job.c.job_id).label("jobs"),
            number(job.c.state == DONE, "done"),
            number(job.c.state == RUNNING, "running"),
            number(job.c.reused_from.is_not(None), "reused"),
            number(outcome.c.status == rows_sql.MEASURED, "measured"),
            number(outcome.c.status == rows_sql.FAILED, "failed"),
            number(outcome.c.status == rows_sql.INCONCLUSIVE, "inconclusive"),
        )
        .select_from(record.run)
        .outerjoin(job, job.c.run_id == record.run.c.run_id)
        .outerjoin(outcome, outcome.c.job_id == source_job())
        .group_by(record.run.c.run_id)
    )
    if run_id is not None:
        query = query.where(record.run.c.run_id == run_id)
    return {
        row.run_id: RunCounts(*(int(value) for value in row[1:]))
        for row in connection.execute(query)
    }


def candidates(connection: Connection, run_id: str | None) -> list[CandidateRow]:
    """Return the candidates that were put with a run, or whose artifacts its jobs measured."""
    table, link = record.candidate, record.run_candidate
    query = select(table).order_by(table.c.name, table.c.seed, table.c.candidate_id)
    if run_id is not None:
        measured = (
            select(record.artifact.c.candidate_id)
            .join(record.job, record.job.c.artifact == record.artifact.c.sha256)
            .where(record.job.c.run_id == run_id)
        )
        named = select(link.c.candidate_id).where(link.c.run_id == run_id)
        query = query.where(table.c.candidate_id.in_(measured.union(named)))
    found = connection.execute(query)
    return [rows_sql.candidate_row(row) for row in found.mappings()]


def outcome_filters(
    run_id: str | None,
    candidate_id: str | None,
    artifact: str | None,
    board: str | None,
    kind: str | None,
) -> list[ColumnElement[bool]]:
    """Return the conditions on jobs that all given filters make."""
    job = record.job
    where: list[ColumnElement[bool]] = []
    if run_id is not None:
        where.append(job.c.run_id == run_id)
    if candidate_id is not None:
        shas = select(record.artifact.c.sha256).where(
            record.artifact.c.candidate_id == candidate_id
        )
        where.append(job.c.artifact.in_(shas))
    if artifact is not None:
        where.append(job.c.artifact == artifact)
    if board is not None:
        where.append((job.c.board_name == board) | (job.c.board_id == board))
    if kind is not None:
        where.append(job.c.kind == kind)
    return where


def outcomes(
    connection: Connection, where: Sequence[ColumnElement[bool]], with_samples: bool
) -> list[OutcomeRow]:
    """Return the outcomes of the jobs that fit, by run, round and position."""
    job = record.job

    def fetch(table: Table, *order: ColumnElement[Any]) -> list[Mapping[str, Any]]:
        """Return all rows of a table of outcomes, each under the job that asked for it."""
        query: Select[Any] = (
            select(job.c.job_id.label("asked"), *table.c)
            .select_from(job)
            .join(table, table.c.job_id == source_job())
            .where(*where)
            .order_by(*order)
        )
        return [dict(row) for row in connection.execute(query).mappings()]

    found = connection.execute(
        select(job)
        .where(job.c.state == DONE, *where)
        .order_by(job.c.run_id, job.c.round, job.c.position, job.c.job_id)
    )
    jobs = [rows_sql.job_row(row) for row in found.mappings()]
    parts = rows_sql.Parts(
        outcome=fetch(record.outcome),
        accuracy=fetch(record.accuracy),
        agreement=fetch(record.agreement),
        health=fetch(record.health, record.health.c.ordinal),
        sample=fetch(record.sample, record.sample.c.ordinal) if with_samples else [],
        logits=fetch(record.logits) if with_samples else [],
    )
    return rows_sql.assemble(jobs, parts)


def reusable(
    connection: Connection, reuse_key: str, not_before_utc: str | None, asking: JobRow | None
) -> str | None:
    """Return the newest measured job with this key that no other round of `asking` stands on."""
    job, outcome = record.job, record.outcome
    query = (
        select(job.c.job_id)
        .join(outcome, outcome.c.job_id == job.c.job_id)
        .where(job.c.reuse_key == reuse_key, outcome.c.status == rows_sql.MEASURED)
        .order_by(outcome.c.started_utc.desc(), job.c.job_id.desc())
        .limit(1)
    )
    if not_before_utc is not None:
        query = query.where(outcome.c.started_utc >= not_before_utc)
    if asking is not None:
        taken = select(source_job()).where(
            job.c.reuse_key == reuse_key,
            job.c.run_id == asking.run_id,
            job.c.comparison.is_not_distinct_from(asking.comparison),
            job.c.round != asking.round,
        )
        found = set(connection.execute(taken).scalars())
        query = query.where(job.c.job_id.not_in(found))
    return connection.execute(query).scalar_one_or_none()


def source_job() -> ColumnElement[str]:
    """Return the job that really ran: another one where the outcome was reused."""
    return func.coalesce(record.job.c.reused_from, record.job.c.job_id)
