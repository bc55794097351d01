"""How the agent says what went wrong, in the host's terms: owner, code, message, hint."""

from __future__ import annotations

import errno
from typing import Any, Dict, Optional

_LONGEST = 500
_MEMORY_WORDS = ("cannot allocate memory", "failed to map segment", "can't start new thread")


def one_line(text: str) -> str:
    """Return `text` as one printable line of bounded length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


class AgentFault(Exception):  # noqa: N818
    """A job can't go on, and whose fault that is.

    Attributes:
        owner: "board", "harness", "candidate" or "config".
        code: a short stable name.
        hint: what the reader can do, in one line.
        transient: trying again may help.
        evidence: JSON-able facts that the host keeps beside the fault.
    """

    def __init__(
        self, owner: str, code: str, message: str, hint: str = "", transient: bool = False
    ) -> None:
        super().__init__(one_line(message))
        self.owner = owner
        self.code = code
        self.hint = hint
        self.transient = transient
        self.evidence: Dict[str, Any] = {}

    def to_json(self) -> Dict[str, Any]:
        """Return the fault as it travels."""
        return {
            "owner": self.owner,
            "transient": self.transient,
            "code": self.code,
            "message": str(self),
            "hint": self.hint,
        }


def out_of_memory(message: str) -> AgentFault:
    """Return the fault of a candidate that wanted more memory than it may have."""
    return AgentFault(
        "candidate",
        "out-of-memory",
        message,
        "use a smaller model or batch, or raise plan.memory_limit_bytes",
    )


def wants_memory(error: BaseException) -> bool:
    """Say whether this error, or one that it came from, is the want of memory under another name.

    A library that can't be mapped is an ImportError, a thread without a stack a RuntimeError.
    """
    seen: Optional[BaseException] = error
    while seen is not None:
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return True
        if any(words in str(seen).lower() for words in _MEMORY_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
