"""The state of a board as its agent read it, as the record keeps it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, cast

from flatsat.outcome import Health

if TYPE_CHECKING:
    from collections.abc import Mapping


def health_from_json(value: Mapping[str, object], phase: str | None = None) -> Health:
    """Read what an agent sent; fields that the record doesn't know stay in the evidence.

    Args:
        value: by the names of `Health`'s fields.
        phase: where `value` has none.
    """
    known = {field.name for field in fields(Health)}
    chosen = {key: value[key] for key in known & value.keys()}
    if phase is not None:
        chosen["phase"] = phase
    return Health(**cast("dict[str, str]", chosen))  # type: ignore[arg-type]


def degraded(before: Health, after: Health) -> str | None:
    """Return why values taken between two states can't be trusted, or None if nothing says so.

    New bits in `throttle_bits` mean that the board was slowed down or under-supplied meanwhile.
    """
    if before.throttle_bits is not None and after.throttle_bits is not None:
        new = after.throttle_bits & ~before.throttle_bits
        if new:
            return f"the board throttled or lost voltage meanwhile (new bits {new:#x})"
    return None
