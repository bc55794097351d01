"""What a shell is told arrives whole, whichever byte of it gets lost."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from flatsat.targets.serial_port import SerialPort
from flatsat.targets.serial_shell import SerialShell

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE = re.compile(rb"^([a-z]+)(\d+)(?='|=)")


class Losing(SerialPort):
    """Loses the last digit of the variable's name in some commands, once each."""

    def __init__(self, name: str, baud: int) -> None:
        super().__init__(name, baud)
        self.lost: set[bytes] = set()

    async def write(self, data: bytes, deadline_s: float) -> None:
        found = _PIECE.match(data)
        if found and int(found[2]) >= 10 and found[0] not in self.lost:
            self.lost.add(found[0])
            data = data[: found.end() - 1] + data[found.end() :]
        await super().write(data, deadline_s)


@pytest.mark.parametrize("noisy", [False, True], ids=["long pieces", "short pieces"])
async def test_a_lost_digit_leaves_the_other_pieces_alone(
    uart: Callable[..., Any], noisy: bool
) -> None:
    end = time.monotonic() + 120.0
    port = Losing(uart("/bin/sh", "-i").port, 115_200)
    await port.open(10.0)
    shell = SerialShell(port, "root", None)
    try:
        await shell.reach(end)
        shell.noisy = noisy
        text = "".join(f"[{i:04}]" for i in range(420))
        await shell.assign("c", text, end)
        assert await shell.ask("${#c}", end) == str(len(text))
        await shell.assign("d", text[::-1][:700], end)
        assert await shell.ask("$d", end) == text[::-1][:700]
    finally:
        await port.close()
    assert port.lost
