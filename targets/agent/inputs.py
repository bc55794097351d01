"""Inputs made from a model's signature: same model, same values, on every board."""

from __future__ import annotations

import re
import zlib
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from .faults import AgentFault

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

    Floats are standard normal, int8 and uint8 span their range (they are quantised values), wider
    integers are 0 or 1 (they are mostly indices or masks, and 0 and 1 are valid for nearly all).

    Raises:
        AgentFault: (config, "open-axis"), or (config, "input-type") for an element type that can't
            be made up, such as strings.
    """
    return {info.name: _draw(info, resolve(info, batch, axes)) for info in infos}


def _draw(info: TensorInfo, shape: Tuple[int, ...]) -> np.ndarray[Any, Any]:
    seed = np.random.SeedSequence(0, spawn_key=(zlib.crc32(info.name.encode()),))
    random = np.random.Generator(np.random.PCG64(seed))
    dtype = _dtype(info)
    values: Any
    if dtype.kind == "f":
        values = random.standard_normal(shape)
    elif dtype.kind == "b" or dtype.itemsize > 1:
        values = random.integers(0, 2, shape)
    else:
        bounds = np.iinfo(dtype)
        values = random.integers(bounds.min, bounds.max + 1, shape)
    # asarray keeps a scalar input a 0-d array.
    return np.asarray(values).astype(dtype)


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
