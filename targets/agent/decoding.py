"""Files that come in coded form become the model file here, before anything reads them."""

from __future__ import annotations

import os
from typing import Callable, List, Optional

from .coded.container import pieces, read_header
from .coded.errors import CodedError
from .coded.native import Library
from .faults import AgentFault

_LIBRARY = os.path.join("flatsat_native", "libcoder.so")
MOST_BY_PYTHON = 300_000
"""Elements; a slow board takes a minute for so many without the compiled coder."""


def decode(
    source: str, target: str, sha: str, sites: List[str], make_room: Callable[[int], None]
) -> str:
    """Write the model file that `source` was coded from; return "c" or "python", which did it.

    Args:
        source: the coded file.
        target: where to.
        sha: SHA-256 that the model file must have.
        sites: folders of which one may hold the compiled coder.
        make_room: is called with the bytes that the model file takes.

    Raises:
        AgentFault: (board, "no-decoder") this board can't, (candidate, "bad-coded") nobody can.
        OSError: the disk is full, or fails.
    """
    with open(source, "rb") as stream:
        data = stream.read()
    library = _library(sites)
    try:
        header = read_header(data)
        if header.sha256 != sha:
            raise CodedError("it holds another model file")
        elements = sum(tensor.elements for tensor in header.tensors)
        if library is None and elements > MOST_BY_PYTHON:
            raise _no_decoder(
                "%d elements are too many for it without the compiled coder" % elements
            )
        make_room(header.file_bytes)
        with open(target, "wb") as out:
            for piece in pieces(header, library=library):
                out.write(piece)
    except CodedError as error:
        if "not installed here" in str(error):
            raise _no_decoder(str(error)) from error
        raise damaged(str(error)) from error
    return "python" if library is None else "c"


def damaged(text: str) -> AgentFault:
    """Return the fault of a coded file that doesn't give its model file."""
    return AgentFault(
        "candidate", "bad-coded", "the coded file: " + text, "build the candidate again"
    )


def _no_decoder(text: str) -> AgentFault:
    return AgentFault("board", "no-decoder", "this board can't decode it: " + text)


def _library(sites: List[str]) -> Optional[Library]:
    for folder in sites:
        path = os.path.join(folder, _LIBRARY)
        if os.path.isfile(path):
            try:
                return Library(path)
            except (OSError, AttributeError):
                continue
    return None
