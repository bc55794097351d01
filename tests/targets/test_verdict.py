"""What the end of a process says, from wait statuses as the kernel gives them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from flatsat.targets.agent.faults import AgentFault
from flatsat.targets.agent.verdict import tail_of, verdict

if TYPE_CHECKING:
    from pathlib import Path


def exited(code: int) -> int:
    return code << 8


@pytest.mark.parametrize(
    ("status", "cause", "tail", "owner", "code"),
    [
        (int(signal.SIGSEGV), None, "", "candidate", "crash"),
        (int(signal.SIGILL) | 0x80, None, "", "candidate", "crash"),
        (int(signal.SIGABRT), None, "free(): invalid pointer\n", "candidate", "crash"),
        (int(signal.SIGABRT), None, "what():  std::bad_alloc\n", "candidate", "out-of-memory"),
        (int(signal.SIGKILL), None, "", "candidate", "out-of-memory"),
        (int(signal.SIGKILL), "timeout", "", "candidate", "timeout"),
        (int(signal.SIGKILL), "cancelled", "", "harness", "cancelled"),
        (exited(0), "timeout", "", "candidate", "timeout"),
        (exited(0), None, "", "candidate", "crash"),
        (exited(1), None, "Traceback\nMemoryError\n", "candidate", "out-of-memory"),
        (exited(3), None, "gave up\n", "candidate", "crash"),
    ],
)
def test_ends_without_a_result(
    status: int, cause: str | None, tail: str, owner: str, code: str
) -> None:
    fault = verdict(status, cause, None, tail)
    assert fault is not None
    assert (fault.owner, fault.code) == (owner, code)


def test_a_result_without_a_fault_is_none() -> None:
    assert verdict(exited(0), None, {"process": {}}, "some warning") is None


def test_a_workers_own_fault_comes_through_whole() -> None:
    sent = AgentFault("config", "open-axis", "axis 1", "give it", transient=False)
    fault = verdict(exited(0), None, {"fault": sent.to_json(), "fault_evidence": {"a": 1}}, "")
    assert fault is not None
    assert fault.to_json() == sent.to_json()
    assert fault.evidence == {"a": 1}


def test_messages_are_one_printable_line() -> None:
    fault = verdict(int(signal.SIGSEGV), None, None, "x\n\x1b[31mred\x07 line \t end")
    assert fault is not None
    assert str(fault) == "it crashed with SIGSEGV: [31mred line end"
    assert len(str(AgentFault("board", "disk", "long " * 1000))) <= 500


def test_the_tail_of_a_long_log_is_read_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 100_000 + "\nlast words")
    assert tail_of(str(log)).endswith("\nlast words")
    assert len(tail_of(str(log))) <= 4096
    assert tail_of(str(tmp_path / "none")) == ""
