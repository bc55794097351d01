"""How many filters and neurons the steps of a recipe left of each layer, as their history tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_TOTALS = ("channels", "neurons", "total")


def pruned_filters(
    history: Sequence[Mapping[str, object]], step: str | None = None
) -> tuple[tuple[str, int, int], ...]:
    """Return (layer, kept, before) of each layer that was told, in that order.

    A layer that several steps or rounds cut stands once: with what was before the first of them
    and what the last one left. Coupled layers stand under the name of the first.

    Args:
        history: of a candidate.
        step: registered name of the only step that counts; None for all.
    """
    before: dict[str, int] = {}
    left: dict[str, int] = {}
    for entry in history:
        if step is None or entry.get("step") == step:
            for name, kept, total in _told(entry):
                before.setdefault(name, total)
                left[name] = kept
    return tuple((name, left[name], total) for name, total in before.items())


def _told(entry: Mapping[str, object]) -> Iterator[tuple[str, int, int]]:
    rounds = entry.get("rounds")
    for part in (*(rounds if isinstance(rounds, list | tuple) else ()), entry):
        layers = part.get("layers") if isinstance(part, Mapping) else None
        for layer in layers if isinstance(layers, list | tuple) else ():
            if not isinstance(layer, Mapping):
                continue
            kept = layer.get("kept")
            total = next((layer[key] for key in _TOTALS if key in layer), None)
            if isinstance(kept, int) and isinstance(total, int) and total > 0:
                yield str(layer.get("name", "")), kept, total
