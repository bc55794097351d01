"""A database behind a URL: transactions, durability, and faults in words that help.

`_tune_sqlite` and `_set_wal` are the one place that knows SQLite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from flatsat.errors import ConfigError, DataError, FlatSatError, InfrastructureError
from flatsat.reports import record

BUSY_TIMEOUT_S = 60


class Database:
    """Transactions on a record that is up to date.

    Raises:
        ConfigError: the URL can't be read, or its driver isn't installed.
        DataError: not a database, not a FlatSat record, or written by a newer FlatSat.
        InfrastructureError: the database can't be reached.
    """

    def __init__(self, url: str, migrations: Sequence[record.Migration]) -> None:
        self._engine = _open_engine(url)
        shown = self._engine.url
        self.name = shown.database or shown.render_as_string(hide_password=True)
        newest = len(migrations)
        with self.read() as connection:
            if record.version(connection, newest, self.name) == newest:
                return
        if self._engine.dialect.name == "sqlite":
            _set_wal(self._engine, self.name)
        # Looked at again under the lock: another process may be making the same tables.
        with self.write() as connection:
            record.upgrade(connection, migrations, self.name)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """Run a transaction that writes; it is durable when the block ends without an error.

        It takes the write lock at once, so that none fails half-way because another process
        wrote in between.

        Args:
            durable: False spares the wait for the disk: a killed process loses nothing, a power
                cut may lose this transaction, whole, until the next durable one.
        """
        engine = self._engine.execution_options(writes=True, durable=durable)
        with self._faults(), engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run queries that all see the same state."""
        with self._faults(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise _explain(self.name, str(error.orig)) from error


def _open_engine(url: str) -> Engine:
    """Return an engine, without touching the database yet."""
    try:
        parsed = make_url(url)
        sqlite = parsed.get_backend_name() == "sqlite"
        engine = create_engine(parsed)
    except (ArgumentError, ImportError) as error:
        raise ConfigError(
            f"the record's URL can't be used: {str(error).splitlines()[0]}",
            hint="for a file write sqlite:///PATH/record.db",
        ) from error
    if sqlite:
        _tune_sqlite(engine)
    return engine


def _tune_sqlite(engine: Engine) -> None:
    """Sync at each commit, check references, wait for locks; let the engine begin transactions."""

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000}")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        options = connection.get_execution_options()
        writes = options.get("writes", False)
        if writes:
            level = "FULL" if options.get("durable", True) else "NORMAL"
            connection.exec_driver_sql(f"PRAGMA synchronous={level}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_wal(engine: Engine, name: str) -> None:
    """Let readers and a writer work side by side; SQLite keeps that in the file."""
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        try:
            if raw.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                raw.execute("PRAGMA journal_mode=WAL")
        except sqlite3.Error as error:
            raise _explain(name, str(error)) from error


def _explain(name: str, detail: str) -> FlatSatError:
    """Return the error for what a database driver says."""
    known: tuple[tuple[str, type[FlatSatError], str, str], ...] = (
        ("not a database", DataError, "is not a database", "name another file for the record"),
        (
            "unable to open",
            DataError,
            "can't be opened",
            "its folder must exist and let you write to it",
        ),
        (
            "disk is full",
            InfrastructureError,
            "can't grow: the disk is full",
            "free some space and resume; nothing recorded is lost",
        ),
        (
            "readonly",
            InfrastructureError,
            "is read-only",
            "give yourself the right to write to the file and its folder",
        ),
        (
            "locked",
            InfrastructureError,
            f"stayed locked by another process for {BUSY_TIMEOUT_S} s",
            "wait for it or end it, then resume",
        ),
        (
            "disk i/o",
            InfrastructureError,
            "can't be read or written: the disk failed or is full",
            "check the disk, then resume; nothing recorded is lost",
        ),
        ("malformed", InfrastructureError, "is damaged", "restore it from a copy"),
        (
            "foreign key",
            DataError,
            "refers to a board, run or job that it doesn't hold",
            "put that first",
        ),
    )
    for sign, kind, what, hint in known:
        if sign in detail.lower():
            return kind(f"record {name} {what}", hint=hint)
    return InfrastructureError(f"record {name}: {' '.join(detail.split())}")
