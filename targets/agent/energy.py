"""Inferences in windows that an emulator's event meter counts, each in a window of its own.

A window is opened and closed by instructions that do nothing on hardware; the emulator's plugin
knows them (`targets/plugin/events.c`). They stand in three functions of two instructions each, in a
page of memory of their own that is written first and made executable, no longer writable, then.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, Callable, Mapping, Tuple

from .faults import AgentFault

if TYPE_CHECKING:
    from .result import Result

EMPTY_WINDOWS = 8
"""Windows around nothing: what they count is the cost of opening and closing one."""
MOST_WARM_UP = 8
"""Warm-up inferences, unless the plan fixes their number: memory pools are settled by then."""

_BEGIN = 0xD5032A1F  # hint #0x50
_END = 0xD5032A3F  # hint #0x51
_CLEAR = 0xD5032A5F  # hint #0x52
_RETURN = 0xD65F03C0


class Windows:
    """Functions without arguments that tell the meter; they keep the interpreter's lock.

    Attributes:
        begin, end: open and close a window.
        clear: empties the modelled caches, whose lines are an earlier process's.

    Raises:
        AgentFault: (config, "no-meter") this processor has no such instructions; (board,
            "no-meter") the system gives no executable memory.
    """

    def __init__(self) -> None:
        machine = os.uname().machine
        if machine != "aarch64":
            raise AgentFault(
                "config",
                "no-meter",
                "events are counted on an emulated aarch64 processor, this one is %s" % machine,
                'use an emulated board (kind "qemu-arm64") with meter = "events"',
            )
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        code.write(struct.pack("<6I", _BEGIN, _RETURN, _END, _RETURN, _CLEAR, _RETURN))
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
            raise AgentFault(
                "board",
                "no-meter",
                "can't make memory executable: %s" % os.strerror(ctypes.get_errno()),
                "look for a security policy that forbids it",
            )
        function = ctypes.PYFUNCTYPE(None)
        self._code = code
        self.begin: Callable[[], None] = function(address)
        self.end: Callable[[], None] = function(address + 8)
        self.clear: Callable[[], None] = function(address + 16)


def count_events(
    windows: Windows,
    call: Callable[[Any, Any], Any],
    args: Tuple[Any, Any],
    plan: Mapping[str, Any],
    result: Result,
) -> None:
    """Run empty windows, then warm-up inferences, then those that count, each in its window.

    What they came to is known to the emulator only; the result says how many there were, so that
    the host can tell which is which. The warm-up is in windows too: they warm the modelled cache.
    The plan's `min_inferences` are counted; its `min_s` has no meaning here.
    """
    limit = int(plan["max_warmup"])
    warm_up = limit if plan["warmup"] == "fixed" else min(limit, MOST_WARM_UP)
    counted = int(plan["min_inferences"])
    windows.clear()
    _empty(windows.begin, windows.end, EMPTY_WINDOWS)
    _inferences(windows.begin, windows.end, call, args, warm_up + counted)
    result.process["windows"] = {"empty": EMPTY_WINDOWS, "warm_up": warm_up, "counted": counted}


def _empty(begin: Callable[[], None], end: Callable[[], None], times: int) -> None:
    for _ in range(times):
        begin()
        end()


def _inferences(
    begin: Callable[[], None],
    end: Callable[[], None],
    call: Callable[[Any, Any], Any],
    args: Tuple[Any, Any],
    times: int,
) -> None:
    first, second = args
    for _ in range(times):
        begin()
        call(first, second)
        end()
