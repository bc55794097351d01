"""The tables of the record, its schema version, and how an older record is brought up to date.

The tables speak plain SQLAlchemy, so that a URL alone moves the record to another database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)

from flatsat.errors import DataError

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

run = Table(
    "run",
    metadata,
    Column("run_id", String(200), primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("config_json", Text, nullable=False),
    Column("config_sha", String(64), nullable=False),
    Column("code_version", String(80), nullable=False),
    Column("started_utc", String(40), nullable=False),
    Column("host_fp", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("state", String(40), nullable=False),
    Column("finished_utc", String(40)),
    Index("run_by_start", "started_utc"),
)

board = Table(
    "board",
    metadata,
    Column("board_id", String(64), primary_key=True),
    Column("kind", String(80), nullable=False),
    Column("name", String(200), nullable=False),
    Column("json", Text, nullable=False),
)

candidate = Table(
    "candidate",
    metadata,
    Column("candidate_id", String(64), primary_key=True),
    Column("recipe_id", String(64)),
    Column("name", String(200), nullable=False),
    Column("role", String(40), nullable=False),
    Column("workload", String(200), nullable=False),
    Column("seed", BigInteger),
    Column("parent", String(64)),
    Column("params", BigInteger),
    Column("nonzeros", BigInteger),
    Column("macs", BigInteger),
    Column("cost_json", Text, nullable=False),
    Column("accuracy_host_json", Text, nullable=False),
    Column("layers_json", Text, nullable=False),
    Column("split_sha", String(64)),
    Column("recipe_json", Text, nullable=False),
)

run_candidate = Table(
    "run_candidate",
    metadata,
    Column("run_id", ForeignKey("run.run_id"), primary_key=True),
    Column("candidate_id", ForeignKey("candidate.candidate_id"), primary_key=True),
    Column("position", Integer, nullable=False),
)

artifact = Table(
    "artifact",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("candidate_id", ForeignKey("candidate.candidate_id"), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("format", String(40), nullable=False),
    Column("role", String(40), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("file", Text, nullable=False),
    Column("opset", Integer),
    Column("ir", Integer),
    Column("layout", String(16), nullable=False),
    Column("io_json", Text, nullable=False),
    Index("artifact_by_candidate", "candidate_id"),
)

job = Table(
    "job",
    metadata,
    Column("job_id", String(200), primary_key=True),
    Column("run_id", ForeignKey("run.run_id"), nullable=False),
    Column("board_id", ForeignKey("board.board_id")),
    Column("board_name", String(200), nullable=False),
    Column("artifact", String(64), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("spec_json", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("comparison", String(200)),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", BigInteger),
    Column("reuse_key", String(64)),
    Column("reused_from", ForeignKey("job.job_id")),
    Index("job_by_run", "run_id", "state"),
    Index("job_by_artifact", "artifact"),
    Index("job_by_board", "board_id"),
    Index("job_by_board_name", "board_name"),
    Index("job_by_reuse_key", "reuse_key"),
)

outcome = Table(
    "outcome",
    metadata,
    Column("job_id", ForeignKey("job.job_id"), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("owner", String(16)),
    Column("transient", Boolean),
    Column("code", String(80)),
    Column("message", Text),
    Column("hint", Text),
    Column("started_utc", String(40), nullable=False),
    Column("wall_s", Float(53), nullable=False),
    Column("evidence_json", Text, nullable=False),
)


def _of_outcome() -> Column[Any]:
    return Column("job_id", ForeignKey("outcome.job_id"), primary_key=True)


sample = Table(
    "sample",
    metadata,
    _of_outcome(),
    Column("ordinal", Integer, primary_key=True),
    Column("process", Integer, nullable=False),
    Column("quantity", Text, nullable=False),
    Column("class", String(40), nullable=False),
    Column("warm", Boolean, nullable=False),
    Column("n", Integer, nullable=False),
    Column("enc", String(40), nullable=False),
    Column("blob", LargeBinary, nullable=False),
)

logits = Table(
    "logits",
    metadata,
    _of_outcome(),
    Column("dtype", String(16), nullable=False),
    Column("shape_json", Text, nullable=False),
    Column("blob", LargeBinary, nullable=False),
)

# Databases differ on NaN (SQLite reads it back as NULL): where NaN can come from a network's
# outputs, NULL stands for it.
accuracy = Table(
    "accuracy",
    metadata,
    _of_outcome(),
    Column("split_sha", String(64), nullable=False),
    Column("metric", String(40), nullable=False),
    Column("n", Integer, nullable=False),
    Column("value", Float(53)),
    Column("correct_bits", LargeBinary),
    Index("accuracy_by_split", "split_sha"),
)

agreement = Table(
    "agreement",
    metadata,
    _of_outcome(),
    Column("class", String(16), nullable=False),
    Column("max_abs", Float(53)),
    Column("max_rel", Float(53)),
    Column("p99_abs", Float(53)),
    Column("top1_agree", Float(53)),
    Column("n", Integer, nullable=False),
    Column("ok", Boolean, nullable=False),
)

health = Table(
    "health",
    metadata,
    _of_outcome(),
    Column("ordinal", Integer, primary_key=True),
    Column("phase", String(16), nullable=False),
    Column("freq_khz", BigInteger),
    Column("temp_c", Float(53)),
    Column("throttle_bits", BigInteger),
    Column("governor", String(80)),
    Column("load1", Float(53)),
    Column("free_bytes", BigInteger),
)

note = Table(
    "note",
    metadata,
    Column("run_id", ForeignKey("run.run_id"), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("json", Text),
    Column("blob", LargeBinary),
)

Migration: TypeAlias = Callable[[Connection], None]


def _create(connection: Connection) -> None:
    """Version 1: the tables above."""
    metadata.create_all(connection)


# The step at index n brings a record from version n to n + 1. A record that holds nothing is
# version 0. When the tables above change, append a step (alembic.operations.Operations on the
# connection alters tables on every database), and give `_create` the tables as they were.
MIGRATIONS: tuple[Migration, ...] = (_create,)


def upgrade(connection: Connection, migrations: Sequence[Migration], name: str) -> None:
    """Bring a record to the newest schema version; the caller's transaction makes it atomic.

    Args:
        connection: in a transaction that holds the write lock.
        migrations: all steps, from an empty database on.
        name: what messages call the database.

    Raises:
        DataError: the record is of a newer version, or the database belongs to something else.
    """
    found = version(connection, len(migrations), name)
    for step in migrations[found:]:
        step(connection)
    if found == 0:
        connection.execute(insert(schema_version).values(version=len(migrations)))
    else:
        connection.execute(update(schema_version).values(version=len(migrations)))


def version(connection: Connection, newest: int, name: str) -> int:
    """Return a record's schema version, 0 for a database that holds nothing.

    Raises:
        DataError: the version is above `newest`, or the database belongs to something else.
    """
    tables = inspect(connection).get_table_names()
    if not tables:
        return 0
    found = None
    if schema_version.name in tables:
        found = connection.execute(select(schema_version.c.version)).scalar()
    if found is None:
        raise DataError(
            f"{name} is a database, but not a FlatSat record",
            hint="give the record a file of its own",
        )
    if found > newest:
        raise DataError(
            f"record {name} has schema version {found}, but this FlatSat knows up to {newest}",
            hint="use the FlatSat that wrote it, or a newer one",
        )
    return int(found)
