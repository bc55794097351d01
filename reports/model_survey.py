"""What a report shows of methods beside their measurements.

`harness` reads it from the candidates' folders, which keep more than the record does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepReport:
    """One transform of a candidate's recipe: its registered name and parameters."""

    use: str
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsPicture:
    """How a layer's weights are spread before and after compression, zeros left out.

    Attributes:
        layer: its name.
        low, high: ends of the equally wide bins.
        after: weights in each bin.
        zeros: weights that are zero.
        before: of the dense reference, the same bins; None where it has no such layer.
        codebook: the levels on which quantised weights stand, rising; () without any.
    """

    layer: str
    low: float
    high: float
    after: tuple[int, ...]
    zeros: int
    before: tuple[int, ...] | None = None
    codebook: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse bins that can't be drawn."""
        if not self.low < self.high or not self.after:
            raise ValueError(f"histogram of {self.layer!r}: no bins from {self.low} to {self.high}")
        if self.before is not None and len(self.before) != len(self.after):
            raise ValueError(f"histogram of {self.layer!r}: {len(self.before)} bins before, "
                             f"{len(self.after)} after")  # fmt: skip


@dataclass(frozen=True)
class FiltersPicture:
    """The filters of a network's first convolution, side by side, before and after compression.

    Middle grey is a weight of zero; both pictures have one scale.

    Attributes:
        layer: its name.
        after, before: rows of filters with a line between them; `before` is the dense network's,
            None where it has no such layer.
        filters: how many there are now, and how many there were (None likewise).
        shown: how many are drawn at most.
    """

    layer: str
    after: ImageAtBits
    before: ImageAtBits | None
    filters: tuple[int, int | None]
    shown: int


@dataclass(frozen=True)
class Kept:
    """What a candidate's folder tells beside the record.

    Attributes:
        history: what each step told, in order.
        bytes_by_coding: size of all parameters under each way to store them.
        coded: (coder, bytes) of each coded artifact, by the artifact's sha256.
        weights: in the order of the layers.
        filters: of the first convolution, None where there is none to be seen.
    """

    history: tuple[Mapping[str, object], ...] = ()
    bytes_by_coding: Mapping[str, int] = field(default_factory=dict)
    coded: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    weights: tuple[WeightsPicture, ...] = ()
    filters: FiltersPicture | None = None


@dataclass(frozen=True)
class ImageAtBits:
    """An input image whose values stand on 2^bits levels.

    Attributes:
        bits: None for the image as it is.
        height, width: in pixels.
        channels: 1 (grey) or 3 (red, green, blue).
        pixels: height x width x channels values from 0 to 255, row by row.
    """

    bits: int | None
    height: int
    width: int
    channels: int
    pixels: bytes

    def __post_init__(self) -> None:
        """Refuse pixels that can't be an image of this shape."""
        if self.channels not in (1, 3):
            raise ValueError(f"an image of {self.channels} channels")
        if len(self.pixels) != self.height * self.width * self.channels:
            raise ValueError(
                f"{len(self.pixels)} values can't be {self.height} x {self.width} pixels "
                f"of {self.channels}"
            )


@dataclass(frozen=True)
class Survey:
    """What the folders of a run's candidates tell.

    Attributes:
        kept: by candidate_id; a candidate whose folder is gone has none.
        images: of each workload, an input at several numbers of bits.
    """

    kept: Mapping[str, Kept] = field(default_factory=dict)
    images: Mapping[str, tuple[ImageAtBits, ...]] = field(default_factory=dict)

    def of(self, candidate_id: str) -> Kept:
        """Return what is known of a candidate, nothing where there is nothing."""
        return self.kept.get(candidate_id, Kept())
