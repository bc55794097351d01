"""Inputs made from a model's signature: same model, same values, on every board."""

from __future__ import annotations

import re
import zlib
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from .faults import AgentFault

_BLOCK = 1 << 14
_QUARTERS_MEAN = 4 * 0xFFFF / 2
_QUARTERS_SD = (4 * (0x10000**2 - 1) / 12) ** 0.5
_BATCH_NAME = re.compile(r"(?i)n|b|bs|unk__\d+|.*batch.*")


class TensorInfo(NamedTuple):
    """An input or output: an axis is its length, or a name ("" where it has none) if it is open."""

    name: str
    dtype: str
    shape: Tuple[Union[int, str], ...]


def is_batch_axis(info: TensorInfo) -> bool:
    """Return whether the first axis is open and counts examples, by its name or by having none."""
    if not info.shape or isinstance(info.shape[0], int):
        return False
    return not info.shape[0] or _BATCH_NAME.fullmatch(info.shape[0]) is not None


def resolve(info: TensorInfo, batch: int, axes: Mapping[str, int]) -> Tuple[int, ...]:
    """Return the input's shape with every open axis set.

    An open axis takes its length from `axes`, by its name or as "INPUT:POSITION"; the batch axis
    takes `batch` where `axes` says nothing.

    Raises:
        AgentFault: (config, "open-axis") nothing gives an axis its length.
    """
    lengths: List[int] = []
    for position, length in enumerate(info.shape):
        place = "%s:%d" % (info.name, position)
        if isinstance(length, int):
            lengths.append(length)
        elif length and length in axes:
            lengths.append(axes[length])
        elif place in axes:
            lengths.append(axes[place])
        elif position == 0 and is_batch_axis(info):
            lengths.append(batch)
        else:
            key = length or place
            raise AgentFault(
                "config",
                "open-axis",
                "input %r: axis %d (%s) has no fixed length"
                % (info.name, position, repr(length) if length else "without a name"),
                "give it with --axis %s=1" % key,
            )
    return tuple(lengths)


def generate(
    infos: Sequence[TensorInfo], batch: int, axes: Mapping[str, int]
) -> Dict[str, np.ndarray[Any, Any]]:
    """Return one array an input, drawn from a seed that is the input's name.

    Floats are nearly standard normal (sums of four uniform values, within 3.5). int8 and uint8 span
    their range, since they are quantised values. Wider integers are 0 or 1: they are mostly indices
    or masks, for nearly all of which 0 and 1 are valid.

    Raises:
        AgentFault: (config, "open-axis"), or (config, "input-type") for an element type that can't
            be made up, such as strings.
    """
    return {info.name: _draw(info, resolve(info, batch, axes)) for info in infos}


def _draw(info: TensorInfo, shape: Tuple[int, ...]) -> np.ndarray[Any, Any]:
    dtype = _dtype(info)
    drawn = np.empty(shape, dtype)
    flat = drawn.reshape(-1)
    seed = zlib.crc32(info.name.encode())
    # In blocks: a large input's random words must not set the peak memory of the process.
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        block[:] = _values(dtype, random_bits(seed + start, block.size))
    return drawn


def _values(dtype: np.dtype[Any], bits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if dtype.kind == "f":
        quarters = bits.view("<u2").reshape(len(bits), 4).sum(axis=1, dtype=np.int64)
        return np.asarray((quarters - _QUARTERS_MEAN) / _QUARTERS_SD)
    if dtype.kind == "b" or dtype.itemsize > 1:
        return bits & np.uint64(1)
    return bits.view("u1")[::8].view(dtype)


def random_bits(seed: int, count: int) -> np.ndarray[Any, Any]:
    """Return `count` little-endian words of 64 random bits, by splitmix64 (Steele et al., 2014).

    All integer, so every board gets the same; and `numpy.random` takes longer to import than many
    a model to load.
    """
    words = np.arange(seed + 1, seed + 1 + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)), "<u8")


def _dtype(info: TensorInfo) -> np.dtype[Any]:
    try:
        dtype: Optional[np.dtype[Any]] = np.dtype(info.dtype)
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "fiub":
        raise AgentFault(
            "config",
            "input-type",
            "input %r holds %s, for which no values can be generated" % (info.name, info.dtype),
            "give goldens or a data set with this input",
        )
    return dtype
