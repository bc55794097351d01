"""The registry of boards, and the doctor on boards that are ill."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flatsat.errors import ConfigError
from flatsat.outcome import Health
from flatsat.targets.board import BoardIdentity
from flatsat.targets.boards import make_board
from flatsat.targets.doctor import examine
from flatsat.targets.health import degraded, health_from_json
from flatsat.targets.host import HostBoard


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("hots", {}, "did you mean 'host'"),
        ("host", {"pyhton": "x"}, "did you mean 'python'"),
        ("host", {"python": 3}, "python must be a str"),
    ],
)
def test_wrong_settings_are_named(kind: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_board("b", kind, settings)


def test_settings_reach_the_board() -> None:
    board = make_board("b", "host", {"python": "/usr/bin/python3", "store": "/tmp/store"})
    assert board == HostBoard("b", "/usr/bin/python3", Path("/tmp/store"))
    assert HostBoard().python == sys.executable


async def test_the_doctor_tells_of_a_board_that_does_not_start() -> None:
    (finding,) = await examine(HostBoard(python="/no/such/python"))
    assert not finding.ok
    assert "/no/such/python" in finding.detail
    assert finding.fix


async def test_the_doctor_tells_of_a_missing_runtime(tmp_path: Path) -> None:
    site = tmp_path / "onnxruntime"
    site.mkdir()
    (site / "__init__.py").write_text("raise ImportError('built for another CPU')")
    board = HostBoard(sites={"onnxruntime": str(tmp_path)})
    findings = {finding.check: finding for finding in await examine(board)}
    assert findings["agent"].ok
    assert not findings["onnxruntime"].ok
    assert "built for another CPU" in findings["onnxruntime"].detail


def test_a_board_is_another_after_a_change_that_matters_and_only_then() -> None:
    facts: dict[str, object] = {"cpu_model": "A", "kernel": "6.1", "memory_bytes": 5}
    before = BoardIdentity.from_facts("b", "host", facts)
    assert BoardIdentity.from_facts("c", "host", facts).board_id == before.board_id
    more_memory = {**facts, "memory_bytes": 6}
    assert BoardIdentity.from_facts("b", "host", more_memory).board_id == before.board_id
    new_kernel = {**facts, "kernel": "6.2"}
    assert BoardIdentity.from_facts("b", "host", new_kernel).board_id != before.board_id
    assert BoardIdentity.from_facts("b", "qemu", facts).board_id != before.board_id


def test_health_keeps_what_it_knows() -> None:
    state = health_from_json({"load1": 1.5, "runnable": 3, "temp_c": None}, "before")
    assert state == Health("before", load1=1.5)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (None, 0x50005, None),
        (0x50000, 0x50000, None),
        (0x50005, 0x50000, None),
        (0x0, 0x40000, "0x40000"),
        (0x50000, 0x50001, "0x1"),
    ],
)
def test_only_new_throttling_spoils_a_measurement(
    before: int | None, after: int, why: str | None
) -> None:
    told = degraded(Health("before", throttle_bits=before), Health("after", throttle_bits=after))
    assert (told is None) if why is None else (told is not None and why in told)
