"""The four splits of a workload: stratified, fixed for ever, the test split behind a door.

How an image comes to its split: the images of each class are shuffled by
`generator(SPLIT_SEED, "datasets.splits/<workload>")`; each split takes from every class its share
of that class (largest remainder, so that split sizes are exact); within a split the order is
shuffled again, so that the first k images of a split are a fair sample. No choice of a user and
no run seed changes a split.

Preprocessing is pixel / 255 as float32 with one channel. The mean is not subtracted: the empty
border of a digit stays exactly zero, which zero-point quantisation represents without error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsat.errors import DataError, FlatSatError
from flatsat.seeds import generator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from flatsat.datasets.images import LabelledImages

SPLIT_SEED = 0


class TestSplitClosedError(FlatSatError):
    """The test split was touched by code that must not see it."""

    __test__ = False  # Not a test class, whatever pytest thinks of its name.


@dataclass(frozen=True, eq=False)
class Split:
    """Preprocessed images and their labels; both arrays are read-only.

    Attributes:
        name: "train", "calibration", "validation" or "test".
        x: float32 (n, c, h, w), in [0, 1]; of pretrained networks as they were trained on it.
        y: int64 (n,).
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the bytes of `x`, then of `y`, both little-endian in C order."""
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(self.x, dtype="<f4").data)
        digest.update(np.ascontiguousarray(self.y, dtype="<i8").data)
        return digest.hexdigest()

    def first(self, count: int) -> Split:
        """Return the first `count` images as a split of the same name; no copy is made."""
        return Split(self.name, self.x[:count], self.y[:count])


@dataclass(frozen=True, eq=False)
class Splits:
    """What searches and choices may see; the test split opens by `open_test()` alone.

    Attributes:
        train: for fitting weights.
        calibration: for ranges of activations and for least squares.
        validation: for every choice.
    """

    train: Split
    calibration: Split
    validation: Split
    _load_test: Callable[[], Split]

    @property
    def test(self) -> Split:
        """Never the test split: it is opened once, at the end, by `open_test()`.

        Raises:
            TestSplitClosedError: always.
        """
        raise TestSplitClosedError(
            "the test split is closed: searches and choices may not see it",
            hint="final evaluation calls splits.open_test()",
        )

    def open_test(self) -> Split:
        """Return the test split; for the accuracy of finished candidates, nothing else.

        Raises:
            DataError: its file is missing or damaged.
        """
        return self._load_test()


def stratified(
    labels: NDArray[np.integer[Any]], sizes: Mapping[str, int], purpose: str
) -> dict[str, NDArray[np.int64]]:
    """Deal the images out to splits, each with its share of every class.

    Args:
        labels: (n,).
        sizes: images a split, by name; they must sum to n.
        purpose: names the random stream.

    Returns:
        Indices into `labels` for each split: disjoint, together all of them.

    Raises:
        DataError: the sizes don't sum to n, or one is not positive.
    """
    if sum(sizes.values()) != len(labels) or min(sizes.values()) < 1:
        raise DataError(
            f"can't split {len(labels)} images into {dict(sizes)}",
            hint="give a set with enough images for every split",
        )
    rng = generator(SPLIT_SEED, purpose)
    classes = np.unique(labels)
    piles = [rng.permutation(np.flatnonzero(labels == value)) for value in classes]
    dealt = [0] * len(piles)
    result: dict[str, NDArray[np.int64]] = {}
    for name, size in sizes.items():
        left = [len(pile) - done for pile, done in zip(piles, dealt, strict=True)]
        quotas = _largest_remainder(left, size)
        taken = [
            pile[done : done + quota]
            for pile, done, quota in zip(piles, dealt, quotas, strict=True)
        ]
        dealt = [done + quota for done, quota in zip(dealt, quotas, strict=True)]
        result[name] = rng.permutation(np.concatenate(taken)).astype(np.int64)
    return result


def _largest_remainder(available: Sequence[int], size: int) -> list[int]:
    """Share `size` in proportion to `available`, in integers that sum to `size`."""
    total = sum(available)
    # Integer arithmetic: the shares must not depend on the rounding of a machine.
    quotas = [count * size // total for count in available]
    remainders = [count * size % total for count in available]
    by_remainder = sorted(range(len(available)), key=lambda i: (-remainders[i], i))
    for i in by_remainder[: size - sum(quotas)]:
        quotas[i] += 1
    return quotas


def preprocess(name: str, images: LabelledImages, indices: NDArray[np.int64] | None) -> Split:
    """Return the images at `indices` (None: all) as a split: pixel / 255, one channel."""
    pixels = images.pixels if indices is None else images.pixels[indices]
    labels = images.labels if indices is None else images.labels[indices]
    x = pixels[:, None].astype(np.float32) / np.float32(255)
    y = labels.astype(np.int64)
    x.flags.writeable = False
    y.flags.writeable = False
    return Split(name, x, y)
