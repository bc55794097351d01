"""Text files that pages are made of."""

from __future__ import annotations

from pathlib import Path

from flatsat.files import replace_file


def write_atomically(out: Path, text: str) -> None:
    """Write a text file in UTF-8: readers see the old one or the new one.

    It doesn't wait for the disk, since a page can be drawn anew from the record.

    Raises:
        OSError: the folder can't be written; an older file is left as it was.
    """
    replace_file(out, lambda part: part.write_text(text, encoding="utf-8"), durable=False)
