"""The best candidate of a section, by a rule that the page states beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsat.reports.model import Headline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flatsat.reports.model import MeasurementReport


def smoke_headline() -> Headline:
    """Return why nothing is ranked by an emulator's real clock."""
    return Headline(
        "An emulator's real clock says how busy this computer was: the values show that everything "
        "runs, and rank nothing",
        None,
        shown=False,
    )


def headline(measured: Sequence[MeasurementReport], margin: float) -> Headline:
    """Return the winner of measurements that stand fastest first.

    The fastest whose loss of accuracy is shown to be under `margin` (the interval's end, not its
    middle, decides); failing that, the fastest whose loss is found to be under it, marked as not
    shown. A narrow network trained from scratch may win: then compression brought nothing.
    """
    timed = [m for m in measured if m.p50_ns.value is not None]
    others = [m for m in timed if m.versus_reference is not None]
    if not others:
        return _alone(timed)
    judged = [
        (m, m.accuracy.loss)
        for m in others
        if m.accuracy is not None and m.accuracy.loss is not None
    ]
    if not judged:
        rule = "the lowest median latency; nothing is known of accuracy on this board"
        return _against_reference(others[0], measured, rule, shown=False)
    n = max(loss.n for _, loss in judged)
    points = f"{100 * margin:.1f} {'point' if margin == 0.01 else 'points'}"
    images = f"on the same {n:,} test images"
    for m, loss in judged:
        if loss.high is not None and loss.high < margin:
            rule = (
                "the lowest median latency among candidates whose loss of accuracy is shown to be "
                f"under {points} (95\u00a0% interval, {images})"
            )
            return _against_reference(m, measured, rule, shown=True)
    for m, loss in judged:
        if loss.value is not None and loss.value < margin:
            rule = (
                f"the lowest median latency among candidates that lost under {points} {images}; "
                "with so few images the interval reaches beyond that, so the loss may be larger"
            )
            return _against_reference(m, measured, rule, shown=False)
    return Headline(
        f"No candidate kept its accuracy within {points} of the dense reference ({images})",
        None,
        shown=False,
    )


def _alone(timed: Sequence[MeasurementReport]) -> Headline:
    if not timed:
        return Headline("No latency was measured", None, shown=False)
    if len(timed) == 1:
        return Headline("the only one measured here", timed[0].label, shown=True)
    rule = "the lowest median latency; there is no dense reference here to hold it against"
    return Headline(rule, timed[0].label, shown=True)


def _against_reference(
    best: MeasurementReport, measured: Sequence[MeasurementReport], rule: str, *, shown: bool
) -> Headline:
    ratio = best.versus_reference
    assert ratio is not None
    reference = next((m for m in measured if m.label == ratio.against), None)
    smaller = reference.size_bytes / best.size_bytes if reference and best.size_bytes else None
    return Headline(rule, best.label, shown=shown, smaller=smaller, faster=ratio)
