"""What is wrong with a coded file."""

from __future__ import annotations


class CodedError(ValueError):
    """A file is no coded file, is damaged, or can't be decoded here; one line says which."""
