"""The lab folder: the record, the candidates, the tensors that boards are given, the runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flatsat.canonical import sha256_file
from flatsat.errors import InfrastructureError, UsageError
from flatsat.files import replace_file

if TYPE_CHECKING:
    from flatsat.compressors.candidate import Candidate
    from flatsat.reports.store import Store
    from flatsat.targets.board import Board
    from flatsat.targets.pool import LocalPool

DEFAULT_ROOT = "lab"
ROOT_VARIABLE = "FLATSAT_LAB"


def default_root() -> Path:
    """Return the lab folder of the environment variable FLATSAT_LAB, or `./lab`."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


@dataclass(frozen=True)
class Lab:
    """One lab folder and the boards that its `lab.toml` names.

    Attributes:
        root: the folder; made on first use.
        boards: board name -> settings (`kind` and what that kind takes), beside the built-in ones.
    """

    root: Path
    boards: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def record_url(self) -> str:
        """SQLAlchemy URL of the record."""
        return f"sqlite:///{self.root.absolute() / 'record.db'}"

    @property
    def candidates_dir(self) -> Path:
        """A folder for each candidate, by its identifier."""
        return self.root / "candidates"

    @property
    def data_dir(self) -> Path:
        """Tensors that boards are given, as `<sha256>.npz`."""
        return self.root / "data"

    @property
    def runs_dir(self) -> Path:
        """A folder for each run: configuration, status, report, checkpoint."""
        return self.root / "runs"

    @property
    def locks_dir(self) -> Path:
        """Leases of boards."""
        return self.root / "locks"

    @property
    def cache_dir(self) -> Path:
        """Trained reference networks; shared by all labs of a user."""
        from flatsat.cache import default_cache_dir

        return default_cache_dir()

    def run_dir(self, run_id: str) -> Path:
        """Return the folder of one run."""
        return self.runs_dir / run_id

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            UsageError: the lab folder can't be written.
        """
        try:
            for folder in (self.candidates_dir, self.data_dir, self.runs_dir, self.locks_dir):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".write-probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"lab folder {self.root} can't be written: {error.strerror or error}",
                hint=f"choose another with --lab DIR or {ROOT_VARIABLE}",
            ) from error

    def store(self) -> Store:
        """Open the record, making it when it is new."""
        from flatsat.reports.store import SqlStore

        return SqlStore(self.record_url)

    def pool(self) -> LocalPool:
        """Return the pool that lends this lab's boards."""
        from flatsat.targets.pool import LocalPool

        return LocalPool(self.locks_dir)

    def board_names(self) -> list[str]:
        """Return the names of all boards: the built-in ones and those of `lab.toml`."""
        from flatsat.targets.boards import builtin_boards

        return sorted({*builtin_boards(), *self.boards})

    def board(self, name: str) -> Board:
        """Return the board called `name`.

        Raises:
            UsageError: there is none; the message names those that there are.
        """
        from flatsat.targets.boards import builtin_boards, make_board

        if name in self.boards:
            settings = dict(self.boards[name])
            return make_board(name, str(settings.pop("kind")), settings)
        if name in builtin_boards():
            return make_board(name, *builtin_boards()[name])
        raise UsageError(
            f"no board is called {name!r}", hint=f"there are: {', '.join(self.board_names())}"
        )

    def candidate(self, selector: str) -> Candidate:
        """Return a candidate by its folder, its identifier or the start of one, or its name.

        Raises:
            UsageError: none or several fit.
        """
        from flatsat.compressors.candidate import load_candidate

        folder = Path(selector)
        if (folder / "candidate.json").is_file():
            return load_candidate(folder)
        by_id = [p for p in self._candidate_folders() if p.name.startswith(selector)]
        found = by_id or [p for p in self._candidate_folders() if _candidate_name(p) == selector]
        if len(found) == 1:
            return load_candidate(found[0])
        if not found:
            raise UsageError(
                f"no candidate {selector!r} in {self.candidates_dir}",
                hint="list them with: flatsat candidates list",
            )
        raise UsageError(
            f"{len(found)} candidates fit {selector!r}: "
            + ", ".join(sorted(p.name[:12] for p in found)[:6]),
            hint="give more of the identifier",
        )

    def candidates(self) -> list[Candidate]:
        """Return every candidate of this lab, by identifier."""
        from flatsat.compressors.candidate import load_candidate

        return [load_candidate(folder) for folder in self._candidate_folders()]

    def _candidate_folders(self) -> list[Path]:
        if not self.candidates_dir.is_dir():
            return []
        return sorted(p.parent for p in self.candidates_dir.glob("*/candidate.json"))

    def put_data(self, arrays: Mapping[str, object]) -> str:
        """Store named arrays for a board; return the sha256 of the file."""
        import io

        import numpy as np

        from flatsat.canonical import sha256_bytes

        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        data = buffer.getvalue()
        sha256 = sha256_bytes(data)
        target = self.data_dir / f"{sha256}.npz"
        if not target.exists():
            write_atomically(target, data)
        return sha256

    def data_file(self, sha256: str) -> Path:
        """Return the file of stored tensors.

        Raises:
            InfrastructureError: it is gone or was changed.
        """
        path = self.data_dir / f"{sha256}.npz"
        if not path.is_file() or sha256_file(path) != sha256:
            raise InfrastructureError(
                f"{path} is missing or was changed", hint="delete it and run again"
            )
        return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        InfrastructureError: the disk is full or can't be written.
    """
    try:
        replace_file(path, lambda part: part.write_bytes(data))
    except OSError as error:
        raise InfrastructureError(
            f"can't write {path}: {error.strerror or error}", hint="free some space, then resume"
        ) from error


def _candidate_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "candidate.json").read_text())["name"])
    except (OSError, ValueError, KeyError):
        return ""
