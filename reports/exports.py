"""A run's table as a DataFrame, CSV, JSON and Parquet: copies of the record, written atomically."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsat.errors import DataError, InfrastructureError
from flatsat.files import replace_file
from flatsat.reports.table import COLUMNS, Value, flat_rows

if TYPE_CHECKING:
    import pandas as pd

    from flatsat.reports.rows import Store

_PANDAS = {"string": "string", "int": "Int64", "float": "Float64", "bool": "boolean"}


def to_frame(store: Store, run_id: str) -> pd.DataFrame:
    """Return a run as a DataFrame: a row an outcome, the columns of `table.COLUMNS`.

    Missing values are `pandas.NA`. `frame.attrs["units"]` and `frame.attrs["meanings"]` tell of
    each column what it holds.

    Raises:
        DataError: the record has no such run.
    """
    import pandas as pd

    rows = flat_rows(store, run_id)
    frame = pd.DataFrame(
        {
            column.name: pd.array([row[column.name] for row in rows], dtype=_PANDAS[column.type])
            for column in COLUMNS
        }
    )
    frame.attrs["units"] = {column.name: column.unit for column in COLUMNS}
    frame.attrs["meanings"] = {column.name: column.meaning for column in COLUMNS}
    return frame


def export_run(store: Store, run_id: str, folder: Path) -> tuple[Path, Path, Path]:
    """Write `report.csv`, `report.json` and `report.parquet` of a run into a folder.

    Each file is replaced whole or not at all.

    Returns:
        The three paths.

    Raises:
        DataError: the record has no such run, or the folder can't be written to.
        InfrastructureError: the disk is full or fails.
    """
    rows = flat_rows(store, run_id)
    paths = (folder / "report.csv", folder / "report.json", folder / "report.parquet")
    write_csv(rows, paths[0])
    write_json(store, run_id, rows, paths[1])
    write_parquet(rows, paths[2])
    return paths


def write_csv(rows: Sequence[dict[str, Value]], path: Path) -> None:
    """Write the table as CSV: UTF-8, one header line, a missing value is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [column.name for column in COLUMNS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_bytes(path, text.getvalue().encode())


def write_json(store: Store, run_id: str, rows: Sequence[dict[str, Value]], path: Path) -> None:
    """Write the table as JSON with its run, and with the unit and meaning of each column."""
    run = store.run(run_id)
    value = {
        "schema": "flatsat.outcomes/1",
        "run": {
            "run_id": run.run_id,
            "kind": run.kind,
            "state": run.state,
            "started_utc": run.started_utc,
            "finished_utc": run.finished_utc,
            "seed": run.seed,
            "code_version": run.code_version,
            "config_sha": run.config_sha,
        },
        "columns": [
            {"name": c.name, "type": c.type, "unit": c.unit, "meaning": c.meaning} for c in COLUMNS
        ],
        "rows": list(rows),
    }
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    _write_bytes(path, text.encode() + b"\n")


def write_parquet(rows: Sequence[dict[str, Value]], path: Path) -> None:
    """Write the table as Parquet; each field carries its unit and meaning as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema(
        [
            pa.field(c.name, types[c.type], metadata={"unit": c.unit, "meaning": c.meaning})
            for c in COLUMNS
        ]
    )
    table = pa.Table.from_pylist(list(rows), schema=schema)
    _write_atomically(path, lambda part: pq.write_table(table, part))


def _write_bytes(path: Path, data: bytes) -> None:
    _write_atomically(path, lambda part: part.write_bytes(data))


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file by way of another beside it; say what to do where that fails."""
    try:
        replace_file(path, write)
    except OSError as error:
        what = f"can't write {path}: {error.strerror or error}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS):
            raise DataError(what, hint="name a folder that you may write to") from error
        raise InfrastructureError(
            what, hint="free some space; the record holds everything, export again"
        ) from error
