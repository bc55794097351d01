"""From a coded file back to the model file, on the ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatsat.coded.container import decode, read_header
from flatsat.coded.errors import CodedError
from flatsat.errors import DataError, InfrastructureError, UsageError
from flatsat.files import replace_file

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Decoded:
    """What a coded file gave.

    Attributes:
        source: the coded file.
        path: the model file.
        coder: what most of its weights were coded with.
        sha256: of the model file, checked.
        size_bytes: of the model file.
        coded_bytes: of the coded file.
    """

    source: Path
    path: Path
    coder: str
    sha256: str
    size_bytes: int
    coded_bytes: int

    @property
    def ratio(self) -> float:
        """How many times smaller the coded file is."""
        return self.size_bytes / self.coded_bytes


def decode_file(source: Path, target: Path | None = None, *, force: bool = False) -> Decoded:
    """Write the model file that `source` was coded from; it appears whole or not at all.

    Args:
        source: a coded file.
        target: where to; by default beside it, without the coded file's own ending.
        force: replace a file that is there.

    Raises:
        UsageError: there is no such file, or `target` is there already or can't be written.
        DataError: it is no coded file, or it is damaged.
        InfrastructureError: the disk is full or failing.
    """
    from flatsat.compressors.codec import SUFFIX, coder_library

    try:
        data = source.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {source}: {error.strerror or error}") from error
    try:
        header = read_header(data)
        model = decode(data, library=coder_library())
    except CodedError as error:
        raise DataError(f"{source}: {error}", hint="send or copy the file again") from error
    if target is None:
        stem = source.name.removesuffix(SUFFIX) if source.name != SUFFIX else "model"
        ending = f".{header.suffix}"
        target = source.with_name(stem if stem.endswith(ending) else stem + ending)
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint="name a file with --output")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already", hint="use --force, or another --output")
    try:
        replace_file(target, lambda part: part.write_bytes(model))
    except OSError as error:
        from flatsat.compressors.candidate import FULL

        text = f"can't write {target}: {error.strerror or error}"
        if error.errno in FULL:
            raise InfrastructureError(text, hint="free some space and run again") from error
        raise UsageError(text, hint="name another file with --output") from error
    return Decoded(source, target, header.coder, header.sha256, len(model), len(data))
