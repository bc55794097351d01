"""How long bytes take over a slow line, and whether that is still worth waiting for."""

from __future__ import annotations

from flatsat.errors import ConfigError

PATIENCE_S = 600.0
"""A transfer that would take longer is not begun unasked."""


def transfer_time_s(size_bytes: int, bytes_per_s: float) -> float:
    """Return the seconds that `size_bytes` take at a measured rate."""
    return size_bytes / bytes_per_s


def check_affordable(
    size_bytes: int, bytes_per_s: float | None, what: str, *, board: str, hint: str
) -> None:
    """Refuse a transfer that would take longer than `PATIENCE_S`.

    Args:
        size_bytes: to be sent.
        bytes_per_s: of the link, as measured; None where nobody measured it, since it is fast.
        what: is to be sent.
        board: its name.
        hint: what else can be done.

    Raises:
        ConfigError: it would; the message has size, rate and time.
    """
    if not bytes_per_s or transfer_time_s(size_bytes, bytes_per_s) <= PATIENCE_S:
        return
    minutes = transfer_time_s(size_bytes, bytes_per_s) / 60
    raise ConfigError(
        f"board {board!r}: its link carries {bytes_per_s / 1000:.1f} kB/s, so that "
        f"{what} ({size_bytes / 1e6:.0f} MB) would take {minutes:.0f} minutes",
        hint=hint,
    )
