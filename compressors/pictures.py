"""What a candidate's folder keeps for pictures: pattern, histograms, codebooks, first filters.

Small whatever the network: one mask, of the layers with most weights a histogram of so many bins
before and after compression, with the levels on which quantised weights stand, and the filters of
the first convolution.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flatsat.compressors.candidate import npz_bytes
from flatsat.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from flatsat.compressors.base import Network
    from flatsat.compressors.layers import LayerInfo

PICTURES_FILE = "pictures.npz"
BINS = 64
MOST_LAYERS = 12
MOST_LEVELS = 256
MOST_FILTERS = 64
_MOST_SIDE = 11
_BLOCK = 1 << 22


@dataclass(frozen=True)
class WeightHistogram:
    """How the weights of a layer are spread before and after compression.

    Zeros that a mask holds, or that stand where a layer lost weights, are counted apart and in no
    bin.

    Attributes:
        layer: its name.
        low, high: ends of the bins, which are equally wide.
        after: weights in each bin.
        zeros: weights that are zero, of all.
        before: the same of the network that the recipe started from, None where the layer was
            not in it or that network was untrained.
        codebook: the levels on which the weights stand, rising, without the zero of a mask; ()
            where they are not quantised or take more than `MOST_LEVELS`.
    """

    layer: str
    low: float
    high: float
    after: tuple[int, ...]
    zeros: int
    before: tuple[int, ...] | None = None
    codebook: tuple[float, ...] = ()


@dataclass(frozen=True)
class FirstFilters:
    """The filters that look at the image.

    Attributes:
        layer: its name.
        after, before: float32 (filters, channels, height, width), the first `MOST_FILTERS`;
            `before` of the network that the recipe started from, None where it has no such layer.
    """

    layer: str
    after: NDArray[np.float32]
    before: NDArray[np.float32] | None = None


def first_dense(network: Network, found: Sequence[LayerInfo]) -> dict[str, NDArray[np.bool_]]:
    """Return the sparsity pattern of the first dense layer (rows: outputs), {} without one."""
    for info in found:
        if info.kind == "fc":
            return {info.name: _weights(network.module, info.name) != 0}
    return {}


def pictures(
    network: Network, found: Sequence[LayerInfo], before: nn.Module | None = None
) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of `PICTURES_FILE`, by name.

    Args:
        network: as compressed.
        found: its weighted layers in the order of execution.
        before: the trained network that the recipe started from, or None without one.

    Returns:
        For each of the `MOST_LAYERS` layers with most weights "range:LAYER" (2,) float64,
        "after:LAYER" and, where known, "before:LAYER" (`BINS`,) int64, "zeros:LAYER" () int64, and
        of quantised layers "codebook:LAYER" (levels,) float32; "layers", their names in order. Of
        the first convolution, if it is of a size to be seen, "filters:LAYER" and, where known,
        "filters_before:LAYER" (filters, channels, height, width) float32.
    """
    largest = sorted(found, key=lambda info: -info.params)[:MOST_LAYERS]
    kept = [info.name for info in found if info in largest]
    quantised = _quantised(network.history)
    arrays: dict[str, NDArray[Any]] = {}
    held: list[str] = []
    for name in kept:
        after = _weights(network.module, name).reshape(-1)
        present = after[after != 0]
        earlier = _weights_or_none(before, name)
        # The range is that of both, so that the two can be laid over each other.
        ends = [part for part in (present, earlier) if part is not None and part.size]
        if not ends or not all(np.isfinite(part).all() for part in ends):
            continue
        low = float(min(part.min() for part in ends))
        high = float(max(part.max() for part in ends))
        if high <= low:
            low, high = low - 0.5, high + 0.5
        held.append(name)
        arrays[f"range:{name}"] = np.array([low, high], dtype=np.float64)
        arrays[f"after:{name}"] = _counts(present, low, high)
        arrays[f"zeros:{name}"] = np.array(after.size - present.size, dtype=np.int64)
        if earlier is not None:
            arrays[f"before:{name}"] = _counts(earlier[earlier != 0], low, high)
        levels = _levels(present, quantised[name]) if name in quantised else None
        if levels is not None:
            arrays[f"codebook:{name}"] = levels
    arrays |= _first_filters(network.module, found, before)
    arrays["layers"] = np.array(held, dtype=np.str_) if held else np.zeros(0, dtype="<U1")
    return arrays


def _first_filters(
    module: nn.Module, found: Sequence[LayerInfo], before: nn.Module | None
) -> dict[str, NDArray[Any]]:
    first = next((info.name for info in found if info.kind == "conv"), None)
    if first is None:
        return {}
    weight = _weights(module, first)
    if weight.ndim != 4 or not 1 < max(weight.shape[2:]) <= _MOST_SIDE:
        return {}
    arrays = {f"filters:{first}": weight[:MOST_FILTERS]}
    try:
        earlier = None if before is None else _weights(before, first)
    except AttributeError:
        earlier = None
    if earlier is not None and earlier.shape[1:] == weight.shape[1:]:
        arrays[f"filters_before:{first}"] = earlier[:MOST_FILTERS]
    return arrays


def put_pictures(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write what `pictures` returned into a candidate's folder.

    Raises:
        OSError: the folder can't be written.
    """
    (folder / PICTURES_FILE).write_bytes(npz_bytes(arrays))


def histograms(folder: Path) -> tuple[WeightHistogram, ...]:
    """Return the histograms that a candidate's folder keeps, () where it keeps none.

    Raises:
        ModelError: the file is damaged.
    """
    with _stored(folder) as stored:
        names = [str(name) for name in stored["layers"].tolist()] if stored else []
        return tuple(_histogram(stored, name) for name in names)


def first_filters(folder: Path) -> FirstFilters | None:
    """Return the filters of the first convolution that a candidate's folder keeps, if it does.

    Raises:
        ModelError: the file is damaged.
    """
    with _stored(folder) as stored:
        for key in stored:
            kind, _, layer = key.partition(":")
            if kind == "filters":
                return FirstFilters(layer, stored[key], stored.get(f"filters_before:{layer}"))
    return None


@contextlib.contextmanager
def _stored(folder: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Open the file of pictures, {} without one; what is wrong with it becomes a ModelError."""
    path = folder / PICTURES_FILE
    if not path.is_file():
        yield {}
        return
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise ModelError(
            f"{path} is damaged: {text}", hint="delete the candidate's folder and build it again"
        ) from error


def _histogram(stored: Mapping[str, NDArray[Any]], name: str) -> WeightHistogram:
    low, high = (float(v) for v in stored[f"range:{name}"])
    before, codebook = f"before:{name}", f"codebook:{name}"
    return WeightHistogram(
        layer=name,
        low=low,
        high=high,
        after=tuple(int(n) for n in stored[f"after:{name}"]),
        zeros=int(stored[f"zeros:{name}"]),
        before=tuple(int(n) for n in stored[before]) if before in stored else None,
        codebook=tuple(float(v) for v in stored[codebook]) if codebook in stored else (),
    )


def _weights(module: nn.Module, name: str) -> NDArray[np.float32]:
    weight: Any = module.get_submodule(name).weight
    values: NDArray[np.float32] = weight.detach().numpy()
    return values


def _weights_or_none(module: nn.Module | None, name: str) -> NDArray[np.float32] | None:
    """Return a layer's weights flat, None where there is no such layer."""
    if module is None:
        return None
    try:
        return _weights(module, name).reshape(-1)
    except AttributeError:
        # A step may have put several layers in the place of one.
        return None


def _counts(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64]:
    counts = np.zeros(BINS, dtype=np.int64)
    # Block by block: NumPy's own working copy of a hundred million weights is wide.
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        counts += np.histogram(block, bins=BINS, range=(low, high))[0]
    return counts


def _levels(present: NDArray[np.float32], told: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return the levels of a quantised layer: as its step tells them, else those in use."""
    told_levels = told.get("codebook")
    if isinstance(told_levels, Sequence) and 0 < len(told_levels) <= MOST_LEVELS:
        return np.unique(np.asarray(told_levels, dtype=np.float32))
    levels = np.unique(present)
    return levels if 0 < levels.size <= MOST_LEVELS else None


def _quantised(history: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, Any]]:
    """Return the last entry about each layer whose weights stand on levels, by layer name."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in history:
        layers = entry.get("layers", ())
        for layer in layers if isinstance(layers, Sequence) else ():
            if isinstance(layer, Mapping) and ("codebook" in layer or "range_bytes" in layer):
                parameter = str(layer.get("parameter", layer.get("name", "")))
                found[parameter.removesuffix(".weight")] = layer
    return found
