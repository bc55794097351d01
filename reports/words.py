"""How numbers are written for people: three figures, a unit, the interval beside it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.model import Estimate

MINUS = "\u2212"
CROSS = "\u00d7"
_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_ENERGIES = ((1e9, "J"), (1e6, "mJ"), (1e3, "µJ"), (1.0, "nJ"), (1e-3, "pJ"))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_COUNTS = ((1e9, "\u00a0G"), (1e6, "\u00a0M"), (1e3, "\u00a0k"), (1.0, ""))
NONE = "\u2013"  # an en dash
_FINEST = 1e-6


def figures(value: float, digits: int = 3) -> str:
    """Return `value` with so many significant figures and no exponent: 0.0123, 1.20, 431."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" in text:
        return f"{float(text):,.0f}" if abs(value) >= 1 else f"{value:.2e}"
    whole, _, part = text.lstrip("-").partition(".")
    short = digits - len(whole.lstrip("0")) - len(part)
    if whole != "0" and short > 0:
        text = f"{float(text):.{len(part) + short}f}"
    return text


def _scaled(value: float, steps: tuple[tuple[float, str], ...], gap: str) -> str:
    # The half step lets 999.6 become 1.00 of the next unit and not 1000 of this one.
    scale, unit = next((s for s in steps if abs(value) >= 0.9995 * s[0]), steps[-1])
    return f"{figures(value / scale)}{gap}{unit}"


def time_unit(ns: float) -> tuple[float, str]:
    """Return (nanoseconds in it, its name) of the unit that suits a duration."""
    return next((s for s in _TIMES if abs(ns) >= 0.9995 * s[0]), _TIMES[-1])


def duration(ns: float | None) -> str:
    """Return a duration given in nanoseconds: "118 µs", "1.24 ms"."""
    return NONE if ns is None else _scaled(ns, _TIMES, "\u00a0")


def energy(nj: float | None) -> str:
    """Return an energy given in nanojoules: "431 nJ", "22.8 µJ"."""
    return NONE if nj is None else _scaled(nj, _ENERGIES, "\u00a0")


def energy_unit(nj: float) -> tuple[float, str]:
    """Return (nanojoules in it, its name) of the unit that suits an energy."""
    return next((s for s in _ENERGIES if abs(nj) >= 0.9995 * s[0]), _ENERGIES[-1])


def fine_percent(share: float | None) -> str:
    """Return a small share as a percentage with two figures: "0.0052 %", "12 %", "0 %"."""
    if share is None:
        return NONE
    if 0 < share < _FINEST:
        return f"<{100 * _FINEST:g}\u00a0%"
    return f"{figures(100 * share, 2 if share < 0.1 else 3)}\u00a0%"


def listed(names: Sequence[str]) -> str:
    """Return names in a row: "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def size(count: float | None) -> str:
    """Return a number of bytes in powers of 1000: "1.73 MB"."""
    return NONE if count is None else _scaled(count, _BYTES, "\u00a0")


def memory(size_bytes: int) -> str:
    """Return a size of memory or cache as people say it, in powers of 1024: "32 KiB", "1 MiB"."""
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.4g}\u00a0{unit}"
    return f"{size_bytes}\u00a0B"


def count(value: float | None) -> str:
    """Return a count: "431 k", "2.29 M"."""
    return NONE if value is None else _scaled(value, _COUNTS, "")


def exact(value: float | None) -> str:
    """Return a count in full: "431,080"."""
    return NONE if value is None else f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as a percentage: "96.1 %"."""
    return NONE if share is None else f"{100 * share:.{digits}f}\u00a0%"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, signed: "−0.3"."""
    text = f"{100 * share:+.1f}".replace("-", MINUS)
    return "0.0" if text.strip("+" + MINUS) == "0.0" else text


def times(ratio: float | None) -> str:
    """Return a ratio: "2.10×", "12.3×"."""
    if ratio is None:
        return NONE
    return f"{ratio:.2f}{CROSS}" if ratio < 10 else f"{figures(ratio)}{CROSS}"


def seconds(value: float | None) -> str:
    """Return seconds as people say them: "42 s", "3 min 10 s", "2 h 5 min"."""
    if value is None:
        return NONE
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def interval_ns(estimate: Estimate) -> str:
    """Return the interval of a duration, in the unit of its value: "116 to 121"; "" without."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    scale, _ = time_unit(estimate.value)
    return between(estimate.value / scale, estimate.low / scale, estimate.high / scale)


def between(value: float, low: float, high: float) -> str:
    """Return the ends of an interval, "116 to 121"; its half width where both read the same."""
    first, last = figures(low), figures(high)
    if first != last or value == 0:
        return f"{first} to {last}"
    half = max(high - value, value - low) / abs(value)
    return f"within {fine_percent(_FINEST)}" if 0 < half < _FINEST else f"±{fine_percent(half)}"


def missing(estimate: Estimate) -> str:
    """Return why an estimate has no value: "not available (n=40 < 662)"."""
    if estimate.needs is not None and estimate.n < estimate.needs:
        return f"not available (n={estimate.n} < {estimate.needs})"
    return f"not available (n={estimate.n})"


def moment(utc: str | None) -> str:
    """Return an ISO 8601 time as "24 Nov 2026, 23:10 UTC"; the text itself if it is no time."""
    if not utc:
        return NONE
    try:
        when = datetime.fromisoformat(utc)
    except ValueError:
        return utc
    return f"{when.day} {when:%b %Y, %H:%M} UTC"


def plural(n: int, one: str, many: str | None = None) -> str:
    """Return "1 job", "3 jobs"."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
