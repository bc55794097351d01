"""Names that were meant: the nearest valid one to what somebody typed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the name in `known` that `name` was probably meant to be, or None."""
    folded = {candidate.casefold().replace("_", "-"): candidate for candidate in known}
    wanted = name.casefold().replace("_", "-")
    close = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def choice_error(what: str, name: str, known: Sequence[str]) -> tuple[str, str | None]:
    """Return message and hint for a name that isn't among the `known` ones."""
    near = nearest(name, known)
    if near is not None:
        return f"unknown {what} {name!r}; did you mean {near!r}?", None
    return f"unknown {what} {name!r}", f"known: {', '.join(known)}" if known else "none is known"
